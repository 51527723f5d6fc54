// The query: a file, a drawing, or what the camera sees.

import { words } from "./api.js";
import { clearQuery, queryFault, ready, setQuery } from "./ask.js";
import { Camera } from "./camera.js";
import { $, announce, h } from "./dom.js";
import { Pad } from "./pad.js";
import { ACCEPT, droppable } from "./sources.js";
import { state, subscribe } from "./state.js";

const FRAME_MS = 60;
/** The pen or the camera while one of them is open: {kind, element, close}. */
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
  $("ask-clear").addEventListener("click", () => { clearQuery(); $("ask-files").focus(); });
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
      await new Promise((resolve) => setTimeout(resolve, FRAME_MS));
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
  $("ask-clear").hidden = Boolean(tool) || !query;
  $("needs").hidden = ready();
  showFault();
}

/** A fault of the query's own file is shown beside it, once. */
function showFault() {
  const problem = queryFault();
  const place = $("query-fault");
  const text = problem ? words(problem.document) : "";
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !problem;
}
