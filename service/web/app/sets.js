// What can be done to the support set. Edits run one after another, in the order they were made.

import * as address from "./address.js";
import * as api from "./api.js";
import { announce, count } from "./dom.js";
import { changed, examplesOf, state } from "./state.js";

const BATCH_FILES = 16;
const AT_ONCE = 6;
const PATIENCE_MS = 3000;
/** Problems of the whole request that trying again later may mend. */
const PASSING = [408, 429, 503, 504];

let tail = Promise.resolve();
let generation = 0;
let epoch = 0;
let keys = 0;
/** The batch under way keeps its name and its content: it may have arrived although its answer
 * did not. The same for a set that is being made. */
let batch = null;
let creation = null;

function serially(work) {
  const run = tail.then(work);
  tail = run.catch(() => {});
  return run;
}

/** Say what went wrong with an edit; nothing is lost on the server. */
async function told(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof api.Problem) && !(error instanceof api.Gone)) throw error;
    announce(error.message, "error");
    return undefined;
  }
}

// Opening

export function startAnew() {
  generation += 1;
  forget();
  state.set = null;
  state.classes = [newClass("Class 1"), newClass("Class 2")];
  changed();
}

/** Of another set from now on: what is under way for the one before is not for this one. */
function forget() {
  epoch += 1;
  batch = creation = null;
  for (const one of [...state.examples, ...state.pending]) URL.revokeObjectURL(one.url);
  state.examples = [];
  state.pending = [];
  state.answers = {};
}

const newClass = (label) => ({ key: `class-${keys += 1}`, label });

/** Show the set of this id. Raises `Problem` and `Gone`. */
export async function open(id) {
  const mine = generation += 1;
  const [set, examples] = await Promise.all([api.getSet(id), api.examples(id)]);
  if (mine !== generation) return;
  const known = new Map(state.set?.id === id ? state.examples.map((one) => [one.id, one]) : []);
  if (state.set?.id !== id) {
    forget();
    state.classes = [];
  }
  state.set = set;
  state.examples = examples.map((one) => ({ ...known.get(one.id), ...one }));
  arrangeClasses(set);
  changed();
  await loadImages(mine, id);
}

/** Look whether somebody else has changed the set meanwhile. */
export const refresh = () => serially(async () => {
  if (!state.set) return;
  const set = await api.getSet(state.set.id);
  if (set.revision !== state.set?.revision) await open(set.id);
});

/** The classes that have examples and those that the page kept a note of, in its order. */
function arrangeClasses(set) {
  const noted = set.metadata?.page?.classes;
  const order = Array.isArray(noted) ? noted.filter((one) => typeof one === "string") : [];
  const labels = new Set([...order, ...set.classes.map((one) => one.label)]);
  const known = new Map(state.classes.map((one) => [one.label, one]));
  state.classes = [...labels].map((label) => known.get(label) ?? newClass(label));
}

async function loadImages(mine, id) {
  const waiting = state.examples.filter((one) => !one.blob);
  const next = async () => {
    for (let one = waiting.shift(); one && mine === generation; one = waiting.shift()) {
      try {
        one.blob = await api.exampleImage(id, one.id);
        one.url = URL.createObjectURL(one.blob);
      } catch (error) {
        one.missing = error.message;
      }
      changed();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
}

// Classes

export function addClass(label) {
  let name = label;
  for (let n = state.classes.length + 1; !name || (!label && taken(name)); n += 1) {
    name = `Class ${n}`;
  }
  const made = taken(name) ?? newClass(name);
  if (!state.classes.includes(made)) state.classes.push(made);
  changed();
  noteClasses();
  return made;
}

const taken = (label, but) => state.classes.find((one) => one.label === label && one !== but);

/** The reason why a class cannot bear this name, or null. */
export function badName(label, one) {
  if (!label) return "A class needs a name.";
  if (taken(label, one)) return `There is already a class “${label}”.`;
  const most = state.limits?.label_characters;
  if (most && [...label].length > most) return `A name has at most ${most} characters.`;
  return null;
}

export const renameClass = (one, label) => told(() => serially(async () => {
  const old = one.label;
  if (examplesOf(old).length > 0) {
    kept(await api.patchSet(state.set.id, { labels: { [old]: label } }));
    for (const example of examplesOf(old)) example.label = label;
  }
  one.label = label;
  changed();
  await saveClasses();
  return true;
}));

export const removeClass = (one) => told(() => serially(async () => {
  for (const waiting of state.pending.filter((each) => each.classKey === one.key)) dismiss(waiting);
  for (const example of examplesOf(one.label)) await deleteNow(example);
  state.classes = state.classes.filter((each) => each !== one);
  changed();
  await saveClasses();
  announce(`Class ${one.label} deleted`);
}));

/** The order of the classes, and those still empty, are kept with the set as a note. */
async function saveClasses() {
  if (!state.set) return;
  const metadata = { ...state.set.metadata, ...note() };
  kept(await api.patchSet(state.set.id, { metadata }));
}

const noteClasses = () => told(() => serially(saveClasses));
const note = () => ({ page: { classes: state.classes.map((one) => one.label) } });

function kept(set) {
  if (state.set?.id !== set.id) return; // another one is shown by now
  state.set = { ...set };
  changed();
}

export const renameSet = (name) => told(() => serially(async () => {
  if (state.set) kept(await api.patchSet(state.set.id, { name }));
}));

export const deleteSet = () => told(() => serially(async () => {
  await api.call("DELETE", `v1/support-sets/${encodeURIComponent(state.set.id)}`);
  return true;
}));

// Examples

export const removeExample = (example) => told(() => serially(async () => {
  await deleteNow(example);
  announce(`Example of ${example.label} deleted`);
}));

async function deleteNow(example) {
  await api.deleteExample(state.set.id, example.id);
  state.examples = state.examples.filter((one) => one !== example);
  URL.revokeObjectURL(example.url);
  if (state.set) state.set.revision += 1;
  changed();
}

export function dismiss(waiting) {
  state.pending = state.pending.filter((one) => one !== waiting);
  URL.revokeObjectURL(waiting.url);
  changed();
}

/** Add image files to a class; they show at once and are sent as soon as it can be. */
export function addExamples(one, files) {
  for (const file of files) {
    state.pending.push({
      key: `pending-${keys += 1}`, classKey: one.key, file, url: URL.createObjectURL(file), sent: 0,
      problem: tooLarge(file),
    });
  }
  changed();
  return told(() => serially(send));
}

/** What the service would refuse anyway need not be sent. Half of its limit leaves room for the
 * rest of the request, and is what a batch may hold. */
function tooLarge(file) {
  const most = (state.limits?.body_bytes ?? Infinity) / 2;
  if (file.size <= most) return null;
  return { title: "Too large", detail: `it has ${Math.ceil(file.size / 1e6)} MB, of at most ${
    Math.floor(most / 1e6)} MB` };
}

/** After the service came back: what could not be sent goes now. */
export const sendAgain = () => told(() => serially(send));

async function send() {
  const mine = epoch;
  for (;;) {
    if (mine !== epoch) return;
    batch ??= nextBatch();
    if (!batch) return;
    const { items, fields, key } = batch;
    try {
      await makeSet(mine);
      if (mine !== epoch) return;
      const answer = await api.addExamples(state.set.id, fields, key, (sent, all) =>
        spread(items, sent, all));
      if (mine !== epoch) return;
      settle(items, answer);
      batch = null;
    } catch (error) {
      if (mine !== epoch) return;
      if (error instanceof api.Problem && !PASSING.includes(error.status)) {
        refuse(items, error);
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

const labelOf = (item) => state.classes.find((one) => one.key === item.classKey)?.label ?? "";

function nextBatch() {
  const most = (state.limits?.body_bytes ?? 8e6) / 2;
  const items = [];
  let bytes = 0;
  for (const one of state.pending.filter((each) => !each.problem && !each.note)) {
    if (items.length === BATCH_FILES || (items.length && bytes + one.file.size > most)) break;
    items.push(one);
    bytes += one.file.size;
  }
  if (items.length === 0) return null;
  const fields = [
    ...items.map((one) => ["images", one.file]),
    ...items.map((one) => ["labels", labelOf(one)]),
  ];
  return { items, fields, key: api.newKey() };
}

async function makeSet(mine) {
  if (state.set) return;
  creation ??= api.newKey(); // should the answer get lost, the same set is given
  const made = await api.createSet(
    [["name", ""], ["metadata", JSON.stringify(note())]], creation,
  );
  if (mine !== epoch) return;
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

function settle(items, { support_set: set, results }) {
  results.forEach((result, index) => {
    const item = items[index];
    if (result.status === "rejected") item.problem = result.problem;
    else if (result.status === "duplicate" && result.example.label === labelOf(item)) dismiss(item);
    else if (result.status === "duplicate") {
      item.note = `The very same image is already an example of “${result.example.label}”.`;
    } else {
      state.pending = state.pending.filter((one) => one !== item);
      state.examples.push({ ...result.example, blob: item.file, url: item.url });
    }
  });
  kept(set);
  const added = results.filter((one) => one.status === "created").length;
  if (added) announce(`${count(added, "example")} added`);
}

/** None was taken: each gets its own fault, or that of the request. */
function refuse(items, error) {
  const own = error.document.rejected ?? [];
  items.forEach((item, index) => { item.problem = own[index] ?? error.document; });
}

// Whole sets

/** A zip with a folder per class becomes part of this set, or a new one. */
export const addArchive = (file, name = "") => told(() => serially(async () => {
  const fields = [["archive", file]];
  const answer = state.set
    ? await api.addExamples(state.set.id, fields, api.newKey(), () => {})
    : await api.createSet([...fields, ["name", name]], api.newKey());
  if (!state.set) state.classes = state.classes.filter((one) => examplesOf(one.label).length > 0);
  address.write({ set: answer.support_set.id, model: state.model });
  await open(answer.support_set.id);
  const bad = answer.results.filter((one) => one.status === "rejected");
  if (bad.length) announce(`${count(bad.length, "image")} refused. ${bad[0].problem.detail}`, "error");
  else announce(`${count(answer.results.length, "example")} added`);
}));
