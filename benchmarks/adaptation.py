"""Tasks a second of gradient-based adaptation and its meta-gradient, beside the peers'.

    python -m benchmarks.adaptation [--rounds 5] [--plot growth.png] [--only peers]

The task is 5-way 1-shot with 15 queries per class, 28 px, Finn's network with 64 channels, five
inner steps, second order, float32, one thread, the allocator tuned for everyone. All arms compute
the same numbers, which is checked: gradients of the mean query loss by the initial weights.

    ours         `models_zoo.optimization.maml`, all tasks at once, the gradient by hand
    learn2learn  its algorithm: for each task clone the weights, `autograd.grad`, update
    higher       `higher.innerloop_ctx` with differentiable SGD, task by task
    torchopt     `torchopt.MetaSGD`, task by task

higher and torchopt take part where they are installed. Then: ONNX Runtime against PyTorch for the
adaptation alone, and how all of them grow with steps, shots, ways and tasks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.adaptation_arms import LIBRARIES, RATE, SIDE, Case, arms
from models_zoo.learner import InputShape
from training.graphs import to_onnx
from training.parity import OnnxLearner
from training.tuning import keep_memory

#: Largest difference of a meta-gradient's entries, as a share of the largest entry, in float64.
TOLERANCE = 1e-9


def check() -> None:
    """Every arm must compute the same meta-gradient, in float64 where chaos is no excuse."""
    found = {name: arm() for name, arm in arms(Case(tasks=2, dtype=torch.float64)).items()}
    for name in LIBRARIES.keys() - found.keys():
        say(f"{name} is not installed and takes no part: pip install {name}")
    for name, got in found.items():
        for key, value in found["ours"].items():
            difference = float((got[key] - value).abs().max() / value.abs().max())
            if difference > TOLERANCE:
                raise SystemExit(f"{name} computes another gradient by {key}: {difference:.1e}")


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, taken in turn so that whatever else the machine does meets all alike."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in taken.items()}


def against_peers(rounds: int) -> None:
    check()
    for tasks in (4, 16):
        case = Case(tasks)
        found = medians(dict(arms(case)), rounds)
        for name, each in found.items():
            slower = each / found["ours"]
            say(f"{tasks:2d} tasks  {name:12} {tasks / each:6.1f} tasks/s  ours is {slower:4.2f} x")


def against_torch(rounds: int) -> None:
    case = Case(1)
    learner, (support, _, _) = case.learner().eval(), case.episode()
    graphs = OnnxLearner(to_onnx(learner, InputShape(1, SIDE, SIDE)), (RATE,) * case.steps)
    with torch.no_grad():
        found = medians(
            {"torch": lambda: learner.adapt(support), "onnx": lambda: graphs.adapt(support)},
            4 * rounds,
        )
    for name, each in found.items():
        say(f"adapt one task, {name:6} {1e3 * each:7.2f} ms  {found['torch'] / each:5.2f} x torch")


#: What grows, and how large.
GROWTH = {
    "steps": {n: Case(steps=n) for n in (1, 2, 5, 10)},
    "shot": {n: Case(shot=n) for n in (1, 2, 5, 10)},
    "way": {n: Case(way=n) for n in (2, 5, 10, 20)},
    "tasks": {n: Case(tasks=n) for n in (1, 4, 16, 32)},
}


def growth(rounds: int, plot: Path | None) -> None:
    rows: dict[str, dict[str, dict[int, float]]] = {}
    for axis, by_size in GROWTH.items():
        rows[axis] = defaultdict(dict)
        for size, case in by_size.items():
            for name, each in medians(dict(arms(case)), rounds).items():
                rows[axis][name][size] = each / case.tasks
        for name, values in rows[axis].items():
            shown = "  ".join(f"{size}: {1e3 * each:.1f}" for size, each in values.items())
            say(f"ms a task by {axis:6} {name:12} {shown}")
    if plot:
        draw(rows, plot)


def draw(rows: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(rows), figsize=(4 * len(rows), 3.2), layout="tight")
    for place, (axis, by_name) in zip(axes, rows.items(), strict=True):
        for name, values in by_name.items():
            place.plot(list(values), [1e3 * each for each in values.values()], "o-", label=name)
            place.set_xscale("log")
            place.set_xticks(list(values), [str(size) for size in values])
        place.minorticks_off()
        place.set_ylim(bottom=0)
        place.set(xlabel=axis, ylabel="ms a task")
        place.legend()
    figure.savefig(path, dpi=150)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="draw the growth into this PNG")
    parser.add_argument("--only", choices=("peers", "torch", "growth"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if wanted.only in (None, "peers"):
        against_peers(wanted.rounds)
    if wanted.only in (None, "torch"):
        against_torch(wanted.rounds)
    if wanted.only in (None, "growth"):
        growth(wanted.rounds, wanted.plot)


if __name__ == "__main__":
    main()
