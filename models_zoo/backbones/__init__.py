"""Image encoders by name."""

from __future__ import annotations

from collections.abc import Sequence

from models_zoo.backbones.conv4 import Conv4
from models_zoo.backbones.resnet12 import WIDTHS, ResNet12


def build_backbone(
    name: str, channels: int, pools: Sequence[bool] | None = None, last_relu: bool = True
) -> Conv4 | ResNet12:
    """`conv4-64`, or a ResNet-12 of `WIDTHS`.

    pools      which stages halve the map (default: all)
    last_relu  whether the last stage ends in its (leaky) ReLU

    Raises `ValueError` for an unknown name.
    """
    pools = (True,) * 4 if pools is None else tuple(pools)
    if name.startswith("conv4-") and name[6:].isdigit():
        return Conv4(channels, int(name[6:]), pools, last_relu)
    if name in WIDTHS:
        return ResNet12(channels, WIDTHS[name], pools, last_relu)
    raise ValueError(f"unknown backbone {name!r}; known: conv4-<width>, {', '.join(WIDTHS)}")
