// The thumbnails of a class: its stored examples, and the images on their way.

import { words } from "./api.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { dismiss, tryAgain } from "./sending.js";
import { removeExample } from "./sets.js";

/** Stored ones have an id. */
export const makeTile = (one) => (one.id ? exampleTile(one) : pendingTile(one));

export function updateTile(element, one, place) {
  if (one.id) updateExample(element, one, place);
  else updatePending(element, one);
}

function exampleTile(example) {
  const image = h("img", { alt: "" });
  const remove = h("button", {
    type: "button", class: "remove", onclick: async () => {
      const list = element.parentElement;
      const place = [...list.children].indexOf(element);
      remove.disabled = true;
      await removeExample(example);
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
    !item.archive
      && h("img", { src: item.url, alt: item.file.name, onerror: ({ target }) => target.remove() }),
    h("progress", { max: 1, "aria-label": `Sending ${item.file.name}` }),
    h("div", { class: "why-not", hidden: true },
      h("p", {}, h("strong", { class: "file" }, item.file.name), " ",
        h("span", { class: "reason", role: "alert" })),
      h("div", { class: "buttons" },
        h("button", {
          type: "button", class: "quiet again", onclick: () => tryAgain([item]),
        }, "Try again"),
        h("button", { type: "button", class: "quiet dismiss", onclick: () => dismiss(item) }, "Dismiss"))));
}

function updatePending(element, item) {
  const text = item.problem ? words(item.problem, true) : item.note;
  element.querySelector("progress").value = item.sent;
  element.querySelector("progress").hidden = Boolean(text);
  element.querySelector(".why-not").hidden = !text && !item.archive;
  element.querySelector(".dismiss").hidden = !text;
  // What is wrong with the file itself stays wrong.
  element.querySelector(".again").hidden =
    !item.problem || Boolean(item.problem.file || item.problem.lasting);
  const reason = element.querySelector(".reason");
  if (text && reason.textContent !== text) reason.textContent = text;
  element.classList.toggle("archive", Boolean(item.archive));
  element.classList.toggle("failed", Boolean(item.problem));
  element.classList.toggle("noted", Boolean(item.note));
}
