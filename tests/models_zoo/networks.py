"""A small network of each kind that torchvision has, with random weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.squeezenet import SqueezeNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from models_zoo.backbones.pretrained import Pretrained

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
BLOCKS = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
#: A small network of each kind, the side of its images, its places.
KINDS = {
    "resnet": (partial(ResNet, BasicBlock, [1, 1, 1, 1]), 64, (2, 2)),
    "convnext": (partial(ConvNeXt, BLOCKS), 32, (4, 4)),
    "vit": (lambda: VisionTransformer(32, 8, 2, 2, 16, 32), 32, (4, 4)),
    "swin": (lambda: SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2]), 32, (4, 4)),
    "squeezenet": (lambda: SqueezeNet("1_1", num_classes=7), 64, (3, 3)),
    "flat": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3)
        ),
        32,
        (4, 4),
    ),
}


def made(kind: str) -> tuple[nn.Module, Pretrained, Tensor]:
    torch.manual_seed(0)
    build, side, _ = KINDS[kind]
    model = build().eval()
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.2)
    return model, Pretrained(model, side, MEAN, STD), torch.rand(3, 3, side, side)
