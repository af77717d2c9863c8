// Images as they are generated, from a backend that relays them with elkimg_async.web.
//
//     import { images } from "/elkimg.js";
//
//     for await (const event of images("/stream", { prompt: "a red fox", signal })) {
//       img.src = event.url;
//     }
//
// and an element, <elk-image src="/stream?id=…" alt="A red fox"></elk-image>, defined at the end.
//
// A connection that drops is resumed where the backend relays a job; a plain stream is not, because
// another request would generate, and bill, another image.

/** An error that the image service, or the backend in front of it, reported. */
export class ImageError extends Error {
  constructor({ message, type, code, param, billing, request_id }, status = 200) {
    super(message || "The image could not be generated.");
    this.name = "ImageError";
    Object.assign(this, { type, code, param, billing, requestId: request_id, status });
  }
}

/** The connection to the backend failed, or broke and was not resumed. */
export class ConnectionError extends Error {
  constructor(message, cause) {
    super(message, { cause });
    this.name = "ConnectionError";
  }
}

const DONE = "[DONE]";
const MAX_RETRY = 60_000; // a longer retry means that a new request would generate another image

/**
 * Yield the events of one request: `{type, final, url, id, data}`. `url` is ready for `img.src`.
 *
 * Options: `signal` (AbortSignal), `headers`, `method`, `credentials`; `resume`, how often in a row a
 * dropped connection is resumed without receiving an event (default 10; 0 disables it). All others,
 * such as `prompt` and `size`, are fields of the request: they are sent as JSON by POST, with an `id`
 * that stays the same when the connection is resumed.
 */
export async function* images(url, options = {}) {
  const { signal, headers, method, credentials, resume = 10, ...fields } = options;
  const connection = new Connection(url, { signal, headers, method, credentials }, fields);
  let failures = 0;
  for (;;) {
    let cause;
    try {
      for await (const message of connection.open()) {
        failures = 0;
        if (message.data === DONE) return;
        if (message.event === "error") throw new ImageError(parse(message.data).error ?? {});
        yield imageEvent(message);
      }
      if (connection.finished) return;
      // A response that ends without [DONE] or an error is a broken one, even if it ends cleanly.
    } catch (error) {
      if (error instanceof ImageError || signal?.aborted) throw error;
      cause = error;
    }
    if (!connection.resumable || failures >= resume) {
      throw new ConnectionError("The connection to the server broke before the image was complete.", cause);
    }
    failures += 1;
    await pause(connection.retry * Math.min(failures, 10), signal);
  }
}

class Connection {
  constructor(url, init, fields) {
    const sent = Object.keys(fields).length > 0;
    this.url = url;
    this.lastId = "";
    this.retry = Infinity; // until the backend says that a reconnect costs nothing
    this.finished = false;
    this.init = { ...init, method: init.method ?? (sent ? "POST" : "GET"), cache: "no-store" };
    this.headers = new Headers(init.headers ?? {});
    this.headers.set("Accept", "text/event-stream");
    if (sent) {
      this.headers.set("Content-Type", "application/json");
      this.init.body = JSON.stringify({ id: randomId(), ...fields });
    }
  }

  get resumable() {
    return this.retry <= MAX_RETRY;
  }

  async *open() {
    if (this.lastId) this.headers.set("Last-Event-ID", this.lastId);
    const response = await fetch(this.url, { ...this.init, headers: this.headers });
    if (response.status === 204) { // a job of which this connection has received everything
      this.finished = true;
      return;
    }
    if (!response.ok) {
      // a proxy returns 502 to 504 while the backend restarts
      if (this.resumable && response.status >= 502 && response.status <= 504) throw new Error(response.statusText);
      const body = parse(await response.text());
      const error = typeof body.error === "object" && body.error ? body.error : { message: `The server returned ${response.status}.` };
      throw new ImageError(error, response.status);
    }
    yield* this.messages(response.body);
  }

  async *messages(body) {
    // The decoder joins characters that are split between chunks, and drops a byte order mark.
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new Parser(this);
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        yield* parser.feed(value);
      }
    } finally {
      reader.cancel().catch(() => {}); // closes the connection if the caller leaves the loop early
    }
  }
}

/**
 * A parser of server-sent events, as in the HTML standard, 9.2.6.
 *
 * An image is one line of megabytes, which arrives in hundreds of chunks of any size. The parts of an
 * unfinished line are kept, and joined once, when its end arrives: the cost stays linear.
 */
class Parser {
  constructor(connection) {
    this.connection = connection;
    this.parts = [];
    this.endedInCR = false;
    this.reset();
  }

  reset() {
    this.event = "message";
    this.data = [];
  }

  *feed(text) {
    // A line may end in CR, LF or both, and both may be split between two chunks.
    if (this.endedInCR && text.startsWith("\n")) text = text.slice(1);
    this.endedInCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\n|\r/);
    for (let index = 0; index < lines.length - 1; index++) {
      this.parts.push(lines[index]);
      const line = this.parts.join("");
      this.parts = [];
      if (line) this.field(line);
      else if (this.data.length) {
        const message = { event: this.event, data: this.data.join("\n"), id: this.connection.lastId };
        this.reset();
        yield message;
      } else this.reset(); // only comments, ids or a retry: not a message
    }
    this.parts.push(lines[lines.length - 1]);
  }

  field(line) {
    const colon = line.indexOf(":"); // at 0 for a comment, whose name is then empty
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "event") this.event = value;
    else if (name === "data") this.data.push(value);
    // The standard: an id with NUL is ignored, and so is a retry that is not a number.
    else if (name === "id" && !value.includes("\0")) this.connection.lastId = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.connection.retry = Number(value);
  }
}

function imageEvent({ event, data, id }) {
  const fields = parse(data);
  const { b64_json: base64, ...rest } = fields;
  const type = fields.type ?? event;
  const url = base64 ? `data:${mediaType(base64)};base64,${base64}` : fields.url;
  return { type, final: !type.endsWith(".partial_image"), url, id, data: rest };
}

// How the first bytes of each format look in base64.
const TYPES = [["iVBOR", "png"], ["/9j/", "jpeg"], ["UklGR", "webp"], ["R0lGOD", "gif"], ["PHN2Zy", "svg+xml"], ["PD94bW", "svg+xml"]];

function mediaType(base64) {
  return `image/${TYPES.find(([start]) => base64.startsWith(start))?.[1] ?? "png"}`;
}

function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

// `crypto.randomUUID` exists on pages of https:// and of localhost only.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", abort, { once: true });
    if (signal?.aborted) abort();
  });
}

const STYLE = `
  :host { display: inline-block; position: relative; min-width: 8rem; max-width: 100%; font: inherit; }
  :host([hidden]) { display: none; }
  img { display: block; max-width: 100%; height: auto; }
  img:not([src]) { display: none; }
  :host(:not([state=done])) img { filter: blur(1px); }
  .bar { display: flex; gap: .75em; align-items: center; padding: .5em 0; }
  progress { flex: 1; min-width: 4rem; }
  button { font: inherit; padding: .35em .9em; min-height: 2.2em; }
  [hidden] { display: none; }
`;

// Workers and servers have no HTMLElement, but can use `images`.
/**
 * <elk-image src alt cancel-method="DELETE" cancel-src>: shows an image while it is generated.
 *
 * `src` streams a job; `alt` describes the image. The button sends `cancel-method` to `cancel-src` (default: `src`)
 * and closes the connection. Removing the element only closes the connection; the job continues.
 * `state` is `waiting`, `preview`, `done`, `error` or `cancelled`; events `preview`, `done`, `error` and
 * `cancelled` carry the image event or the error as `detail`. Style it by `::part(image | bar | status | progress | cancel)`.
 */
class ElkImage extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["src", "alt"];

  constructor() {
    super();
    this.attachShadow({ mode: "open" }).innerHTML = `<style>${STYLE}</style><img part="image" alt="">
      <div class="bar" part="bar"><progress part="progress" aria-label="Generating image"></progress>
      <span part="status" role="status"></span><button part="cancel" type="button">Cancel</button></div>`;
    this.parts = Object.fromEntries(
      ["img", "progress", "span", "button"].map((name) => [name, this.shadowRoot.querySelector(name)]),
    );
    this.parts.button.addEventListener("click", () => this.cancel());
  }

  connectedCallback() {
    this.connected = true;
    this.start();
  }

  disconnectedCallback() {
    this.connected = false;
    this.stop();
  }

  // For an element that was in the page before this module, each attribute is reported before
  // `connectedCallback`, when `isConnected` is true already; it must not start twice.
  attributeChangedCallback(name, before, value) {
    if (name === "alt") this.parts.img.alt = value ?? "";
    else if (this.connected && before !== value) this.start();
  }

  /** Close the connection; the job continues. */
  stop() {
    this.aborting?.abort();
    this.aborting = undefined;
  }

  async start() {
    this.stop();
    const src = this.getAttribute("src");
    if (!src) return;
    const aborting = (this.aborting = new AbortController());
    this.parts.img.removeAttribute("src");
    this.show("waiting", "Generating…");
    try {
      let previews = 0;
      for await (const event of images(src, { signal: aborting.signal })) {
        if (aborting.signal.aborted) return;
        this.parts.img.src = event.url;
        if (event.final) this.show("done", "Image ready.", event);
        else this.show("preview", `Preview ${(previews += 1)}`, event);
      }
    } catch (error) {
      if (aborting.signal.aborted) return;
      this.show("error", error.message, error);
    }
  }

  /** Cancel the job, and close the connection. */
  async cancel() {
    const src = this.getAttribute("cancel-src") ?? this.getAttribute("src");
    const method = this.getAttribute("cancel-method") ?? "DELETE";
    this.stop();
    this.show("cancelled", "Cancelled.", null);
    try {
      const response = await fetch(src, { method });
      if (!response.ok && response.status !== 405) throw new Error(`The server returned ${response.status}.`);
    } catch (error) {
      this.show("error", `The image could not be cancelled: ${error.message}`, error);
    }
  }

  show(state, text, detail) {
    const { img, progress, span, button } = this.parts;
    const busy = state === "waiting" || state === "preview";
    const focused = this.shadowRoot.activeElement === button;
    this.setAttribute("state", state);
    this.setAttribute("aria-busy", String(busy));
    img.alt = this.getAttribute("alt") ?? "";
    span.textContent = text;
    progress.hidden = !busy;
    button.hidden = !busy;
    if (focused && !busy) {
      // the focused button disappears
      span.tabIndex = -1;
      span.focus();
    }
    if (detail !== undefined) this.dispatchEvent(new CustomEvent(state, { detail }));
  }
}

if (globalThis.customElements && !customElements.get("elk-image")) {
  customElements.define("elk-image", ElkImage);
}

export { ElkImage };
