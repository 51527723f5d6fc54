"""Images that would cost far more to decode than their pixels: refused by what their headers say.

A thread that decodes cannot be stopped, and Pillow reads some formats' structure in Python, where
it holds up every other thread as well.
"""

from __future__ import annotations

import io
import re
import struct

from PIL import Image

#: Photos for the web have about ten. libtiff counts those within a TIFF, to the same number.
_MAX_SCANS = 100
#: Markers, chunks, strips and the like that one file may consist of; and reads of it, beside one
#: for each of so many bytes.
_MAX_PARTS, _BYTES_A_READ = 100_000, 1024

#: A JPEG's marker: neither a stuffed byte, nor padding, nor one that has no segment behind it.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_END, _SCAN = b"\xff\xd9", b"\xff\xda"

_BMP_RLE = (1, 2)
_TIFF = (b"II", b"MM")
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324


class Costly(Exception):
    """Why an image is not decoded; follows on the file's name."""


class BoundedReader(io.BytesIO):
    """An image's bytes, for as many reads as an honest one needs."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MAX_PARTS + len(data) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises `Costly` when there were too many."""
        self._left -= 1
        if self._left < 0:
            raise Costly("is made of too many parts")
        return super().read(size)


def check_structure(data: bytes) -> None:
    """Before Pillow lists a TIFF's strips or tiles. Raises `Costly`, or `struct.error` for one that
    is cut off."""
    if data[:2] not in _TIFF:
        return
    order = "<" if data[:2] == b"II" else ">"
    # A BigTIFF's offsets and counts have eight bytes.
    big = 43 in data[2:4]
    start, number, entry = (8, "Q", "HHQ8x") if big else (4, "I", "HHI4x")
    [at] = struct.unpack_from(order + number, data, start)
    [tags] = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    if tags > _MAX_PARTS:
        raise Costly("is made of too many parts")
    size = struct.calcsize(order + entry)
    for place in range(at, min(at + tags * size, len(data) - size + 1), size):
        tag, _, count = struct.unpack_from(order + entry, data, place)
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MAX_PARTS:
            raise Costly("is made of too many parts")


def check_decoding(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Before an opened image's pixels are decoded. Raises `Costly`."""
    if image.format in ("JPEG", "MPO") and _many_scans(data):
        raise Costly(f"has more than {_MAX_SCANS} scans")
    # Decoded in Python, byte by byte.
    if image.format == "BMP" and image.info.get("compression") in _BMP_RLE:
        raise Costly("is a BMP with RLE compression")
    # Whole tiles are decoded, however little of them the image shows.
    tags = getattr(image, "tag_v2", {})
    if int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)) > max_pixels:
        raise Costly(f"has tiles of more than {max_pixels} pixels")


def _many_scans(data: bytes) -> bool:
    """Whether a JPEG's first picture has too many scans, each of which goes over all its pixels.

    Read as libjpeg does: what stands inside another segment (a thumbnail) or behind the end (a
    second picture, a film) is none of them.
    """
    at, scans = 2, 0
    for _ in range(_MAX_PARTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[0] == _END:
            return False
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            return True
        at = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2], "big"))
    return True
