// Leave-one-out: how well each entry tells the taught classes apart, and which it mixes up.

import * as api from "./api.js";
import { ready } from "./ask.js";
import { $, announce, count, h, percent } from "./dom.js";
import { card, state, subscribe } from "./state.js";

const LONGEST_S = 120;
/** From so many classes on, the matrix has small cells and upright headings. */
const MANY = 12;
let busy = false;
/** The last answer, and the model whose confusions are shown. */
let found = null, shown = null;

export function start() {
  $("measure").addEventListener("click", measure);
  subscribe(show);
}

async function measure() {
  if (busy || !ready()) return;
  busy = true;
  show();
  try {
    const seconds = Math.min(state.limits?.max_request_timeout_s ?? LONGEST_S, LONGEST_S);
    found = await api.evaluate(state.set.id, state.models.map((one) => one.id), seconds);
    shown = found.advice.model ?? found.models.find((one) => one.accuracy)?.model ?? null;
    draw();
    $("measured").focus();
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
  button.disabled = busy || !ready();
  button.textContent = busy ? "Measuring …" : "Measure on these examples";
  const ref = found?.support_set_ref;
  const [id, revision] = ref?.split("@") ?? [];
  if (found && id !== state.set?.id) {
    found = null;
    draw();
  }
  $("measured-old").hidden = !found || Number(revision) === state.set.revision;
}

function draw() {
  const place = $("measured");
  place.hidden = !found;
  if (!found) return place.replaceChildren();
  const skipped = found.skipped.length > 0 && h("p", { class: "hint" },
    `Not measured, having a single example: ${found.skipped.join(", ")}.`);
  place.replaceChildren(
    h("p", {}, `Each of ${count(found.left_out, "example")} was asked about by the others.`),
    ...found.advice.text.map((text) => h("p", { class: "advice" }, text)), skipped || "",
    h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Accuracy of each entry" },
      accuracies()),
    matrix() ?? "",
  );
}

function accuracies() {
  const order = [...found.models].sort((a, b) =>
    (b.accuracy?.value ?? -1) - (a.accuracy?.value ?? -1));
  return h("table", { class: "accuracies" },
    h("thead", {}, h("tr", {}, ["Entry", "Told right", "95% interval", "Confusions"].map((text) =>
      h("th", { scope: "col" }, text)))),
    h("tbody", {}, order.map((one) => h("tr", { class: one.model === shown ? "shown" : "" },
      h("th", { scope: "row" }, card(one.model)?.title ?? one.model),
      ...(one.accuracy ? [
        h("td", {}, h("span", { class: "meter", "aria-hidden": "true" }, meter(one.accuracy.value)),
          ` ${one.accuracy.correct} of ${one.accuracy.count}`),
        h("td", {}, `${percent(one.accuracy.low)} – ${percent(one.accuracy.high)}`),
        h("td", {}, h("button", {
          type: "button", class: "quiet", "aria-pressed": String(one.model === shown),
          "aria-label": `Confusions of ${card(one.model)?.title ?? one.model}`,
          onclick: () => { shown = one.model; draw(); },
        }, "Show")),
      ] : [h("td", { colSpan: 3 }, one.problem?.detail ?? "not measured")])))));
}

function meter(value) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${100 * value}%`;
  return fill;
}

/** Rows are what an example is, columns what it was taken for; the darker, the more often. */
function matrix() {
  const one = found.models.find((each) => each.model === shown);
  if (!one?.confusion.length) return null;
  const titled = card(shown)?.title ?? shown;
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
  return h("figure", { class: found.classes.length < MANY ? "confusion" : "confusion many" },
    h("figcaption", {}, `Confusions of ${titled}: rows are what it is, columns what it was taken for.`),
    h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Confusion matrix" },
      h("table", {},
        h("thead", {}, h("tr", {}, h("td", { class: "corner" }), found.classes.map(head))),
        h("tbody", {}, one.confusion.map((row, i) => h("tr", {},
          h("th", { scope: "row" }, h("span", { title: found.classes[i] }, found.classes[i])),
          row.map((n, j) => cell(n, i, j))))))));
}
