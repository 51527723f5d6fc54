// Leave-one-out: how well each entry tells the taught classes apart, and which it mixes up.

import * as api from "./api.js";
import { ready } from "./ask.js";
import { FEW, use } from "./choose.js";
import { $, announce, count, h, percent, reconcile } from "./dom.js";
import { card, examplesOf, state, subscribe } from "./state.js";

const LONGEST_S = 120;
/** From so many classes on, the matrix has small cells and upright headings. */
const MANY = 12;
let busy = false;
/** The last answer, the examples that it is of, and the model whose confusions are shown. */
let found = null, of = null, shown = null;
/** Whether all entries stand in the table, not only the best. */
let all = false;

export function start() {
  $("measure").addEventListener("click", measure);
  subscribe(show);
}

/** One example is left out and its class must still have another. */
const pairs = () => state.classes.some((one) => examplesOf(one.label).length > 1);
const titleOf = (id) => card(id)?.title ?? id;
/** What the set on the page is called in answers, and what of it measuring hangs on. */
const ref = () => `${state.set?.id}@${state.set?.revision}`;
const examples = () => JSON.stringify(state.examples.map(({ id, label }) => [id, label]));

async function measure() {
  if (busy || !ready() || !pairs()) return;
  busy = true;
  show();
  try {
    const seconds = Math.min(state.limits?.max_request_timeout_s ?? LONGEST_S, LONGEST_S);
    const asked = { ref: ref(), examples: examples() };
    found = await api.evaluate(state.set.id, state.models.map((one) => one.id), seconds);
    of = found.support_set_ref === asked.ref ? asked.examples : null;
    shown = found.advice.model ?? found.models.find((one) => one.accuracy)?.model ?? null;
    draw();
    // From the button, which lost the focus when it was disabled; not from where the person went.
    if ([document.body, $("measure")].includes(document.activeElement)) $("measured").focus();
    else announce("Measured");
  } catch (error) {
    if (!(error instanceof api.Problem) && !(error instanceof api.Gone)) throw error;
    announce(error.message, "error");
  } finally {
    busy = false;
    show();
  }
}

function show() {
  const button = $("measure");
  button.disabled = busy || !ready() || !pairs();
  button.textContent = busy ? "Measuring …" : "Measure on these examples";
  if (found && found.support_set_ref.split("@")[0] !== state.set?.id) {
    found = null;
    draw();
  }
  if (found?.support_set_ref === ref()) of = examples();
  $("measured-old").hidden = !found || of === examples();
  $("measure-needs").hidden = !ready() || pairs();
  if (found) showChoice();
}

function draw() {
  const place = $("measured");
  place.hidden = !found;
  if (!found) return place.replaceChildren();
  const skipped = found.skipped.length > 0 && h("p", { class: "hint" },
    `Not measured, having a single example: ${found.skipped.join(", ")}.`);
  place.replaceChildren(
    h("p", {}, `Each of ${count(found.left_out, "example")} was asked about by the others.`),
    h("p", { id: "keep", class: "advice" }),
    ...found.advice.text.map((text) => h("p", { class: "advice" }, text)), skipped || "",
    h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Accuracy of each entry" },
      h("table", { class: "accuracies" },
        h("thead", {}, h("tr", {}, ["Entry", "Told right", "95% interval", ""].map((text) =>
          h("th", { scope: "col" }, text)))),
        h("tbody", {}))),
    found.models.length > FEW ? h("button", {
      type: "button", id: "all-measured", onclick: () => { all = !all; showChoice(); },
    }) : "",
    h("figure", { id: "confusion" }),
  );
  showChoice();
  showMatrix();
}

/** What hangs on the entry that answers, and on what the person wants to see of the others. */
function showChoice() {
  const keep = $("keep");
  keep.hidden = !isBest(state.model);
  keep.textContent = keep.hidden ? ""
    : `Keep ${titleOf(state.model)}, which answers now: none got more right.`;
  const advised = (one) => Number(one.model === found.advice.model);
  const order = [...found.models].sort((a, b) =>
    (b.accuracy?.value ?? -1) - (a.accuracy?.value ?? -1) || advised(b) - advised(a));
  const kept = (one) => one.model === state.model || one.model === shown;
  let room = FEW - order.filter(kept).length;
  const rows = order.filter((one) => all || kept(one) || room-- > 0);
  reconcile($("measured").querySelector(".accuracies tbody"), rows, (one) => one.model, makeRow,
    updateRow);
  const more = $("all-measured");
  if (more) {
    more.textContent = all ? "Show fewer" : `Show all ${order.length} entries`;
    more.setAttribute("aria-expanded", String(all));
  }
}

function isBest(model) {
  const rights = found.models.filter((one) => one.accuracy).map((one) => one.accuracy.correct);
  const own = found.models.find((one) => one.model === model)?.accuracy;
  return Boolean(own) && own.correct === Math.max(...rights);
}

function makeRow(one) {
  const title = titleOf(one.model);
  return h("tr", {}, h("th", { scope: "row" }, title),
    ...(one.accuracy ? [
      h("td", {}, h("span", { class: "meter", "aria-hidden": "true" }, meter(one.accuracy.value)),
        ` ${one.accuracy.correct} of ${one.accuracy.count}`),
      h("td", {}, `${percent(one.accuracy.low)} – ${percent(one.accuracy.high)}`),
      h("td", {}, h("span", { class: "buttons" },
        h("button", { type: "button", class: "use", onclick: () => use(one.model) }),
        h("button", {
          type: "button", class: "quiet confusions", "aria-label": `Confusions of ${title}`,
          onclick: () => { shown = one.model; showChoice(); showMatrix(); },
        }, "Confusions"))),
    ] : [h("td", { colSpan: 3 }, one.problem?.detail ?? "not measured")]));
}

function updateRow(row, one) {
  row.classList.toggle("shown", one.model === shown);
  if (!one.accuracy) return;
  const used = one.model === state.model, button = row.querySelector(".use");
  button.textContent = used ? "In use" : "Use";
  button.setAttribute("aria-pressed", String(used));
  button.setAttribute("aria-label", `${used ? "In use:" : "Use"} ${titleOf(one.model)}`);
  row.querySelector(".confusions").setAttribute("aria-pressed", String(one.model === shown));
}

function meter(value) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * value}%`;
  return fill;
}

/** Rows are what an example is, columns what it was taken for; the darker, the more often. */
function showMatrix() {
  const one = found.models.find((each) => each.model === shown);
  const place = $("confusion");
  place.hidden = !one?.confusion.length;
  if (place.hidden) return;
  const top = Math.max(...one.confusion.flat(), 1);
  const cell = (n, row, column) => {
    const element = h("td", {
      class: row === column ? "right" : "wrong",
      title: `${found.classes[row]} taken for ${found.classes[column]}: ${n}`,
    }, n || "");
    element.style.setProperty("--share", n / top);
    element.classList.toggle("strong", n / top > 0.5);
    return element;
  };
  const head = (label) => h("th", { scope: "col" }, h("span", { title: label }, label));
  place.className = found.classes.length < MANY ? "confusion" : "confusion many";
  place.replaceChildren(
    h("figcaption", {}, `Confusions of ${titleOf(shown)}: rows are what it is, columns what it was `
      + "taken for."),
    h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Confusion matrix" },
      h("table", {},
        h("thead", {}, h("tr", {}, h("td", { class: "corner" }), found.classes.map(head))),
        h("tbody", {}, one.confusion.map((row, i) => h("tr", {},
          h("th", { scope: "row" }, h("span", { title: found.classes[i] }, found.classes[i])),
          row.map((n, j) => cell(n, i, j))))))));
}
