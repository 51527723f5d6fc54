// What can be done to the support set and its classes.

import * as api from "./api.js";
import { announce } from "./dom.js";
import { edit, here, kept, note, serially, told } from "./editing.js";
import { dismiss, forgetPending, tryAgain } from "./sending.js";
import { changed, examplesOf, newKey, state } from "./state.js";

const AT_ONCE = 6;
const TRIES = 4;
/** As service/text.py has it, but for characters that only one of both knows. */
const UNPRINTABLE = /(?![\u200c-\u200f\u061c])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
/** While many images come in, the page is drawn again at most this often. */
const REDRAW_MS = 150;
/** Before what could not be given for now is asked for again, where the service says no time. */
const PATIENCE_S = 3;

/** Counts the sets that were opened or begun, so that what comes late for an older one is dropped. */
let generation = 0;

// Opening

export function startAnew() {
  generation += 1;
  forget();
  state.set = null;
  state.classes = [newClass("Class 1"), newClass("Class 2")];
  changed();
}

/** Of another set from now on. */
function forget() {
  forgetPending();
  for (const one of state.examples) URL.revokeObjectURL(one.url);
  state.examples = [];
  state.answers = {};
}

/** A name as the service writes it. */
export const cleanName = (text) => text.normalize("NFC").trim();

const newClass = (label) => ({ key: newKey("class"), label });

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
  state.examples = examples.map((one) => ({ ...known.get(one.id), ...one, loading: false }));
  arrangeClasses(set);
  changed();
  loadImages(mine, id); // in its own time: nothing else waits for them
}

/** Look whether somebody else has changed or deleted the set meanwhile. */
export const refresh = () => serially(async () => {
  if (!state.set) return;
  const still = here(), { id } = state.set;
  try {
    const set = await api.getSet(id);
    if (!still()) return;
    if (set.revision !== state.set.revision) await open(id);
    else loadImages(generation, id); // those that could not be loaded before
  } catch (error) {
    if (!error.lost) throw error;
    state.lost = id;
    changed();
  }
});

/** All images of the classes by label, those on their way too. */
export const filesByLabel = () => new Map(state.classes.map((one) => [one.label, [
  ...examplesOf(one.label).filter((each) => each.blob)
    .map(({ blob, filename }) => new File([blob], filename, { type: blob.type })),
  ...state.pending.filter((each) => each.classKey === one.key && !each.note)
    .map((each) => each.file),
]]));

/** The classes that have examples and those that the page kept a note of, in its order; and those
 * that images wait for. */
function arrangeClasses(set) {
  const noted = set.metadata?.page?.classes;
  const texts = Array.isArray(noted) ? noted.filter((one) => typeof one === "string") : [];
  const order = texts.map(cleanName);
  const awaited = state.classes.filter((one) =>
    state.pending.some((each) => each.classKey === one.key));
  const labels = new Set([...order, ...set.classes, ...awaited].map((one) => one.label ?? one));
  const known = new Map(state.classes.map((one) => [one.label, one]));
  state.classes = [...labels].map((label) => known.get(label) ?? newClass(label));
}

async function loadImages(mine, id) {
  const waiting = state.examples.filter((one) => !one.blob && !one.loading);
  if (waiting.length === 0) return;
  const redraw = setInterval(changed, REDRAW_MS);
  const next = async () => {
    for (let one = waiting.shift(); one && mine === generation; one = waiting.shift()) {
      one.loading = true;
      try {
        one.blob = await api.exampleImage(id, one.id);
        one.url = URL.createObjectURL(one.blob);
        one.missing = null;
      } catch (error) {
        if (error.passing) {
          waiting.push(one);
          await new Promise((resolve) =>
            setTimeout(resolve, 1000 * (error.retryAfter ?? PATIENCE_S)));
        } else one.missing = error.message;
      } finally {
        one.loading = false;
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
  clearInterval(redraw);
  changed();
}

// Classes

export function addClass(label) {
  let name = cleanName(label);
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
  if (UNPRINTABLE.test(label)) return "The name holds characters that cannot be printed.";
  return null;
}

export function renameClass(one, label) {
  one.named = true; // by the person, from now on
  return edit((still) => renameNow(one, label, still));
}

async function renameNow(one, label, still) {
  const old = one.label;
  if (examplesOf(old).length > 0) {
    kept(await api.patchSet(state.set.id, { labels: { [old]: label } }));
    if (!still()) return true;
    for (const example of examplesOf(old)) example.label = label;
  }
  one.label = label;
  changed();
  tryAgain(state.pending.filter((each) => each.classKey === one.key
    && each.problem?.type?.endsWith(":invalid-label")));
  await saveClasses(still);
  return true;
}

export const removeClass = (one) => edit(async (still) => {
  const id = state.set?.id;
  for (const waiting of state.pending.filter((each) => each.classKey === one.key)) dismiss(waiting);
  for (const example of examplesOf(one.label)) await deleteNow(id, example);
  if (!still()) return;
  state.classes = state.classes.filter((each) => each !== one);
  changed();
  await saveClasses(still);
  announce(`Class ${one.label} deleted`);
});

/** The metadata is written as a whole, so not over what somebody else has written meanwhile. */
async function saveClasses(still) {
  let { set } = state;
  for (let left = TRIES; set && still(); left -= 1) {
    const metadata = { ...set.metadata, ...note() };
    try {
      return kept(await api.patchSet(set.id, { metadata }, set.revision));
    } catch (error) {
      if (error.status !== 412 || left <= 1) throw error;
      set = await api.getSet(set.id);
    }
  }
}

function noteClasses() {
  const still = here();
  return told(() => serially(() => saveClasses(still)));
}

export function renameSet(name) {
  const { id } = state.set;
  return told(() => serially(async () => kept(await api.patchSet(id, { name }))));
}

/** At once: nothing that waits is needed any more. */
export function deleteSet() {
  const { id } = state.set;
  return told(async () => {
    await api.deleteSet(id);
    return true;
  });
}

// Examples

export const removeExample = (example) => {
  const { id } = state.set;
  return told(() => serially(async () => {
    await deleteNow(id, example);
    announce(`Example of ${example.label} deleted`);
  }));
};

async function deleteNow(id, example) {
  await api.deleteExample(id, example.id);
  if (state.set?.id !== id) return;
  state.examples = state.examples.filter((one) => one.id !== example.id);
  URL.revokeObjectURL(example.url);
  state.set.revision += 1;
  changed();
}

/** What came in a zip is of this set now, at the revision after. */
export function takeArchive(set, examples) {
  if (state.examples.length === 0) makeRoom();
  for (const { label } of examples) {
    if (!taken(label)) state.classes.push(newClass(label));
  }
  state.examples.push(...examples);
  kept(set);
  noteClasses();
  loadImages(generation, set.id);
}

/** The page's own empty classes make room for the first ones. */
export function makeRoom() {
  const unused = (one) => examplesOf(one.label).length === 0 && /^Class \d+$/.test(one.label)
    && !one.named && !state.pending.some((waiting) => waiting.classKey === one.key);
  state.classes = state.classes.filter((one) => !unused(one));
}
