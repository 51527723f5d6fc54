"""ResNet-12: four residual blocks of three 3x3 convolutions (Mishra et al. 2018, TADAM).

Widths by name, the parameters counted without a head:

    resnet12-2.6m   64-96-128-256    Yan et al.'s "2.6M": the backbone and three STA layers
    resnet12-8m     64-128-256-512   the field's 8M one
    resnet12-12m    64-160-320-640   the field's 12.4M one (MetaOptNet)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = {
    "resnet12-2.6m": (64, 96, 128, 256),
    "resnet12-8m": (64, 128, 256, 512),
    "resnet12-12m": (64, 160, 320, 640),
}


def conv_norm(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class ResidualBlock(nn.Module):
    """`[M, inputs, h, w]` -> `[M, outputs, h', w']`, halved when `pool`."""

    def __init__(self, inputs: int, outputs: int, pool: bool, relu: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, 3),
            nn.LeakyReLU(0.1),
            *conv_norm(outputs, outputs, 3),
            nn.LeakyReLU(0.1),
            *conv_norm(outputs, outputs, 3),
        )
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1))
        self.activation = nn.LeakyReLU(0.1) if relu else nn.Identity()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(self.activation(self.body(x) + self.shortcut(x)))
        return out


class ResNet12(nn.Module):
    """Images `[M, C, H, W]` -> feature maps `[M, widths[-1], h, w]`.

    Without `last_relu`, the last block's sum leaves as it is.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = WIDTHS["resnet12-2.6m"],
        pools: Sequence[bool] = (True, True, True, True),
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = widths[-1]
        self.reduction = 2 ** sum(pools)
        ins = [channels, *widths]
        relus = [*[True] * (len(pools) - 1), last_relu]
        stages = zip(ins, widths, pools, relus, strict=False)
        self.stages = nn.Sequential(*(ResidualBlock(*stage) for stage in stages))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(images)
        return features
