// The tab "One image": which choice awaits its answer, clicks on thumbnails, and images pasted anywhere on the
// page. gr.HTML provides `element`, `props` and `trigger`.

// Choices are numbered: only the answer to the last choice is shown, whatever the order of arrival.
let choices = 0;
let awaited = 0; // 0 if nothing is awaited
let ofFile = 0; // the choice of the current upload

// CSS hides the last answer at once: without a connection, Gradio changes nothing else.
const hold = (held) => document.querySelector("#one-image").toggleAttribute("data-awaited", held);

function begin() {
  awaited = ++choices;
  hold(true);
  trigger("input");
  return awaited;
}

// For the events of the tab; undefined leaves a component unchanged.
window.oneImage = {
  file: (file) => [ofFile === awaited ? file : null, ofFile],
  show(answer) {
    if (!awaited || answer?.choice !== awaited) return [undefined, undefined, null];
    awaited = 0;
    hold(false);
    return [answer.answer, answer.view, null];
  },
  fail(problem) {
    if (!awaited) return [undefined, undefined, null];
    awaited = 0;
    hold(false);
    return [{ problem }, `<p>${problem}</p>`, null];
  },
  clear() {
    awaited = 0;
    hold(false);
  },
};

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (button) trigger("select", { number: Number(button.dataset.example), choice: begin() });
});

// Listens on the document for as long as this component is in it.
function listen(name, handle) {
  const listener = (event) => {
    if (element.isConnected) handle(event);
    else document.removeEventListener(name, listener, true);
  };
  document.addEventListener(name, listener, true);
}

const within = (event, place) => event.target instanceof Element && event.target.closest(place);

// Before Gradio, which reports a file only after its upload, and a file that is too large never.
function chosen(event) {
  const files = event.type === "drop" ? event.dataTransfer?.files : event.target.files;
  if (within(event, "#image-file") && files?.length) ofFile = begin();
}
listen("change", chosen);
listen("drop", chosen);

listen("paste", (event) => {
  const file = event.clipboardData?.files[0];
  const input = document.querySelector("#image-file input[type=file]");
  // Pasted text goes to its field as usual. The element has no layout while another tab is open.
  if (!file || !input || element.offsetParent === null) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// Screen readers announce the threshold instead of the slider's index.
function announce(event) {
  if (!within(event, "#image-setting input[type=range]")) return;
  const point = props.points[Number(event.target.value)];
  if (point) event.target.setAttribute("aria-valuetext", point);
}
listen("focusin", announce);
listen("input", announce);
