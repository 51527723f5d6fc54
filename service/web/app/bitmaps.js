// Decoded images, small: a set of photos would not fit into memory otherwise.

import { h } from "./dom.js";

const SIDE = 480;

/** The image in a blob, upright, its long side at most `SIDE`; null where the browser cannot. */
export async function bitmapOf(blob) {
  try {
    const whole = await createImageBitmap(blob);
    const scale = SIDE / Math.max(whole.width, whole.height);
    if (scale >= 1) return whole;
    const small = await createImageBitmap(whole, {
      resizeWidth: Math.max(1, Math.round(whole.width * scale)),
      resizeHeight: Math.max(1, Math.round(whole.height * scale)),
      resizeQuality: "high",
    });
    whole.close();
    return small;
  } catch {
    return null;
  }
}

/** The side of what is looked at; paper is lighter than this, and colour stronger on average. */
const LOOK = 32, LIGHT = 200, COLOURFUL = 12;

/** Whether an image is a pen drawing: hardly any colour, and mostly paper. Raises where the browser
 * knows no such format. */
export async function isDrawing(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = h("canvas", { width: LOOK, height: LOOK });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, LOOK, LOOK);
  pen.drawImage(bitmap, 0, 0, LOOK, LOOK);
  const { data } = pen.getImageData(0, 0, LOOK, LOOK);
  let colour = 0, paper = 0;
  for (let i = 0; i < data.length; i += 4) {
    const most = Math.max(data[i], data[i + 1], data[i + 2]);
    const least = Math.min(data[i], data[i + 1], data[i + 2]);
    colour += most - least;
    paper += least > LIGHT ? 1 : 0;
  }
  return colour / LOOK ** 2 < COLOURFUL && paper > LOOK ** 2 / 2;
}
