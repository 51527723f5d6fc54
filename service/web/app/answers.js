// The answers: confidence bars of one entry, or of two side by side.

import { words } from "./api.js";
import { askAgain, isOfQuery } from "./ask.js";
import { $, count, h, percent, reconcile } from "./dom.js";
import { icon } from "./icons.js";
import { addExamples } from "./sending.js";
import { card, colour, state, subscribe, taught } from "./state.js";

/** How long the answer to a stream stays until it is spoken, and the silence before any other. */
const SPEAK_MS = 900, CLEAR_MS = 100;
/** Of more classes than this, only the most probable ones are shown. */
const MANY = 10, LEADING = 8;

export function start() {
  subscribe(show);
}

function show() {
  const { query } = state;
  // A fault of the query's own file stands beside the query: there is nothing to say here.
  const shown = [state.model, state.other].filter((model) =>
    model && state.answers[model] && !isOfQuery(state.answers[model].problem));
  const idle = shown.length > 0 ? [] : state.classes;
  $("idle").hidden = idle.length === 0;
  reconcile($("idle"), idle.length > MANY ? idle.slice(0, LEADING) : idle, (one) => one.key,
    () => h("li", {}, h("span", { class: "label" }), h("span", { class: "bar" })),
    (bar, one) => { bar.firstChild.textContent = one.label; });
  reconcile($("answers"), shown, (model) => model, makeAnswer, updateAnswer);
  $("answers").classList.toggle("two", shown.length > 1);
  $("answers").classList.toggle("stale", !query?.live && shown.some((model) =>
    state.answers[model].query !== query));
  speak(shown);
}

/** The classes that are shown of an answer: all in the page's order, so that bars keep their places
 * while the answer moves; of many the most probable ones, the best first. */
export function leading({ probabilities }) {
  const sorted = [...probabilities].sort((a, b) => b.probability - a.probability);
  if (sorted.length > MANY) return sorted.slice(0, LEADING);
  const place = new Map(state.classes.map((one, index) => [one.label, index]));
  return sorted.sort((a, b) => (place.get(a.label) ?? 0) - (place.get(b.label) ?? 0));
}

function makeAnswer(model) {
  return h("section", { class: "answer", "aria-label": `Answer of ${card(model).title}` },
    h("h3", {}, card(model).title, " ", h("span", { class: "ms" })),
    h("p", { class: "fault", hidden: true }),
    h("button", { type: "button", class: "again", hidden: true, onclick: askAgain }, "Ask again"),
    h("ol", { class: "bars" }),
    h("p", { class: "hint others", hidden: true }),
    h("p", { class: "none-of-these", hidden: true }));
}

function updateAnswer(element, model) {
  const answer = state.answers[model];
  const fault = element.querySelector(".fault");
  fault.hidden = !answer.problem;
  fault.textContent = answer.problem ? words(answer.problem.document) : "";
  element.querySelector(".again").hidden = !(answer.problem?.passing || answer.problem?.status === 500);
  element.querySelector(".ms").textContent = answer.problem ? "" : `${Math.round(answer.ms)} ms`;
  const rows = answer.problem ? [] : leading(answer);
  reconcile(element.querySelector(".bars"), rows, (row) => row.label, makeBar,
    (bar, row) => updateBar(bar, row, row.label === answer.label));
  const others = element.querySelector(".others");
  const left = answer.problem ? 0 : answer.probabilities.length - rows.length;
  others.hidden = left === 0;
  others.textContent = `${count(left, "more class", "more classes")}: together ${
    percent(Math.max(0, 1 - rows.reduce((sum, row) => sum + row.probability, 0)))}`;
  const hint = element.querySelector(".none-of-these");
  hint.hidden = Boolean(answer.problem) || answer.confidence >= sureFrom(card(model));
  hint.textContent = "None of these? It is less sure than usual: this may be something that was not "
    + "taught, or need another example.";
}

/**
 * The confidence from which on an answer counts as sure: as far from guessing to certainty as 95% of
 * the entry's answers came when its accuracy was measured on the task most like this one; half the
 * way where its card does not tell. See docs/decisions/none-of-these.md.
 */
function sureFrom({ accuracy }) {
  const way = taught().length, shot = state.examples.length / way;
  const distance = (row) =>
    Math.abs(Math.log(row.way / way)) + Math.abs(Math.log(row.shot / shot));
  const [like] = accuracy.filter((row) => row.confidence_p5 !== null)
    .sort((a, b) => distance(a) - distance(b));
  const share = like ? (like.confidence_p5 - 1 / like.way) / (1 - 1 / like.way) : 0.5;
  return 1 / way + share * (1 - 1 / way);
}

function makeBar(row) {
  const add = h("button", {
    type: "button", class: "bare teach-this", title: "Add the query to this class",
    "aria-label": `Add the query to ${row.label} as an example`, onclick: () => teach(row.label),
  }, icon("plus"));
  return h("li", {}, h("span", { class: "label", title: row.label }, row.label),
    h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "fill" })),
    h("span", { class: "value" }), add);
}

function updateBar(bar, { label, probability }, best) {
  bar.dataset.colour = colour(label);
  bar.classList.toggle("best", best);
  bar.querySelector(".fill").style.width = `${100 * probability}%`;
  bar.querySelector(".value").textContent = percent(probability);
}

function teach(label) {
  const one = state.classes.find((each) => each.label === label);
  const { blob, name } = state.query ?? {};
  if (one && blob) addExamples(one, [new File([blob], name, { type: blob.type })]);
}

/** What is spoken, or is about to be: a text and the query that it is about. */
let said = { text: "", query: null }, speaking;

/** The outcome for screen readers; of a stream only what stays for a moment. */
function speak(shown) {
  const live = Boolean(state.query?.live);
  const text = shown.map((model) =>
    `${shown.length > 1 ? `${card(model).title}: ` : ""}${outcome(state.answers[model])}`).join("; ");
  const query = live ? null : state.answers[shown[0]]?.query ?? null;
  if (text === said.text && query === said.query) return;
  said = { text, query };
  const place = $("spoken");
  if (!live) place.textContent = ""; // the same words about another query are to be heard again
  clearTimeout(speaking);
  speaking = setTimeout(() => { place.textContent = text; }, live ? SPEAK_MS : CLEAR_MS);
}

const outcome = ({ problem, label, confidence }) =>
  problem ? words(problem.document) : `${label}, ${percent(confidence)}`;
