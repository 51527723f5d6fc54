"""Every kind of image that people send becomes the pixels that they saw."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from models_zoo.cards import InputSpec
from service.api.new_examples import _check
from service.images import ImageLimits, Picture, Upload, clean_name, decode
from service.problems import FileRef, ImageTooLarge, NotAnImage, OutOfMemory
from service.tasks import Example
from tests.service.asking import encoded, noise

GREY = InputSpec(channels=1, height=16, width=16, fit="stretch")
COLOUR = InputSpec(channels=3, height=16, width=16, fit="stretch")
LIMITS = ImageLimits(max_pixels=1_000_000, max_side=4000)


def decoded(data: bytes, spec: InputSpec = COLOUR, keep: int | None = None) -> Picture:
    return decode(Upload(FileRef("query_images", 0, "x"), data), spec, LIMITS, keep)


def blocks(*colours: tuple[int, int, int]) -> Image.Image:
    """Four 8 x 8 blocks of colour: top left, top right, bottom left, bottom right."""
    image = Image.new("RGB", (16, 16))
    for i, colour in enumerate(colours):
        image.paste(colour, (8 * (i % 2), 8 * (i // 2), 8 * (i % 2) + 8, 8 * (i // 2) + 8))
    return image


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PICTURE = blocks(RED, GREEN, BLUE, WHITE)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The middle colour of each of the four blocks."""
    return [tuple(int(v) for v in pixels[:, y, x]) for y in (4, 12) for x in (4, 12)]


@pytest.mark.parametrize(
    ("kind", "options", "slack"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 3),
    ],
)
def test_each_format_keeps_its_colours(kind: str, options: dict[str, object], slack: int) -> None:
    found = corners(decoded(encoded(PICTURE, kind, **options)).pixels)
    for colour, expected in zip(found, (RED, GREEN, BLUE, WHITE), strict=True):
        assert np.abs(np.subtract(colour, expected)).max() <= slack


def test_other_formats_are_refused_even_if_pillow_reads_them() -> None:
    for kind in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(NotAnImage):
            decoded(encoded(PICTURE, kind))


def test_palette_and_its_transparency() -> None:
    palette = PICTURE.quantize(4)
    assert corners(decoded(encoded(palette)).pixels) == [RED, GREEN, BLUE, WHITE]
    index = palette.getpixel((4, 4))
    clear = encoded(palette, transparency=index)
    assert corners(decoded(clear).pixels) == [WHITE, GREEN, BLUE, WHITE]


def test_transparency_becomes_white() -> None:
    image = PICTURE.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 8, 8))
    image.paste((0, 0, 0, 128), (8, 0, 16, 8))
    found = corners(decoded(encoded(image)).pixels)
    assert found[0] == WHITE
    assert found[1] == pytest.approx((127, 127, 127), abs=1)
    assert found[2:] == [BLUE, WHITE]
    grey = Image.new("LA", (16, 16), (0, 0))
    assert decoded(encoded(grey), GREY).pixels.min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decoded(encoded(Image.fromarray(ramp), kind), GREY).pixels[0]
        np.testing.assert_allclose(found, ramp / 257, atol=1)


def test_cmyk_is_converted() -> None:
    found = corners(decoded(encoded(PICTURE.convert("CMYK"), "TIFF")).pixels)
    assert found == [RED, GREEN, BLUE, WHITE]
    found = corners(decoded(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)).pixels)
    for colour, expected in zip(found, (RED, GREEN, BLUE, WHITE), strict=True):
        assert np.abs(np.subtract(colour, expected)).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    rest = [blocks(WHITE, WHITE, WHITE, RED), blocks(BLUE, BLUE, BLUE, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(PICTURE, kind, save_all=True, append_images=rest, **options)
    assert corners(decoded(data).pixels) == [RED, GREEN, BLUE, WHITE]


ORIENTED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,  # the camera says: turn clockwise to see it upright
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_a_turned_photo_is_uprighted(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE.resize((32, 16)).transpose(ORIENTED[orientation])
    picture = decoded(encoded(stored, "PNG", exif=exif), keep=100)
    assert picture.size == (32, 16)
    assert picture.shown is not None
    assert picture.shown.size == (32, 16)
    assert corners(picture.pixels) == [RED, GREEN, BLUE, WHITE]


def test_broken_orientation_data_does_not_spoil_a_photo() -> None:
    for exif in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        data = encoded(PICTURE, "JPEG", exif=exif, quality=95, subsampling=0)
        found = corners(decoded(data).pixels)
        assert np.abs(np.subtract(found[0], RED)).max() <= 3


def test_limits_are_on_pixels_and_on_sides() -> None:
    for size in ((1001, 1000), (4001, 1), (1, 4001)):
        with pytest.raises(ImageTooLarge):
            decoded(encoded(Image.new("1", size)))
    for size in ((1000, 1000), (4000, 1), (1, 4000)):
        for fit in ("stretch", "crop", "pad"):
            spec = InputSpec(channels=3, height=16, width=24, fit=fit)
            picture = decoded(encoded(Image.new("1", size)), spec, keep=100)
            assert picture.pixels.shape == (3, 16, 24)
            assert picture.shown is not None
            assert max(picture.shown.size) == 100
            assert min(picture.shown.size) >= 1


def test_the_kept_copy_is_bounded_and_not_enlarged() -> None:
    assert decoded(encoded(noise(0)), keep=100).shown.size == (16, 16)
    assert decoded(encoded(noise(0, (300, 600))), keep=100).shown.size == (100, 50)
    assert decoded(encoded(noise(0))).shown is None


def test_names_are_safe_to_show() -> None:
    assert clean_name("a\x1b[31m\n\ud800.png") == "a\ufffd[31m\ufffd\ufffd.png"
    assert len(clean_name("x" * 9999)) == 255
    assert clean_name(None) == clean_name("") == "(unnamed)"
    io.StringIO().write(clean_name("größe 猫.png"))
    assert clean_name("größe 猫.png") == "größe 猫.png"


def test_memory_that_runs_out_is_not_the_image_s_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be sent again, so it is neither damaged nor, where it was to be stored, rejected."""

    def full(_: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr("service.images.flatten", full)
    upload = Upload(FileRef("images", 0, "x"), encoded(noise(1)))
    with pytest.raises(OutOfMemory) as caught:
        decode(upload, GREY, LIMITS)
    assert caught.value.headers["Retry-After"]
    assert "no memory" in caplog.text
    with pytest.raises(OutOfMemory):
        _check(Example("a", upload), LIMITS)
