// The set's id and the model stand in the address behind #, so that a link leads back here.

export function read() {
  const found = new URLSearchParams(document.location.hash.slice(1));
  return { set: found.get("set"), model: found.get("model") };
}

/** Write what is given; a new set gets an entry of its own in the history. */
export function write({ set, model }) {
  const known = read();
  const fields = new URLSearchParams();
  if (set) fields.set("set", set);
  if (model) fields.set("model", model);
  const hash = fields.size ? `#${fields}` : "";
  if (hash === document.location.hash) return;
  const href = document.location.pathname + document.location.search + hash;
  if (known.set !== (set ?? null)) history.pushState(null, "", href);
  else history.replaceState(null, "", href);
}
