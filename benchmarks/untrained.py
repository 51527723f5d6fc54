"""A zoo of shipped entries and STANet on its paper's ResNet-12: untrained, which costs the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from models_zoo import registry
from models_zoo.cards import ENTRIES, Card, InputSpec, Limits, Paper, Training, describe
from models_zoo.learner import InputShape
from training.export import attention_of, example_answer, write_entry
from training.graphs import to_onnx

ID = "stanet-resnet12"
_SIDE, _WAY = 84, 5


@contextmanager
def zoo(entries: Iterable[str]) -> Iterator[Path]:
    """A folder of these entries, for as long as the context lasts."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for entry in entries:
            if entry == ID:
                _write(root)
            else:
                shutil.copytree(ENTRIES / entry, root / entry)
        yield root


def _write(root: Path) -> None:
    torch.manual_seed(0)
    config = {"channels": 3, "image_size": _SIDE, "backbone": "resnet12-2.6m", "layers": 3}
    learner = registry.build("stanet", {**config, "max_way": _WAY}).eval()
    shape = InputShape(3, _SIDE, _SIDE)
    graphs = to_onnx(learner, shape)
    card = Card(
        id=ID,
        version="1",
        title="STANet on ResNet-12",
        summary="Untrained: its answers mean nothing.",
        learner="stanet",
        family=registry.family("stanet"),
        paper=Paper(
            title="A Dual Attention Network with Semantic Embedding", authors="", year=2019
        ),
        backbone="resnet12-2.6m",
        parameters=sum(p.numel() for p in learner.parameters()),
        config=config,
        input=InputSpec(channels=3, height=_SIDE, width=_SIDE, fit="crop"),
        limits=Limits(max_way=_WAY, max_shot=20, max_support=100, max_query=100),
        attention=attention_of(learner, example_answer(learner, shape)),
        transductive=learner.transductive,
        training=Training(
            dataset="", split="", recipe="", steps=0, run_steps=0, seed=0, minutes=0, hardware=""
        ),
        license="MIT",
        files={name: describe(data) for name, data in graphs.items()},
    )
    write_entry(card, graphs, root)
