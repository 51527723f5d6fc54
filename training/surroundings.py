"""What surrounds a training loop: a lock on its folder, Ctrl-C, and a progress bar."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from training.recipe import RecipeError

if TYPE_CHECKING:
    from training.trainer import Run


#: What the progress bar tells first: a narrow window shows no more.
FACTS = ("val", "loss", "accuracy")
#: Seconds that its ETA goes by; at least two steps must end in them.
SPEED_S = 600


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Refuse to train where another process trains; the lock goes with the process."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"{out}: another process trains here; use another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def finishing_the_step(run: Run) -> Iterator[None]:
    """Ctrl-C ends the loop after the step under way, a second one at once; and so does SIGTERM, by
    which clusters take their machines back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: object) -> None:
        run.interrupted = True
        restore()
        if signum == signal.SIGINT:
            sys.stderr.write("fewshot: finishing this step; press again to stop at once\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


@contextmanager
def bar(run: Run, end: int, quiet: bool) -> Iterator[Any]:
    """A progress bar with ETA until step `end`; on a file or with `quiet`, nothing but the bar's
    last state."""
    whole, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    progress = Progress(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[facts]}", table_column=rest),  # what a narrow window cuts
        speed_estimate_period=SPEED_S,
        expand=True,
        disable=quiet,
    )
    shown: dict[str, float] = {}
    with progress:
        task = progress.add_task(
            run.recipe.id, total=max(end, run.step), completed=run.step, facts=""
        )

        def tick(step: int, facts: dict[str, float]) -> None:
            shown.update(facts)
            names = [
                *(name for name in FACTS if name in shown),
                *(name for name in shown if name not in FACTS),
            ]
            text = "  ".join(f"{name} {shown[name]:.3f}" for name in names)
            progress.update(task, completed=step, facts=text)

        yield tick
