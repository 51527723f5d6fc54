// Attention maps over images, drawn smoothly on a canvas.

/** A map's strongest colour needs this many times its mean: evenly spread attention looks even. */
const CONTRAST = 3;
const FINE = 64;
/** From no weight to the most: position, red, green, blue, opacity. */
const COLOURS = [
  [0, 255, 224, 120, 0],
  [0.25, 255, 205, 70, 0.28],
  [0.5, 255, 150, 40, 0.52],
  [0.75, 235, 70, 50, 0.66],
  [1, 170, 15, 80, 0.8],
];

/** The image on the canvas, its long side `side` pixels, and the map over it if there is one. */
export function paint(canvas, image, map, input, side) {
  const scale = side / Math.max(image.width, image.height);
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white"; // as the service does with transparent images
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (!map) return;
  const [x, y, width, height] = seen(image, input);
  pen.drawImage(
    heat(map), x * canvas.width, y * canvas.height, width * canvas.width, height * canvas.height,
  );
}

/**
 * The part of the image that the model's input is, as shares of its width and height: `crop` saw
 * only the middle, `pad` saw margins that the image does not have.
 */
export function seen(image, input) {
  const ratio = (image.width / input.width) / (image.height / input.height);
  if (input.resize) { // the shorter side is brought to it before the middle is cut out
    const scale = input.resize / Math.min(image.width, image.height);
    const width = input.width / (image.width * scale), height = input.height / (image.height * scale);
    return [(1 - width) / 2, (1 - height) / 2, width, height];
  }
  if (input.fit === "stretch" || ratio === 1) return [0, 0, 1, 1];
  const fullWidth = (ratio > 1) === (input.fit === "pad");
  const share = fullWidth ? ratio : 1 / ratio;
  return fullWidth ? [0, (1 - share) / 2, 1, share] : [(1 - share) / 2, 0, share, 1];
}

/** Rows of weights -> a fine canvas of colours. */
function heat(map) {
  const flat = map.flat().map((weight) => Math.max(weight, 0));
  const mean = flat.reduce((sum, weight) => sum + weight, 0) / flat.length;
  const top = Math.max(...flat, CONTRAST * mean) || 1;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = FINE;
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(FINE, FINE);
  const across = spline(map[0].length), down = spline(map.length);
  for (let i = 0, at = 0; i < FINE; i += 1) {
    for (let j = 0; j < FINE; j += 1, at += 4) {
      let value = 0;
      for (const [row, a] of down[i]) for (const [column, b] of across[j]) {
        value += a * b * Math.max(map[row][column], 0);
      }
      pixels.data.set(shade(Math.min(value / top, 1)), at);
    }
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

/** For each fine place, the cells around it with their cubic B-spline weights; edges repeat. */
function spline(cells) {
  return Array.from({ length: FINE }, (_, place) => {
    const at = ((place + 0.5) / FINE) * cells - 0.5;
    const low = Math.floor(at), t = at - low;
    const weights = [
      (1 - t) ** 3 / 6,
      (3 * t ** 3 - 6 * t ** 2 + 4) / 6,
      (-3 * t ** 3 + 3 * t ** 2 + 3 * t + 1) / 6,
      t ** 3 / 6,
    ];
    return weights.map((weight, k) => [Math.min(Math.max(low - 1 + k, 0), cells - 1), weight]);
  });
}

function shade(level) {
  const next = COLOURS.findIndex(([position]) => position >= level);
  const b = COLOURS[Math.max(next, 1)], a = COLOURS[Math.max(next, 1) - 1];
  const t = (level - a[0]) / (b[0] - a[0]);
  const mix = (i) => a[i] + t * (b[i] - a[i]);
  return [mix(1), mix(2), mix(3), 255 * mix(4)];
}
