// What the page knows. Views subscribe; whoever changes something calls `changed`.

export const state = {
  /** The support set on the server, once there is one: {id, name, revision, metadata}. */
  set: null,
  /** The id of the set that was found to be no longer on the server. */
  lost: null,
  /** [{key, label}], in the page's order; a class may have no example yet. */
  classes: [],
  /**
   * As stored, in stored order, which attention counts by: [{id, label, filename, …}], and once it
   * was loaded the image as `blob` and `url`, or why it is `missing`.
   */
  examples: [],
  /** Images on their way: [{key, classKey, file, url, sent, problem, note}]; of an `archive` there
   * is no class. */
  pending: [],
  /** The cards of the zoo; `loaded` once they and the limits are known. */
  models: [],
  limits: null,
  loaded: false,
  /** Ids of the entry that answers, and of the one beside it or null. */
  model: null,
  other: null,
  /** {blob, name, url, live, bitmap}; the bitmap is null where the browser knows no such format. */
  query: null,
  /**
   * By model id: the service's prediction ({label, confidence, probabilities, attention}) with the
   * `query` it is of, the set's `revision`, the examples' ids in `order`, and the `ms` it took until
   * it was here; or {problem, query}.
   */
  answers: {},
  /** By model id: milliseconds that the service computed for the last answer. */
  speed: {},
  online: true,
};

let keys = 0;

/** A key for something that the page made itself. */
export const newKey = (kind) => `${kind}-${keys += 1}`;

const listeners = new Set();
let scheduled = false;

/** Call `listener` after changes, at most once per frame, and once now. */
export function subscribe(listener) {
  listeners.add(listener);
  listener();
}

export function changed() {
  if (scheduled) return;
  scheduled = true;
  // Not an animation frame: those stop in a tab that is not seen.
  queueMicrotask(() => {
    scheduled = false;
    for (const listener of listeners) listener();
  });
}

export const card = (id) => state.models.find((one) => one.id === id);
export const examplesOf = (label) => state.examples.filter((one) => one.label === label);
export const taught = () => state.classes.filter((one) => examplesOf(one.label).length > 0);

/** Classes keep their colour by their place; colours come round again after ten. */
export const colour = (label) =>
  Math.max(0, state.classes.findIndex((one) => one.label === label)) % 10;
