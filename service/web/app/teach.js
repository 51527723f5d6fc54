// The left side: classes and their examples.

import { $, announce, count, h, reconcile } from "./dom.js";
import { icon } from "./icons.js";
import { addArchive, addExamples } from "./sending.js";
import * as sets from "./sets.js";
import { ACCEPT, droppable, fromFolderInput, isArchive } from "./sources.js";
import { examplesOf, state, subscribe } from "./state.js";
import { makeTile, updateTile } from "./tiles.js";
import { cameraTool, drawTool } from "./tools.js";

export function start() {
  $("add-class").addEventListener("click", () => {
    const made = sets.addClass("");
    queueMicrotask(() => cards.get(made.key)?.name.select());
  });
  const folders = $("folders");
  $("add-folders").addEventListener("click", () => folders.click());
  folders.addEventListener("change", () => {
    takeFolders(fromFolderInput(folders.files));
    folders.value = "";
  });
  droppable($("teach"), ({ files, folders: dropped }) => {
    takeFolders(dropped);
    const [archives, images] = split(files);
    archives.forEach(addArchive);
    if (images.length) announce("Drop images onto one of the classes, or a folder per class here.");
  });
  subscribe(show);
}

const split = (files) => [files.filter(isArchive), files.filter((file) => !isArchive(file))];

/** Images are of this class; a zip says itself which ones. */
export function takeFiles(one, files) {
  const [archives, images] = split(files);
  if (images.length) addExamples(one, images);
  archives.forEach(addArchive);
}

/** A folder is a class; the page's own empty classes make room for the first ones. */
export function takeFolders(folders) {
  if (folders.size === 0) return;
  if (!state.set) sets.makeRoom();
  for (const [label, files] of folders) addExamples(sets.addClass(label), files);
}

const cards = new Map();

function show() {
  reconcile($("archives"), state.pending.filter((one) => one.archive), (one) => one.key, makeTile,
    updateTile);
  reconcile($("classes"), state.classes, (one) => one.key, make,
    (element, one, index) => cards.get(one.key).update(index));
  for (const key of cards.keys()) {
    if (!state.classes.some((one) => one.key === key)) {
      cards.get(key).tool?.close();
      cards.delete(key);
    }
  }
}

function make(one) {
  const card = new ClassCard(one);
  cards.set(one.key, card);
  return card.element;
}

/** The class whose card an element is in, for pastes. */
export const classAt = (element) => {
  const key = element?.closest?.("#classes > li")?.dataset.key;
  return state.classes.find((one) => one.key === key);
};

class ClassCard {
  constructor(one) {
    this.one = one;
    this.tool = null;
    this.name = h("input", {
      class: "name", value: one.label, autocomplete: "off",
      spellcheck: false, onchange: () => this.rename(), onkeydown: (event) => {
        if (event.key === "Enter") this.name.blur();
        if (event.key === "Escape") { this.reset(); this.name.blur(); }
      },
    });
    this.fault = h("p", { class: "fault", role: "alert", hidden: true });
    this.counted = h("span", { class: "count" });
    this.remove = h("button", { type: "button", class: "bare", onclick: () => this.delete() },
      icon("trash"));
    this.files = h("input", {
      type: "file", accept: `${ACCEPT},.zip`, multiple: true, hidden: true, tabIndex: -1,
      onchange: () => { this.take([...this.files.files]); this.files.value = ""; },
    });
    this.tools = {
      draw: this.toggle("draw", "pen", "Draw"), camera: this.toggle("camera", "camera", "Camera"),
    };
    this.sources = h("div", { class: "sources" },
      h("button", { type: "button", onclick: () => this.files.click() }, icon("file"), "Files"),
      this.tools.draw, this.tools.camera, this.files);
    this.thumbs = h("ul", { class: "thumbs" });
    this.place = h("div", { class: "tool", hidden: true });
    this.element = h("li", { class: "card class" },
      h("div", { class: "head" }, h("span", { class: "dot", "aria-hidden": "true" }), this.name,
        this.counted, this.remove),
      this.fault,
      this.sources, this.place, this.thumbs);
    droppable(this.element, ({ files, folders }) => {
      this.take(files);
      takeFolders(folders);
    });
  }

  toggle(kind, picture, text) {
    return h("button", {
      type: "button", "aria-expanded": "false", onclick: () => this.open(kind),
    }, icon(picture), text);
  }

  take(files) {
    takeFiles(this.one, files);
  }

  async rename() {
    const label = sets.cleanName(this.name.value);
    if (label === this.one.label) return this.complain(null);
    const fault = sets.badName(label, this.one);
    this.complain(fault);
    if (fault) return;
    if (!(await sets.renameClass(this.one, label))) this.name.value = this.one.label;
  }

  /** The class's own name again, in place of what was typed. */
  reset() {
    this.name.value = this.one.label;
    this.complain(sets.badName(this.one.label, this.one));
  }

  /** Whether what was typed is shown with its fault, which it still has. */
  faulty() {
    const text = this.fault.textContent;
    return text !== "" && text === sets.badName(sets.cleanName(this.name.value), this.one);
  }

  complain(text) {
    this.fault.hidden = !text;
    this.fault.textContent = text ?? "";
    this.name.setAttribute("aria-invalid", text ? "true" : "false");
  }

  async delete() {
    const n = examplesOf(this.one.label).length;
    const question = `Delete the class “${this.one.label}” with its ${count(n, "example")}?`;
    if (n > 0 && !confirm(question)) return;
    this.remove.disabled = true;
    await sets.removeClass(this.one);
    this.remove.disabled = false;
    $("add-class").focus();
  }

  open(kind) {
    const same = this.tool?.kind === kind;
    this.tool?.close();
    this.tool = null;
    this.place.replaceChildren();
    if (!same) {
      const take = (files) => this.take(files);
      this.tool = kind === "draw" ? drawTool(this.one, take) : cameraTool(this.one, take);
      this.place.append(this.tool.element);
    }
    this.place.hidden = !this.tool;
    for (const [name, button] of Object.entries(this.tools)) {
      button.setAttribute("aria-expanded", String(this.tool?.kind === name));
    }
  }

  update(index) {
    const { one } = this;
    this.element.dataset.colour = index % 10;
    if (document.activeElement !== this.name && !this.faulty()) this.reset();
    this.name.title = one.label;
    this.name.setAttribute("aria-label", `Name of class ${index + 1}`);
    for (const button of this.sources.querySelectorAll("button")) {
      button.setAttribute("aria-label", `${button.textContent} for ${one.label}`);
    }
    const examples = examplesOf(one.label);
    const pending = state.pending.filter((waiting) => waiting.classKey === one.key);
    this.counted.textContent = count(examples.length, "example");
    this.remove.setAttribute("aria-label", `Delete the class ${one.label}`);
    this.thumbs.setAttribute("aria-label", `Examples of ${one.label}`);
    this.files.setAttribute("aria-label", `Image files for ${one.label}`);
    this.element.classList.toggle("empty", examples.length + pending.length === 0);
    reconcile(this.thumbs, [...examples, ...pending], (each) => each.id ?? each.key,
      makeTile, updateTile);
  }
}
