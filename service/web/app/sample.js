// A task to try: three glyphs that no model has seen, drawn by samples/draw.py.

import { write as showSet } from "./address.js";
import * as api from "./api.js";
import { suit } from "./choose.js";
import { $, announce, h } from "./dom.js";
import { askFile } from "./query.js";
import * as sets from "./sets.js";
import { state, subscribe } from "./state.js";

const NAME = "Sample: three glyphs";
/** Stays with the set whatever it is called. */
const MARK = { sample: "glyphs" };
const QUERIES = ["hook", "cross", "loop"];

export function start() {
  $("sample").addEventListener("click", load);
  $("sample-queries").append(...QUERIES.map((name) => h("li", {}, h("button", {
    type: "button", "aria-label": `Ask about the sample drawing ${name}`, onclick: () => ask(name),
  }, h("img", { src: address(name), alt: "" })))));
  subscribe(() => { $("samples").hidden = state.set?.metadata?.sample !== MARK.sample; });
}

const address = (name) => api.address(`static/sample/${name}.png`);

async function fetched(name, type) {
  const blob = await api.call("GET", `static/sample/${name}`, { as: "blob" });
  return new File([blob], name, { type });
}

async function load() {
  const button = $("sample");
  button.disabled = true;
  try {
    const file = await fetched("support.zip", "application/zip");
    const first = await fetched(`${QUERIES[0]}.png`, "image/png");
    const fields = [["archive", file], ["name", NAME], ["metadata", JSON.stringify(MARK)]];
    const { support_set: set } = await api.createSet(fields, api.newKey());
    await suit(first);
    showSet({ set: set.id, model: state.model });
    await sets.open(set.id);
    askFile(first);
  } catch (error) {
    if (!(error instanceof api.Problem) && !(error instanceof api.Gone)) throw error;
    announce(error.message, "error");
  } finally {
    button.disabled = false;
  }
}

async function ask(name) {
  try {
    askFile(await fetched(`${name}.png`, "image/png"));
  } catch (error) {
    announce(error.message, "error");
  }
}
