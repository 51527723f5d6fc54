// Small helpers for making elements and for speaking to screen readers.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `props`: `on…` are listeners, `class`, `data-…`, `aria-…` and the like attributes,
 * anything that the element has as a property is set as one. null and false leave out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

export const $ = (id) => document.getElementById(id);

/** Make the children of `parent` those of `items`, reusing the elements made for the same key. */
export function reconcile(parent, items, keyOf, make, update = () => {}) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item, index) => {
    const key = String(keyOf(item));
    const element = known.get(key) ?? make(item, index);
    element.dataset.key = key;
    known.delete(key);
    update(element, item, index);
    return element;
  });
  for (const left of known.values()) left.remove();
  // Only what is out of place is moved: a moved element loses focus and a video stops.
  wanted.forEach((element, index) => {
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
  });
}

const SHOWN_MS = { note: 3500, error: 9000 };
let clearing;

/** Say something to screen readers, and show it for a while. */
export function announce(text, kind = "note") {
  const place = $("toast");
  place.textContent = text;
  place.dataset.kind = kind;
  clearTimeout(clearing);
  clearing = setTimeout(() => { place.textContent = ""; }, SHOWN_MS[kind]);
}

/** "38%"; a decimal near both ends, where it matters. */
export function percent(value) {
  const whole = value < 0.0005 || value >= 0.9995 || (value >= 0.1 && value <= 0.995);
  return `${(100 * value).toFixed(whole ? 0 : 1)}%`;
}

/** "1 example", "2 examples". */
export const count = (n, noun, plural = `${noun}s`) => `${n} ${n === 1 ? noun : plural}`;
