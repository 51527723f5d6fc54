"""Images of every kind become the pixels a person sees."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models_zoo import preprocess
from models_zoo.cards import InputSpec
from models_zoo.preprocess import flatten, to_pixels

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def spec(
    size: int = 8, channels: int = 3, fit: str = "stretch", invert: bool = False, width: int = 0
) -> InputSpec:
    return InputSpec(channels=channels, height=size, width=width or size, fit=fit, invert=invert)  # type: ignore[arg-type]


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """As colours `[H, W, 3]` of the image's own size."""
    return np.asarray(flatten(image).convert("RGB"))


def stored(image: Image.Image, kind: str = "png", **options: object) -> Image.Image:
    """The image as a file of that kind gives it back."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return Image.open(file)


def quarters(size: int = 8) -> Image.Image:
    """Red, green / blue, white: turning or mirroring cannot go unseen."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    for colour, place in ((RED, (0, 0)), (GREEN, (half, 0)), (BLUE, (0, half))):
        image.paste(colour, (*place, place[0] + half, place[1] + half))
    return image


def test_a_palette_is_looked_up() -> None:
    image = stored(quarters().quantize(4))
    assert image.mode == "P"
    assert np.array_equal(pixels(image), np.asarray(quarters()))


def test_a_palette_s_transparent_colour_is_white_paper() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    again = stored(image, transparency=0)
    assert pixels(again).tolist() == [[list(WHITE), list(BLUE)]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new(mode, (3, 1), 0)
    black, half, clear = ((0,) * (len(mode) - 1) + (alpha,) for alpha in (255, 128, 0))
    for x, value in enumerate((black, half, clear)):
        image.putpixel((x, 0), value)
    found = pixels(stored(image))[0]
    assert found[0].tolist() == [0, 0, 0]
    assert np.abs(found[1].astype(int) - 127).max() <= 1
    assert found[2].tolist() == [255, 255, 255]


def test_a_transparent_grey_of_a_grey_image_is_white_paper() -> None:
    image = Image.fromarray(np.array([[10, 200]], np.uint8))
    assert pixels(stored(image, transparency=10))[0, :, 0].tolist() == [255, 200]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    found = pixels(stored(Image.fromarray(deep)))[..., 0]
    assert np.array_equal(found.flatten(), np.arange(256))


def test_twelve_bits_in_a_sixteen_bit_file_are_scaled_by_theirs() -> None:
    """As microscopes store them; by sixteen bits they would be black."""
    deep = np.linspace(0, 4095, 256).reshape(16, 16).round().astype(np.uint16)
    found = pixels(stored(Image.fromarray(deep)))[..., 0]
    assert np.array_equal(found.flatten(), np.arange(256))


def test_eight_bits_in_a_sixteen_bit_file_stay_as_they_are() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(pixels(stored(Image.fromarray(values)))[..., 0], values)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_greys_are_the_same_however_many_rows_are_taken_at_a_time(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    values = np.random.default_rng(0).integers(0, 65536, (7, 5)).astype(kind)
    image = Image.frombytes(mode, (5, 7), values.tobytes())
    whole = np.asarray(preprocess.to_8_bit(image))
    top = values.max() if mode == "F" else 65535
    np.testing.assert_array_equal(whole, (values * (255 / top)).round())
    monkeypatch.setattr(preprocess, "_STRIP", 12)  # two rows
    np.testing.assert_array_equal(preprocess.to_8_bit(image), whole)


def test_floats_are_of_zero_to_one_and_broken_ones_are_dark() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan, -1.0, np.inf]], np.float32))
    assert pixels(image)[0, :, 0].tolist() == [0, 128, 255, 0, 0, 0]


def test_print_colours_become_screen_colours() -> None:
    image = Image.new("CMYK", (4, 1))
    inks = [(0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0)]
    for x, ink in enumerate(inks):
        image.putpixel((x, 0), ink)
    assert [tuple(p) for p in pixels(image)[0].tolist()] == [RED, GREEN, BLUE, WHITE]
    assert stored(image, "tiff").mode == "CMYK"


def test_one_bit_is_black_and_white() -> None:
    image = stored(Image.fromarray(np.array([[True, False]])))
    assert image.mode == "1"
    assert pixels(image)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_set_upright(orientation: int) -> None:
    """The camera stored the picture turned or mirrored, and noted how to show it."""
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    turned = quarters()
    for turn in turns:
        turned = turned.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(stored(turned, "png", exif=exif))
    assert np.array_equal(found, np.asarray(quarters()))


def test_broken_orientation_data_does_not_spoil_the_image() -> None:
    found = pixels(stored(quarters(), "png", exif=b"Exif\0\0garbage"))
    assert np.array_equal(found, np.asarray(quarters()))


def test_pixels_are_channels_first_bytes() -> None:
    found = to_pixels(quarters(), spec())
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, np.asarray(quarters()).transpose(2, 0, 1))
    assert to_pixels(quarters(), spec(channels=1)).shape == (1, 8, 8)
    assert to_pixels(Image.new("L", (8, 8), 77), spec()).tolist() == np.full((3, 8, 8), 77).tolist()


def test_grey_weighs_colours_as_the_eye_does() -> None:
    found = to_pixels(quarters(), spec(channels=1))[0]
    assert [int(found[y, x]) for y, x in ((0, 0), (0, 7), (7, 0), (7, 7))] == [76, 150, 29, 255]


def test_inverted_ink_is_light_on_dark() -> None:
    page = Image.new("L", (8, 8), 255)
    page.putpixel((3, 2), 0)
    found = to_pixels(page, spec(channels=1, invert=True))
    assert found[0, 2, 3] == 255
    assert found.sum() == 255


def wide() -> Image.Image:
    """Red, green, blue side by side, each a square of 16."""
    image = Image.new("RGB", (48, 16), RED)
    image.paste(GREEN, (16, 0, 32, 16))
    image.paste(BLUE, (32, 0, 48, 16))
    return image


def test_crop_keeps_the_middle() -> None:
    found = to_pixels(wide(), spec(16, fit="crop")).transpose(1, 2, 0)
    assert (found == GREEN).all()
    found = to_pixels(wide().transpose(Image.Transpose.ROTATE_90), spec(16, fit="crop"))
    assert (found.transpose(1, 2, 0) == GREEN).all()


def test_pad_shows_everything_on_white_paper() -> None:
    found = to_pixels(wide(), spec(48, fit="pad")).transpose(1, 2, 0)
    assert np.array_equal(found[16:32], np.asarray(wide()))
    assert (found[:16] == 255).all()
    assert (found[32:] == 255).all()
    dark = to_pixels(wide(), spec(48, fit="pad", channels=1, invert=True))
    assert (dark[0, :16] == 0).all()


def test_stretch_fills_the_frame_with_everything() -> None:
    found = to_pixels(wide(), spec(16, fit="stretch")).transpose(1, 2, 0)
    assert [tuple(found[8, x].tolist()) for x in (1, 8, 14)] == [RED, GREEN, BLUE]


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 8), (8, 8), (500, 333)])
def test_any_size_and_frame_will_do(fit: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (9, 90, 200))
    found = to_pixels(image, spec(24, width=32, fit=fit))
    assert found.shape == (3, 24, 32)
    if fit != "pad":
        assert (found.transpose(1, 2, 0) == (9, 90, 200)).all()


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for fit in ("stretch", "crop", "pad"):
        found = to_pixels(Image.fromarray(noise), spec(24, width=32, fit=fit))
        assert np.array_equal(found.transpose(1, 2, 0), noise)


def test_shrinking_averages_and_does_not_skip() -> None:
    """A checkerboard of single pixels becomes grey, not black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = to_pixels(Image.fromarray(board), spec(8, channels=1))
    assert np.abs(found.astype(int) - 127).max() <= 4
