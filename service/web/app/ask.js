// Asking: the newest query of the chosen entries, one question at a time.

import * as api from "./api.js";
import { bitmapOf } from "./bitmaps.js";
import { tooLarge } from "./sending.js";
import { refresh } from "./sets.js";
import { changed, state, taught } from "./state.js";

/** How long an old query's address stays good. */
const LEAVE_MS = 1000;

let asking = false;
/** Something has changed since the last question was put. */
let stale = false;
/** What the answers on the screen are of. */
let answered = "";

/** Ask if anything that the answer hangs on has changed since. While one question is under way,
 * only the newest of what comes meanwhile is asked after it. */
export async function ask() {
  stale = true;
  if (asking) return;
  asking = true;
  try {
    while (stale) {
      stale = false;
      await once();
    }
  } finally {
    asking = false;
  }
}

/** Whether a problem is the fault of the query's own file. */
export const isOfQuery = (problem) => problem?.document.file?.field === "query_images";

/** What the answers say is wrong with the query's file; undefined where it is good. */
export const queryFault = () =>
  Object.values(state.answers).map((one) => one.problem).find(isOfQuery);

const models = () => [state.model, state.other].filter(Boolean);

export const ready = () => Boolean(state.set) && taught().length >= 2;

async function once() {
  const { query, set } = state;
  if (!state.online) return forget(); // asked again when the service is back
  if (!query || !ready() || !models().length) return forget();
  const what = [query.url, set.id, set.revision, ...models()].join(" ");
  if (what === answered) return;
  try {
    const found = await Promise.all(models().map((model) => askOne(model, query)));
    if (state.set?.id !== set.id) return;
    state.answers = Object.fromEntries(found);
    answered = what;
    const known = state.set.revision;
    // Somebody else has changed the set: what they did is shown.
    if (found.some(([, one]) => one.revision > known || one.problem?.lost)) refresh().catch(() => {});
  } catch (error) {
    if (!(error instanceof api.Gone)) throw error;
    forget();
  }
  changed();
}

/** After a problem that passes. */
export function askAgain() {
  answered = "";
  return ask();
}

/** An answer to something else must not stand beside the query. */
function forget() {
  answered = "";
  if (Object.keys(state.answers).length === 0) return;
  state.answers = {};
  changed();
}

async function askOne(model, query) {
  const start = performance.now();
  const file = new File([query.blob], query.name, { type: query.blob.type });
  const order = state.examples.map((one) => one.id); // which attention counts by
  try {
    const fault = tooLarge(file);
    if (fault) throw new api.Problem({ ...fault, file: { field: "query_images", index: 0 } });
    const answer = await withAttention(model, file);
    const ms = performance.now() - start;
    const { encode, adapt, predict } = answer.timing_ms;
    state.speed[model] = encode + adapt + predict;
    const revision = Number(answer.support_set_ref.split("@")[1]);
    return [model, { ...answer.predictions[0], revision, query, ms, order }];
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    return [model, { problem: error, query }];
  }
}

/** Or without it, where there is more of it than an answer may hold. */
async function withAttention(model, file) {
  try {
    return await api.predict(state.set.id, model, file, true);
  } catch (error) {
    if (!(error instanceof api.Problem) || error.type !== "answer-too-large") throw error;
    return api.predict(state.set.id, model, file, false);
  }
}

/** Queries are numbered as they come; one that was decoded too late is not shown any more. */
let queries = 0;
let shown = 0;

/** Show an image as the query and ask about it. `live`: one of a stream. */
export async function setQuery(blob, name, live = false) {
  const mine = queries += 1;
  const bitmap = await bitmapOf(blob);
  if (mine < shown) return;
  shown = mine;
  replaceQuery({ blob, name, live, bitmap, url: URL.createObjectURL(blob) });
  changed();
  await ask();
}

export function clearQuery() {
  shown = queries += 1;
  replaceQuery(null);
  state.answers = {};
  changed();
}

function replaceQuery(query) {
  const old = state.query;
  state.query = query;
  if (old) setTimeout(() => URL.revokeObjectURL(old.url), LEAVE_MS); // it may still be loading
}
