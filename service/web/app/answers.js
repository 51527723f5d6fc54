// The answers: confidence bars of one entry, or of two side by side.

import { words } from "./api.js";
import { askAgain, isOfQuery } from "./ask.js";
import { $, count, h, percent, reconcile } from "./dom.js";
import { icon } from "./icons.js";
import { addExamples } from "./sending.js";
import { card, colour, state, subscribe, taught } from "./state.js";

const SPEAK_MS = 900;
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

let said = "", speaking;

/** The outcome for screen readers; of a stream only what stays for a moment. */
function speak(shown) {
  clearTimeout(speaking);
  const text = shown.filter((model) => !state.answers[model].problem).map((model) => {
    const { label, confidence } = state.answers[model];
    return `${shown.length > 1 ? `${card(model).title}: ` : ""}${label}, ${percent(confidence)}`;
  }).join("; ");
  if (text === said) return;
  const say = () => { said = text; $("spoken").textContent = text; };
  if (state.query?.live) speaking = setTimeout(say, SPEAK_MS);
  else say();
}
