// The left side: classes and their examples.

import { words } from "./api.js";
import { Camera } from "./camera.js";
import { $, announce, count, h, reconcile } from "./dom.js";
import { icon } from "./icons.js";
import { Pad } from "./pad.js";
import * as sets from "./sets.js";
import { ACCEPT, droppable, fromFolderInput, isArchive } from "./sources.js";
import { changed, examplesOf, state, subscribe } from "./state.js";

const RECORD_MS = 300;

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
    for (const archive of archives) sets.addArchive(archive, archive.name.replace(/\.zip$/i, ""));
    if (images.length) announce("Drop images onto one of the classes, or a folder per class here.");
  });
  subscribe(show);
}

const split = (files) => [files.filter(isArchive), files.filter((file) => !isArchive(file))];

/** A folder is a class; the page's own empty classes make room for the first ones. */
export function takeFolders(folders) {
  if (folders.size === 0) return;
  const unused = (one) => examplesOf(one.label).length === 0 && /^Class \d+$/.test(one.label)
    && !state.pending.some((waiting) => waiting.classKey === one.key);
  if (!state.set) state.classes = state.classes.filter((one) => !unused(one));
  for (const [label, files] of folders) sets.addExamples(sets.addClass(label), files);
}

const cards = new Map();

function show() {
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
      class: "name", "aria-label": "Name of the class", value: one.label, autocomplete: "off",
      spellcheck: false, onchange: () => this.rename(), onkeydown: (event) => {
        if (event.key === "Enter") this.name.blur();
        if (event.key === "Escape") { this.name.value = one.label; this.name.blur(); }
      },
    });
    this.fault = h("p", { class: "fault", role: "alert", hidden: true });
    this.counted = h("span", { class: "count" });
    this.remove = h("button", { type: "button", class: "bare", onclick: () => this.delete() },
      icon("trash"));
    this.files = h("input", {
      type: "file", accept: ACCEPT, multiple: true, hidden: true, tabIndex: -1,
      onchange: () => { this.take([...this.files.files]); this.files.value = ""; },
    });
    this.tools = {
      draw: this.toggle("draw", "pen", "Draw"), camera: this.toggle("camera", "camera", "Camera"),
    };
    this.thumbs = h("ul", { class: "thumbs" });
    this.place = h("div", { class: "tool", hidden: true });
    this.element = h("li", { class: "card class" },
      h("div", { class: "head" }, h("span", { class: "dot", "aria-hidden": "true" }), this.name,
        this.counted, this.remove),
      this.fault,
      h("div", { class: "sources" },
        h("button", { type: "button", onclick: () => this.files.click() }, icon("file"), "Files"),
        this.tools.draw, this.tools.camera, this.files),
      this.place, this.thumbs);
    droppable(this.element, ({ files, folders }) => {
      const [archives, images] = split(files);
      this.take(images);
      takeFolders(folders);
      for (const archive of archives) sets.addArchive(archive);
    });
  }

  toggle(kind, picture, text) {
    return h("button", {
      type: "button", "aria-expanded": "false", onclick: () => this.open(kind),
    }, icon(picture), text);
  }

  take(files) {
    if (files.length) sets.addExamples(this.one, files);
  }

  async rename() {
    const label = this.name.value.trim();
    if (label === this.one.label) return this.complain(null);
    const fault = sets.badName(label, this.one);
    this.complain(fault);
    if (fault) return;
    if (!(await sets.renameClass(this.one, label))) this.name.value = this.one.label;
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
    if (document.activeElement !== this.name) this.name.value = one.label;
    this.name.title = one.label;
    const examples = examplesOf(one.label);
    const pending = state.pending.filter((waiting) => waiting.classKey === one.key);
    this.counted.textContent = count(examples.length, "example");
    this.remove.setAttribute("aria-label", `Delete the class ${one.label}`);
    this.thumbs.setAttribute("aria-label", `Examples of ${one.label}`);
    this.files.setAttribute("aria-label", `Image files for ${one.label}`);
    this.element.classList.toggle("empty", examples.length + pending.length === 0);
    reconcile(this.thumbs, [...examples, ...pending], (each) => each.id ?? each.key,
      (each) => (each.id ? exampleTile(each) : pendingTile(each)),
      (element, each, place) => (each.id ? updateExample : updatePending)(element, each, place));
  }
}

// Examples

function exampleTile(example) {
  const image = h("img", { alt: "" });
  const remove = h("button", {
    type: "button", class: "remove", onclick: async () => {
      const list = element.parentElement;
      const place = [...list.children].indexOf(element);
      remove.disabled = true;
      await sets.removeExample(example);
      remove.disabled = false;
      // To what took its place, so that the keyboard stays where it was.
      (list.children[Math.min(place, list.children.length - 1)]?.querySelector("button")
        ?? list.closest(".class")?.querySelector(".sources button"))?.focus();
    },
  }, icon("close"));
  const element = h("li", { class: "thumb" }, image, remove);
  return element;
}

function updateExample(element, example, place) {
  const image = element.querySelector("img");
  const what = `example ${place + 1} of ${example.label}`;
  if (example.url && image.src !== example.url) image.src = example.url;
  image.alt = `${what}: ${example.filename}${example.missing ? ", which cannot be shown" : ""}`;
  image.title = example.filename;
  element.querySelector("button").setAttribute("aria-label", `Delete ${what}`);
}

function pendingTile(item) {
  return h("li", { class: "thumb sending" },
    h("img", { src: item.url, alt: item.file.name, onerror: ({ target }) => target.remove() }),
    h("progress", { max: 1, "aria-label": `Sending ${item.file.name}` }),
    h("div", { class: "why-not", hidden: true },
      h("p", {}, h("strong", { class: "file" }, item.file.name), " ",
        h("span", { class: "reason", role: "alert" })),
      h("button", { type: "button", class: "quiet", onclick: () => sets.dismiss(item) }, "Dismiss")));
}

function updatePending(element, item) {
  const text = item.problem ? words(item.problem, true) : item.note;
  element.querySelector("progress").value = item.sent;
  element.querySelector("progress").hidden = Boolean(text);
  element.querySelector(".why-not").hidden = !text;
  const reason = element.querySelector(".reason");
  if (text && reason.textContent !== text) reason.textContent = text;
  element.classList.toggle("failed", Boolean(item.problem));
  element.classList.toggle("noted", Boolean(item.note));
}

// Drawing and recording

function drawTool(one, take) {
  let made = 0;
  const pad = new Pad(`An example of ${one.label}`, () => { add.disabled = pad.empty; });
  const add = h("button", {
    type: "button", class: "primary", disabled: true, onclick: async () => {
      const file = await pad.file(`drawing-${made += 1}.png`);
      pad.clear();
      take([file]);
      pad.canvas.focus();
    },
  }, icon("plus"), "Add");
  return {
    kind: "draw", close() {},
    element: h("div", { class: "drawing" }, pad.canvas,
      h("div", { class: "buttons" }, add, pad.undoButton, pad.clearButton)),
  };
}

function cameraTool(one, take) {
  const camera = new Camera();
  const told = h("p", { class: "hint", role: "status" }, "Waiting for the camera …");
  const record = h("button", { type: "button", class: "primary", disabled: true }, "Hold to record");
  let timer = null, frames = 0;
  const shoot = async () => {
    const file = await camera.file();
    if (!file) return;
    frames += 1;
    told.textContent = `Recorded ${count(frames, "frame")}`;
    take([file]);
  };
  const begin = () => {
    if (timer !== null) return;
    record.classList.add("recording");
    shoot();
    timer = setInterval(shoot, RECORD_MS);
  };
  const end = () => {
    clearInterval(timer);
    timer = null;
    record.classList.remove("recording");
  };
  record.addEventListener("pointerdown", (event) => {
    record.setPointerCapture(event.pointerId);
    begin();
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) record.addEventListener(name, end);
  record.addEventListener("keydown", (event) => {
    if ([" ", "Enter"].includes(event.key)) { event.preventDefault(); begin(); }
  });
  record.addEventListener("keyup", (event) => {
    if ([" ", "Enter"].includes(event.key)) { event.preventDefault(); end(); }
  });
  record.addEventListener("contextmenu", (event) => event.preventDefault());
  // A screen reader's click comes without press and release: one frame.
  record.addEventListener("click", (event) => { if (event.detail === 0) shoot(); });
  camera.open().then(
    () => { record.disabled = false; told.textContent = "Hold the button, or Space, to record."; },
    (error) => { told.textContent = error.message; told.className = "fault"; },
  );
  return {
    kind: "camera", close() { end(); camera.close(); },
    element: h("div", { class: "drawing" }, camera.video, h("div", { class: "buttons" }, record, told)),
  };
}
