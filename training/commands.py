"""Bodies of the commands that need the training extra: train, evaluate, export."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models_zoo.cards import ENTRIES, Accuracy, Card, ZooError, find_card, replaced, write_card
from training.checkpoint import CheckpointError
from training.data.store import DataError
from training.evaluate import rounded_down
from training.graphs import GraphError
from training.parity import ParityError
from training.protocol import Protocol, trained
from training.recipe import RecipeError, load_recipe
from training.tuning import keep_memory

USER_ERROR, INTERRUPTED = 2, 130


@contextmanager
def user_errors() -> Iterator[None]:
    """Faults a user can mend become one line and exit code 2."""
    try:
        yield
    except (
        RecipeError,
        DataError,
        CheckpointError,
        GraphError,
        ParityError,
        ZooError,
        OSError,
    ) as error:
        sys.stderr.write(f"fewshot: {' '.join(str(error).split())}\n")
        raise typer.Exit(USER_ERROR) from None


def pick_device(wanted: str | None) -> str:
    """`auto` (or None) is CUDA where there is a working GPU. Raises `RecipeError`."""
    if wanted in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no usable CUDA device; use --device cpu")
    return str(wanted)


def train(
    recipe: str,
    out: Path | None,
    data: Path | None,
    device: str | None,
    fresh: bool,
    steps: int | None,
    download: bool = False,
    seed: int | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Train a recipe, or go on with it; with `changes` to it, and a `seed` in place of its own."""
    from training import trainer

    with user_errors():
        loaded = load_recipe(recipe, changes)
        folder = out or Path("runs") / loaded.id
        if seed is not None:
            loaded = loaded.model_copy(update={"seed": seed})
            folder = out or Path("runs") / f"{loaded.id}-seed{seed}"
        try:
            run = trainer.train(
                loaded,
                folder,
                device=pick_device(device),
                root=data,
                download=download,
                fresh=fresh,
                until=steps,
            )
        except KeyboardInterrupt as stop:
            saved = stop.step if isinstance(stop, trainer.Stopped) else None
            options = {
                "--out": folder,
                "--data": data,
                "--device": device,
                "--seed": seed,
                "--until": steps,
            }
            given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
            given += [part for change in changes for part in ("--set", change)]
            given += ["--download"] if download else []
            given += ["--fresh"] if fresh and saved is None else []
            again = shlex.join(["fewshot", "train", recipe, *given])
            state = f"; the checkpoint of step {saved} is kept; go on"
            if saved is None:
                state = " before it had saved anything; start again"
            sys.stderr.write(f"fewshot: stopped{state} with: {again}\n")
            raise typer.Exit(INTERRUPTED) from None
        best = run.best
        held_out = loaded.data.classes == "train"
        kept = "Best validation accuracy" if held_out else "Accuracy on classes trained on"
        console = Console(markup=False, emoji=False)
        console.print(
            f"{kept} {best.accuracy:.2%} after step {best.step}, in {folder}", soft_wrap=True
        )
        if run.step < loaded.steps:
            console.print(
                f"{run.step} of {loaded.steps} steps are done; the same command without --until "
                "goes on. What there is may be exported:"
            )
        console.print(f"fewshot export {shlex.quote(str(folder))} --zoo zoo", soft_wrap=True)


def export(run: Path, zoo: Path | None, replace: bool, identity: str | None = None) -> None:
    """Turn a run into a zoo entry and report how well ONNX agrees with PyTorch."""
    from training.export import export as write_entry

    with user_errors():
        root = zoo or ENTRIES
        card, difference = write_entry(run, root, replace=replace, identity=identity)
        table = Table(title=f"{card.id} {card.version}", title_style="bold")
        table.add_column("File")
        table.add_column("kB", justify="right")
        for name, fact in card.files.items():
            table.add_row(name, f"{fact.bytes / 1000:.1f}")
        console = Console(markup=False, emoji=False)
        console.print(table)
        console.print(f"in {root / card.id}", soft_wrap=True)
        console.print(
            f"ONNX against PyTorch on {difference.episodes} kinds of episodes: median "
            f"{difference.median:.1e}, 90th percentile {difference.p90:.1e}, largest "
            f"{difference.largest:.1e}; same answer in {difference.same_answer:.0%}"
        )


def evaluate_entry(
    model: str,
    *,
    way: int,
    shot: int,
    queries: int,
    presentation: int | None,
    tasks: int,
    seed: int,
    rotations: Literal["none", "classes"],
    runtime: Literal["torch", "onnx"],
    apart: bool,
    classes: Literal["test", "val"],
    steps: int | None,
    inner_lr: float | None,
    data: Path | None,
    zoo: Path | None,
    device: str | None,
    download: bool,
    record: bool,
    as_json: bool,
    against: str | None = None,
) -> None:
    """Measure an entry's accuracy on its test classes; `record` writes it on the card. With the
    difference to another one, asked the same tasks and adapted as its card says.

    What is chosen after a training, such as `steps` and `inner_lr` of its adaptation, is chosen on
    the validation `classes`: neither goes on a card.
    """
    keep_memory()
    with user_errors():
        root = zoo or ENTRIES
        entries = [(model, root)]
        if against:  # in the same zoo, or else in the shipped one
            entries.append((against, root if (root / against).is_dir() else ENTRIES))
        cards = [find_card(*entry) for entry in entries]
        rates = [card.adaptation.rates if card.adaptation else None for card in cards]
        card = cards[0]
        if steps is not None or inner_lr is not None:
            if card.adaptation is None:
                raise ZooError(f"{model} adapts without gradient steps: no --steps or --inner-lr")
            given = {"steps": steps, "inner_lr": inner_lr}
            changes = {name: value for name, value in given.items() if value is not None}
            rates[0] = card.adaptation.model_copy(update=changes).rates
        if record and (classes == "val" or steps is not None or inner_lr is not None):
            raise RecipeError(
                "--record takes the card's own adaptation on test classes: leave out --classes, "
                "--steps and --inner-lr"
            )
        if runtime == "onnx" and device == "cuda":
            raise RecipeError("--runtime onnx evaluates on the CPU; use --runtime torch for CUDA")
        place = pick_device(device) if runtime == "torch" else "cpu"
        protocol = Protocol(
            way, shot, queries, presentation, tasks, seed, rotations, runtime, apart, classes
        )
        training = trained(card)
        # Of one data set, two splits may have the same test classes: their classes are compared.
        incomparable = ZooError(f"{against} is measured on other classes than {model}")
        if trained(cards[-1]).dataset != training.dataset:
            raise incomparable
        learners = [
            protocol.learner(card, held, place)
            for card, (_, held) in zip(cards, entries, strict=True)
        ]
        stores = [protocol.store(card, data, download) for card in cards]
        if stores[0].classes != stores[-1].classes:
            raise incomparable
        with Progress(disable=as_json, transient=True) as progress:
            bar = progress.add_task(f"{tasks} tasks", total=tasks * len(cards))

            def advance(done: int) -> None:
                progress.advance(bar, done)

            scores = [
                protocol.measure(*entry, place, advance)
                for entry in zip(learners, stores, rates, strict=True)
            ]
        score, *others = scores
        row = Accuracy(
            dataset=training.dataset,
            split=training.split,
            way=way,
            shot=shot,
            queries_per_class=queries if presentation is None else 0,
            rotations=rotations,
            presentation=presentation,
            tasks=tasks,
            seed=seed,
            mean=round(score.mean, 5),
            ci95=round(score.ci95, 5),
            confidence_p5=rounded_down(score.confidence_p5),
            transductive=card.transductive and not apart,
            command=(
                f"fewshot evaluate {model} --way {way} --shot {shot} {protocol.asked} "
                f"--tasks {tasks} --rotations {rotations} --seed {seed} --runtime {runtime}"
                f"{' --apart' if apart else ''}"
                f"{' --classes val' if classes == 'val' else ''}"
                f"{'' if steps is None else f' --steps {steps}'}"
                f"{'' if inner_lr is None else f' --inner-lr {inner_lr:g}'}"
            ),
        )
        if record:
            # Read again: another row may have been recorded while this one was measured.
            write_card(with_accuracy(find_card(model, root), row), root)
        beside = [Difference(cards[1].id, round(o.mean, 5), *score.above(o)) for o in others]
        report(row, as_json, classes, *beside)


def with_accuracy(card: Card, row: Accuracy) -> Card:
    """The card with this row in place of an older one of the same protocol."""
    rows = replaced(card.accuracy, row, {"mean", "ci95", "confidence_p5", "command"})
    return card.model_copy(update={"accuracy": tuple(sorted(rows, key=in_order))})


PARTS = {"test": "test", "val": "validation"}


def in_order(row: Accuracy) -> tuple[bool, bool, int, int, int]:
    """What rows on a card are sorted by."""
    sequence = row.presentation is not None
    return row.rotations != "classes", sequence, row.way, row.shot, row.presentation or 0


@dataclass(frozen=True)
class Difference:
    """Another entry on the same tasks: its accuracy, and how far the measured one is above it."""

    model: str
    mean: float
    above: float
    ci95: float


def report(row: Accuracy, as_json: bool, classes: str, beside: Difference | None = None) -> None:
    """What the card says of the accuracy, not more precisely: it is rounded once more."""
    if as_json:
        found = row.model_dump(mode="json") | {"classes": classes}
        if beside:
            found["against"] = asdict(beside)
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    table = Table(title=row.command, title_style="bold")
    for heading in ("Data", "Task", "Tasks", "Accuracy", "95% CI"):
        table.add_column(heading, overflow="fold")
    turned = ", rotations as classes" if row.rotations == "classes" else ""
    task = f"{row.way}-way {row.shot}-shot, {row.queries_per_class} queries per class"
    if row.presentation is not None:
        task = f"{row.way} classes of {row.shot} images, presentation {row.presentation}"
    if row.transductive:
        task += ", asked together (transductive)"
    table.add_row(
        f"{row.dataset}/{row.split}, {PARTS[classes]} classes{turned}",
        task,
        str(row.tasks),
        f"{row.mean:.2%}",
        f"± {row.ci95:.2%}",
    )
    console = Console(markup=False, emoji=False)
    console.print(table)
    if beside:
        console.print(
            f"{beside.model} on the same tasks: {beside.mean:.2%}. Difference, task by task: "
            f"{beside.above:+.2%} ± {beside.ci95:.2%}",
            soft_wrap=True,
        )
