// The page of elkimg studio. The same module runs in the page, where it renders, and in one worker
// per call, where it reads the stream, so that megabytes of base64 never block the page.

const HEADERS = { "X-Elkimg-Studio": "1" }; // other sites cannot send this
const at = (path) => new URL(path, import.meta.url).href; // beside this file, under the token

if ("document" in globalThis) await startPage();
else globalThis.onmessage = ({ data }) => relay(data);

// --- in the worker: send a request, post its events as messages -----------------------------------

async function relay({ id, request, image, mask }) {
  let ended = false;
  try {
    const response = await send(JSON.stringify({ id, request }), image, mask);
    if (!response.ok) throw (await response.json()).error;
    for await (const text of serverSentEvents(response.body)) {
      ended = text === "[DONE]";
      if (ended) break;
      const { b64_json, ...event } = JSON.parse(text);
      if (b64_json) event.blob = decoded(b64_json);
      postMessage(event);
      if (event.error) return;
    }
  } catch (error) {
    return postMessage({ error: error instanceof Error ? { type: "StudioGone" } : error });
  }
  postMessage(ended ? { type: "done" } : { error: { type: "StudioGone" } });
}

function send(body, image, mask) {
  if (!image) {
    const headers = { ...HEADERS, "Content-Type": "application/json" };
    return fetch(at("api/generate"), { method: "POST", headers, body });
  }
  const form = new FormData();
  form.set("request", body);
  form.set("image", image);
  if (mask) form.set("mask", mask);
  return fetch(at("api/edit"), { method: "POST", headers: HEADERS, body: form });
}

// Yields the data of each event. A line may arrive in many chunks; they are joined once.
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let chunks = [];
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const [end, ...starts] = value.split("\n");
    chunks.push(end);
    for (const start of starts) {
      const line = chunks.join("");
      chunks = [start];
      if (line.startsWith("data:")) data.push(line.slice(5).trim());
      if (line.trim() || !data.length) continue;
      yield data.join("\n");
      data = [];
    }
  }
}

function decoded(base64) {
  const bytes = Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: typeOf(bytes) });
}

function typeOf(bytes) {
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  if (head.startsWith("\x89PNG")) return "image/png";
  if (head.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (head.startsWith("RIFF") && head.endsWith("WEBP")) return "image/webp";
  if (head.startsWith("GIF8")) return "image/gif";
  return /^\s*<(svg|\?xml)/.test(head) ? "image/svg+xml" : "application/octet-stream";
}

// --- in the page ----------------------------------------------------------------------------------

async function startPage() {
  const ENDINGS = { "image/jpeg": "jpg", "image/svg+xml": "svg" };
  const EDITABLE = ["image/png", "image/jpeg", "image/webp"];
  const EXAMPLES = ["A small kitten in a sunny garden", "An elk in the morning mist, watercolour", "A lighthouse built of books"];
  const SHAPES = [["Square", (w, h) => w === h], ["Wide", (w, h) => w > h], ["Tall", (w, h) => w < h]];
  const OTHER = "Other…";

  // For each error type: what happened, what to do, and whether to show the server's message.
  const PROBLEMS = {
    APIError: ["The image server rejected the request.", "Change the prompt or the options.", true],
    AuthenticationError: ["The API key was rejected.", "Check ELKAPI_API_KEY, then restart the studio."],
    BadRequestError: ["The image server rejected the request.", "Change the prompt or the options.", true],
    ConfigurationError: ["The studio is not configured correctly.", "See the terminal in which it runs."],
    ConnectError: ["The image server cannot be reached.", "Check your network, then try again."],
    DisconnectedError: ["The connection was lost before the image arrived.", "Check your network, then try again."],
    DownloadError: ["The image was generated but could not be downloaded.", "See the terminal in which the studio runs."],
    EmptyResultError: ["The image server returned no image.", "Try again in a moment."],
    InvalidRequestError: ["These options cannot be combined.", "Change the options:", true],
    ModerationError: ["The content policy blocked this image.", "Rephrase the prompt, or use a different image."],
    NetworkError: ["The connection was lost before the image arrived.", "Check your network, then try again."],
    NotFoundError: ["The image server does not know this model.", "Choose another model."],
    PermissionDeniedError: ["Your API key does not allow this.", "Choose another model, or ask your provider for access."],
    QuotaExceededError: ["Your account is out of credit.", "Add credit, then try again."],
    RateLimitError: ["Too many requests.", "Wait a moment, then try again."],
    RequestTimeoutError: ["The request timed out.", "Try again, perhaps with a lower quality."],
    ResponseError: ["The image server returned an invalid response.", "Try again in a moment."],
    ServerError: ["The image server failed.", "Your request is fine. Try again in a moment."],
    StreamIncompleteError: ["The stream ended before the image was finished.", "Try again in a moment."],
    Rejected: ["The studio rejected the request.", "Reload this page, then try again.", true],
    StudioGone: ["The studio is not running.", "Restart it in your terminal, then open the address that it prints."],
  };
  const BILLING = {
    not_sent: "Nothing was sent; you will not be charged.",
    refused: "The request was rejected; you should not be charged.",
    billed: "You will be charged.",
    unknown: "You may still be charged.",
  };

  const $ = (id) => document.getElementById(id);
  const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);
  const announce = (text) => ($("status").textContent = text);
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  const element = (name, properties) => Object.assign(document.createElement(name), properties);
  const seconds = (time) => `${time.toFixed(1)} s`;
  const short = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

  const session = await (await fetch(at("api/session"))).json();
  const running = new Set();

  // The gallery is a grid with rows of one pixel; each card spans as many as it needs.
  const heights = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.parentElement.style.gridRowEnd = `span ${Math.ceil(target.offsetHeight) + 24}`;
    }
  });

  // --- a card: one call, from waiting to its images or its error ----------------------------------

  class Card {
    constructor(job) {
      this.job = job; // { request, image?, mask?, edited?, ratio? }, and id once it runs
      this.node = copyOf("card");
      this.find(".prompt").textContent = job.request.prompt;
      this.figures = Array.from({ length: job.request.n ?? 1 }, () => new Figure(this));
      this.find(".figures").append(...this.figures.map((figure) => figure.node));
      $("cards").prepend(this.node);
      heights.observe(this.find("article"));
      $("empty").hidden = true;
    }

    find(selector) {
      return this.node.querySelector(selector);
    }

    start() {
      this.job = { ...this.job, id: crypto.randomUUID() };
      this.previews = this.done = 0;
      this.usage = this.size = this.elapsed = null;
      this.began = performance.now();
      this.find("article").classList.remove("incomplete");
      this.find(".problem").hidden = true;
      this.find(".figures").ariaBusy = "true";
      this.describe();
      this.setActions(["Cancel", () => this.cancel()]);
      this.figures.forEach((figure) => figure.wait());
      running.add(this);
      this.tick();
      announce(`Generating “${short(this.job.request.prompt)}”.`);
      this.worker = new Worker(import.meta.url, { type: "module" });
      this.worker.onmessage = ({ data }) => this.receive(data);
      this.worker.onerror = () => this.fail({ type: "StudioGone" });
      this.worker.postMessage(this.job);
      return this;
    }

    receive(event) {
      if (event.error) return this.fail(event.error);
      if (event.type === "done") return this.finish();
      const figure = this.figures[this.done];
      if (!figure) return;
      if (event.type.endsWith(".completed")) {
        this.done += 1;
        this.usage = event.usage ?? this.usage;
        this.size = event.size;
        this.elapsed = (performance.now() - this.began) / 1000;
        figure.finish(event.blob, URL.createObjectURL(event.blob));
      } else if (event.blob) {
        this.previews += 1;
        figure.show(URL.createObjectURL(event.blob), `Preview ${this.previews}`);
        announce(`Preview ${this.previews} of ${this.job.request.partial_images} has arrived.`);
      }
      this.tick();
    }

    tick() {
      const time = `${Math.floor((performance.now() - this.began) / 1000)} s`;
      const step = this.previews && !this.done ? `Preview ${this.previews} of ${this.job.request.partial_images}` : "Waiting";
      this.figures[this.done]?.say(`${step} · ${time}`);
    }

    finish() {
      this.end();
      this.describe();
      this.offerMore();
      announce(`Finished after ${seconds(this.elapsed)}: “${short(this.job.request.prompt)}”.`);
    }

    cancel() {
      this.stop("Cancelled", "You stopped this image.", "", "unknown");
      announce(`Cancelled. ${BILLING.unknown}`);
    }

    fail({ type, message, billing = "unknown", request_id: requestId }) {
      const [title, advice, showMessage] = PROBLEMS[type] ?? ["Something went wrong.", "Try again in a moment."];
      const details = [showMessage && message, requestId && `Request ID: ${requestId}`].filter(Boolean).join(" ");
      this.stop(title, advice, details, billing);
      announce(`${title} ${advice} ${BILLING[billing] ?? ""}`);
    }

    stop(title, advice, details, billing) {
      this.end();
      this.find("article").classList.toggle("incomplete", !this.done);
      this.find(".problem h4").textContent = title;
      this.find(".advice").textContent = advice;
      this.find(".message").textContent = details;
      this.find(".billing").textContent = BILLING[billing] ?? "";
      this.find(".problem").hidden = false;
      this.setActions(["Try again", () => this.restart()], ["Remove", () => this.remove()]);
      if (this.done) this.settle();
    }

    end() {
      this.worker.terminate(); // closes the connection, which cancels the call at the image server
      running.delete(this);
      this.find(".figures").ariaBusy = null;
      this.figures.forEach((figure) => figure.rest());
    }

    describe() {
      const { request } = this.job;
      const { total_tokens: total, input_tokens: input, output_tokens: output } = this.usage ?? {};
      const time = this.elapsed && seconds(this.elapsed);
      const tokens = total == null ? null : `${total.toLocaleString("en")} tokens`;
      const size = (this.size ?? request.size)?.replace("x", " × ") ?? "Automatic size";
      const kind = this.job.edited && "Edit";
      this.find(".facts").textContent = [kind, size, request.quality, time, tokens].filter(Boolean).join(" · ");
      this.find(".facts").title = [request.model, input && `${input} input tokens, ${output} output tokens`].filter(Boolean).join(": ");
    }

    // Keep the finished images with their buttons, and remove empty frames.
    settle() {
      this.figures.splice(this.done).forEach((figure) => figure.node.remove());
      this.figures.forEach((figure) => figure.node.querySelector("figcaption").replaceChildren(...figure.tools()));
    }

    // Offer what can be done with a finished call; the buttons of a single image join the row.
    offerMore() {
      const again = ["Generate again", () => new Card(this.job).start()];
      this.setActions(...(this.job.edited && !this.job.image ? [] : [again]));
      this.settle();
      const [{ node }, ...others] = this.figures;
      if (!others.length) this.find(".details > .actions").prepend(...node.querySelector("figcaption").children);
    }

    restart() {
      this.done ? new Card(this.job).start() : this.start();
    }

    remove() {
      this.node.remove();
      $("empty").hidden = Boolean($("cards").children.length);
      $("images").focus();
    }

    // New buttons take over the focus of those they replace.
    setActions(...actions) {
      const bar = this.find(".details > .actions");
      const focused = bar.contains(document.activeElement);
      const buttons = actions.map(([textContent, onclick]) => element("button", { type: "button", textContent, onclick }));
      bar.replaceChildren(...buttons);
      if (focused) (buttons[0] ?? this.find(".frame")).focus();
    }
  }

  // --- a figure: one image in its frame -----------------------------------------------------------

  class Figure {
    constructor(card) {
      this.card = card;
      this.node = copyOf("figure");
      this.frame = this.node.querySelector(".frame");
      this.frame.onclick = () => view(this);
      const { ratio, request } = card.job;
      this.frame.style.aspectRatio = ratio ?? (/^\d+x\d+$/.test(request.size) ? request.size.replace("x", "/") : "1");
    }

    wait() {
      this.node.classList.add("waiting");
      this.frame.querySelectorAll("img").forEach(discard);
    }

    rest() {
      this.node.classList.remove("waiting");
      this.say("");
    }

    say(text) {
      this.node.querySelector(".progress").textContent = text;
    }

    // A new image fades in over the old one, which is then removed; an outdated one is dropped.
    async show(url, alt) {
      const image = element("img", { src: url, alt });
      this.newest = image;
      await image.decode().catch(() => {});
      if (this.newest !== image) return URL.revokeObjectURL(url);
      const before = [...this.frame.querySelectorAll("img")];
      this.frame.querySelector(".pulse").before(image);
      await Promise.all(image.getAnimations().map((animation) => animation.finished.catch(() => {})));
      before.forEach(discard);
    }

    finish(blob, url) {
      const { prompt } = this.card.job.request;
      Object.assign(this, { blob, url });
      this.rest();
      this.show(url, prompt);
      this.frame.classList.add("finished");
      this.frame.disabled = false;
      this.frame.setAttribute("aria-label", `View full size: ${prompt}`);
    }

    tools() {
      const { prompt } = this.card.job.request;
      const save = element("a", { className: "button", href: this.url, textContent: "Download" });
      save.download = fileName(prompt, this.card.figures.indexOf(this), this.blob?.type ?? this.type);
      const edit = element("button", { type: "button", textContent: "Edit", onclick: () => editFigure(this) });
      return [save, edit];
    }
  }

  function discard(image) {
    image.remove();
    URL.revokeObjectURL(image.src);
  }

  function fileName(prompt, index, type = "image/png") {
    const words = prompt.normalize("NFC").toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) ?? ["image"];
    const stem = words.slice(0, 6).join("-").slice(0, 40).replace(/-$/, "");
    return `${stem}${index ? `-${index + 1}` : ""}.${ENDINGS[type] ?? type.split("/")[1]}`;
  }

  function view(figure) {
    const { prompt } = figure.card.job.request;
    Object.assign($("viewer").querySelector("img"), { src: figure.url, alt: prompt });
    $("viewer").querySelector("p").textContent = prompt;
    $("viewer").showModal();
  }

  // --- options of the model ---------------------------------------------------------

  const composer = $("composer");

  const SELECTS = ["background", "moderation", "output_format", "style"];

  function offer() {
    const model = rulesOf($("model").value);
    $("other-model-row").hidden = $("model").value !== OTHER;
    $("other-model").required = $("model").value === OTHER;
    offerRadios("size", model.size, shapeOf);
    offerRadios("quality", ["auto", ...model.quality.filter((value) => value !== "auto")], (value) => [capital(value)]);
    for (const name of SELECTS) {
      const values = model[name] ?? [];
      const open = values.includes("auto") || name === "style" ? ["auto", ...values.filter((value) => value !== "auto")] : values;
      const before = $(name).value;
      const labelOf = name === "output_format" ? (value) => value.toUpperCase() : capital;
      $(name).replaceChildren(...open.map((value) => new Option(labelOf(value), value)));
      if (open.includes(before)) $(name).value = before;
      setShown($(name).parentElement, values.length);
    }
    setShown($("partial_images").parentElement, model.streams);
    setShown($("previews-hint"), model.streams);
    $("n").max = model.n;
    $("n").value = Math.min($("n").value || 1, model.n);
    offerCompression();
  }

  function rulesOf(name) {
    return session.models[name] ?? session.models[session.default_model];
  }

  // Hidden fields are not sent.
  function setShown(row, shown) {
    row.hidden = !shown;
    row.querySelectorAll("input, select").forEach((field) => (field.disabled = !shown));
  }

  function offerCompression() {
    setShown($("compression-row"), ["jpeg", "webp"].includes($("output_format").value));
    $("compression-shown").textContent = `${$("output_compression").value}%`;
  }

  function offerRadios(name, values, parts) {
    const before = composer.elements[name]?.value;
    const chosen = values.includes(before) ? before : values[0];
    $(name).replaceChildren(...values.map((value) => {
      const label = element("label", {});
      const input = element("input", { type: "radio", name, value, defaultChecked: value === chosen });
      label.append(input, ...parts(value, label));
      return label;
    }));
  }

  function shapeOf(size, label) {
    const [width, height] = size.split("x").map(Number);
    const icon = element("i", {});
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

  // Returns the fields of the request, without those left to the server.
  function options() {
    const fields = Object.fromEntries(new FormData(composer));
    if (fields.model === OTHER) fields.model = $("other-model").value.trim();
    if (fields.output_compression === "100") delete fields.output_compression;
    for (const [name, value] of Object.entries(fields)) {
      if (value === "auto" || value === "") delete fields[name];
      else if (["n", "partial_images", "output_compression"].includes(name)) fields[name] = Number(value);
    }
    return fields;
  }

  // --- the editor: a mask is a list of shapes, in fractions of the image's width and height -------

  const editor = { shapes: [], source: null };
  const canvas = $("mask");

  async function editFigure(figure) {
    if (figure.blob) return openEditor(figure.blob);
    const reply = await fetch(figure.url).catch(() => ({ ok: false }));
    if (!reply.ok) return alert("The studio no longer has this image. Download it, then edit it as your own image.");
    openEditor(await reply.blob());
  }

  async function openEditor(blob) {
    URL.revokeObjectURL($("original").src);
    $("original").src = URL.createObjectURL(blob);
    try {
      await $("original").decode();
    } catch {
      return alert("This file is not an image that can be edited. Choose a PNG, JPEG or WebP file.");
    }
    canvas.width = $("original").naturalWidth;
    canvas.height = $("original").naturalHeight;
    Object.assign(editor, { source: blob, shapes: [] });
    const { model, quality = "auto", output_format } = options();
    $("editor-options").textContent = `Uses the options of the page: ${model}, ${quality} quality, ${output_format}.`;
    $("change").value = "";
    selectionChanged();
    $("editor").showModal();
    $("change").focus();
  }

  function draw(context, shapes, { width, height }) {
    context.lineCap = context.lineJoin = "round";
    for (const { rectangle, points, thick } of shapes) {
      if (rectangle) {
        const [left, top, wide, high] = rectangle;
        context.fillRect(left * width, top * height, wide * width, high * height);
        continue;
      }
      context.lineWidth = thick * width;
      context.beginPath();
      for (const [x, y] of [points[0], ...points]) context.lineTo(x * width, y * height);
      context.stroke();
    }
  }

  function selectionChanged() {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = context.strokeStyle = "#e5327a";
    draw(context, editor.shapes, canvas);
    const share = selectedShare();
    $("selected").textContent = editor.shapes.length
      ? `${share}% of the image is selected and may change.`
      : "Nothing is selected: the whole image may change.";
    $("undo").disabled = $("clear").disabled = !editor.shapes.length;
  }

  function selectedShare() {
    const small = new OffscreenCanvas(100, 100);
    const context = small.getContext("2d");
    draw(context, editor.shapes, small);
    const { data } = context.getImageData(0, 0, 100, 100);
    const pixels = data.filter((value, at) => at % 4 === 3 && value > 127).length;
    return Math.min(100, Math.ceil(pixels / 100));
  }

  // The transparent area of the mask may change.
  function maskFile() {
    if (!editor.shapes.length) return undefined;
    const { width, height } = canvas;
    const mask = new OffscreenCanvas(width, height);
    const context = mask.getContext("2d");
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-out";
    draw(context, editor.shapes, canvas);
    return mask.convertToBlob({ type: "image/png" });
  }

  function sourceFile() {
    if (EDITABLE.includes(editor.source.type)) return editor.source;
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    copy.getContext("2d").drawImage($("original"), 0, 0);
    return copy.convertToBlob({ type: "image/png" });
  }

  function positionOf(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  function select(shape) {
    editor.shapes.push(shape);
    selectionChanged();
  }

  async function applyEdit() {
    const { width, height } = canvas;
    const request = { ...options(), prompt: $("change").value };
    for (const name of ["size", "moderation", "style"]) delete request[name]; // edits do not take them
    if (rulesOf(request.model).size.includes(`${width}x${height}`)) request.size = `${width}x${height}`;
    const [image, mask] = await Promise.all([sourceFile(), maskFile()]);
    $("editor").close();
    new Card({ request, image, mask, edited: true, ratio: `${width}/${height}` }).start().node.scrollIntoView({ block: "nearest" });
  }

  // --- events -------------------------------------------------------------------------------------

  const whenChanged = (id, action) => $(id).addEventListener("input", action);
  const whenClicked = (id, action) => $(id).addEventListener("click", action);

  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    const card = new Card({ request: options() }).start();
    if (matchMedia("(max-width: 52rem)").matches) card.node.scrollIntoView({ behavior: "smooth" });
  });
  for (const [field, form] of [[$("prompt"), composer], [$("change"), $("change").form]]) {
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }
  whenChanged("model", offer);
  whenChanged("output_format", offerCompression);
  whenChanged("output_compression", offerCompression);

  whenClicked("own", () => $("own-file").click());
  $("own-file").addEventListener("change", () => {
    const [file] = $("own-file").files;
    if (file) openEditor(file);
    $("own-file").value = "";
  });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    select({ points: [positionOf(event)], thick: $("brush").value / 100 });
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const { points, thick } = editor.shapes.at(-1);
    points.push(positionOf(event));
    draw(canvas.getContext("2d"), [{ points: points.slice(-2), thick }], canvas);
  });
  canvas.addEventListener("pointerup", selectionChanged);
  whenChanged("brush", () => ($("brush-shown").textContent = `${$("brush").value}%`));
  whenClicked("undo", () => selectionChanged(editor.shapes.pop()));
  whenClicked("clear", () => selectionChanged((editor.shapes = [])));
  whenClicked("whole", () => select({ rectangle: [0, 0, 1, 1] }));
  whenClicked("rectangle", () => select({ rectangle: ["left", "top", "width", "height"].map((id) => $(id).value / 100) }));
  $("editor").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    applyEdit();
  });

  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  }
  $("viewer").addEventListener("click", ({ target }) => target === $("viewer") && $("viewer").close());
  addEventListener("beforeunload", (event) => running.size && event.preventDefault());
  setInterval(() => running.forEach((card) => card.tick()), 1000);

  // --- images of this session -------------------------------------------------------------

  $("server").textContent = session.local ? "Local server · free" : session.server;
  $("server").classList.toggle("free", session.local);
  $("model").append(...[...Object.keys(session.models), OTHER].map((name) => new Option(name)));
  $("model").value = session.default_model;
  $("examples").append(...EXAMPLES.map((textContent) => element("button", {
    type: "button",
    textContent,
    onclick: () => {
      $("prompt").value = textContent;
      $("prompt").focus();
    },
  })));
  offer();
  for (const { id, request, edited, elapsed, usage, size, types } of session.images) {
    const card = new Card({ request: { ...request, n: types.length }, edited, ratio: size?.replace("x", "/") });
    Object.assign(card, { elapsed, usage, size, done: types.length });
    card.figures.forEach((figure, index) => {
      figure.type = types[index];
      figure.finish(null, at(`api/images/${id}/${index}`));
    });
    card.describe();
    card.offerMore();
  }
}
