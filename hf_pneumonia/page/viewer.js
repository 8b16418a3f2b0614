// Shows the component's value; zoom, position and opacity are handled in the browser. gr.HTML provides `element`,
// `props` and `watch`.
const MAX_SCALE = 8; // relative to the size that fits
const STEP = 1.25; // per click
const MOVE = 0.1; // per arrow key, in widths and heights of a pane

const all = (selector) => [...element.querySelectorAll(selector)];
const one = (selector) => element.querySelector(selector);
const stage = one(".stage");
const slider = one(".opacity input");

// The upper left corner of the sheet in widths and heights of its pane, independent of the window's size.
let scale = 1, x = 0, y = 0;

function place() {
  const inside = (corner) => Math.min(0, Math.max(1 - scale, corner));
  x = inside(x);
  y = inside(y);
  for (const sheet of all(".sheet"))
    sheet.style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${scale})`;
  one(".zoom output").textContent = `${Math.round(100 * scale)}%`;
  stage.classList.toggle("zoomed", scale > 1);
}

// The point at (atX, atY) of a pane stays fixed.
function zoom(factor, atX = 0.5, atY = 0.5) {
  let next = Math.min(MAX_SCALE, Math.max(1, scale * factor));
  if (next < 1.001) next = 1; // rounding errors
  x = atX - (atX - x) * (next / scale);
  y = atY - (atY - y) * (next / scale);
  scale = next;
  place();
}

function reset() {
  scale = 1;
  x = y = 0;
  place();
}

function fade() {
  one(".heat").style.opacity = slider.value / 100;
  one(".opacity output").textContent = `${slider.value}%`;
  slider.setAttribute("aria-valuetext", `${slider.value}%`);
}

function show() {
  const value = props.value;
  one(".empty").hidden = Boolean(value);
  one(".shown").hidden = !value;
  if (!value) {
    for (const image of all("image")) image.removeAttribute("href"); // not kept for the next person
    return reset();
  }
  for (const sheet of all(".sheet")) sheet.setAttribute("viewBox", `0 0 ${value.width} ${value.height}`);
  for (const image of all("image")) {
    image.setAttribute("width", value.width);
    image.setAttribute("height", value.height);
  }
  for (const image of all(".image")) image.setAttribute("href", value.image.url);
  if (value.heat) one(".heat").setAttribute("href", value.heat.url);
  else one(".heat").removeAttribute("href");
  one(".mapped").hidden = one(".opacity").hidden = !value.heat;
  one(".caption").textContent = value.caption;
  // A very wide or tall image gets a margin, so that it and the controls stay visible.
  stage.style.setProperty("--shape", Math.min(2, Math.max(0.5, value.width / value.height)));
  reset();
}

// The position of an event in widths and heights of its pane.
function within(pane, event) {
  const box = pane.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

const fingers = new Map(); // or the mouse: pointer -> last position

function move(pane, event) {
  if (!fingers.has(event.pointerId)) return;
  const before = [...fingers.values()];
  const [wasX, wasY] = fingers.get(event.pointerId);
  const [atX, atY] = within(pane, event);
  fingers.set(event.pointerId, [atX, atY]);
  if (fingers.size === 1) {
    x += atX - wasX;
    y += atY - wasY;
    place();
  } else if (fingers.size === 2) {
    const after = [...fingers.values()];
    const box = pane.getBoundingClientRect();
    const apart = ([a, b]) => Math.max(1, Math.hypot((a[0] - b[0]) * box.width, (a[1] - b[1]) * box.height));
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    x += middle(after)[0] - middle(before)[0];
    y += middle(after)[1] - middle(before)[1];
    zoom(apart(after) / apart(before), ...middle(after));
  }
}

for (const pane of all(".pane")) {
  pane.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button !== 0) return;
    pane.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, within(pane, event));
  });
  pane.addEventListener("pointermove", (event) => move(pane, event));
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
    pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
  // Two fingers zoom the image, not the page; one finger scrolls the page unless the image is zoomed.
  pane.addEventListener("touchmove", (event) => {
    if (event.cancelable && (event.touches.length > 1 || scale > 1)) event.preventDefault();
  }, { passive: false });
  pane.addEventListener("wheel", (event) => {
    const turned = event.deltaY * (event.deltaMode === 1 ? 16 : 1); // lines, in Firefox
    const larger = turned < 0;
    // At either end of the zoom the wheel scrolls the page. A pinch on a touchpad is a wheel event with ctrl, which
    // would zoom the page.
    if (!event.ctrlKey && (larger ? scale >= MAX_SCALE : scale <= 1)) return;
    event.preventDefault();
    zoom(Math.exp(-Math.max(-100, Math.min(100, turned)) * (event.ctrlKey ? 0.01 : 0.002)), ...within(pane, event));
  }, { passive: false });
}

const KEYS = {
  "+": () => zoom(STEP),
  "=": () => zoom(STEP), // the same key without shift
  "-": () => zoom(1 / STEP),
  "0": reset,
  ArrowLeft: () => { x += MOVE; },
  ArrowRight: () => { x -= MOVE; },
  ArrowUp: () => { y += MOVE; },
  ArrowDown: () => { y -= MOVE; },
};
stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  if (event.key.startsWith("Arrow") && scale === 1) return; // scrolls the page
  event.preventDefault();
  KEYS[event.key]();
  place();
});
one(".in").addEventListener("click", () => zoom(STEP));
one(".out").addEventListener("click", () => zoom(1 / STEP));
one(".reset").addEventListener("click", reset);
slider.addEventListener("input", fade);
watch("value", show);
fade();
show();
