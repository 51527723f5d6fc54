"""Few bytes that would keep a thread busy, or every thread, are refused before they are decoded."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from PIL import Image

from service.images import ImageLimits, Upload, open_image
from service.problems import DamagedImage, FileRef, NotAnImage
from tests.service.asking import encoded, noise

LIMITS = ImageLimits(max_pixels=4_000_000, max_side=4000)
SMALL = Image.fromarray(noise(0))
SCAN = b"\xff\xda"


def opened(data: bytes) -> Image.Image:
    return open_image(Upload(FileRef("query_images", 0, "x"), data), LIMITS)


def refused(data: bytes, why: str) -> None:
    start = time.process_time()
    with pytest.raises(NotAnImage, match=rf"query_images\[0\] \(x\) .*{why}.*PNG"):
        opened(data)
    assert time.process_time() - start < 2


def scanned(times: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG one of whose scans comes so many times more."""
    data = encoded(Image.new("L", size), "JPEG", progressive=True)
    first = data.find(SCAN)
    second = data.find(SCAN, first + 2)
    third = data.find(SCAN, second + 2)
    return data[:-2] + data[second:third] * times + data[-2:]


def tiff(width: int, height: int, tags: dict[int, list[int]], pixels: bytes, big: bool) -> bytes:
    """A grey one, one row a strip; values of -1 in `tags` lead to `pixels`."""
    tags = {256: [width], 257: [height], 258: [8], 259: [1], 262: [1], 277: [1], 278: [1]} | tags
    count, entry, offset = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    head = b"II+\0\x08\0\0\0" if big else b"II*\0"
    start = len(head) + struct.calcsize("<" + offset)
    after = start + struct.calcsize("<" + count + offset)
    after += len(tags) * struct.calcsize("<" + entry + offset)
    end = after + sum(4 * len(values) for values in tags.values())
    room = struct.calcsize("<" + offset)
    entries, lists = b"", b""
    for tag, values in sorted(tags.items()):
        found = struct.pack(f"<{len(values)}I", *(v if v >= 0 else end for v in values))
        value = found.ljust(room, b"\0")
        if len(found) > room:
            value = struct.pack("<" + offset, after + len(lists))
            lists += found
        entries += struct.pack("<" + entry, tag, 4, len(values)) + value
    body = struct.pack("<" + count, len(tags)) + entries + bytes(room)
    found = head + struct.pack("<" + offset, start) + body + lists
    return found + bytes(end - len(found)) + pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_jpeg_of_many_scans() -> None:
    assert opened(scanned(50)).size == (64, 64)
    refused(scanned(600), "more than 100 scans")
    hidden = scanned(600)
    place = hidden.find(SCAN, hidden.find(SCAN) + 2)
    # An end within a comment is none, and neither is padding before a marker a way around.
    refused(hidden[:place] + b"\xff\xfe\x00\x04\xff\xd9" + hidden[place:], "more than 100 scans")
    refused(hidden.replace(SCAN, b"\xff" + SCAN), "more than 100 scans")


def test_scans_of_what_is_no_picture_do_not_count() -> None:
    """A thumbnail's, in a segment; a second picture's or a film's, behind the end."""
    data = encoded(SMALL, "JPEG")
    assert opened(data + SCAN * 1000).size == (16, 16)
    segment = b"\xff\xe5" + struct.pack(">H", 2002) + SCAN * 1000
    assert opened(data[:2] + segment + data[2:]).size == (16, 16)
    assert opened(encoded(SMALL, "MPO", save_all=True, append_images=[SMALL])).size == (16, 16)


def test_a_tiff_of_many_scans_is_stopped_by_libtiff() -> None:
    data = encoded(Image.new("L", (64, 64)), "TIFF", compression="jpeg")
    assert opened(data).size == (64, 64)
    for times, fine in ((50, True), (600, False)):
        pixels = scanned(times)
        tags = {259: [7], 273: [-1], 278: [64], 279: [len(pixels)]}
        whole = tiff(64, 64, tags, pixels, big=False)
        if fine:
            assert opened(whole).size == (64, 64)
        else:
            with pytest.raises(DamagedImage):
                opened(whole)


@pytest.mark.parametrize("compression", [1, 2])
def test_a_bmp_with_rle_compression(compression: int) -> None:
    """Pillow decodes it in Python: two bytes may be a row of any length."""
    header = struct.pack("<IiiHHIIiiII", 40, 2000, 2000, 1, 8, compression, 0, 0, 0, 256, 0)
    palette = bytes(range(256)) * 4
    rows = b"\x01\x01\0\0" * 2000 + b"\0\1"
    start = 14 + len(header) + len(palette)
    file = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    refused(file + header + palette + rows, "RLE")


@pytest.mark.parametrize(
    ("kind", "head", "part"),
    [("JPEG", 2, b"\xff\xfe\x00\x02"), ("PNG", 33, chunk(b"tEXt", b"a\0b"))],
    ids=["JPEG", "PNG"],
)
def test_a_file_that_is_nothing_but_parts(kind: str, head: int, part: bytes) -> None:
    data = encoded(SMALL, kind)
    assert opened(data[:head] + part * 1000 + data[head:]).size == (16, 16)
    refused(data[:head] + part * 2_000_000 + data[head:], "too many parts")


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_tiny_tiles_or_strips(big: bool) -> None:
    """Listed one by one in Python, and again where nothing is compressed."""
    rows = {273: [-1] * 4000, 279: [1] * 4000}
    assert opened(tiff(1, 4000, rows, b"\0", big)).size == (1, 4000)
    count = 2_000_000
    tiles = {322: [1], 323: [1], 324: [-1] * count, 325: [1] * count}
    refused(tiff(2000, 1000, tiles, b"\0", big), "too many parts")


def test_a_tiff_whose_tiles_are_larger_than_any_image() -> None:
    """It would be unpacked whole, for one pixel of it."""
    pixels = zlib.compress(bytes(5000 * 5000))
    tags = {259: [8], 322: [5000], 323: [5000], 324: [-1], 325: [len(pixels)]}
    refused(tiff(16, 16, tags, pixels, big=False), "tiles of more than 4000000 pixels")
