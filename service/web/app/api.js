// The service's REST API. Every address is relative to the page's own.

const BASE = new URL("./", document.location.href.split("#")[0]);
const KEY = "fewshot-key";
const TRIES = 4;
/** In place of the service's own words, which are for programs. */
const NO_KEY = { status: 401, title: "This service needs an API key", detail: "" };
/** From a service that is silent for longer nothing is to be expected: it gives a body a minute, and
 * half of one to an answer. */
const SILENT_S = 120;

/** A problem document (RFC 9457), or the like of one made from an answer that is none. */
export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title);
    this.document = document;
    this.status = document.status;
    this.type = (document.type ?? "").replace(/^urn:fewshot:problem:/, "");
    this.title = document.title;
  }

  /** Whether it is about a set that is not there, or no longer. */
  get lost() {
    return ["unknown-support-set", "support-set-expired"].includes(this.type);
  }

  /** Whether trying again later may mend it. */
  get passing() {
    return [408, 429, 502, 503, 504].includes(this.status);
  }
}

/** The service does not answer at all. */
export class Gone extends Error {
  constructor() {
    super("The service does not answer");
  }
}

/** Set by the page. `askForKey(had)` asks the person for an API key, again if it `had` one, and is
 * true once one was given; `gone` and `back` are told whether the service answers. */
export const hooks = { askForKey: async () => false, gone: () => {}, back: () => {} };

export const address = (path) => new URL(path, BASE).href;
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** A name for one thing to do, so that trying again does not do it twice. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function form(fields) {
  const data = new FormData();
  for (const [name, value] of fields) {
    if (value instanceof Blob) data.append(name, value, value.name ?? "image.png");
    else data.append(name, value);
  }
  return data;
}

/** A request; its JSON, or its blob where `as` says so. `repeatable`: doing it twice is the same as
 * doing it once. Raises `Problem` and `Gone`. */
export async function call(method, path, options = {}) {
  const { headers = {}, as = "json", silent = SILENT_S, repeatable = method === "GET" } = options;
  let { body } = options;
  const sent = { ...headers };
  if (body && !(body instanceof FormData)) {
    sent["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  return again(repeatable, async () => {
    const signed = withKey(sent);
    const stop = new AbortController();
    const listening = listen(silent, () => stop.abort());
    let answer, found;
    try {
      answer = await fetch(address(path), { method, body, headers: signed, signal: stop.signal });
      found = await (as === "blob" && answer.ok ? read(answer, listening.heard) : answer.text());
    } catch {
      hooks.gone();
      throw new Gone();
    } finally {
      listening.end();
    }
    hooks.back();
    if (as === "blob" && answer.ok) return found;
    return contentOf(answer.status, answer.headers, found);
  });
}

/** The body as a blob, which may take its time; each part of it is `heard`. */
async function read(answer, heard) {
  const parts = [];
  const reader = answer.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
    heard();
    parts.push(part.value);
  }
  return new Blob(parts, { type: answer.headers.get("Content-Type") ?? "" });
}

/** Calls `giveUp` once nothing was heard for so long. */
function listen(seconds, giveUp) {
  let timer;
  const end = () => clearTimeout(timer);
  const heard = () => {
    end();
    timer = setTimeout(giveUp, 1000 * seconds);
  };
  heard();
  return { heard, end };
}

/** A POST of a form, under an idempotency key, that reports its progress: `progress(sentBytes,
 * allBytes)`. */
export function upload(path, body, key, progress) {
  return again(true, () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path));
    for (const [name, value] of Object.entries(withKey({ "Idempotency-Key": key }))) {
      request.setRequestHeader(name, value);
    }
    const listening = listen(SILENT_S, () => request.abort());
    request.upload.onprogress = (event) => {
      listening.heard();
      progress(event.loaded, event.total);
    };
    request.onloadend = listening.end;
    request.onerror = request.onabort = () => { hooks.gone(); reject(new Gone()); };
    request.onload = () => {
      hooks.back();
      const headers = { get: (name) => request.getResponseHeader(name) };
      resolve(contentOf(request.status, headers, request.responseText));
    };
    request.send(body);
  }));
}

/** Once more where the key was missing, and later where the service is busy and says when: with 429
 * it has done nothing, with 503 it may have done it all the same. */
async function again(repeatable, work) {
  const passing = repeatable ? [429, 503] : [429];
  for (let left = TRIES; ; left -= 1) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) {
        if (!(await hooks.askForKey(hasKey()))) throw error;
        left += 1; // mistyped keys are no fault of the service
      } else if (left <= 1) throw error;
      else if (error.retryAfter !== null && passing.includes(error.status)) {
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retryAfter, 10)));
      } else throw error;
    }
  }
}

function withKey(headers) {
  const key = sessionStorage.getItem(KEY);
  if (key === null) return headers;
  // Browsers send no others; the service would not know it either.
  if (!/^[!-~]+$/.test(key)) throw new Problem(NO_KEY);
  return { ...headers, Authorization: `Bearer ${key}` };
}

/** What stands in a whole answer. Raises `Problem`. */
async function contentOf(status, headers, text) {
  if (status < 300) {
    try {
      return text ? JSON.parse(text) : null;
    } catch { /* a proxy's page */ }
  }
  throw problemOf(status, headers, text);
}

function problemOf(status, headers, text) {
  let document = { status, title: `The service answered ${status}`, detail: "" };
  try {
    const given = JSON.parse(text);
    if (given && typeof given.title === "string") document = given;
  } catch { /* a proxy's page, or nothing: the status must do */ }
  if (status === 401) document = NO_KEY;
  const problem = new Problem(document);
  const seconds = Number(headers.get("Retry-After") ?? NaN);
  problem.retryAfter = Number.isFinite(seconds) ? Math.max(seconds, 0.2) : null;
  return problem;
}

/** A problem document in words, without the name of the file where that stands beside it. */
export function words({ title, detail = "", file }, named = false) {
  const start = file ? `${file.field}[${file.index}] (${file.name}) ` : null;
  if (start && detail.startsWith(start)) {
    const said = detail.slice(start.length);
    return named ? said : `${file.name} ${said}`;
  }
  return detail ? `${title}: ${detail}` : title;
}

// What the page asks for

export const models = async () => (await call("GET", "v1/models")).models;
export const limits = () => call("GET", "v1/limits");
export const alive = () => call("GET", "readyz");

const set = (id, rest = "") => `v1/support-sets/${encodeURIComponent(id)}${rest}`;

export const getSet = (id) => call("GET", set(id));
export const deleteSet = (id) => call("DELETE", set(id));
/** With a `revision`, only if the set is still at it: otherwise `Problem` 412, also where a first
 * try was done and could not say so. */
export const patchSet = (id, body, revision = null) => call("PATCH", set(id), {
  body,
  headers: revision === null ? {} : { "If-Match": `"${revision}"` },
  repeatable: body.labels === undefined, // there is nothing of the old name any more
});
export const deleteExample = (id, example) =>
  call("DELETE", set(id, `/examples/${encodeURIComponent(example)}`));
export const exampleImage = (id, example) =>
  call("GET", set(id, `/examples/${encodeURIComponent(example)}/image`), { as: "blob" });

export const createSet = (fields, key, progress = () => {}) =>
  upload("v1/support-sets", form(fields), key, progress);
export const addExamples = (id, fields, key, progress) =>
  upload(set(id, "/examples"), form(fields), key, progress);

export async function examples(id) {
  const found = [];
  let cursor = "";
  do {
    const page = await call("GET", set(id, `/examples?limit=100${cursor}`));
    found.push(...page.examples);
    cursor = page.next_cursor ? `&cursor=${encodeURIComponent(page.next_cursor)}` : "";
  } while (cursor);
  return found;
}

/** Ask the set; `maps` also asks for attention. */
export const predict = (id, model, image, maps) =>
  call("POST", set(id, "/predictions"), {
    body: form([["model", model], ["attention", maps ? "maps" : "none"], ["query_images", image]]),
    repeatable: true,
  });

export const classifier = (id, model) =>
  call("GET", set(id, `/classifier.onnx?model=${encodeURIComponent(model)}`), { as: "blob" });

/** Leave-one-out of these models; gradient steps for each example take their time. */
export const evaluate = (id, models, seconds) =>
  call("POST", set(id, "/evaluations"), {
    body: form(models.map((model) => ["models", model])),
    headers: { "X-Request-Timeout": String(seconds) },
    silent: seconds + SILENT_S,
    repeatable: true,
  });
