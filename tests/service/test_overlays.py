"""Heat lies where the model looked, whatever part of the image the model saw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models_zoo.cards import InputSpec
from service.overlays import overlay, place


def spec(fit: str, width: int = 32, height: int = 32) -> InputSpec:
    return InputSpec(channels=3, height=height, width=width, fit=fit)


def hot(row: int, column: int, side: int = 8) -> np.ndarray:
    weights = np.zeros((side, side), np.float32)
    weights[row, column] = 0.5
    return weights


def centre(heat: np.ndarray) -> tuple[float, float]:
    """(x, y) of the heat, as shares of the width and height."""
    rows, columns = np.indices(heat.shape)
    total = heat.sum()
    x = ((columns + 0.5) * heat).sum() / total / heat.shape[1]
    y = ((rows + 0.5) * heat).sum() / total / heat.shape[0]
    return x, y


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (128, 128)])
def test_stretch_covers_the_whole_image(size: tuple[int, int]) -> None:
    heat = place(hot(2, 6), size, size, spec("stretch"))
    assert heat.shape == size[::-1]
    assert centre(heat) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.01)
    assert heat.max() == pytest.approx(1, abs=0.05)


def test_crop_covers_only_the_middle() -> None:
    # A 200 x 100 image into a square: the model saw x from 50 to 150.
    heat = place(np.ones((8, 8), np.float32), (200, 100), (200, 100), spec("crop"))
    assert (heat[:, :50] == 0).all()
    np.testing.assert_allclose(heat[:, 50:150], 1 / 3, atol=1e-6)  # even, hence pale
    assert (heat[:, 150:] == 0).all()
    heat = place(hot(4, 0), (200, 100), (200, 100), spec("crop"))
    assert centre(heat)[0] == pytest.approx((50 + 100 * 0.5 / 8) / 200, abs=0.01)
    tall = place(np.ones((8, 8), np.float32), (100, 200), (100, 200), spec("crop"))
    assert (tall[:50] == 0).all()
    np.testing.assert_allclose(tall[50:150], 1 / 3, atol=1e-6)


def test_pad_leaves_the_margins_out() -> None:
    # A 200 x 100 image in a square: rows 2 to 5 of the 8 are the image.
    margin = place(hot(0, 3), (200, 100), (200, 100), spec("pad"))
    assert margin.max() < 0.05
    heat = place(hot(3, 1), (200, 100), (200, 100), spec("pad"))
    assert centre(heat) == pytest.approx((1.5 / 8, 1.5 / 4), abs=0.02)


def test_the_input_need_not_be_square() -> None:
    heat = place(np.ones((4, 8), np.float32), (100, 100), (100, 100), spec("crop", 64, 32))
    assert (heat[:25] == 0).all()
    np.testing.assert_allclose(heat[25:75], 1 / 3, atol=1e-6)
    same = place(hot(1, 1), (64, 32), (64, 32), spec("pad", 64, 32))
    assert centre(same) == pytest.approx((1.5 / 8, 1.5 / 8), abs=0.02)


def test_a_crop_after_resizing_covers_less() -> None:
    # The shorter side becomes 40 pixels, of which the model saw the middle 32: four fifths.
    resized = InputSpec(channels=3, height=32, width=32, fit="crop", resize=40)
    even = np.ones((8, 8), np.float32)
    heat = place(even, (200, 100), (200, 100), resized)
    assert (heat[10:90, 60:140] > 0.3).all()
    assert heat.sum() == pytest.approx(heat[10:90, 60:140].sum())
    square = place(even, (100, 100), (50, 50), resized)
    assert (square[5:45, 5:45] > 0.3).all()
    assert square.sum() == pytest.approx(square[5:45, 5:45].sum())


def test_no_weight_leaves_the_picture_as_it_is() -> None:
    image = Image.effect_noise((120, 90), 60).convert("RGB")
    for weights in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        drawn = overlay(image, image.size, weights.astype(np.float32), spec("stretch"), 200)
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(image))


def test_sizes_are_bounded_both_ways() -> None:
    weights = np.ones((4, 4), np.float32)
    for size, expected in (
        ((1000, 500), (200, 100)),
        ((10, 20), (48, 96)),
        ((3000, 1), (200, 1)),
        ((1, 3000), (1, 200)),
    ):
        image = Image.new("L", size)
        assert overlay(image, size, weights, spec("crop"), 200).size == expected
