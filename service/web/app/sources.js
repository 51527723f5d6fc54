// Images from drops, pastes and file pickers.

const HIDDEN = /^(\.|Thumbs\.db$|desktop\.ini$)/i;
const ARCHIVE = /\.zip$/i;

/** Raster images, by what browsers call them; what the service makes of one is its to say. */
export const ACCEPT = "image/*,.tif,.tiff,.bmp,.webp";
export const isArchive = (file) => ARCHIVE.test(file.name);

/** Dropped or chosen files -> {files, folders: Map of label to files}. */
export async function fromDrop(transfer) {
  // Everything is taken hold of before the first wait: the browser empties the drop then.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const held = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const files = [], folders = new Map();
  for (const one of held) {
    if (one instanceof File) files.push(one);
    else if (one?.isFile) files.push(await fileOf(one));
    else if (one?.isDirectory) await walk(one, folders);
  }
  return { files: files.filter(wanted), folders: byName(folders) };
}

/** From `<input webkitdirectory>`: the folder that directly holds an image names its class. */
export function fromFolderInput(list) {
  const folders = new Map();
  for (const file of [...list].filter(wanted)) {
    const parts = file.webkitRelativePath.split("/");
    put(folders, parts.at(-2) ?? "Class", file);
  }
  return byName(folders);
}

const { compare } = new Intl.Collator("en", { numeric: true });

/** Browsers give folders and their files as the disk has them; people look for them by name. */
const byName = (folders) => new Map([...folders].sort(([a], [b]) => compare(a, b))
  .map(([label, files]) => [label, [...files].sort((a, b) => compare(a.name, b.name))]));

/** Images in a paste, or [] where it is text. */
export const fromPaste = (event) => [...event.clipboardData.files].filter(wanted);

const wanted = (file) => file && !HIDDEN.test(file.name);

function put(folders, label, file) {
  folders.set(label, [...(folders.get(label) ?? []), file]);
}

async function walk(folder, folders) {
  const reader = folder.createReader();
  // It gives a hundred entries at a time.
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (entries.length === 0) return;
    for (const entry of entries) {
      if (entry.isDirectory) await walk(entry, folders);
      else if (!HIDDEN.test(entry.name)) put(folders, folder.name, await fileOf(entry));
    }
  }
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

/** Let things be dropped on `element`; `take(transfer)` is given what was. */
export function droppable(element, take) {
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = () => element.classList.toggle("dropping", depth > 0);
  element.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    depth += 1;
    mark();
  });
  element.addEventListener("dragleave", (event) => {
    if (!hasFiles(event)) return;
    event.stopPropagation();
    depth = Math.max(depth - 1, 0);
    mark();
  });
  element.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  element.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    depth = 0;
    mark();
    take(await fromDrop(event.dataTransfer));
  });
}
