"""Shapes, sizes and the order of pooling of the image encoders."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models_zoo.backbones import build_backbone
from models_zoo.backbones.conv4 import Conv4, conv_block
from models_zoo.metric.stanet import STANet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def residual(inputs: int, outputs: int) -> int:
    """Weights of three 3x3 convolutions, a 1x1 shortcut, and four batch norms."""
    return 9 * outputs * (inputs + 2 * outputs) + inputs * outputs + 4 * 2 * outputs


#: Trainable numbers for three input channels, without a head. "8m" and "12m" are the field's 8.0 M
#: and 12.4 M; "2.6m" is Yan et al.'s network: 2.2 M here, 2.56 M with STANet's three layers.
SIZES = {
    "conv4-64": 112_832,
    "resnet12-2.6m": 2_232_448,
    "resnet12-8m": 7_996_800,
    "resnet12-12m": 12_424_320,
}
WIDTHS = {
    "resnet12-2.6m": (3, 64, 96, 128, 256),
    "resnet12-8m": (3, 64, 128, 256, 512),
    "resnet12-12m": (3, 64, 160, 320, 640),
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_number_of_parameters_is_the_one_of_the_name(name: str, size: int) -> None:
    if name == "conv4-64":
        expected = 9 * 3 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64
    else:
        widths = WIDTHS[name]
        expected = sum(residual(a, b) for a, b in pairwise(widths))
    assert count(build_backbone(name, 3)) == expected == size


def test_stanet_with_the_small_resnet12_has_the_seed_s_2_6_million() -> None:
    assert count(STANet(3, 84, "resnet12-2.6m", None, layers=3)) == pytest.approx(2.6e6, rel=0.02)


@pytest.mark.parametrize("name", ["conv4-8", "resnet12-2.6m"])
@pytest.mark.parametrize(
    ("pools", "size", "side"),
    [
        (None, 84, 5),
        (None, 32, 2),
        ((True, True, True, True), 28, 1),
        ((True, True, False, False), 28, 7),
        ((True, True, False, False), 32, 8),
        ((False, False, False, False), 9, 9),
    ],
)
def test_pooling_stages_set_the_size_of_the_map(
    name: str, pools: tuple[bool, ...] | None, size: int, side: int
) -> None:
    backbone = build_backbone(name, 1, pools).eval()
    with torch.no_grad():
        features = backbone(torch.rand(2, 1, size, size))
    assert features.shape == (2, backbone.out_channels, side, side)
    assert size // backbone.reduction == side


def test_an_unknown_backbone_names_the_known_ones() -> None:
    for name in ("conv4-", "conv4-x", "resnet18", ""):
        with pytest.raises(ValueError, match="resnet12-8m"):
            build_backbone(name, 3)


def test_pooling_before_relu_equals_relu_before_pooling() -> None:
    """The block pools first, which is cheaper; Vinyals et al. put ReLU first."""
    torch.manual_seed(0)
    block = conv_block(3, 5, pool=True).double().eval()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    convolved = block[1](F.conv2d(x, block[0].weight, padding=1))
    assert torch.equal(block(x), F.max_pool2d(F.relu(convolved), 2))


def test_a_residual_block_adds_the_shortcut_before_the_last_activation() -> None:
    torch.manual_seed(0)
    block = build_backbone("resnet12-2.6m", 2).stages[0].double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    parts = dict(block.named_modules())
    convolutions = [m for m in block.body if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.body if isinstance(m, nn.BatchNorm2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 3
    h = x
    for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        h = norm(F.conv2d(h, convolution.weight, padding=1))
        h = F.leaky_relu(h, 0.1) if number < 2 else h
    shortcut = F.conv2d(x, parts["shortcut.0"].weight)
    expected = F.max_pool2d(F.leaky_relu(h + parts["shortcut.1"](shortcut), 0.1), 2)
    assert torch.allclose(block(x), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["conv4-64", "resnet12-2.6m"])
def test_without_its_last_relu_a_backbone_gives_what_the_relu_would_get(name: str) -> None:
    with_relu, without = (build_backbone(name, 1, last_relu=on).eval() for on in (True, False))
    without.load_state_dict(with_relu.state_dict())
    x = torch.randn(3, 1, 16, 16)
    slope = 0.0 if name.startswith("conv4") else 0.1
    features = without(x)
    assert (features < 0).any()
    assert torch.equal(with_relu(x), F.leaky_relu(features, slope))


def test_stages_can_be_fewer_than_four() -> None:
    assert Conv4(1, 8, (True, True, True))(torch.rand(1, 1, 28, 28)).shape == (1, 8, 3, 3)
