// What a class is taught with beside files: a pen, or the camera. Each is {kind, element, close}.

import { Camera } from "./camera.js";
import { count, h } from "./dom.js";
import { icon } from "./icons.js";
import { Pad } from "./pad.js";

const RECORD_MS = 300;

/** `take(files)` is given each drawing. */
export function drawTool(one, take) {
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

/** `take(files)` is given each frame. */
export function cameraTool(one, take) {
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
