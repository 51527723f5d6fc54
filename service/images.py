"""Bytes to checked pixels: every image that users send comes through `decode`."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models_zoo.cards import InputSpec
from models_zoo.preprocess import flat_to_pixels, flatten
from service.costly_images import (
    BoundedReader,
    Costly,
    check_decoding,
    check_exif,
    check_structure,
)
from service.problems import (
    DamagedImage,
    EmptyFile,
    FileRef,
    ImageTooLarge,
    NotAnImage,
    OutOfMemory,
)
from service.text import without_controls

log = logging.getLogger(__name__)

#: The only decoders that user bytes may reach.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_NAME = 255
_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Upload:
    """One file as the user sent it."""

    ref: FileRef
    data: bytes


@dataclass(frozen=True)
class ImageLimits:
    """What an image's header may declare: pixels in all, and pixels along one side."""

    max_pixels: int
    max_side: int


@dataclass(frozen=True)
class Picture:
    """A decoded upload.

    pixels  uint8 `[C, H, W]`, as the model's card asks
    shown   what people saw, upright and in at most the asked-for size; or None if not asked for
    size    (width, height) of the upright original
    """

    ref: FileRef
    pixels: NDArray[np.uint8]
    shown: Image.Image | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What an image truly is, whatever its name says; width and height are the upright one's."""

    media_type: str
    width: int
    height: int


def inspect(upload: Upload, limits: ImageLimits) -> Facts:
    """Decode one upload in full, to be sure that it can be, and keep its facts. Raises as
    `decode`."""
    upright = open_image(upload, limits)
    with Image.open(io.BytesIO(upload.data), formats=FORMATS) as image:
        # A JPEG of several pictures calls itself MPO; it is read, and served, as a JPEG.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
    return Facts(f"image/{kind.lower()}", *upright.size)


def decode(
    upload: Upload, spec: InputSpec, limits: ImageLimits, keep_side: int | None = None
) -> Picture:
    """Decode one upload for a model, keeping a copy of at most `keep_side` pixels for overlays.

    Raises `EmptyFile`, `NotAnImage`, `ImageTooLarge` or `DamagedImage`, naming the file. One that
    would cost far more than its pixels is `NotAnImage`. Raises `OutOfMemory`, too.
    """
    image = open_image(upload, limits)
    shown = None if keep_side is None else fit_side(image, keep_side)
    return Picture(upload.ref, flat_to_pixels(image, spec), shown, image.size)


def open_image(upload: Upload, limits: ImageLimits) -> Image.Image:
    """Bytes -> upright 8-bit opaque "L" or "RGB" image, its first frame. Raises as `decode`."""
    if not upload.data:
        raise EmptyFile(f"{upload.ref} has no bytes", file=upload.ref)
    too_large = f"{upload.ref} exceeds {limits.max_pixels} pixels or {limits.max_side} on a side"
    try:
        check_structure(upload.data)
        image = Image.open(BoundedReader(upload.data), formats=FORMATS)
    except Costly as reason:
        raise _costly(upload, reason) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        detail = f"{upload.ref} is not an image in a format read here ({known})"
        raise NotAnImage(detail, file=upload.ref) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge(too_large, file=upload.ref) from None
    except MemoryError:
        raise _no_room(upload) from None
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile headers
        raise _damaged(upload, error) from None
    with image:
        # The header alone decides, before a pixel is decoded.
        if image.width * image.height > limits.max_pixels or max(image.size) > limits.max_side:
            detail = f"{too_large}: it is {image.width} x {image.height}"
            raise ImageTooLarge(detail, file=upload.ref)
        try:
            check_decoding(image, limits.max_pixels)
            image.load()
            check_exif(image)
            flat = flatten(image)
        except Costly as reason:
            raise _costly(upload, reason) from None
        except MemoryError:
            raise _no_room(upload) from None
        except Exception as error:  # likewise its decoders
            raise _damaged(upload, error) from None
    flat.info.clear()  # it has been heeded, and must not be a second time
    return flat


def fit_side(image: Image.Image, side: int) -> Image.Image:
    """A copy whose long side is at most `side` pixels, its aspect kept; never an empty one."""
    scale = side / max(image.size)
    if scale >= 1:
        return image.copy()
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def clean_name(name: str | None) -> str:
    """A file name that is safe to log and to send back: printable, and at most 255 characters."""
    return without_controls(name or "")[:MAX_NAME] or "(unnamed)"


def _costly(upload: Upload, reason: Costly) -> NotAnImage:
    detail = f"{upload.ref} {reason}, which takes too long to read; save it anew, as PNG"
    return NotAnImage(detail, file=upload.ref)


def _no_room(upload: Upload) -> OutOfMemory:
    """No fault of the image's, which is not told: other requests have the memory."""
    log.error("no memory is left to decode an image of %d bytes", len(upload.data))
    wait = {"Retry-After": str(_RETRY_AFTER_S)}
    return OutOfMemory(f"no memory is left to decode {upload.ref}; try again later", headers=wait)


def _damaged(upload: Upload, error: Exception) -> DamagedImage:
    reason = clean_name(str(error)) if str(error) else type(error).__name__
    return DamagedImage(f"{upload.ref} is truncated or damaged: {reason}", file=upload.ref)
