// The page of elkimg studio. Jobs belong to the studio: this page starts them, and like every other
// open page shows what the stream of events reports.

import { follow, getJson } from "./api.js";
import { Card, FINISHED, cardsShown, clock } from "./card.js";
import { startComposer } from "./composer.js";
import "./dialogs.js";
import { editFiles } from "./editor.js";
import { $, button, chooseFiles, describe, images, money, whole } from "./words.js";

const EXAMPLES = ["A small kitten in a sunny garden", "An elk in the morning mist, watercolour", "A lighthouse built of books"];
const STEP = 60; // how many jobs are shown at once

const jobs = new Map(); // by id, as the studio reports them
const cards = new Map();
let limit = STEP;
let session = null;

// The gallery is a grid with rows of one pixel; each card spans as many as it needs.
const heights = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    target.parentElement.style.gridRowEnd = `span ${Math.ceil(target.offsetHeight) + 24}`;
  }
});

// --- jobs ---------------------------------------------------------------------------------------------

function receive(event, data) {
  if (event === "jobs") {
    clock.offset = data.now - Date.now() / 1000;
    jobs.clear();
    for (const job of data.jobs) jobs.set(job.id, job);
  } else if (event === "job") jobs.set(data.id, data);
  else jobs.delete(data.id);
  show();
}

function show() {
  const newest = [...jobs.values()].sort((one, other) => other.created_at - one.created_at);
  const visible = new Map(newest.slice(0, limit).map((job) => [job.id, job]));
  for (const [id, card] of cards) {
    if (!visible.has(id)) removeCard(id, card);
  }
  let before = null; // the card above
  for (const job of visible.values()) {
    const card = cards.get(job.id) ?? addCard(job, before);
    if (card.job !== job) card.update(job);
    before = card;
  }
  $("older").hidden = newest.length <= limit;
  $("empty").hidden = newest.length > 0;
  $("download-all").hidden = !newest.some((job) => job.images.length);
  showTotals(newest);
}

function addCard(job, above) {
  const card = new Card(job);
  cards.set(job.id, card);
  heights.observe(card.article);
  if (above) above.node.after(card.node);
  else $("cards").prepend(card.node);
  return card;
}

function removeCard(id, card) {
  const focused = card.node.contains(document.activeElement);
  const next = card.node.nextElementSibling ?? card.node.previousElementSibling;
  heights.unobserve(card.article);
  card.node.remove();
  cards.delete(id);
  if (focused) (next?.querySelector(".frame.finished, .details button") ?? $("images")).focus();
}

function showTotals(all) {
  const own = all.filter((job) => job.created_at >= session.started);
  const count = own.reduce((sum, job) => sum + job.images.length, 0);
  const tokens = own.reduce((sum, job) => sum + (job.usage?.total_tokens ?? 0), 0);
  const priced = own.filter((job) => job.cost);
  const sums = {}; // by currency, since amounts in different ones are never added
  for (const { cost, currency } of priced) sums[currency] = (sums[currency] ?? 0) + Number(cost);
  const cost = Object.entries(sums).map(([currency, sum]) => money(sum, currency)).join(" and ");
  const parts = [count && images(count), tokens && `${whole(tokens)} tokens`, cost && `cost ${cost}`];
  const text = parts.filter(Boolean).join(" · ");
  $("totals").textContent = text && `This session: ${text}`;
  const running = all.filter((job) => !FINISHED.has(job.state)).length;
  document.title = `${running ? `(${running}) ` : ""}elkimg studio`;
}

function connected(ok, gone) {
  $("offline").hidden = ok;
  if (ok) return;
  const { title, advice } = describe({ type: "StudioGone" });
  $("offline").textContent = `${title} ${gone ? "Restart it in your terminal, then open the address it prints." : advice}`;
}

// --- the page -----------------------------------------------------------------------------------------

$("older").addEventListener("click", () => {
  limit += STEP;
  show();
});
chooseFiles("own", "own-file", editFiles);
$("examples").append(...EXAMPLES.map((text) => button(text, () => {
  $("prompt").value = text;
  $("prompt").focus();
})));

// A key that is held down activates a control once.
document.addEventListener("keydown", (event) => {
  if (event.repeat && event.key === "Enter" && event.target.closest("button, input, select, summary, a")) event.preventDefault();
}, true);

// --- images that are pasted or dropped ----------------------------------------------------------------

const filesOf = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));

document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  editFiles(files);
});
const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!carriesFiles(event)) return;
  event.preventDefault();
  editFiles(filesOf(event.dataTransfer));
});

// --- start --------------------------------------------------------------------------------------------

session = await getJson("api/session");
$("server").textContent = session.local ? "Local server · free" : session.server;
$("server").title = session.server;
$("server").classList.toggle("free", session.local);
startComposer(session);
follow(receive, connected);
setInterval(() => cardsShown().forEach((card) => card.finished || card.tick()), 1000);
