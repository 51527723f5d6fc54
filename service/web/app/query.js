// The right side: the query and its confidence bars.

import { words } from "./api.js";
import { clearQuery, ready, setQuery } from "./ask.js";
import { Camera } from "./camera.js";
import { $, announce, h, percent, reconcile } from "./dom.js";
import { icon } from "./icons.js";
import { Pad } from "./pad.js";
import * as sets from "./sets.js";
import { ACCEPT, droppable } from "./sources.js";
import { card, colour, state, subscribe } from "./state.js";

const SPEAK_MS = 900;
let tool = null;

export function start() {
  const files = $("query-file");
  files.accept = ACCEPT;
  $("ask-files").addEventListener("click", () => files.click());
  files.addEventListener("change", () => {
    if (files.files.length) askFile(files.files[0]);
    files.value = "";
  });
  $("ask-draw").addEventListener("click", () => toggle("draw"));
  $("ask-camera").addEventListener("click", () => toggle("camera"));
  droppable($("ask"), ({ files: dropped, folders }) => {
    const first = dropped[0] ?? [...folders.values()].flat()[0];
    if (first) askFile(first);
    if (dropped.length > 1) announce("One image is asked at a time: this is the first.");
  });
  subscribe(show);
}

export function askFile(file) {
  use(null);
  setQuery(file, file.name || "pasted.png");
}

function toggle(kind) {
  if (tool?.kind === kind) return use(null);
  clearQuery();
  use(kind === "draw" ? drawing() : watching());
}

/** Put a tool where the query is shown, or the query itself. */
function use(next) {
  tool?.close();
  tool = next;
  $("stage-tool").replaceChildren(...(tool ? [tool.element] : []));
  for (const kind of ["draw", "camera"]) {
    $(`ask-${kind}`).setAttribute("aria-expanded", String(tool?.kind === kind));
  }
  show();
}

export function openDrawing() {
  if (tool?.kind !== "draw") toggle("draw");
}

function drawing() {
  const pad = new Pad("The query", async () => {
    if (pad.empty) return clearQuery();
    const file = await pad.file("query.png");
    if (open && !pad.empty) setQuery(file, file.name, true);
  });
  let open = true;
  return {
    kind: "draw", close() { open = false; },
    element: h("div", { class: "drawing" }, pad.canvas,
      h("div", { class: "buttons" }, pad.undoButton, pad.clearButton)),
  };
}

function watching() {
  const camera = new Camera();
  const told = h("p", { class: "hint", role: "status" }, "Waiting for the camera …");
  let open = true;
  const watch = async () => {
    while (open) {
      const file = await camera.file();
      if (file && open) await setQuery(file, "query.jpg", true);
      await new Promise((resolve) => setTimeout(resolve, 60));
    }
  };
  camera.open().then(
    () => { told.textContent = "Live: each frame is asked."; watch(); },
    (error) => { told.textContent = error.message; told.className = "fault"; },
  );
  return {
    kind: "camera", close() { open = false; camera.close(); },
    element: h("div", { class: "drawing" }, camera.video, told),
  };
}

// What is shown

function show() {
  const { query } = state;
  const picture = $("query");
  const visible = Boolean(query?.bitmap);
  $("stage-empty").hidden = Boolean(tool) || visible;
  $("stage-empty").textContent = query ? `${query.name} cannot be shown here`
    : "Drop or paste an image";
  picture.hidden = Boolean(tool) || !visible;
  if (query && !tool && picture.dataset.url !== query.url) {
    picture.dataset.url = query.url;
    picture.src = query.url;
    picture.alt = `The query: ${query.name}`;
  }
  const clear = $("ask-clear");
  clear.hidden = Boolean(tool) || !query;
  $("needs").hidden = ready();
  showFault();
  const shown = [state.model, state.other].filter((model) => model && state.answers[model]);
  $("idle").hidden = shown.length > 0;
  reconcile($("idle"), shown.length > 0 ? [] : state.classes, (one) => one.key,
    () => h("li", {}, h("span", { class: "label" }), h("span", { class: "bar" })),
    (bar, one) => { bar.firstChild.textContent = one.label; });
  reconcile($("answers"), shown, (model) => model, makeAnswer, updateAnswer);
  $("answers").classList.toggle("two", shown.length > 1);
  $("answers").classList.toggle("stale", !query?.live && shown.some((model) =>
    state.answers[model].query !== query));
  speak(shown);
}

/** A fault of the query's own file is shown beside it, once. */
function showFault() {
  const problem = Object.values(state.answers).map((one) => one.problem).find(isOfQuery);
  const place = $("query-fault");
  const text = problem ? words(problem.document) : "";
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !problem;
}

const isOfQuery = (problem) => problem?.document.file?.field === "query_images";

function makeAnswer(model) {
  return h("section", { class: "answer", "aria-label": `Answer of ${card(model).title}` },
    h("h3", {}, card(model).title, " ", h("span", { class: "ms" })),
    h("p", { class: "fault", hidden: true }), h("ol", { class: "bars" }),
    h("p", { class: "none-of-these", hidden: true }));
}

/** Below the middle between guessing and certainty. */
const unsure = (answer) => answer.confidence < (1 + 1 / answer.probabilities.length) / 2;

function updateAnswer(element, model) {
  const answer = state.answers[model];
  const fault = element.querySelector(".fault");
  const shown = answer.problem && !isOfQuery(answer.problem);
  fault.hidden = !shown;
  fault.textContent = shown ? words(answer.problem.document) : "";
  element.querySelector(".ms").textContent = answer.problem ? "" : `${Math.round(answer.ms)} ms`;
  const rows = answer.problem ? [] : inPageOrder(answer.probabilities);
  reconcile(element.querySelector(".bars"), rows, (row) => row.label, makeBar,
    (bar, row) => updateBar(bar, row, row.label === answer.label));
  const hint = element.querySelector(".none-of-these");
  hint.hidden = Boolean(answer.problem) || !unsure(answer);
  if (!hint.hidden) {
    hint.textContent = "None of these? No class stands out: it may be something that was not "
      + "taught, or need another example.";
  }
}

/** Bars keep their places while the answer moves. */
const inPageOrder = (probabilities) => {
  const place = new Map(state.classes.map((one, index) => [one.label, index]));
  return [...probabilities].sort((a, b) => (place.get(a.label) ?? 0) - (place.get(b.label) ?? 0));
};

function makeBar(row) {
  const correct = h("button", {
    type: "button", class: "bare teach-this", title: "Add the query to this class",
    "aria-label": `Add the query to ${row.label} as an example`, onclick: () => teach(row.label),
  }, icon("plus"));
  return h("li", {}, h("span", { class: "label" }, row.label),
    h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "fill" })),
    h("span", { class: "value" }), correct);
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
  if (one && blob) sets.addExamples(one, [new File([blob], name, { type: blob.type })]);
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

export function startClear() {
  $("ask-clear").addEventListener("click", () => { clearQuery(); $("ask-files").focus(); });
}
