// The page: parts put together.

import * as address from "./address.js";
import * as api from "./api.js";
import * as answers from "./answers.js";
import { ask, clearQuery } from "./ask.js";
import * as choose from "./choose.js";
import { $, announce } from "./dom.js";
import { icon } from "./icons.js";
import * as measure from "./measure.js";
import * as query from "./query.js";
import * as sample from "./sample.js";
import { addArchive, makeLike, sendAgain } from "./sending.js";
import * as sets from "./sets.js";
import { fromPaste } from "./sources.js";
import { changed, state, subscribe } from "./state.js";
import * as take from "./take.js";
import * as teach from "./teach.js";
import * as why from "./why.js";

const KNOCK_MS = 1500;
let booting = null;
/** Ids of the sets that are being deleted. */
const deleting = new Set();

for (const place of document.querySelectorAll("[data-icon]")) {
  place.prepend(icon(place.dataset.icon));
}
for (const part of [teach, query, answers, why, choose, measure, take, sample]) part.start();
startKey();
startConnection();
startSet();
startPage();
sets.startAnew();
boot();

/** What all else hangs on, fetched once at a time: where no key was given, again when one is. */
function boot() {
  booting ??= load().finally(() => { booting = null; });
  return booting;
}

async function load() {
  for (;;) {
    try {
      [state.models, state.limits] = await Promise.all([api.models(), api.limits()]);
      break;
    } catch (error) {
      const passing = error instanceof api.Gone || error.passing;
      if (!passing) {
        $("no-key").hidden = error.status !== 401;
        if (error.status !== 401) announce(error.message, "error");
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, KNOCK_MS));
    }
  }
  $("no-key").hidden = true;
  state.loaded = true;
  choose.begin(address.read().model);
  await follow();
}

/** Show what the address names. */
async function follow() {
  const { set, model } = address.read();
  choose.follow(model);
  if (!set) {
    if (state.set) leave();
    return;
  }
  if (set === state.set?.id) return;
  try {
    await sets.open(set);
  } catch (error) {
    if (error instanceof api.Problem) {
      leave();
      announce(`The support set in the address: ${error.message}.`, "error");
    }
  }
}

/** To a set that is not there yet. */
function leave() {
  clearQuery();
  sets.startAnew();
  address.write({ model: state.model });
}

// The set as a whole

/** As the person wishes: the button that was pressed is of no use any more. */
function begin() {
  leave();
  $("teach").focus();
}

function startSet() {
  window.addEventListener("hashchange", follow);
  window.addEventListener("popstate", follow);
  window.addEventListener("focus", () => sets.refresh().catch(() => {}));
  for (const id of ["new-set", "new-for-lost"]) $(id).addEventListener("click", begin);
  $("send-lost").addEventListener("click", sendLost);
  $("set-name").addEventListener("change", () => sets.renameSet($("set-name").value.trim()));
  $("delete-set").addEventListener("click", deleteSet);
  subscribe(() => {
    $("lost").hidden = !state.set || state.lost !== state.set.id;
    $("set-name").disabled = $("new-set").disabled = !state.set;
    $("delete-set").disabled = !state.set || deleting.has(state.set.id);
    if (document.activeElement !== $("set-name")) $("set-name").value = state.set?.name ?? "";
    const first = state.examples[0]?.blob ?? state.pending[0]?.file;
    if (first) choose.suit(first);
    ask();
  });
}

/** Make a new set of what the page still has of one that is gone. */
function sendLost() {
  const files = sets.filesByLabel();
  const archives = state.pending.filter((one) => one.archive).map((one) => one.file);
  const { set } = state;
  sets.startAnew();
  makeLike(set);
  address.write({ model: state.model });
  teach.takeFolders(files);
  archives.forEach(addArchive);
}

async function deleteSet() {
  const { id } = state.set;
  if (!confirm("Delete this support set with all its examples from the server?")) return;
  deleting.add(id);
  changed();
  const done = await sets.deleteSet();
  deleting.delete(id);
  if (done && state.set?.id === id) begin();
  if (done) announce("The support set was deleted");
  changed();
}

// What belongs to no part of the page

function startPage() {
  // Not by the address, where the set's id stands.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("teach").focus();
  });
  document.addEventListener("paste", (event) => {
    const files = fromPaste(event);
    if (files.length === 0) return;
    event.preventDefault();
    const one = teach.classAt(document.activeElement);
    if (one) teach.takeFiles(one, files);
    else query.askFile(files[0]);
  });
  // A drop that misses must not make the browser leave the page for the file.
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => event.preventDefault());
  }
}

// The service gone and back

function startConnection() {
  let knocking = null;
  const knock = async () => {
    try {
      await api.alive();
    } catch { /* not yet */ }
  };
  api.hooks.gone = () => {
    state.online = false;
    $("offline").hidden = false;
    knocking ??= setInterval(knock, KNOCK_MS);
  };
  api.hooks.back = () => {
    if (state.online) return;
    state.online = true;
    clearInterval(knocking);
    knocking = null;
    $("offline").hidden = true;
    announce("The service is back");
    sendAgain();
    follow().then(() => sets.refresh()).catch(() => {});
    ask();
    changed();
  };
}

// The API key, where one is needed

function startKey() {
  const dialog = $("key-dialog");
  let asked = null;
  $("give-key").addEventListener("click", boot);
  api.hooks.askForKey = (had) => {
    asked ??= new Promise((resolve) => {
      $("key-words").textContent = had
        ? "The service does not know this key, or it was revoked." : "This service asks for an API key.";
      $("key").value = "";
      dialog.returnValue = "";
      dialog.showModal();
      dialog.addEventListener("close", async () => {
        asked = null;
        const key = dialog.returnValue === "use" && $("key").value.trim();
        if (!key) return resolve(false);
        api.keepKey(key);
        // What waits for the key finds the page as if it had been given at once.
        if (!state.loaded && !booting) await boot();
        resolve(state.loaded || Boolean(booting));
      }, { once: true });
    });
    return asked;
  };
}
