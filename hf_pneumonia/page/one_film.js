// Of the tab "One film": thumbnails that are pressed, and pictures that are pasted anywhere on the page.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (button) trigger("select", { number: Number(button.dataset.example) });
});

function paste(event) {
  if (!element.isConnected) return document.removeEventListener("paste", paste);
  const file = event.clipboardData?.files[0];
  const input = document.querySelector("#film-file input[type=file]");
  // Text is pasted into a field as ever. On another tab this one isn't laid out, and the picture isn't for it.
  if (!file || !input || element.offsetParent === null) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
document.addEventListener("paste", paste);
