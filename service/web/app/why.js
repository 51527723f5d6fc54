// Why: where the entry looked, and which examples counted.

import { leading } from "./answers.js";
import { bitmapOf } from "./bitmaps.js";
import { $, count, h, percent, reconcile, svg } from "./dom.js";
import { paint } from "./heat.js";
import { card, colour, examplesOf, state, subscribe } from "./state.js";

/** In CSS pixels. */
const QUERY_SIDE = 160, EXAMPLE_SIDE = 88;
/** Of lines: how far beside and above the pictures they run, and how wide they turn. */
const BESIDE = 10, ABOVE = 5, TURN = 8;
/** Of the examples of a class, those that counted most. */
const MOST_EXAMPLES = 10;
/** Thin lines to many examples would only be a haze. */
const MOST_LINES = 40;
/** From 1; 0 is the mean of all: the class with most of it is the answer's at least as often as with
 * any one layer, of all shipped entries that have several (120 queries each). */
let layer = 0;
/** The entry chosen here, where two answer. */
let chosen = null;

export function start() {
  $("layer").addEventListener("input", () => { layer = Number($("layer").value); show(); });
  new ResizeObserver(lines).observe($("why-figure"));
  subscribe(show);
}

/** The answer looked into: of the entry chosen here, or the first that has one. */
function current() {
  const models = [state.model, state.other].filter((id) => state.answers[id]?.probabilities);
  const model = models.includes(chosen) ? chosen : models[0];
  return model ? { model, models, answer: state.answers[model] } : null;
}

const layersOf = (found) =>
  Math.max(...[found?.task, found?.query, found?.support].map((part) => part?.length ?? 0));

function show() {
  const found = current();
  const attention = found?.answer.attention;
  const layers = layersOf(attention);
  $("why-none").hidden = layers > 0;
  $("why-none").textContent = "With an answer, this shows where the model looked and which examples "
    + "counted.";
  $("why-figure").hidden = layers === 0;
  $("why-layers").hidden = layers < 2;
  showChoice(found ?? { models: [] });
  if (!found) return;
  $("why-none").textContent = card(found.model).attention.layers
    ? "There is more attention than one answer may hold; use fewer examples to see it."
    : `${card(found.model).title} has no attention to show.`;
  if (layers === 0) return;
  const slider = $("layer");
  slider.max = layers;
  slider.value = Math.min(layer, layers);
  const at = Number(slider.value);
  $("layer-shown").textContent = at ? `${at} of ${layers}` : `mean of ${layers}`;
  slider.setAttribute("aria-valuetext", at ? `layer ${at} of ${layers}` : `mean of ${layers} layers`);
  const input = card(found.model).input;
  const rows = leading(found.answer);
  // One that was renamed since has no answer yet.
  const groups = rows.map((row) => state.classes.find((one) => one.label === row.label))
    .filter(Boolean);
  const left = found.answer.probabilities.length - rows.length;
  $("why-words").textContent = words(found.answer, at, left);
  const map = attention.query && ofLayer(attention.query, at, meanMap);
  canvasOf($("why-query"), found.answer.query.bitmap, map, input, QUERY_SIDE);
  $("why-query").setAttribute("aria-label",
    `The query${attention.query ? " with where the model looked" : ""}`);
  reconcile($("why-support"), groups, (one) => one.key, makeGroup, (element, one) =>
    updateGroup(element, one, found.answer, at, input));
  lines();
}

function words(answer, at, left) {
  const { attention, label } = answer;
  const most = attention.task && mostAttended(answer, at);
  return [
    attention.query && "Warm colours show where it looked.",
    attention.task && `The thicker a line, the more of ${at ? "this layer’s" : "the"} attention went to `
      + "that example. The percentages are shares of attention, which alone does not explain the "
      + "answer; its probabilities may differ.",
    most && most !== label && `Here most went to “${most}”; the answer is “${label}” all the same.`,
    left > 0 && `${count(left, "less probable class is", "less probable classes are")} not shown.`,
  ].filter(Boolean).join(" ");
}

/** The class whose examples together got most attention. */
function mostAttended({ attention, order }, at) {
  const all = weights(attention, at), sums = new Map();
  for (const { id, label } of state.examples) {
    sums.set(label, (sums.get(label) ?? 0) + (all[order.indexOf(id)] ?? 0));
  }
  return [...sums].sort(([, a], [, b]) => b - a)[0]?.[0] ?? null;
}

function showChoice({ model, models }) {
  const place = $("why-models");
  place.hidden = models.length < 2;
  reconcile(place, models.length < 2 ? [] : models, (id) => id, (id) =>
    h("button", { type: "button", onclick: () => { chosen = id; show(); } }, card(id).title),
  (button, id) => button.setAttribute("aria-pressed", String(id === model)));
}

function makeGroup(one) {
  return h("li", {}, h("p", { class: "group-name" }), h("ul", { class: "looked" }));
}

function updateGroup(element, one, { attention, order }, at, input) {
  element.dataset.colour = colour(one.label);
  const all = weights(attention, at);
  const maps = attention.support && ofLayer(attention.support, at, (layers) =>
    layers[0].map((_, place) => meanMap(layers.map((one) => one[place]))));
  const placeOf = (example) => order.indexOf(example.id);
  const taught = examplesOf(one.label);
  const weightOf = (example) => all[placeOf(example)] ?? 0;
  const sum = taught.reduce((total, example) => total + weightOf(example), 0);
  const examples = taught.length <= MOST_EXAMPLES ? taught
    : [...taught].sort((a, b) => weightOf(b) - weightOf(a)).slice(0, MOST_EXAMPLES);
  element.querySelector(".group-name").replaceChildren(
    h("span", { class: "dot", "aria-hidden": "true" }), h("span", { class: "label" }, one.label),
    h("span", { class: "share" }, attention.task ? `attention ${percent(sum)}` : ""));
  reconcile(element.querySelector(".looked"), examples, (each) => each.id, makeExample,
    (item, example) => {
      const place = placeOf(example);
      const weight = all[place];
      const canvas = item.querySelector("canvas");
      canvas.setAttribute("aria-label", `Example ${taught.indexOf(example) + 1} of ${one.label}`
        + (weight === undefined ? "" : `, weight ${percent(weight)}`));
      item.dataset.weight = weight ?? "";
      item.style.setProperty("--weight", weight === undefined ? 0 : weight / Math.max(...all));
      item.querySelector(".weight").textContent = weight === undefined ? "" : percent(weight);
      if (example.blob) example.bitmap ??= bitmapOf(example.blob);
      Promise.resolve(example.bitmap).then((bitmap) =>
        canvasOf(canvas, bitmap, maps?.[place], input, EXAMPLE_SIDE));
    });
}

const makeExample = () => h("li", {},
  h("canvas", { role: "img" }), h("span", { class: "weight", "aria-hidden": "true" }));

const mean = (numbers) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;
/** Of maps of one size, place by place. */
const meanMap = (maps) => maps[0].map((row, i) => row.map((_, j) =>
  mean(maps.map((one) => one[i][j]))));

/** What stands at this layer, or what `meanOf` makes of all of them. */
const ofLayer = (layers, at, meanOf) =>
  at ? layers[Math.min(at, layers.length) - 1] : meanOf(layers);

/** Weight of each example, by its place in the set; [] where there is no task attention. */
const weights = ({ task }, at) => (!task ? [] : ofLayer(
  task.map((one) => one.map(({ weight }) => weight)), at,
  (layers) => layers[0].map((_, place) => mean(layers.map((one) => one[place]))),
));

function canvasOf(canvas, bitmap, map, input, side) {
  // Where the browser knows no such format, the map alone is still worth showing.
  const image = bitmap ?? h("canvas", { width: 32, height: 32 });
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  paint(canvas, image, map, input, side * Math.max(ratio, 1.5));
}

/** From the query down to each example, as wide as its weight; behind the pictures. Those of the
 * rows below come down beside the pictures, not through them. */
function lines() {
  const figure = $("why-figure");
  const place = $("why-lines");
  place.replaceChildren();
  if (figure.hidden) return;
  const box = figure.getBoundingClientRect();
  place.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  const from = $("why-query").getBoundingClientRect();
  const [x0, y0] = [from.left + from.width / 2 - box.left, from.bottom - box.top];
  const ends = [...$("why-support").querySelectorAll(".looked > li")]
    .filter((item) => item.dataset.weight !== "")
    .map((item) => {
      const to = item.querySelector("canvas").getBoundingClientRect();
      const [x, y] = [to.left + to.width / 2 - box.left, to.top - box.top];
      return { item, weight: Number(item.dataset.weight), left: to.left - box.left, x, y };
    });
  const first = Math.min(...ends.map((one) => one.y));
  const side = Math.max(Math.min(...ends.map((one) => one.left)) - BESIDE, BESIDE / 2);
  const top = Math.max(...ends.map((one) => one.weight));
  const shown = ends.sort((a, b) => b.weight - a.weight).slice(0, MOST_LINES);
  for (const { item, weight, x, y } of shown.reverse()) {
    const share = weight / top;
    const middle = (y0 + first) / 2, above = y - ABOVE;
    place.append(svg("path", {
      d: y - first < 1 ? `M${x0} ${y0} C${x0} ${middle} ${x} ${middle} ${x} ${y}`
        : `M${x0} ${y0} C${x0} ${middle} ${side} ${middle} ${side} ${first} V${above - TURN} `
          + `Q${side} ${above} ${side + TURN} ${above} H${x - TURN} Q${x} ${above} ${x} ${y}`,
      "stroke-width": (0.75 + 9 * share).toFixed(2), opacity: (0.2 + 0.6 * share).toFixed(2),
      "data-colour": item.closest("[data-colour]").dataset.colour,
    }));
  }
}
