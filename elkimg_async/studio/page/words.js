// Texts of the page, and small functions for text and elements.

// For each error type: what happened, and what to do.
const PROBLEMS = {
  APIError: ["The image server rejected the request.", "Change the prompt or the options."],
  AuthenticationError: ["The API key was rejected.", "Check ELKAPI_API_KEY, then restart the studio."],
  BadRequestError: ["The image server rejected the request.", "Change the prompt or the options."],
  ConfigurationError: ["The studio is shutting down, or is not configured correctly.", "Check the terminal in which it runs."],
  ConnectError: ["The image server cannot be reached.", "Check your network, then try again."],
  DisconnectedError: ["The connection was lost before the image arrived.", "Check your network, then try again."],
  DownloadError: ["The image was generated but could not be downloaded.", "Check the terminal in which the studio runs."],
  EmptyResultError: ["The image server returned no image.", "Try again in a moment."],
  InvalidRequestError: ["These options cannot be combined.", "Change the options."],
  JobCancelledError: ["Cancelled", "You stopped this image."],
  JobConflictError: ["The studio rejected the request.", "Reload this page, then try again."],
  JobLostError: ["The studio was stopped before the image arrived.", "Check your account before you try again."],
  JobNotFoundError: ["The studio no longer has this image.", "Reload this page."],
  ModerationError: ["The content policy blocked this image.", "Rephrase the prompt, or use a different image."],
  NetworkError: ["The connection was lost before the image arrived.", "Check your network, then try again."],
  NotFoundError: ["The image server does not know this model.", "Choose another model."],
  PermissionDeniedError: ["Your API key does not allow this.", "Choose another model, or ask your provider for access."],
  QuotaExceededError: ["Your account is out of credit.", "Add credit, then try again."],
  RateLimitError: ["Too many requests.", "Wait a moment, then try again."],
  RequestTimeoutError: ["The request timed out.", "Try again, perhaps with a lower quality."],
  ResponseError: ["The image server returned an invalid response.", "Try again in a moment."],
  ServerError: ["The image server failed.", "Your request is fine. Try again in a moment."],
  StoreError: ["The studio cannot store images.", "Check the folder and the disk space, then try again."],
  StreamIncompleteError: ["The stream ended before the image was finished.", "Try again in a moment."],
  Rejected: ["The studio rejected the request.", "Reload this page, then try again."],
  StudioGone: ["The studio is not running.", "Restart it in your terminal; this page will reconnect."],
};
const BILLING = {
  not_sent: "Nothing was sent; you will not be charged.",
  refused: "The request was rejected; you should not be charged.",
  billed: "You will be charged.",
  unknown: "You may still be charged.",
};

export const $ = (id) => document.getElementById(id);
export const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);
export const announce = (text) => ($("status").textContent = text);
export const capital = (text) => text[0].toUpperCase() + text.slice(1);
export const seconds = (time) => `${time.toFixed(1)} s`;
export const short = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);
export const whole = (number) => number.toLocaleString("en");
export const images = (count) => (count === 1 ? "1 image" : `${whole(count)} images`);

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** Choose files with a hidden input when a button is clicked, and run an action on them. */
export function chooseFiles(opener, input, action) {
  $(opener).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    const files = [...$(input).files];
    $(input).value = ""; // the same file again is a change
    action(files);
  });
}

/** Return an image as a PNG. */
export async function toPng(blob) {
  if (blob.type === "image/png") return blob;
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export function button(textContent, onclick, properties = {}) {
  return element("button", { type: "button", textContent, onclick, ...properties });
}

/** Return the texts for an error: `{title, advice, billing, details}`. */
export function describe({ type, message, billing = "unknown", ...more }) {
  const [title, advice] = PROBLEMS[type] ?? ["Something went wrong.", "Try again in a moment."];
  const labels = { status: "Status", code: "Code", param: "Parameter", request_id: "Request ID", idempotency_key: "Idempotency key" };
  const facts = Object.entries(labels).filter(([name]) => more[name]).map(([name, label]) => `${label}: ${more[name]}`);
  const details = [type === "JobCancelledError" ? "" : message, ...facts].filter(Boolean).join("\n");
  return { title, advice, billing: BILLING[billing] ?? "", details };
}

/** Return an error as one line, for a form. */
export function sentence(error) {
  const { title, advice } = describe(error);
  return [title, error.type === "InvalidRequestError" || error.type === "Rejected" ? error.message : "", advice].filter(Boolean).join(" ");
}

/** Return an amount without trailing zeros: 0.042 USD. */
export function money(amount, currency) {
  return `${Number(amount).toLocaleString("en", { maximumFractionDigits: 4 })} ${currency}`;
}
