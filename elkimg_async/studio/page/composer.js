// The form for a new image. Its options depend on the model, and are remembered.

import { getJson, startJob } from "./api.js";
import { once } from "./dialogs.js";
import { $, announce, capital, element, sentence, short } from "./words.js";

const OTHER = "Other…";
const REMEMBERED = "elkimg-studio-settings";
const DRAFT = "elkimg-studio-prompt";
const SELECTS = ["background", "moderation", "output_format", "style"];
const NUMBERS = ["n", "partial_images", "output_compression"];
const SHAPES = [["Square", (w, h) => w === h], ["Wide", (w, h) => w > h], ["Tall", (w, h) => w < h]];

const composer = $("composer");
let session = null;
let models = {};

export function startComposer(started) {
  session = started;
  models = session.models;
  offerModels(Object.keys(models));
  restore(read(localStorage, REMEMBERED) ?? {});
  $("prompt").value = read(sessionStorage, DRAFT) ?? "";
  loadModels();
}

// --- models -------------------------------------------------------------------------------------------

async function loadModels() {
  const offered = await getJson("api/models").then((reply) => reply.models, () => ({}));
  const names = Object.keys(offered);
  if (!names.length) return; // a server without a list
  const chosen = settings();
  for (const name of names) models[name] = offered[name] ?? models[name];
  offerModels(names);
  restore(chosen);
}

function offerModels(names) {
  const first = session.default_model;
  const known = names.includes(first) ? names : [first, ...names];
  $("model").replaceChildren(...[...known, OTHER].map((name) => new Option(name)));
  $("model").value = first;
}

/** Return what a model accepts; an unknown one is assumed to accept what the default accepts. */
export function rulesOf(name) {
  return models[name] ?? models[session.default_model] ?? Object.values(models).find(Boolean);
}

// --- options ------------------------------------------------------------------------------------------

function offer() {
  const rules = rulesOf($("model").value);
  $("other-model-row").hidden = $("model").value !== OTHER;
  $("other-model").required = $("model").value === OTHER;
  offerRadios("size", rules.size, shapeOf);
  offerRadios("quality", ["auto", ...rules.quality.filter((value) => value !== "auto")], (value) => [capital(value)]);
  for (const name of SELECTS) {
    const values = (rules[name] ?? []).filter((value) => value !== "svg"); // needs a model of its own
    const open = values.includes("auto") || name === "style" ? ["auto", ...values.filter((value) => value !== "auto")] : values;
    const before = $(name).value;
    const labelOf = name === "output_format" ? (value) => value.toUpperCase() : capital;
    $(name).replaceChildren(...open.map((value) => new Option(labelOf(value), value)));
    if (open.includes(before)) $(name).value = before;
    setShown($(name).parentElement, values.length);
  }
  $("n").max = rules.n;
  $("n").value = Math.min($("n").value || 1, rules.n);
  offerMore();
}

function offerMore() {
  const { streams } = rulesOf($("model").value);
  const format = $("output_format").value;
  const previews = streams && format !== "gif"; // a GIF is not streamed
  setShown($("partial_images").parentElement, previews);
  $("previews-hint").hidden = !previews;
  setShown($("compression-row"), ["jpeg", "webp"].includes(format));
  $("compression-shown").textContent = `${$("output_compression").value}%`;
}

// Hidden fields are not sent.
function setShown(row, shown) {
  row.hidden = !shown;
  row.querySelectorAll("input, select").forEach((field) => (field.disabled = !shown));
}

function offerRadios(name, values, parts) {
  const before = composer.elements[name]?.value;
  const chosen = values.includes(before) ? before : values[0];
  $(name).replaceChildren(...values.map((value) => {
    const label = element("label");
    label.append(element("input", { type: "radio", name, value, defaultChecked: value === chosen }), ...parts(value, label));
    return label;
  }));
}

function shapeOf(size, label) {
  const [width, height] = size.split("x").map(Number);
  const icon = element("i");
  icon.setAttribute("aria-hidden", "true");
  if (!height) {
    label.classList.add("auto");
    return [icon, element("span", { textContent: "Auto" }), element("small", { textContent: "model decides" })];
  }
  const [name] = SHAPES.find(([, fits]) => fits(width, height));
  icon.style.setProperty("--w", `${(1.5 * width) / Math.max(width, height)}rem`);
  icon.style.setProperty("--h", `${(1.5 * height) / Math.max(width, height)}rem`);
  return [icon, element("span", { textContent: name }), element("small", { textContent: `${width} × ${height}` })];
}

/** Return the fields of the request, without those left to the server. */
export function options() {
  const fields = Object.fromEntries(new FormData(composer));
  if (fields.model === OTHER) fields.model = $("other-model").value.trim();
  if (fields.output_compression === "100") delete fields.output_compression;
  for (const [name, value] of Object.entries(fields)) {
    if (value === "auto" || value === "") delete fields[name];
    else if (NUMBERS.includes(name)) fields[name] = Number(value);
  }
  return fields;
}

// --- remembered settings ------------------------------------------------------------------------------

function settings() {
  const fields = Object.fromEntries(new FormData(composer));
  delete fields.prompt;
  return { ...fields, "other-model": $("other-model").value };
}

function restore(fields) {
  if (fields.model && ![...$("model").options].some(({ value }) => value === fields.model)) {
    fields = { ...fields, model: OTHER, "other-model": fields.model };
  }
  if (fields.model) $("model").value = fields.model;
  $("other-model").value = fields["other-model"] ?? "";
  offer();
  for (const [name, value] of Object.entries(fields)) {
    if (name === "size" || name === "quality") check(name, value);
    else if (SELECTS.includes(name) && [...$(name).options].some((option) => option.value === value)) $(name).value = value;
    else if (NUMBERS.includes(name)) $(name).value = value;
  }
  $("n").value = Math.min($("n").value || 1, $("n").max);
  offerMore();
}

function check(name, value) {
  const radio = [...composer.querySelectorAll(`input[name="${name}"]`)].find((input) => input.value === value);
  if (radio) radio.checked = true;
}

export function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
  } catch {
    // private windows may have no storage
  }
}

export function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

/** Fill the form with the prompt and the settings of a job. */
export function fill({ prompt, parameters }) {
  const defaults = { quality: "auto", background: "auto", moderation: "auto", style: "auto", n: 1, output_compression: 100 };
  const size = parameters.size ?? "auto";
  restore({ model: session.default_model, ...defaults, ...parameters, size });
  $("prompt").value = prompt;
  write(sessionStorage, DRAFT, prompt);
  write(localStorage, REMEMBERED, settings());
  $("more-options").open = SELECTS.some((name) => parameters[name] && name !== "output_format");
  $("prompt").focus();
  $("prompt").scrollIntoView({ block: "nearest" });
  announce("The prompt and its settings are in the form.");
}

// --- starting -----------------------------------------------------------------------------------------

export function note(id, error) {
  $(id).hidden = !error;
  $(id).textContent = error ? sentence(error) : "";
}

/** Return a function that starts a job, once for a double click, and notes an error in the form. */
export function starting(button, problem, start) {
  return once(async (fields) => {
    $(button).ariaDisabled = "true";
    try {
      await start(fields);
      note(problem, null);
    } catch (error) {
      if (!error.error) throw error;
      note(problem, error.error);
    } finally {
      $(button).ariaDisabled = null;
    }
  });
}

const generate = starting("generate", "composer-problem", async (request) => {
  announce(`Generating “${short(request.prompt)}”.`);
  await startJob(request);
  if (matchMedia("(max-width: 52rem)").matches) $("images").scrollIntoView({ behavior: "smooth" });
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  generate(options());
});
composer.addEventListener("input", ({ target }) => {
  if (target === $("prompt")) {
    write(sessionStorage, DRAFT, target.value);
    return;
  }
  if (target === $("model")) offer();
  if (["output_format", "output_compression"].includes(target.id)) offerMore();
  write(localStorage, REMEMBERED, settings());
});

/** Submit a form when Ctrl + Enter is pressed in a field, but only once while the keys are held. */
export function submitByKey(field) {
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) field.form.requestSubmit();
  });
}
submitByKey($("prompt"));
