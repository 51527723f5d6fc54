// Decoded images, small: a set of photos would not fit into memory otherwise.

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
