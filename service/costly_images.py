"""Images that would cost far more to decode than their pixels: refused by what their headers say.

A thread that decodes cannot be stopped, and Pillow reads some formats' structure in Python, where
it holds up every other thread as well.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

#: Photos for the web have about ten. libtiff counts those within a TIFF, to the same number.
_MAX_SCANS = 100
#: Markers, chunks, strips and the like that one file may consist of; and reads of it, beside one
#: for each of so many bytes.
_MAX_PARTS, _BYTES_A_READ = 100_000, 1024
#: Values in the tags of a TIFF, or of the EXIF data that any format may hold; Pillow takes a
#: hundred times as long to read one that is a fraction.
_MAX_VALUES, _FRACTION = 4 * _MAX_PARTS, 100
#: Segments of a JPEG that its EXIF data, of which it takes one as a rule, may be spread over.
_MAX_EXIF_SEGMENTS = 4
_MAX_EXIF_TEXT = _MAX_EXIF_SEGMENTS << 17

#: A JPEG's marker: neither a stuffed byte, nor padding, nor one that has no segment behind it.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_JPEG, _END, _SCAN, _APP1 = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xe1"
_EXIF = b"Exif\0\0"

_BMP_RLE = (1, 2)
_TIFF = (b"II", b"MM")
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324
#: Tags that hold where more tags are: EXIF, GPS, interoperability.
_DIRECTORIES = (34665, 34853, 40965)
#: A value's type: text and bytes, which Pillow leaves as they are; fractions; whole numbers.
_BYTES, _FRACTIONS = (1, 2, 7), (5, 10)
_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}


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
    """Before Pillow lists a TIFF's strips or tiles, or a JPEG's EXIF data. Raises `Costly`, or
    `struct.error` for a TIFF that is cut off."""
    if data.startswith(_TIFF):
        _check_tags(data)
    elif data.startswith(_JPEG):
        _check_segments(data)


def check_exif(image: Image.Image) -> None:
    """Before the EXIF data of an image are read; after its pixels, behind which a PNG may have
    them. Raises `Costly`."""
    text = image.info.get("Raw profile type exif", "")  # as some programs put it into a PNG
    if len(text) > _MAX_EXIF_TEXT:
        raise Costly("has too much EXIF data")
    with suppress(struct.error):  # broken ones are no reason not to show the image
        _check_tags(image.info.get("exif", b"").removeprefix(_EXIF).removeprefix(_EXIF))


def _check_tags(data: bytes) -> None:
    """Of the first page and of what its tags lead to, read as Pillow does. Raises as
    `check_structure`."""
    # A big-endian BigTIFF is one to libtiff alone.
    for big in {data[2:3] == b"+", b"+" in data[2:4]}:
        order = "<" if data.startswith(b"II") else ">"
        [first] = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        waiting, seen, left = [int(first)], set[int](), _MAX_VALUES
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            for tag, kind, count, value in _tags(data, at, order, big):
                left -= 1
                if kind not in _BYTES:
                    left -= count * (_FRACTION if kind in _FRACTIONS else 1)
                lists_parts = tag in (_STRIP_OFFSETS, _TILE_OFFSETS)
                if left < 0 or (lists_parts and count > _MAX_PARTS):
                    raise Costly("is made of too many parts")
                if tag in _DIRECTORIES and count == 1 and kind in _NUMBERS:
                    waiting.append(struct.unpack_from(order + _NUMBERS[kind], value)[0])


def _tags(data: bytes, at: int, order: str, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """Number, type, count, and the bytes that hold the value or its place, of each tag of the
    directory there, if there is one."""
    # A BigTIFF's offsets and counts have eight bytes.
    number, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    if not 0 <= at <= len(data) - struct.calcsize(order + number):
        return
    [tags] = struct.unpack_from(order + number, data, at)
    at += struct.calcsize(order + number)
    size = struct.calcsize(order + entry)
    for place in range(at, min(at + tags * size, len(data) - size + 1), size):
        yield struct.unpack_from(order + entry, data, place)


def check_decoding(image: Image.Image, max_pixels: int) -> None:
    """Before an opened image's pixels are decoded. Raises `Costly`."""
    # Decoded in Python, byte by byte.
    if image.format == "BMP" and image.info.get("compression") in _BMP_RLE:
        raise Costly("is a BMP with RLE compression")
    # Whole tiles are decoded, however little of them the image shows.
    tags = getattr(image, "tag_v2", {})
    if int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)) > max_pixels:
        raise Costly(f"has tiles of more than {max_pixels} pixels")


def _check_segments(data: bytes) -> None:
    """Of a JPEG's first picture: its scans, each of which goes over all its pixels, and the EXIF
    data. Raises `Costly`.

    Read as libjpeg does: what stands inside another segment (a thumbnail) or behind the end (a
    second picture, a film) is none of them.
    """
    at, scans, exif = 2, 0, 0
    for _ in range(_MAX_PARTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[0] == _END:
            return
        scans += marker[0] == _SCAN
        exif += marker[0] == _APP1 and data.startswith(_EXIF, marker.end() + 2)
        if scans > _MAX_SCANS:
            raise Costly(f"has more than {_MAX_SCANS} scans")
        if exif > _MAX_EXIF_SEGMENTS:
            raise Costly("has too much EXIF data")
        at = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2], "big"))
