// Take away: the classifier as ONNX, the examples as a zip, and what is on the screen as code.

import * as api from "./api.js";
import { queryFault, ready } from "./ask.js";
import { $, announce, count, h } from "./dom.js";
import { icon } from "./icons.js";
import { refresh } from "./sets.js";
import { card, examplesOf, state, subscribe } from "./state.js";
import { zip } from "./zip.js";

export function start() {
  $("take-onnx").addEventListener("click", takeClassifier);
  $("take-zip").addEventListener("click", takeZip);
  $("take-query").addEventListener("click", () => save(state.query.blob, queryName()));
  for (const button of document.querySelectorAll("[data-copies]")) {
    button.prepend(icon("copy"));
    button.addEventListener("click", () => copy($(button.dataset.copies).textContent));
  }
  $("copy-link").addEventListener("click", () => copy(document.location.href));
  subscribe(show);
}

function show() {
  $("take-onnx").disabled = !ready() || !state.model;
  $("take-zip").disabled = state.examples.length === 0;
  $("take-query").disabled = !state.query || Boolean(queryFault());
  $("copy-link").disabled = !state.set;
  $("curl").textContent = curl();
  $("python").textContent = python();
  $("take-words").textContent = ready() && state.model
    ? `${card(state.model).title}, taught with ${count(state.examples.length, "example")} of `
      + `${count(new Set(state.examples.map((one) => one.label)).size, "class", "classes")}.`
    : "Teach two classes first.";
}

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function takeClassifier() {
  const button = $("take-onnx");
  button.disabled = true;
  try {
    save(await api.classifier(state.set.id, state.model), `${fileName(state.set.name)}-${state.model}.onnx`);
    announce("The classifier was downloaded");
  } catch (error) {
    if (!(error instanceof api.Problem) && !(error instanceof api.Gone)) throw error;
    announce(error.message, "error");
  } finally {
    show();
  }
}

/** A folder per class, as the service and the command line take it. */
async function takeZip() {
  const missing = state.examples.filter((one) => !one.blob).length;
  if (missing) {
    refresh().catch(() => {}); // which loads them
    return announce(`${count(missing, "image")} not loaded yet; try again.`, "error");
  }
  const folders = new Set();
  const folder = (label) => {
    let name = folderName(label);
    while (folders.has(name.toLowerCase())) name += "_"; // as "a/b" and "a:b" would be one
    folders.add(name.toLowerCase());
    return name;
  };
  const named = state.classes.map((one) => [folder(one.label), one.label]);
  const files = named.flatMap(([name, label]) => examplesOf(label).map((example, index) => ({
    path: `${name}/${String(index + 1).padStart(3, "0")}-${plain(example.filename)}`,
    blob: example.blob,
  })));
  save(await zip(files), `${fileName(state.set.name)}.zip`);
  announce(`${count(files.length, "example")} downloaded`);
}

const plain = (text) => text.replace(/[\\/:*?"<>|]/g, "_");
const folderName = (label) => plain(label).replace(/^\.+|[. ]+$/g, "_");
const fileName = (name) => plain(name || "support-set").replace(/\s+/g, "-");

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers keep the clipboard from pages over plain HTTP.
    const area = h("textarea", { value: text, readOnly: true, class: "off-screen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
}

// Code for what is on the screen

function queryName() {
  // Code that names a file the service refused would not run.
  const { name = "query.png", blob } = (!queryFault() && state.query) || {};
  if (/^[\w.-]+$/.test(name)) return name;
  return `query.${(blob?.type || "image/png").split("/")[1].replace("jpeg", "jpg")}`;
}

const where = () => api.address(`v1/support-sets/${state.set?.id ?? "SET"}/predictions`);

function curl() {
  const key = api.hasKey() ? ["  -H \"Authorization: Bearer $FEWSHOT_API_KEY\""] : [];
  return [`curl ${where()}`, ...key, `  -F model=${state.model ?? "MODEL"}`,
    `  -F query_images=@${queryName()}`].join(" \\\n");
}

function python() {
  const key = api.hasKey()
    ? ['    headers={"Authorization": f"Bearer {os.environ[\'FEWSHOT_API_KEY\']}"},'] : [];
  return [
    ...(key.length ? ["import os", ""] : []),
    "import httpx", "",
    "answer = httpx.post(", `    "${where()}",`, ...key,
    `    data={"model": "${state.model ?? "MODEL"}"},`,
    `    files={"query_images": open("${queryName()}", "rb")},`, ")", "answer.raise_for_status()",
    'for row in answer.json()["predictions"][0]["probabilities"]:',
    '    print(f"{row[\'probability\']:6.1%}  {row[\'label\']}")',
  ].join("\n");
}
