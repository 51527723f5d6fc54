"""`fewshot models time`: how long one task of an entry takes here, and for its card."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from rich.console import Console

from models_zoo.cards import ENTRIES, Card, Speed, find_card, replaced, write_card
from service.commands.errors import user_errors
from service.commands.models import speed_of, write_json
from service.commands.paths import check_zoo
from service.engine.episode import Answer, Episode
from service.engine.onnx import OnnxRuntime
from service.engine.stages import answers
from service.tasks import check_limits

#: The first runs of a shape are slow, and not counted.
WARM_UPS, RUNS = 3, 31


def time_model(
    entry: str, *, way: int, shot: int, queries: int, zoo: Path | None, record: bool, as_json: bool
) -> None:
    """Measure an entry's speed on this machine; `record` writes it on the card."""
    with user_errors():
        root = ENTRIES if zoo is None else zoo
        check_zoo(root)
        row = measure(find_card(entry, root), root, way=way, shot=shot, queries=queries)
        if record:
            # Read again: something else may have been recorded while this was measured.
            write_card(with_speed(find_card(entry, root), row), root)
        if as_json:
            write_json(row.model_dump(mode="json"))
        else:
            Console(markup=False, emoji=False).print(
                f"{entry}: {speed_of(row)}; {row.hardware}", soft_wrap=True
            )


def measure(
    card: Card, root: Path, *, way: int, shot: int, queries: int, runs: int = RUNS
) -> Speed:
    """Medians of the stages of one task, the way that a request goes through the engine.

    Raises `ZooError`, or a `Problem` where the card does not take such a task.
    """
    check_limits([str(i % way) for i in range(way * shot)], way * queries, card)
    runtime = OnnxRuntime(card, root, "cpu", threads=1)
    episode = made_up(card, way, shot, queries)
    seconds = []
    for _ in range(WARM_UPS + runs):
        [(_, answer)] = answers(runtime, [episode])
        if not isinstance(answer, Answer):
            raise answer
        seconds.append(answer.seconds)
    milliseconds = {
        stage: round(1000 * median(run[stage] for run in seconds[WARM_UPS:]), 2)
        for stage in ("encode", "adapt", "predict")
    }
    return Speed(
        way=way,
        shot=shot,
        queries_per_class=queries,
        runs=runs,
        encode_ms=milliseconds["encode"],
        adapt_ms=milliseconds["adapt"],
        predict_ms=milliseconds["predict"],
        hardware=f"{processor()}, 1 thread, ONNX Runtime {onnxruntime.__version__}",
        command=f"fewshot models time {card.id} --way {way} --shot {shot} --queries {queries}",
    )


def made_up(card: Card, way: int, shot: int, queries: int) -> Episode:
    """A task of noise: what an image shows does not change how long it takes."""
    spec, rng = card.input, np.random.default_rng(0)
    shape = (spec.channels, spec.height, spec.width)
    return Episode(
        model=card.id,
        support=rng.integers(0, 256, (way * shot, *shape), dtype=np.uint8),
        labels=np.arange(way * shot, dtype=np.int64) % way,
        way=way,
        query=rng.integers(0, 256, (way * queries, *shape), dtype=np.uint8),
        inner_lr=card.adaptation.rates if card.adaptation else None,
    )


def with_speed(card: Card, row: Speed) -> Card:
    """The card with this row in place of an older one of such a task."""
    measured = {"encode_ms", "adapt_ms", "predict_ms", "runs", "hardware", "command"}
    rows = sorted(replaced(card.speed, row, measured), key=lambda one: (one.way, one.shot))
    return card.model_copy(update={"speed": tuple(rows)})


def processor() -> str:
    """The CPU's name where the system tells it, or its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
