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


def exif(kind: int, count: int, tag: int = 274, inside: bool = False) -> bytes:
    """EXIF data of one tag of so many values, each of them one; `inside` a directory of their
    own."""
    value = {3: struct.pack("<H", 1), 4: struct.pack("<I", 1), 5: struct.pack("<II", 1, 1)}[kind]
    start = 8 + (18 if inside else 0)
    data = value * count
    held = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", start + 18)
    directory = struct.pack("<HHHI", 1, tag, kind, count) + held + bytes(4)
    lead = struct.pack("<HHHII", 1, 34665, 4, 1, start) + bytes(4) if inside else b""
    return b"II*\0" + struct.pack("<I", 8) + lead + directory + data


def with_exif(form: str, data: bytes) -> bytes:
    if form == "PNG":
        picture = encoded(SMALL, "PNG")
        return picture[:33] + chunk(b"eXIf", data) + picture[33:]
    if form == "PNG, behind the pixels":
        picture = encoded(SMALL, "PNG")
        return picture[:-12] + chunk(b"eXIf", data) + picture[-12:]
    if form == "PNG, as text":
        text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
        picture = encoded(SMALL, "PNG")
        return picture[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + text) + picture[33:]
    if form == "JPEG":
        picture, size = encoded(SMALL, "JPEG"), 65_000
        parts = [data[i : i + size] for i in range(0, len(data), size)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in parts]
        return picture[:2] + b"".join(segments) + picture[20:]  # without JFIF's resolution
    return encoded(SMALL, form, exif=b"Exif\0\0" + data)


FORMS = ("PNG", "PNG, behind the pixels", "PNG, as text", "JPEG", "WEBP")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tag", [274, 282])
def test_exif_data_of_many_fractions(form: str, tag: int) -> None:
    """Each becomes an object of Python's, for the one tag that is asked about."""
    assert opened(with_exif(form, exif(5, 1000, tag))).size == (16, 16)
    refused(with_exif(form, exif(5, 1_000_000, tag)), "(EXIF|many parts)")


@pytest.mark.parametrize("form", FORMS)
def test_an_honest_orientation_is_heeded(form: str) -> None:
    head = struct.pack("<HI", 3, 1)
    picture = with_exif(form, exif(3, 1).replace(head + b"\1", head + b"\6"))
    plain = opened(encoded(SMALL, form.partition(",")[0]))
    assert opened(picture) == plain.transpose(Image.Transpose.ROTATE_270)


@pytest.mark.parametrize("inside", [False, True], ids=["first", "inner"])
def test_a_tiff_of_many_fractions(inside: bool) -> None:
    """Also in the directories that Pillow reads with the first one."""

    def picture(count: int) -> bytes:
        tags: dict[int, list[int]] = {273: [-1], 278: [1], 279: [1]}
        data = bytearray(tiff(1, 1, tags | {34665 if inside else 282: [-1]}, b"\0" * 8, big=False))
        at = len(data)
        if inside:
            entry = struct.pack("<HHI", 34665, 4, 1)
            place = data.index(entry) + len(entry)
            data[place : place + 4] = struct.pack("<I", at)
            data += struct.pack("<HHHII", 1, 282, 5, count, at + 18) + bytes(4)
        else:
            place = data.index(struct.pack("<HHI", 282, 4, 1))
            data[place : place + 12] = struct.pack("<HHII", 282, 5, count, at)
        return bytes(data) + struct.pack("<II", 1, 1) * count

    assert opened(picture(1000)).size == (1, 1)
    refused(picture(1_000_000), "too many parts")
