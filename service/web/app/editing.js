// What all edits of the support set share: they run one after another, in the order they were made.

import * as api from "./api.js";
import { announce } from "./dom.js";
import { refresh } from "./sets.js";
import { changed, state } from "./state.js";

let tail = Promise.resolve();
/** Grows when another set is shown. */
let epoch = 0;

/** Another set is shown from now on. */
export function leave() {
  epoch += 1;
}

/** -> a function that tells whether the set shown now is still shown then. */
export function here() {
  const mine = epoch;
  return () => mine === epoch;
}

export function serially(work) {
  const run = tail.then(work);
  tail = run.catch(() => {});
  return run;
}

/** An edit of what is shown now; `work(still)`, which is not begun where another set is shown by its
 * turn. */
export function edit(work) {
  const still = here();
  return told(() => serially(() => {
    if (still()) return work(still);
    announce("A change was not made, as another set is shown by now", "error");
    return undefined;
  }));
}

/** Say what went wrong with an edit; nothing is lost on the server. It may have been done all the
 * same, by this try or by somebody else: then the page shows it. */
export async function told(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof api.Problem) && !(error instanceof api.Gone)) throw error;
    announce(error.message, "error");
    if (error instanceof api.Problem) refresh().catch(() => {});
    return undefined;
  }
}

/** The order of the classes, and those still empty, as they are kept with the set. */
export const note = () => ({ page: { classes: state.classes.map((one) => one.label) } });

/** The set as the server has it after an edit, which is one revision later. What others have done
 * meanwhile is not on the page yet: it is fetched. */
export function kept(set) {
  if (state.set?.id !== set.id) return; // another one is shown by now
  const ours = state.set.revision + 1;
  state.set = { ...set, revision: Math.min(set.revision, ours) };
  changed();
  if (set.revision > ours) refresh().catch(() => {});
}
