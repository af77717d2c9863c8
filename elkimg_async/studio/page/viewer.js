// The viewer: one image at a time, with arrows, full size, and a slider between before and after.

import { inputUrl } from "./api.js";
import { $ } from "./words.js";

const viewer = $("viewer");
const stage = $("viewer-stage");
let shown = null;
let opener = null; // what had the focus before

/** Show the image of a figure; with `comparing`, beside the one that was edited. */
export function view(figure, comparing = false) {
  show(figure);
  compare(comparing);
  if (!viewer.open) {
    opener = document.activeElement;
    viewer.showModal();
  }
}

function finished() {
  return [...document.querySelectorAll("#cards figure")].map((node) => node.figure).filter((figure) => figure.image);
}

function show(figure) {
  shown = figure;
  const all = finished();
  const place = all.indexOf(figure);
  const { prompt } = figure.card.job;
  setZoom(false);
  compare(false);
  Object.assign($("viewer-image"), { src: figure.url, alt: prompt });
  Object.assign($("viewer-download"), { href: figure.url, download: figure.image.name });
  $("viewer-prompt").textContent = prompt;
  $("viewer-place").textContent = `${place + 1} of ${all.length}`;
  $("viewer-compare").hidden = !figure.before;
  $("viewer-previous").disabled = place <= 0;
  $("viewer-next").disabled = place === all.length - 1;
}

function turn(step) {
  const all = finished();
  const next = all[all.indexOf(shown) + step];
  if (next) show(next);
}

// --- full size ----------------------------------------------------------------------------------------

function setZoom(full) {
  stage.classList.toggle("full", full);
  $("viewer-zoom").ariaPressed = String(full);
  if (!full) return;
  stage.scrollTo((stage.scrollWidth - stage.clientWidth) / 2, (stage.scrollHeight - stage.clientHeight) / 2);
}

// --- before and after ---------------------------------------------------------------------------------

function compare(on) {
  const before = $("viewer-before");
  $("viewer-slider-row").hidden = before.hidden = !on;
  $("viewer-compare").ariaPressed = String(on);
  stage.classList.toggle("comparing", on);
  if (!on) return;
  Object.assign(before, { src: inputUrl(shown.before), alt: "The image before the edit" });
  $("viewer-slider").value = 50;
  slide();
}

function slide() {
  const { value } = $("viewer-slider");
  stage.style.setProperty("--part", value / 100);
  $("viewer-slider").setAttribute("aria-valuetext", `${value}% before, ${100 - value}% after`);
}

// The image before the edit covers the one after it, whatever its own size.
const places = new ResizeObserver(() => {
  const { offsetLeft: left, offsetTop: top, offsetWidth: width, offsetHeight: height } = $("viewer-image");
  for (const [name, value] of Object.entries({ left, top, width, height })) stage.style.setProperty(`--${name}`, `${value}px`);
});
places.observe(stage);
places.observe($("viewer-image"));

// Dragging on the image moves the border between before and after.
function slideTo(event) {
  const box = $("viewer-image").getBoundingClientRect();
  $("viewer-slider").value = Math.round((100 * (event.clientX - box.left)) / box.width);
  slide();
}

$("viewer-slider").addEventListener("input", slide);
$("viewer-compare").addEventListener("click", () => compare($("viewer-before").hidden));
$("viewer-zoom").addEventListener("click", () => setZoom(!stage.classList.contains("full")));
$("viewer-previous").addEventListener("click", () => turn(-1));
$("viewer-next").addEventListener("click", () => turn(1));

let dragged = null;
stage.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  dragged = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop, moved: false };
  if (stage.classList.contains("comparing")) slideTo(event);
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
});
stage.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const [x, y] = [event.clientX - dragged.x, event.clientY - dragged.y];
  dragged.moved ||= Math.hypot(x, y) > 4;
  if (stage.classList.contains("comparing")) slideTo(event);
  else if (stage.classList.contains("full") && event.pointerType === "mouse") stage.scrollTo(dragged.left - x, dragged.top - y);
});
stage.addEventListener("pointerup", (event) => {
  const { moved, x } = dragged ?? { moved: true };
  const swiped = dragged && event.pointerType === "touch" && !stage.classList.contains("full") ? event.clientX - x : 0;
  dragged = null;
  if (stage.classList.contains("comparing")) return;
  if (Math.abs(swiped) > 60) turn(swiped < 0 ? 1 : -1);
  else if (!moved) setZoom(!stage.classList.contains("full"));
});
stage.addEventListener("pointercancel", () => (dragged = null));

viewer.addEventListener("keydown", (event) => {
  if (event.target === $("viewer-slider") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    const full = stage.classList.contains("full") && event.target === stage;
    if (full) return; // the arrows scroll it
    event.preventDefault();
    turn(event.key === "ArrowLeft" ? -1 : 1);
  } else if (event.key === "f" || event.key === "F") setZoom(!stage.classList.contains("full"));
});
viewer.addEventListener("click", ({ target }) => target === viewer && viewer.close());
viewer.addEventListener("close", () => {
  $("viewer-image").removeAttribute("src");
  // The user may have moved on, since this event can come after the next keys.
  if ([opener, document.body].includes(document.activeElement)) shown?.frame.focus();
});
