// The selection on an image: shapes in fractions of its width and height that are drawn, erased and
// undone, on a stage that zooms and moves.
//
// The shapes are all that is kept: the canvas on the screen, the share that is selected and the mask, each
// of another size, are drawn from them. The stage is placed in the viewport by one transformation, so that
// zooming and moving draw nothing.

import { $ } from "./words.js";

const MAX_EDGE = 2048; // of the canvas on the screen; a mask has the size of the image
const MAX_SCALE = 16;
const COLOR = "#e5327a";

const canvas = $("mask");
const viewport = $("viewport");
const cursor = $("brush-cursor");

export const selection = { shapes: [], width: 1, height: 1, changed: () => {} };
const place = { scale: 1, x: 0, y: 0 }; // of the stage: its upper left corner, in pixels of the viewport
const pointers = new Map(); // where each finger or button is held down
let stroke = null;
let pinch = null;

const tool = () => document.querySelector("input[name=tool]:checked").value;
const thickness = () => $("brush").value / 100; // of the shorter side, so that wide images work

/** Start with the image in `#original` and the shapes drawn on it earlier. */
export function prepare(shapes) {
  const { naturalWidth: width, naturalHeight: height } = $("original");
  const shrink = Math.min(1, MAX_EDGE / Math.max(width, height));
  Object.assign(selection, { shapes, width, height });
  canvas.width = Math.max(1, Math.round(width * shrink));
  canvas.height = Math.max(1, Math.round(height * shrink));
  viewport.style.aspectRatio = `${Math.min(3, Math.max(0.75, width / height))}`;
  pointers.clear();
  stroke = pinch = null;
  redraw();
}

export function redraw() {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  paint(context, selection.shapes, canvas);
  selection.changed();
}

function paint(context, shapes, { width, height }) {
  context.lineCap = context.lineJoin = "round";
  context.fillStyle = context.strokeStyle = COLOR;
  // In the order in which they were drawn, since an eraser removes only what is there.
  for (const { rectangle, points, thick, erase } of shapes) {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    if (rectangle) {
      const [left, top, wide, high] = rectangle;
      context.fillRect(left * width, top * height, wide * width, high * height);
      continue;
    }
    context.lineWidth = thick * Math.min(width, height);
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x * width, y * height);
    context.stroke();
    const [[x, y]] = points; // a line without length would not be drawn
    context.beginPath();
    context.arc(x * width, y * height, context.lineWidth / 2, 0, 2 * Math.PI);
    context.fill();
  }
  context.globalCompositeOperation = "source-over";
}

// Drawn apart, because an eraser would erase what is under the selection as well.
function layer(width, height) {
  const painted = new OffscreenCanvas(width, height);
  paint(painted.getContext("2d"), selection.shapes, painted);
  return painted;
}

/** Return how much of the image is selected, in percent. */
export function selectedShare() {
  // Counted on a small copy: a large image has millions of pixels, and this runs after each stroke.
  const shrink = Math.min(1, Math.sqrt(250_000 / (selection.width * selection.height)));
  const small = layer(Math.max(1, Math.round(selection.width * shrink)), Math.max(1, Math.round(selection.height * shrink)));
  const { data } = small.getContext("2d").getImageData(0, 0, small.width, small.height);
  const pixels = data.filter((value, index) => index % 4 === 3 && value > 127).length; // of red, green, blue, alpha
  return pixels && Math.max(1, Math.round((100 * pixels) / (small.width * small.height)));
}

/** Return the mask as a PNG whose transparent area may change; null if nothing is selected. */
export async function maskFile() {
  if (!selectedShare()) return null;
  const { width, height } = selection;
  const mask = new OffscreenCanvas(width, height);
  const context = mask.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(layer(width, height), 0, 0);
  return mask.convertToBlob({ type: "image/png" });
}

export function select(shape) {
  selection.shapes.push(shape);
  redraw();
}

export function undo() {
  selection.shapes.pop();
  redraw();
}

export function clear() {
  selection.shapes.length = 0;
  redraw();
}

// --- zooming and moving -------------------------------------------------------------------------------

/** Show the whole image. */
export function fit() {
  const { clientWidth: width, clientHeight: height } = viewport;
  const scale = Math.min(width / selection.width, height / selection.height);
  const stage = $("stage");
  stage.style.width = `${selection.width * scale}px`;
  stage.style.height = `${selection.height * scale}px`;
  Object.assign(place, { scale: 1, x: (width - selection.width * scale) / 2, y: (height - selection.height * scale) / 2 });
  move(0, 0);
}

function move(x, y) {
  place.x = within(place.x + x, viewport.clientWidth, $("stage").offsetWidth * place.scale);
  place.y = within(place.y + y, viewport.clientHeight, $("stage").offsetHeight * place.scale);
  $("stage").style.transform = `translate(${place.x}px, ${place.y}px) scale(${place.scale})`;
  viewport.dataset.scale = place.scale.toFixed(2);
}

// An image that fits is centred; a larger one covers the viewport.
function within(start, available, size) {
  if (size <= available) return (available - size) / 2;
  return Math.min(0, Math.max(available - size, start));
}

/** Zoom by a factor around a point of the viewport; by default its middle. */
export function zoom(factor, x = viewport.clientWidth / 2, y = viewport.clientHeight / 2) {
  const scale = Math.min(MAX_SCALE, Math.max(1, place.scale * factor));
  const ratio = scale / place.scale;
  // The point of the image at (x, y) stays there.
  place.x = x - (x - place.x) * ratio;
  place.y = y - (y - place.y) * ratio;
  place.scale = scale;
  move(0, 0);
  showCursor(null);
}

function inside(event) {
  const box = viewport.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function pointOf(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function showCursor(event) {
  cursor.hidden = !event || tool() === "move" || event.pointerType === "touch";
  viewport.classList.toggle("moving", tool() === "move");
  if (cursor.hidden) return;
  const [x, y] = inside(event);
  const box = canvas.getBoundingClientRect();
  cursor.style.width = cursor.style.height = `${thickness() * Math.min(box.width, box.height)}px`;
  cursor.style.left = `${x}px`;
  cursor.style.top = `${y}px`;
}

// --- pointers: one draws or moves, two zoom -----------------------------------------------------------

viewport.addEventListener("pointerdown", (event) => {
  if (event.button > 1) return;
  viewport.setPointerCapture(event.pointerId); // a stroke may leave the viewport and come back
  pointers.set(event.pointerId, inside(event));
  if (pointers.size === 2) {
    if (stroke) undo(); // what the first of the two fingers has drawn
    stroke = null;
    pinch = measure();
  } else if (pointers.size === 1 && tool() !== "move" && event.button === 0) {
    stroke = { points: [pointOf(event)], thick: thickness(), erase: tool() === "eraser" };
    select(stroke);
  }
  event.preventDefault();
  viewport.focus({ preventScroll: true });
});

viewport.addEventListener("pointermove", (event) => {
  showCursor(event);
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = inside(event);
  pointers.set(event.pointerId, now);
  if (pinch && pointers.size === 2) {
    const next = measure();
    // The image follows the middle between the fingers, then grows with their distance.
    move(next.x - pinch.x, next.y - pinch.y);
    if (pinch.distance > 0) zoom(next.distance / pinch.distance, next.x, next.y);
    pinch = next;
  } else if (stroke) {
    // Only the new piece is drawn. The colour is opaque here, and the canvas translucent in the style
    // sheet, so that overlapping pieces do not look darker.
    stroke.points.push(pointOf(event));
    paint(canvas.getContext("2d"), [{ ...stroke, points: stroke.points.slice(-2) }], canvas);
  } else move(now[0] - before[0], now[1] - before[1]);
});

function release(event) {
  if (!pointers.delete(event.pointerId)) return; // the other mouse buttons
  if (pointers.size < 2) pinch = null;
  if (stroke) redraw();
  stroke = null;
}
viewport.addEventListener("pointerup", release);
viewport.addEventListener("pointercancel", release);
viewport.addEventListener("pointerleave", () => showCursor(null));

function measure() {
  const [[left, top], [right, bottom]] = [...pointers.values()];
  return { x: (left + right) / 2, y: (top + bottom) / 2, distance: Math.hypot(right - left, bottom - top) };
}

viewport.addEventListener("wheel", (event) => {
  event.preventDefault();
  // Browsers report a pinch on a touchpad as a wheel with Ctrl, in smaller steps.
  if (event.shiftKey) move(-event.deltaY, 0);
  else zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...inside(event));
}, { passive: false });

viewport.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
  if (steps[event.key]) move(...steps[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") fit();
  else return;
  event.preventDefault();
});
// A closed dialog has no width.
new ResizeObserver(() => viewport.clientWidth && fit()).observe(viewport);
