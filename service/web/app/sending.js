// Images on their way to the server: shown at once, sent in batches, and again after a failure.

import * as address from "./address.js";
import * as api from "./api.js";
import { announce, count } from "./dom.js";
import { here, kept, leave, note, serially, told } from "./editing.js";
import { badName, refresh, takeArchive } from "./sets.js";
import { changed, newKey, state } from "./state.js";

const BATCH_FILES = 16;
/** So much should go through a slow connection within the service's patience; less where it did not. */
let batchBytes = 2e6;
/** Of the service's limit; the rest is for the form around it. */
const ARCHIVE_SHARE = 0.99;
const PATIENCE_MS = 3000;

/** The batch under way keeps its name and its content: it may have arrived although its answer
 * did not. The same for the name of a set that is being made. */
let batch = null;
let creation = null;
/** What is known of the set to be made: {name, metadata}. */
let draft = {};

/** Of another set from now on. */
export function forgetPending() {
  leave();
  batch = creation = null;
  draft = {};
  for (const one of state.pending) URL.revokeObjectURL(one.url);
  state.pending = [];
}

export function dismiss(waiting) {
  state.pending = state.pending.filter((one) => one !== waiting);
  URL.revokeObjectURL(waiting.url);
  changed();
}

/** Add image files to a class; they show at once and are sent as soon as it can be. */
export function addExamples(one, files) {
  return put(files.map((file) => ({ classKey: one.key, file, problem: tooLarge(file) })));
}

/** A zip with a folder per class becomes part of this set, or a new one. */
export const addArchive = (file) =>
  put([{ archive: true, file, problem: tooLarge(file, ARCHIVE_SHARE) }]);

/** The set that is made once there is something to send takes these over from another one. */
export function makeLike({ name, metadata }) {
  draft = { name, metadata };
}

function put(items) {
  for (const one of items) {
    state.pending.push({
      key: newKey("pending"), url: URL.createObjectURL(one.file), sent: 0, ...one,
    });
  }
  changed();
  return told(() => serially(send));
}

/** What the service would refuse anyway need not be sent. An image may have half of its limit. */
export function tooLarge(file, share = 0.5) {
  const most = (state.limits?.body_bytes ?? Infinity) * share;
  if (file.size <= most) return null;
  const has = Math.ceil(file.size / 1e6), may = Math.floor(most / 1e6);
  return { lasting: true, title: "Too large", detail: `it has ${has} MB, of at most ${may} MB` };
}

/** Nothing may have changed, but the person or a new name asks for it. */
export function tryAgain(items) {
  for (const one of items) one.problem = null;
  changed();
  return sendAgain();
}

/** After the service came back: what could not be sent goes now. */
export const sendAgain = () => told(() => serially(send));

async function send() {
  const still = here();
  for (;;) {
    if (!still()) return;
    batch ??= nextBatch();
    if (!batch) return;
    const { items, labels, fields, key } = batch;
    try {
      await makeSet(still, items[0]);
      if (!still()) return;
      const answer = await api.addExamples(state.set.id, fields, key, (sent, all) =>
        spread(items, sent, all));
      if (!still()) return;
      batch = null;
      if (items[0].archive) settleArchive(items[0], answer);
      else await settle(items, labels, answer);
    } catch (error) {
      if (!still()) return;
      if (error.status === 408) {
        slowDown(items);
        batch = null;
      } else if (error instanceof api.Problem && !error.passing) {
        refuse(items, labels, error);
        if (error.lost) refresh().catch(() => {});
        batch = null;
      } else {
        // The items stay. Where the service is gone, they go when it is back.
        if (error instanceof api.Problem) setTimeout(sendAgain, PATIENCE_MS);
        throw error;
      }
    } finally {
      changed();
    }
  }
}

/** An image under a name that the service would refuse waits for a better one. */
const isReady = (item) => {
  if (item.archive) return !item.problem;
  const one = classOf(item);
  return one && !item.problem && !item.note && !badName(one.label, one);
};
const classOf = (item) => state.classes.find((one) => one.key === item.classKey);
const labelOf = (item) => classOf(item)?.label ?? "";

/** The body did not arrive in time: nothing of it was taken. */
function slowDown(items) {
  batchBytes = items.reduce((sum, one) => sum + one.file.size, 0) / 2;
  if (items.length > 1) return;
  items[0].problem = { title: "Too slow", detail: "the connection is too slow for this file" };
}

function nextBatch() {
  const items = [];
  let bytes = 0;
  const ready = state.pending.filter(isReady);
  if (ready[0]?.archive) {
    const fields = [["archive", ready[0].file]];
    return { items: ready.slice(0, 1), labels: [], fields, key: api.newKey() };
  }
  for (const one of ready) {
    if (one.archive || items.length === BATCH_FILES) break;
    if (items.length && bytes + one.file.size > batchBytes) break;
    items.push(one);
    bytes += one.file.size;
  }
  if (items.length === 0) return null;
  const fields = [
    ...items.map((one) => ["images", one.file]),
    ...items.map((one) => ["labels", labelOf(one)]),
  ];
  return { items, labels: items.map(labelOf), fields, key: api.newKey() };
}

async function makeSet(still, first) {
  if (state.set) return;
  // Should the answer get lost, the same is asked for again and the same set is given.
  const name = draft.name || (first.archive ? first.file.name.replace(/\.zip$/i, "") : "");
  const metadata = JSON.stringify({ ...draft.metadata, ...note() });
  creation ??= { key: api.newKey(), fields: [["name", name], ["metadata", metadata]] };
  const made = await api.createSet(creation.fields, creation.key);
  if (!still()) return;
  creation = null;
  state.set = made.support_set;
  address.write({ set: state.set.id, model: state.model });
}

/** Of `all` bytes, `sent` have gone: the first items first. */
function spread(items, sent, all) {
  const share = sent / all * items.length;
  items.forEach((one, index) => { one.sent = Math.min(Math.max(share - index, 0), 1); });
  changed();
}

async function settle(items, labels, { support_set: set, results }) {
  const unwanted = [];
  results.forEach((result, index) => {
    const item = items[index];
    if (result.status === "rejected") item.problem = result.problem;
    else if (result.status === "created" && !isWanted(item, labels[index])) {
      unwanted.push(result.example.id);
    } else if (result.status === "duplicate" && result.example.label === labelOf(item)) dismiss(item);
    else if (result.status === "duplicate") {
      item.note = `The very same image is already an example of “${result.example.label}”.`;
    } else {
      classOf(item).label = result.example.label; // should the service spell it otherwise
      state.pending = state.pending.filter((one) => one !== item);
      state.examples.push({ ...result.example, blob: item.file, url: item.url });
    }
  });
  kept(set);
  for (const id of unwanted) {
    await api.deleteExample(set.id, id);
    if (state.set?.id === set.id) state.set.revision += 1;
  }
  const added = results.filter((one) => one.status === "created").length - unwanted.length;
  if (added) announce(`${count(added, "example")} added`);
}

function settleArchive(item, { support_set: set, results }) {
  dismiss(item);
  takeArchive(set, results.filter((one) => one.status === "created").map((one) => one.example));
  const bad = results.filter((one) => one.status === "rejected");
  if (bad.length) announce(`${count(bad.length, "image")} refused. ${bad[0].problem.detail}`, "error");
  else announce(`${count(results.length, "example")} added`);
}

/** Whether it is still to be an example of the class it was sent for: the batch may have waited for
 * long. One that is not wanted under that name but is still there goes again under its new one. */
const isWanted = (item, label) => state.pending.includes(item) && labelOf(item) === label;

/** None was taken: each gets its own fault, or that of the request. Where one label is at fault, the
 * others go again without it. */
function refuse(items, labels, error) {
  const { rejected = [], index: at } = error.document;
  const bad = error.type === "invalid-label" ? labels[at] : undefined;
  items.forEach((item, index) => {
    if (item.archive) item.problem = error.document;
    else if (bad === undefined) item.problem = rejected[index] ?? error.document;
    else if (labels[index] === bad) item.problem = { ...error.document, detail: "" };
  });
}
