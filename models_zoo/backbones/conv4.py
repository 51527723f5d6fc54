"""Conv4: four blocks of 3x3 convolution, batch norm, ReLU and (where asked) 2x2 max-pooling.

Vinyals et al. 2016; often "Conv64". Pooling in all four stages leaves a vector of a 28 px
image; pooling in the first two keeps a 7x7 map for spatial attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

ALL = (True, True, True, True)


def conv_block(inputs: int, outputs: int, pool: bool, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    # ReLU and max-pooling commute; pooling first leaves ReLU a quarter of the numbers.
    layers += [nn.MaxPool2d(2)] if pool else []
    layers += [nn.ReLU()] if relu else []
    return nn.Sequential(*layers)


class Conv4(nn.Module):
    """Images `[M, C, H, W]` -> feature maps `[M, hidden, h, w]`.

    `pools` says for each stage whether it halves the map; its length is the number of stages.
    Without `last_relu`, features of either sign leave the last stage.
    """

    def __init__(
        self,
        channels: int = 3,
        hidden: int = 64,
        pools: Sequence[bool] = ALL,
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = hidden
        self.reduction = 2 ** sum(pools)
        widths = [channels, *[hidden] * len(pools)]
        relus = [*[True] * (len(pools) - 1), last_relu]
        stages = zip(widths, widths[1:], pools, relus, strict=False)
        self.stages = nn.Sequential(*(conv_block(*stage) for stage in stages))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(images)
        return features
