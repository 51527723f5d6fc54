"""Images to a model's pixels. Training and serving share this one function (Pillow, no PyTorch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from models_zoo.cards import InputSpec

LONGEST = 8
#: Largest values of 8, 12 and 16 bits. Microscopes and medical devices keep 12 in files of 16.
_TOPS = (255.0, 4095.0, 65535.0)
#: What brings an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Pixels of a strip.
_STRIP = 1 << 20


def flatten(image: Image.Image) -> Image.Image:
    """Any decoded Pillow image -> mode "L" or "RGB": upright, 8 bits, opaque on white."""
    with suppress(Exception):  # broken orientation data must not spoil a readable image
        # `ImageOps.exif_transpose` would also write all other EXIF data anew.
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            image = image.transpose(turn)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        image = to_8_bit(image)
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey -> "L", scaled by the fewest bits that hold the largest value:
    no file says how many of its bits are used. Pillow's own `convert` clips instead."""
    largest = max((float(strip.max()) for strip in _strips(image)), default=0.0)
    tops = (1.0,) if image.mode == "F" else _TOPS
    top = next((each for each in tops if largest <= each), largest)
    grey = np.empty((image.height, image.width), np.uint8)
    row = 0
    for strip in _strips(image):
        grey[row : row + len(strip)] = np.clip(strip * (255.0 / top), 0, 255).round()
        row += len(strip)
    return Image.fromarray(grey)


def _strips(image: Image.Image) -> Iterator[NDArray[np.float64]]:
    """Some rows at a time: a float of every pixel at once would be many times the image."""
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield np.nan_to_num(np.asarray(part, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def cut_middle(
    image: Image.Image, size: tuple[int, int], shorter: int, resample: Image.Resampling
) -> Image.Image:
    """Bring the shorter side to `shorter` pixels and cut `size` out of the middle.

    Rounds as torchvision's presets do, so that pretrained weights see the very pixels that they
    were tested with. Of an image longer than `LONGEST` times its breadth only the middle is
    scaled, for the rest would be cut off and its size has no bound.
    """
    breadth = min(image.size)
    if max(image.size) > LONGEST * breadth:
        longest = LONGEST * breadth
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    width, height = (int(shorter * side / breadth) for side in image.size)
    image = image.resize((width, height), resample)
    left, upper = round((width - size[0]) / 2), round((height - size[1]) / 2)
    return image.crop((left, upper, left + size[0], upper + size[1]))


def to_pixels(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """A decoded image -> uint8 `[C, H, W]` as `spec` asks. Divide by 255 for the model's [0, 1]."""
    return flat_to_pixels(flatten(image), spec)


def flat_to_pixels(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """`to_pixels` of an image that `flatten` gave."""
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    size, resample = (spec.width, spec.height), Image.Resampling[spec.resample.upper()]
    if spec.resize is not None:
        image = cut_middle(image, size, spec.resize, resample)
    elif image.size != size:
        if spec.fit == "crop":
            image = ImageOps.fit(image, size, resample)
        elif spec.fit == "pad":
            image = ImageOps.pad(image, size, resample, color="white")
        else:
            image = image.resize(size, resample)
    pixels = np.asarray(image, dtype=np.uint8)
    if spec.invert:
        pixels = 255 - pixels
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
