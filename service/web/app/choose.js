// The zoo: what each entry is, how accurate it was measured to be, and which one answers.

import { ask } from "./ask.js";
import * as address from "./address.js";
import { $, count, h, reconcile } from "./dom.js";
import { card, changed, state, subscribe } from "./state.js";

const FAMILIES = {
  metric: "Metric", model_based: "Model-based", optimization: "Optimization-based",
  closed_form: "Closed form",
};
const COLOURFUL = 12;
/** Once the person has chosen, the page chooses no more. */
let chosen = false;

export function start() {
  for (const [id, key] of [["model", "model"], ["other", "other"]]) {
    $(id).addEventListener("change", () => choose(key, $(id).value || null));
  }
  subscribe(show);
}

/** `wanted` is the id in the address, if any. */
export function begin(wanted) {
  chosen = Boolean(card(wanted));
  state.model = card(wanted)?.id ?? best(() => true)?.id ?? null;
  changed();
}

function choose(key, id) {
  chosen = true;
  state[key] = id;
  if (state.other === state.model) state.other = null;
  address.write({ set: state.set?.id, model: state.model });
  changed();
  ask();
}

/** The entry that shows most of why, among those that fit. */
function best(fits) {
  const shows = ({ attention }) =>
    (attention.query ? 2 : 0) + (attention.support ? 2 : 0) + (attention.task ? 1 : 0);
  return state.models.filter(fits).sort((a, b) => shows(b) - shows(a))[0];
}

/** Pick an entry for pen drawings, or for photos, unless the person picked one. */
export async function suit(blob) {
  if (chosen || !state.model) return;
  const drawn = await isDrawing(blob).catch(() => null);
  if (drawn === null) return;
  const found = best((one) => (one.input.channels === 1) === drawn);
  if (found && (card(state.model).input.channels === 1) !== drawn) {
    state.model = found.id;
    address.write({ set: state.set?.id, model: state.model });
    changed();
  }
}

/** Hardly any colour, and mostly paper. */
async function isDrawing(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = h("canvas", { width: 32, height: 32 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 32, 32);
  pen.drawImage(bitmap, 0, 0, 32, 32);
  const { data } = pen.getImageData(0, 0, 32, 32);
  let colour = 0, paper = 0;
  for (let i = 0; i < data.length; i += 4) {
    const most = Math.max(data[i], data[i + 1], data[i + 2]);
    const least = Math.min(data[i], data[i + 1], data[i + 2]);
    colour += most - least;
    paper += least > 200 ? 1 : 0;
  }
  return colour / 1024 < COLOURFUL && paper > 512;
}

// What is shown

function show() {
  options($("model"), state.models, state.model);
  const others = state.models.filter((one) => one.id !== state.model);
  options($("other"), [{ id: "", title: "nothing" }, ...others], state.other ?? "");
  $("no-models").hidden = state.models.length > 0 || !state.loaded;
  reconcile($("entries"), state.models, (one) => one.id, makeEntry, updateEntry);
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
          h("small", {}, row.dataset + (row.rotations === "classes" ? ", turned too" : ""))),
        h("td", {}, `${(100 * row.mean).toFixed(1)} ± ${(100 * row.ci95).toFixed(1)}%`))))),
    h("p", { class: "facts" },
      `Up to ${one.limits.max_way} classes of ${one.limits.max_shot} examples · `
      + `${(one.parameters / 1000).toFixed(0)} thousand weights`),
    one.speed.length > 0 && h("p", { class: "speed" }, speed(one.speed[0])),
    h("p", { class: "last" }),
    h("div", { class: "buttons" },
      h("button", { type: "button", class: "use", onclick: () => choose("model", one.id) }, "Use"),
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
