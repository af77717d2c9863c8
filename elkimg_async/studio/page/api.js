// Requests to the studio, and the stream of everything that happens in it.

const HEADERS = { "X-Elkimg-Studio": "1" }; // other sites cannot send this

export const at = (path) => new URL(path, import.meta.url).href; // beside this file, under the token
const pathOf = (job) => `api/jobs/${encodeURIComponent(job.id)}`;
export const imageUrl = (job, number) => at(`${pathOf(job)}/images/${number}`);
export const thumbnailUrl = (job, number) => at(`${pathOf(job)}/thumbnails/${number}`);
export const inputUrl = (input) => at(`api/inputs/${input.sha256}`);
export const zipUrl = (job) => at(`api/zip?job=${encodeURIComponent(job.id)}`);

/** An error that the studio reported; `error` has `type`, `message` and `billing`. */
export class StudioError extends Error {
  constructor(error) {
    super(error.message ?? error.type);
    this.error = error;
  }
}

export async function getJson(path) {
  return read(await request(path));
}

async function request(path, options) {
  try {
    return await fetch(at(path), options);
  } catch {
    throw new StudioError({ type: "StudioGone", billing: "not_sent" });
  }
}

async function read(response) {
  const body = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw new StudioError(body.error ?? { type: "StudioGone" });
  return body;
}

// A request whose response was lost may have reached the studio. It keeps its id, so that sending it
// again starts no second job.
const unconfirmed = new Map();

/** Start a job. `files` are `[name, blob]`: images to edit, and a mask. */
export async function startJob(request_, files = []) {
  const text = JSON.stringify([request_, files.map(([name, blob]) => [name, blob.size])]);
  const id = unconfirmed.get(text) ?? crypto.randomUUID();
  unconfirmed.set(text, id);
  const sent = await send(JSON.stringify({ id, request: request_ }), files).catch((error) => {
    if (error.error.type !== "StudioGone") unconfirmed.delete(text);
    throw error;
  });
  unconfirmed.delete(text);
  return sent.job;
}

async function send(body, files) {
  if (!files.length) {
    const headers = { ...HEADERS, "Content-Type": "application/json" };
    return read(await request("api/jobs", { method: "POST", headers, body }));
  }
  const form = new FormData();
  form.set("request", body);
  for (const [name, blob] of files) form.append(name, blob, name);
  return read(await request("api/jobs", { method: "POST", headers: HEADERS, body: form }));
}

export async function cancelJob(job) {
  return read(await request(`${pathOf(job)}/cancel`, { method: "POST", headers: HEADERS }));
}

export async function deleteJob(job) {
  return read(await request(pathOf(job), { method: "DELETE", headers: HEADERS }));
}

/** Return the images that a job sent, as `[param, blob]`. */
export async function inputsOf(job) {
  return Promise.all(job.inputs.map(async (input) => [input.param, await fetchBlob(inputUrl(input))]));
}

export async function fetchBlob(url) {
  const response = await request(url);
  if (!response.ok) throw new StudioError({ type: "JobNotFoundError", billing: "not_sent" });
  return response.blob();
}

/**
 * Follow the studio while this page can be seen. A browser opens few connections to one server, so a
 * hidden page closes its own, and continues after the last event that it received.
 */
export function follow(receive, connected) {
  let source = null;
  let after = "";
  const open = () => {
    source = new EventSource(at(`api/events?after=${after}`));
    for (const name of ["jobs", "job", "deleted"]) {
      source.addEventListener(name, ({ data, lastEventId }) => {
        after = lastEventId;
        receive(name, JSON.parse(data));
      });
    }
    source.onopen = () => connected(true);
    source.onerror = () => connected(false, source.readyState === EventSource.CLOSED);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else if (source.readyState === EventSource.CLOSED) open();
  });
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", () => source.readyState === EventSource.CLOSED && open());
  open();
}
