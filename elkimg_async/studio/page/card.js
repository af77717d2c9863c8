// A card shows one job: its images as they arrive, its state and its actions.

import { cancelJob, deleteJob, fetchBlob, imageUrl, inputUrl, inputsOf, startJob, thumbnailUrl, zipUrl } from "./api.js";
import { fill } from "./composer.js";
import { confirmed, once, openMenu } from "./dialogs.js";
import { editResult } from "./editor.js";
import { view } from "./viewer.js";
import { $, announce, button, copyOf, describe, element, images, money, seconds, sentence, short, toPng, whole } from "./words.js";

export const FINISHED = new Set(["done", "failed", "cancelled", "lost"]);
export const clock = { offset: 0 }; // seconds by which the studio's clock is ahead

const now = () => Date.now() / 1000 + clock.offset;

export class Card {
  constructor(job) {
    this.node = copyOf("card");
    this.node.card = this; // the page has the order of the cards
    this.figures = [];
    this.state = null;
    this.update(job);
  }

  get article() {
    return this.node.firstElementChild;
  }

  find(selector) {
    return this.node.querySelector(selector);
  }

  get finished() {
    return FINISHED.has(this.job.state);
  }

  // The studio reports a whole job at each change of it. The first report, which creates the card, is
  // shown without animation and not announced.
  update(job) {
    const { state: before, job: known } = this;
    this.job = job;
    this.state = job.state;
    this.showFigures(before !== null);
    this.find(".prompt").textContent = job.prompt;
    this.find(".facts").textContent = this.facts();
    this.find(".facts").title = this.usage();
    this.article.classList.toggle("resting", this.finished);
    this.find(".figures").ariaBusy = this.finished ? null : "true";
    if (before !== job.state) {
      this.showProblem();
      this.showActions();
    }
    this.tick();
    if (before !== null) this.announce(before, known);
  }

  // --- images ---------------------------------------------------------------------------------------

  showFigures(live) {
    const { images: done, partial, count } = this.job;
    // A running job has a frame for each image wanted, a finished one only for what has arrived.
    const shown = this.finished ? done.length + (partial ? 1 : 0) : Math.max(count, done.length);
    while (this.figures.length < shown) {
      this.figures.push(new Figure(this));
      this.find(".figures").append(this.figures.at(-1).node);
    }
    // Finished images come first, then the one in progress; a figure never changes its place.
    this.figures.splice(shown).forEach((figure) => figure.node.remove());
    this.find(".figures").dataset.count = shown;
    this.find(".figures").classList.toggle("odd", shown > 1 && shown % 2 === 1);
    this.figures.forEach((figure, index) => {
      if (index < done.length) figure.finish(done[index], live);
      else if (index === done.length && partial) figure.preview(partial, this.finished);
      else figure.wait();
    });
  }

  tick() {
    const { state, created_at: created, sent_at: sent, retry, previews, parameters, images: done } = this.job;
    this.figures.forEach((figure) => figure.showProgress(""));
    const waiting = this.figures[done.length]; // images arrive in order, so the next one is here
    if (this.finished) return waiting?.showProgress("Unfinished");
    const time = `${Math.max(0, Math.floor(now() - (sent ?? created)))} s`;
    if (retry) return waiting?.showProgress(`Retrying in ${Math.max(0, Math.ceil(retry.at - now()))} s (${retry.attempt} of ${retry.of})`);
    const step = previews ? `Preview ${previews} of ${parameters.partial_images ?? 1}` : state === "queued" ? "Queued" : "Waiting";
    return waiting?.showProgress(`${step} · ${time}`);
  }

  // --- words ----------------------------------------------------------------------------------------

  get elapsed() {
    const { finished_at: end, sent_at: start, created_at: created } = this.job;
    return end ? end - (start ?? created) : null;
  }

  facts() {
    const { images: done, parameters, usage, cost, currency, edit } = this.job;
    const size = (done.at(-1)?.size ?? parameters.size)?.replace("x", " × ") ?? "Automatic size";
    const time = this.elapsed !== null && this.job.state === "done" ? seconds(this.elapsed) : null;
    const tokens = usage?.total_tokens == null ? null : `${whole(usage.total_tokens)} tokens`;
    return [edit && "Edit", size, parameters.quality, time, tokens, cost && `cost ${money(cost, currency)}`].filter(Boolean).join(" · ");
  }

  usage() {
    const { parameters, usage, created_at: created } = this.job;
    const tokens = usage?.input_tokens && `${usage.input_tokens} input tokens, ${usage.output_tokens} output tokens`;
    return [parameters.model, tokens, new Date(created * 1000).toLocaleString("en")].filter(Boolean).join(" · ");
  }

  // What a screen reader says: retries, previews and the end, each once.
  announce(before, known) {
    const { state, previews, parameters, prompt, error, retry } = this.job;
    if (retry && !known.retry) announce(`The image server is busy. Retrying, attempt ${retry.attempt} of ${retry.of}.`);
    if (previews > known.previews) announce(`Preview ${previews} of ${parameters.partial_images ?? 1} has arrived.`);
    if (before === state) return;
    if (state === "done") announce(`Finished after ${seconds(this.elapsed)}: “${short(prompt)}”.`);
    if (error) {
      const { title, advice, billing } = describe(error);
      announce([title, advice, billing].filter(Boolean).join(" "));
    }
  }

  showProblem() {
    const { error } = this.job;
    this.article.classList.toggle("incomplete", !this.figures.length);
    this.find(".problem").hidden = !error;
    if (!error) return;
    const { title, advice, billing, details } = describe(error);
    this.find(".problem h4").textContent = title;
    this.find(".advice").textContent = advice;
    this.find(".billing").textContent = billing;
    this.find(".message").textContent = details;
    this.find(".problem details").hidden = !details;
  }

  // --- actions --------------------------------------------------------------------------------------

  showActions() {
    const { state, images: done } = this.job;
    if (!this.finished) return this.setActions(button("Cancel", once(() => this.act(() => cancelJob(this.job)))));
    const reuse = button("Reuse", () => fill(this.job), { title: "Use this prompt and its settings again" });
    const all = element("a", { className: "button", href: zipUrl(this.job), textContent: "Save as ZIP", download: "elkimg-images.zip" });
    return this.setActions(
      button(state === "done" ? "Again" : "Try again", once(() => this.again())),
      reuse,
      ...(done.length > 1 ? [all] : []),
      button(done.length ? "Delete" : "Remove", once(() => this.remove())),
    );
  }

  // The focus moves from the old buttons to the new ones.
  setActions(...buttons) {
    const bar = this.find(".details > .actions");
    const focused = bar.contains(document.activeElement);
    bar.replaceChildren(...buttons);
    if (focused) buttons[0].focus();
  }

  // Show an error of the studio in a dialog, since the card belongs to the job.
  async act(action) {
    try {
      return await action();
    } catch (error) {
      if (!error.error) throw error;
      await confirmed(sentence(error.error));
      return undefined;
    }
  }

  async again() {
    const { job } = this;
    const question = `Generate ${images(job.count)} again? You will be charged for each.`;
    if (job.count > 1 && !(await confirmed(question, "Generate"))) return;
    await this.act(async () => {
      const files = await inputsOf(job);
      const started = await startJob({ prompt: job.prompt, ...job.parameters }, files);
      // The new job replaces one without images; nothing that was paid for is deleted.
      if (started && !job.images.length && !job.partial) await deleteJob(job);
    });
  }

  async remove() {
    const { job } = this;
    const question = `Delete ${job.images.length > 1 ? `these ${images(job.images.length)}` : "this image"}? This cannot be undone.`;
    if (job.images.length && !(await confirmed(question, "Delete"))) return;
    await this.act(() => deleteJob(job));
  }
}

// --- a figure: one image in its frame -----------------------------------------------------------------

export class Figure {
  constructor(card) {
    this.card = card;
    this.node = copyOf("figure");
    this.node.figure = this;
    this.frame = this.node.querySelector(".frame");
    this.frame.onclick = () => view(this);
    this.number = null;
    const { parameters } = card.job;
    const size = card.job.images[0]?.size ?? parameters.size ?? "";
    this.frame.style.aspectRatio = /^\d+x\d+$/.test(size) ? size.replace("x", " / ") : "1";
    if (!size && this.before && !card.finished) { // an edit keeps the shape of its image
      const original = element("img", { src: inputUrl(this.before) });
      original.onload = () => this.frame.querySelector("img") || this.fit(original);
    }
  }

  wait() {
    this.node.classList.add("waiting");
  }

  showProgress(text) {
    this.node.querySelector(".progress").textContent = text;
  }

  preview(number, unfinished) {
    this.node.classList.toggle("waiting", !unfinished);
    if (this.number === number) return; // another change of the job
    this.number = number;
    this.show(imageUrl(this.card.job, number), unfinished ? "Unfinished image" : "Preview", true);
  }

  finish(image, live) {
    this.image = image;
    this.node.classList.remove("waiting");
    if (this.frame.classList.contains("finished")) return;
    const { job } = this.card;
    this.number = image.number;
    this.show(thumbnailUrl(job, image.number), job.prompt, live);
    this.frame.classList.add("finished");
    this.frame.disabled = false;
    this.frame.setAttribute("aria-label", `View full size: ${short(job.prompt)}`);
    this.node.querySelector("figcaption").replaceChildren(...this.tools());
  }

  // On an open page a new image fades in over the old one, unless a newer one has replaced it.
  async show(src, alt, fading) {
    const image = element("img", { alt, decoding: "async" });
    if (!fading) image.loading = "lazy";
    image.src = src;
    this.newest = image;
    image.addEventListener("load", () => this.fit(image), { once: true });
    if (fading) {
      await image.decode().catch(() => {});
      if (this.newest !== image) return;
      if (!image.naturalWidth && this.frame.querySelector("img")) return; // deleted in the meantime
      image.classList.add("appearing");
    }
    const before = [...this.frame.querySelectorAll("img")];
    this.frame.querySelector(".pulse").before(image);
    await Promise.all(image.getAnimations().map((animation) => animation.finished.catch(() => {})));
    before.forEach((old) => old.remove());
  }

  // A frame has the shape of its image, so that no empty bands are left.
  fit({ naturalWidth: width, naturalHeight: height }) {
    if (!width || !height) return;
    const [wide, high = 1] = this.frame.style.aspectRatio.split("/").map(Number);
    if (Math.abs(width / height / (wide / high) - 1) > 0.01) this.frame.style.aspectRatio = `${width} / ${height}`;
  }

  get url() {
    return imageUrl(this.card.job, this.image.number);
  }

  /** The image that was edited, or undefined. */
  get before() {
    return this.card.job.inputs.find((input) => input.param === "image");
  }

  tools() {
    const more = tool("button", "more", "More");
    more.setAttribute("aria-haspopup", "menu");
    more.onclick = () => openMenu(more, this.items());
    const save = tool("a", "download", "Download", { href: this.url, download: this.image.name });
    return [save, tool("button", "edit", "Edit", { onclick: () => editResult(this) }), more];
  }

  items() {
    const { job } = this.card;
    return [
      ["Create a variation", () => editResult(this, job.prompt)],
      ["Copy image", () => copyImage(this.url)],
      ["Copy prompt", () => navigator.clipboard.writeText(job.prompt).then(() => announce("The prompt was copied."))],
      ...(this.before ? [["Compare with the original", () => view(this, true)]] : []),
    ];
  }
}

function tool(name, icon, text, properties = {}) {
  const node = element(name, name === "a" ? { className: "button", ...properties } : { type: "button", ...properties });
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${icon}`);
  drawing.append(use);
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", "icon");
  node.append(drawing, element("span", { textContent: text }));
  node.title = text;
  return node;
}

// Browsers can only copy PNG. Some allow it only directly after a click, so the promise of the image
// is handed over instead of awaited.
async function copyImage(url) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": fetchBlob(url).then(toPng) })]);
    announce("The image was copied.");
  } catch {
    await confirmed("Your browser did not copy the image. Download it instead.");
  }
}

export const cardsShown = () => [...$("cards").children].map((node) => node.card);
