// Of the tab "One image": which choice the answer is awaited of, thumbnails that are pressed, and pictures that
// are pasted anywhere on the page. gr.HTML gives `element`, `props` and `trigger`.

// Choices are numbered, and of the answers the page shows the one to the last choice, whichever comes last.
let choices = 0;
let awaited = 0; // 0 where there is nothing to wait for
let ofFile = 0; // of the choice that is being uploaded

// What is shown goes at once, by CSS: where the connection is lost, Gradio lets nothing else be changed.
const hold = (held) => document.querySelector("#one-image").toggleAttribute("data-awaited", held);

function begin() {
  awaited = ++choices;
  hold(true);
  trigger("input");
  return awaited;
}

// For the events of the tab; undefined leaves a part as it is.
window.oneImage = {
  file: (file) => [ofFile === awaited ? file : null, ofFile],
  show(answer) {
    if (!awaited || answer?.choice !== awaited) return [undefined, undefined, null];
    awaited = 0;
    hold(false);
    return [answer.said, answer.view, null];
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

// Listens on the page, and no longer than this tab is on it.
function listen(name, heard) {
  const listener = (event) => {
    if (element.isConnected) heard(event);
    else document.removeEventListener(name, listener, true);
  };
  document.addEventListener(name, listener, true);
}

const within = (event, place) => event.target instanceof Element && event.target.closest(place);

// Ahead of Gradio, which tells of a file once it is uploaded, and of one that is too large not at all.
function chosen(event) {
  const files = event.type === "drop" ? event.dataTransfer?.files : event.target.files;
  if (within(event, "#image-file") && files?.length) ofFile = begin();
}
listen("change", chosen);
listen("drop", chosen);

listen("paste", (event) => {
  const file = event.clipboardData?.files[0];
  const input = document.querySelector("#image-file input[type=file]");
  // Text is pasted into a field as ever. On another tab this one isn't laid out, and the picture isn't for it.
  if (!file || !input || element.offsetParent === null) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// A screen reader says where the slider stands, and not the number of the setting.
function say(event) {
  if (!within(event, "#image-setting input[type=range]")) return;
  const point = props.points[Number(event.target.value)];
  if (point) event.target.setAttribute("aria-valuetext", point);
}
listen("focusin", say);
listen("input", say);
