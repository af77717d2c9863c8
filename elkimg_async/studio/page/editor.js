// The editor: what should change, where, and with which reference images.

import { fetchBlob, startJob } from "./api.js";
import { clear, fit, maskFile, prepare, redraw, select, selectedShare, selection, undo, zoom } from "./canvas.js";
import { note, options, read, rulesOf, starting, submitByKey, write } from "./composer.js";
import { confirmed } from "./dialogs.js";
import { $, announce, button, capital, chooseFiles, element, sentence, short, toPng } from "./words.js";

const EDITABLE = ["image/png", "image/jpeg", "image/webp"];
const REMEMBERED = "elkimg-studio-editor";
const NOT_AN_IMAGE = "This file is not an image that can be edited. Choose a PNG, JPEG or WebP file.";

const editor = $("editor");
const drafts = new Map(); // prompt, shapes and references of each image opened so far
let current = null;

const remembered = read(localStorage, REMEMBERED) ?? {};
if (remembered.n) $("edit-n").value = remembered.n;
if (remembered.brush) $("brush").value = remembered.brush;

// --- opening ------------------------------------------------------------------------------------------

/** Edit a finished image; with `prompt`, create a variation of it. */
export async function editResult(figure, prompt = null) {
  const { job } = figure.card;
  let blob;
  try {
    blob = await fetchBlob(figure.url);
  } catch (error) {
    await confirmed(sentence(error.error ?? { type: "StudioGone" }));
    return;
  }
  const name = `${job.id}/${figure.number}`;
  await open(blob, prompt === null ? name : `${name}/variation`, prompt ?? "", prompt !== null);
}

/** Edit the first of the user's files, with the others as references. */
export async function editFiles(files) {
  const found = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!found.length) return;
  if (editor.open) {
    await addReferences(found);
    return;
  }
  const [first, ...others] = found;
  await open(first, `${first.name}/${first.size}/${first.lastModified}`);
  if (others.length && editor.open) await addReferences(others);
}

async function open(blob, name, prompt = "", variation = false) {
  URL.revokeObjectURL($("original").src);
  $("original").src = URL.createObjectURL(blob);
  try {
    await $("original").decode();
  } catch {
    await confirmed(NOT_AN_IMAGE);
    return;
  }
  const draft = drafts.get(name) ?? { prompt, shapes: [], references: [] };
  drafts.set(name, draft);
  current = { blob, draft };
  $("editor-title").textContent = variation ? "Create a variation" : "Edit image";
  $("edit").textContent = variation ? "Generate variation" : "Apply edit";
  $("change").value = draft.prompt;
  offer();
  showReferences();
  note("editor-problem", null);
  prepare(draft.shapes);
  editor.showModal();
  fit();
  $("change").focus();
}

// The options of the page apply, except those that the editor has as well.
function offer() {
  const { model, quality = "auto", output_format: format } = options();
  const rules = rulesOf(model);
  const fidelities = rules.input_fidelity ?? [];
  $("input_fidelity").replaceChildren(new Option("Auto", ""), ...fidelities.map((value) => new Option(capital(value), value)));
  $("input_fidelity").parentElement.hidden = !fidelities.length;
  if (fidelities.includes(remembered.fidelity)) $("input_fidelity").value = remembered.fidelity;
  $("edit-n").max = rules.n;
  $("edit-n").value = Math.min($("edit-n").value || 1, rules.n);
  $("add-reference").hidden = rules.edits < 2;
  $("edit").disabled = !rules.edits;
  const uses = [model, `${quality} quality`, format].filter(Boolean).join(", ");
  $("editor-options").textContent = rules.edits
    ? `Uses the options of the page: ${uses}.`
    : `${model} cannot edit images. Choose another model on the page.`;
}

// --- selection ----------------------------------------------------------------------------------------

selection.changed = () => {
  const drawn = selection.shapes.length > 0;
  const share = drawn ? selectedShare() : 0;
  $("selected").textContent = share
    ? `${share}% of the image is selected and may change.`
    : "Nothing is selected: the whole image may change.";
  $("undo").disabled = $("clear").disabled = !drawn;
};

// --- references ---------------------------------------------------------------------------------------

async function addReferences(files) {
  const { references } = current.draft;
  const limit = rulesOf(options().model).edits;
  for (const file of files) {
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (!bitmap) await confirmed(NOT_AN_IMAGE);
    else if (references.length + 1 >= limit) {
      await confirmed(`This model accepts at most ${limit} images.`);
      break;
    } else references.push(file);
    bitmap?.close();
  }
  showReferences();
}

function showReferences() {
  const { references } = current.draft;
  const list = $("references");
  list.querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
  list.hidden = !references.length;
  list.replaceChildren(...references.map((file, index) => {
    const name = file.name || `Image ${index + 1}`;
    const remove = button("×", () => {
      references.splice(index, 1);
      showReferences();
      $("add-reference").focus();
    }, { className: "remove" });
    remove.setAttribute("aria-label", `Remove ${name}`);
    return element("li", {}, element("img", { src: URL.createObjectURL(file), alt: name }), remove);
  }));
}

// --- starting -----------------------------------------------------------------------------------------

function request() {
  const fields = { ...options(), prompt: $("change").value, n: Number($("edit-n").value) };
  for (const name of ["size", "moderation", "style"]) delete fields[name]; // edits do not have them
  const size = `${selection.width}x${selection.height}`;
  if (rulesOf(fields.model).size.includes(size)) fields.size = size;
  if ($("input_fidelity").value) fields.input_fidelity = $("input_fidelity").value;
  return fields;
}

const apply = starting("edit", "editor-problem", async (fields) => {
  announce(`Editing: “${short(fields.prompt)}”.`);
  const blobs = [current.blob, ...current.draft.references];
  const images = await Promise.all(blobs.map((blob) => (EDITABLE.includes(blob.type) ? blob : toPng(blob))));
  const mask = await maskFile();
  await startJob(fields, [...images.map((image) => ["image", image]), ...(mask ? [["mask", mask]] : [])]);
  editor.close();
});

// --- events -------------------------------------------------------------------------------------------

const whenClicked = (id, action) => $(id).addEventListener("click", action);

editor.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  apply(request());
});
submitByKey($("change"));
$("change").addEventListener("input", () => (current.draft.prompt = $("change").value));
$("brush").addEventListener("input", showBrush);
for (const id of ["brush", "edit-n", "input_fidelity"]) {
  $(id).addEventListener("change", () => {
    Object.assign(remembered, { n: $("edit-n").value, brush: $("brush").value, fidelity: $("input_fidelity").value });
    write(localStorage, REMEMBERED, remembered);
  });
}

function showBrush() {
  $("brush-shown").textContent = `${$("brush").value}%`;
}
showBrush();

whenClicked("undo", undo);
whenClicked("clear", clear);
whenClicked("whole", () => select({ rectangle: [0, 0, 1, 1] }));
whenClicked("rectangle", () => select({ rectangle: ["left", "top", "width", "height"].map((id) => $(id).value / 100) }));
whenClicked("zoom-in", () => zoom(1.5));
whenClicked("zoom-out", () => zoom(1 / 1.5));
whenClicked("zoom-fit", fit);
chooseFiles("add-reference", "reference-files", addReferences);
editor.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input[type=number]");
  if (typing || event.key !== "z" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  undo();
});
editor.addEventListener("close", redraw);
