// The zoo: what each entry is, how accurate it was measured to be, and which one answers.

import { ask } from "./ask.js";
import * as address from "./address.js";
import { isDrawing } from "./bitmaps.js";
import { $, count, h, reconcile } from "./dom.js";
import { card, changed, examplesOf, state, subscribe, taught } from "./state.js";

const FAMILIES = {
  metric: "Metric", model_based: "Model-based", optimization: "Optimization-based",
  closed_form: "Closed form",
};
/** Entries of the zoo that are shown until all are asked for. */
export const FEW = 6;
let all = false;
/** Once the person has chosen, the page chooses no more. */
let chosen = false;

export function start() {
  for (const key of ["model", "other"]) {
    $(key).addEventListener("change", () => choose(key, $(key).value || null));
  }
  $("all-entries").addEventListener("click", () => {
    all = !all;
    show();
  });
  subscribe(show);
}

/** `wanted` is the id in the address, if any. */
export function begin(wanted) {
  follow(wanted);
  state.model ??= best()?.id ?? null;
  changed();
}

/** What the address names is as good as chosen by the person. */
export function follow(wanted) {
  if (!card(wanted)) return;
  chosen = true;
  state.model = wanted;
  changed();
}

/** What the person picked answers from now on. */
export const use = (id) => choose("model", id);

function choose(key, id) {
  chosen = true;
  state[key] = id;
  settle();
}

function settle() {
  if (state.other === state.model) state.other = null;
  address.write({ set: state.set?.id, model: state.model });
  changed();
  ask();
}

/** The entry that shows most of why, of those that fit; null drawings: whatever they are for. */
function best(drawn = null) {
  const shows = ({ attention }) =>
    (attention.query ? 2 : 0) + (attention.support ? 2 : 0) + (attention.task ? 1 : 0);
  return state.models.filter((one) => suits(one, drawn)).sort((a, b) => shows(b) - shows(a))[0];
}

/** Whether an entry is for pen drawings, or not, as is wanted, and takes what was taught. */
function suits({ input, limits }, drawn) {
  const most = Math.max(0, ...state.classes.map((one) => examplesOf(one.label).length));
  return (drawn === null || (input.channels === 1) === drawn) && taught().length <= limits.max_way
    && most <= limits.max_shot && state.examples.length <= limits.max_support;
}

/** Entries that fit what is taught come first, each part by accuracy. */
function ranked() {
  const rank = new Map(state.models.map((one) => [one, [Number(suits(one, drawing)), accuracy(one)]]));
  return [...state.models].sort((a, b) => {
    const [fits, right] = rank.get(a), [otherFits, otherRight] = rank.get(b);
    return otherFits - fits || otherRight - right;
  });
}

/** By the task that nearly all were measured on, one query at a time; 0 where it was not. */
function accuracy(one) {
  const rows = one.accuracy.filter(({ way, shot, transductive }) =>
    way === 5 && shot === 1 && !transductive);
  return Math.max(0, ...rows.map((row) => row.mean));
}

/** The image last looked at, and the promise of whether it is a drawing; null where unknown. */
let looked = { blob: null, drawn: null };
/** What the promise was kept with. */
let drawing = null;

/** Pick an entry for what is taught, of which this is an image, unless the person picked one. */
export async function suit(blob) {
  if (blob !== looked.blob) looked = { blob, drawn: isDrawing(blob).catch(() => null) };
  const drawn = await looked.drawn;
  if (drawn !== drawing) {
    drawing = drawn;
    show();
  }
  if (chosen || !state.model || suits(card(state.model), drawn)) return;
  const found = best(drawn);
  if (!found) return;
  state.model = found.id;
  settle();
}

// What is shown

function show() {
  options($("model"), state.models, state.model);
  const others = state.models.filter((one) => one.id !== state.model);
  options($("other"), [{ id: "", title: "nothing" }, ...others], state.other ?? "");
  $("no-models").hidden = state.models.length > 0 || !state.loaded;
  const kept = ({ id }) => id === state.model || id === state.other;
  let room = FEW - state.models.filter(kept).length;
  const shown = ranked().filter((one) => all || kept(one) || room-- > 0);
  reconcile($("entries"), shown, (one) => one.id, makeEntry, updateEntry);
  const more = $("all-entries");
  more.hidden = state.models.length <= FEW;
  more.textContent = all ? "Show fewer" : `Show all ${state.models.length} entries`;
  more.setAttribute("aria-expanded", String(all));
}

function options(select, entries, value) {
  reconcile(select, entries, (one) => one.id, (one) => h("option", { value: one.id }),
    (option, one) => { option.textContent = one.title; });
  if (select.value !== value) select.value = value ?? "";
}

function makeEntry(one) {
  const measured = [...one.accuracy].sort((a, b) => a.way - b.way || a.shot - b.shot);
  return h("li", { class: "card entry" },
    h("h3", {}, one.title),
    h("p", { class: "family" }, `${FAMILIES[one.family]} · ${one.backbone} · `
      + `${one.input.width} × ${one.input.height} ${one.input.channels === 1 ? "grey" : "colour"}`),
    h("p", {}, one.summary),
    h("p", { class: "paper" }, paper(one.paper)),
    measured.length > 0 && h("table", {},
      h("caption", {}, "Accuracy on classes it never saw"),
      h("tbody", {}, measured.map((row) => h("tr", {},
        h("th", { scope: "row" }, `${row.way}-way ${row.shot}-shot `,
          h("small", {}, row.dataset + (row.rotations === "classes" ? ", turned too" : "")
            + (row.transductive ? ", asked together" : ""))),
        h("td", {}, `${(100 * row.mean).toFixed(1)} ± ${(100 * row.ci95).toFixed(1)}%`))))),
    h("p", { class: "facts" },
      `Up to ${one.limits.max_way} classes of ${one.limits.max_shot} examples · `
      + `${(one.parameters / 1000).toFixed(0)} thousand weights`),
    one.speed.length > 0 && h("p", { class: "speed" }, speed(one.speed[0])),
    h("p", { class: "last" }),
    h("div", { class: "buttons" },
      h("button", { type: "button", class: "use", onclick: () => use(one.id) }, "Use"),
      h("button", {
        type: "button", class: "compare",
        onclick: () => choose("other", state.other === one.id ? null : one.id),
      }, "Compare")));
}

function paper({ title, authors, year, url }) {
  const text = `${authors}: ${title} (${year})`;
  return url ? h("a", { href: url, rel: "noreferrer" }, text) : text;
}

function speed({ way, shot, queries_per_class: queries, hardware, ...stages }) {
  const ms = stages.encode_ms + stages.adapt_ms + stages.predict_ms;
  const task = `${count(way, "class", "classes")} of ${count(shot, "example")} and `
    + count(way * queries, "query", "queries");
  return h("span", { title: hardware }, `About ${Number(ms.toPrecision(2))} ms for ${task}`);
}

function updateEntry(element, one) {
  const used = one.id === state.model, compared = one.id === state.other;
  element.classList.toggle("used", used);
  element.classList.toggle("compared", compared);
  const use = element.querySelector(".use"), compare = element.querySelector(".compare");
  use.textContent = used ? "In use" : "Use";
  use.setAttribute("aria-pressed", String(used));
  use.setAttribute("aria-label", `${used ? "In use:" : "Use"} ${one.title}`);
  compare.setAttribute("aria-pressed", String(compared));
  compare.setAttribute("aria-label", `Compare with ${one.title}`);
  compare.disabled = used;
  const ms = state.speed[one.id];
  element.querySelector(".last").textContent =
    ms === undefined ? "" : `Last answer here: ${ms.toFixed(1)} ms of computing`;
}
