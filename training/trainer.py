"""The training loop: one recipe, one readable loop, resumable to the bit."""

from __future__ import annotations

import json
import math
import platform
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from models_zoo import registry
from models_zoo.episode import Support
from models_zoo.learner import Learner
from training import checkpoint
from training.data.load import load_splits
from training.data.sampler import Episode, EpisodeSampler
from training.data.store import PackedStore
from training.evaluate import evaluate
from training.history import HISTORY, History
from training.objectives import Objective, Step, build_objective
from training.recipe import EpisodeConfig, Recipe, RecipeError
from training.sketch import Sketch
from training.tuning import keep_memory

#: Steps between two looks at the loss; looking waits for an accelerator.
LOG_EVERY = 25
#: Points of a run's path through the space of weights that its history keeps.
PATH_POINTS = 500
VALIDATION_SEED = 20_000
BEST = "best.safetensors"


class Run:
    """Everything that changes while a recipe is trained, and where it is kept.

    out/recipe.yaml        the recipe
    out/last.pt            the state after the last checkpointed step
    out/best.safetensors   the weights with the best validation accuracy; its metadata say which
    out/tensorboard/       curves
    out/history.npz        what `fewshot plot` draws, for every step; see `training.history`
    out/.lock              held while a process trains in `out`
    """

    def __init__(
        self, recipe: Recipe, out: Path, store: dict[str, PackedStore], device: torch.device
    ):
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.device = recipe, out, device
        self.learner: Learner = registry.build(recipe.learner, recipe.config).to(device)
        self.learner.to(memory_format=torch.channels_last)
        self.sampler = EpisodeSampler(
            store["train"],
            rotations=recipe.data.rotations,
            slots=recipe.episodes.slots,
            augment=recipe.data.augment,
            device=device,
            seed=recipe.seed,
        )
        config, check = recipe.episodes, recipe.validation
        self.sampler.check(max(config.ways), max(config.shots) + config.queries)
        # On the CPU, so that every device is validated on the same tasks.
        self.validation = EpisodeSampler(store["val"], rotations=check.rotations)
        self.validation.check(check.way, check.shot + check.queries)
        if self.learner.max_way and recipe.entry.limits.max_way > self.learner.max_way:
            raise RecipeError(
                f"{recipe.id}: entry.limits.max_way is {recipe.entry.limits.max_way}, but the "
                f"learner takes at most {self.learner.max_way} classes"
            )
        self.objective = build_objective(
            recipe.objective, self.learner, self.sampler, recipe.episodes.tasks
        ).to(device)
        self.parameters = trained(self.learner, self.objective)
        self.optimizer = make_optimizer(recipe, self.learner, self.objective)
        #: Learning rate of each of the optimiser's groups, before the schedule.
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.interrupted = False
        self.seconds = 0.0
        self.best = Best()
        self.history = History()

    def save(self) -> None:
        self.history.save(self.out)
        checkpoint.save(
            self.out / "last.pt",
            {
                "step": self.step,
                "seconds": self.seconds,
                "hardware": hardware(self.device),
                "best": asdict(self.best),
                "learner": self.learner.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "episodes": self.sampler.generator.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
        )

    def resume(self) -> None:
        """Continue from `last.pt`. Raises `RecipeError` if it belongs to another recipe."""
        try:  # read as a recipe, so that a run made before an option was there goes on
            text = (self.out / "recipe.yaml").read_text(encoding="utf-8")
            kept = Recipe.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, UnicodeDecodeError, ValidationError):
            kept = None
        if kept != self.recipe:
            raise RecipeError(
                f"{self.out} holds a run of another recipe (see its recipe.yaml); "
                "use --fresh or another --out"
            )
        state = checkpoint.load(self.out / "last.pt", self.device)
        self.step, self.seconds, self.best = state["step"], state["seconds"], Best(**state["best"])
        self.history.load(self.out, self.step)
        self.learner.load_state_dict(state["learner"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.generator.set_state(state["episodes"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"]:
            torch.cuda.set_rng_state_all([kept.cpu() for kept in state["cuda"]])

    def validate(self, extra: bool = False) -> float:
        """Accuracy on validation classes, always of the same tasks; keeps the best weights, or the
        last where these classes are trained on.

        An `extra` validation, where a run is cut short between two regular ones, counts only until
        a regular one: else a run taken up again might keep other weights than one in one go.
        """
        if extra and self.best.step and not self.best.extra:
            return self.best.accuracy
        config, adaptation = self.recipe.validation, self.recipe.entry.adaptation
        self.validation.generator.manual_seed(VALIDATION_SEED)
        score = evaluate(
            self.learner,
            self.validation,
            tasks=config.tasks,
            way=config.way,
            shot=config.shot,
            queries=config.queries,
            inner_lr=adaptation.rates if adaptation else None,
            device=self.device,
        )
        held_out = self.recipe.data.classes == "train"
        if score.mean > self.best.accuracy or self.best.extra or not held_out:
            self.best = Best(score.mean, score.ci95, self.step, extra)
            weights = {k: v.contiguous().cpu() for k, v in self.learner.state_dict().items()}
            facts = {"best": json.dumps(asdict(self.best))}
            checkpoint.write_atomically(self.out / BEST, to_safetensors(weights, facts))
        return score.mean


@dataclass(frozen=True)
class Best:
    """The validation whose weights are kept: accuracy, half its 95% interval, and step."""

    accuracy: float = 0.0
    ci95: float = 0.0
    step: int = 0
    extra: bool = False


@contextmanager
def fitting(recipe: Recipe) -> Iterator[None]:
    """Learner, objective and episodes that do not go together become a `RecipeError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise RecipeError(
            f"{recipe.id}: out of memory; lower episodes.tasks, or use --device cpu"
        ) from None
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(
            f"{recipe.id}: learner {recipe.learner!r} does not fit this recipe: {reason[0]}"
        ) from error


def rehearse(run: Run) -> None:
    """Blank tasks of the most classes through the objective, one if it may; changes nothing."""
    recipe, spec = run.recipe, run.recipe.data.input
    way, tasks = max(*recipe.episodes.ways, recipe.validation.way), run.objective.tasks or 1
    blank = torch.zeros(tasks, way, spec.channels, spec.height, spec.width, device=run.device)
    labels = torch.arange(way, device=run.device).repeat(tasks, 1)
    support = Support.of(blank, labels, way=recipe.episodes.slots or way)
    run.learner.eval()
    with torch.no_grad():
        run.objective(run.learner, Episode(support, blank, labels, labels * 0, labels * 0))


def hardware(device: torch.device) -> str:
    """What a run was trained on, for its card."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} CPU threads"


def make_optimizer(recipe: Recipe, learner: Learner, objective: Objective) -> torch.optim.Optimizer:
    """One group of parameters; two where the objective has settings for its own."""
    config = recipe.optimizer
    groups: list[dict[str, Any]] = [{"params": trained(learner, objective)}]
    if objective.settings is not None:
        groups = [
            {"params": trained(learner)},
            {"params": trained(objective)} | objective.settings,
        ]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay, fused=True)


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def draw_episode(sampler: EpisodeSampler, config: EpisodeConfig, seed: str) -> Episode:
    """A batch of one way and shot, drawn from the recipe's lists as `seed` says."""
    dice = random.Random(seed)  # not the sampler's generator: reading that waits for a GPU
    way, shot = dice.choice(config.ways), dice.choice(config.shots)
    tasks = config.tasks
    if config.max_images:
        tasks = max(1, min(tasks, config.max_images // (way * (shot + config.queries))))
    return sampler.sample(tasks, way, shot, config.queries)


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    root: Path | None = None,
    download: bool = False,
    fresh: bool = False,
    until: int | None = None,
    quiet: bool = False,
) -> Run:
    """Train `recipe` into the folder `out`, from its last checkpoint if it has one.

    `until` stops after that step (the learning-rate schedule stays that of the whole run).
    After Ctrl-C the step under way is finished and saved, then `KeyboardInterrupt` is raised.
    Raises `RecipeError`, `DataError`, `CheckpointError`.
    """
    keep_memory()
    stores = load_splits(recipe.data, root, download)
    place = torch.device(device)
    with fitting(recipe):
        run = Run(recipe, out, stores, place)
        rehearse(run)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        if (out / "last.pt").exists() and not fresh:
            run.resume()
        else:
            for stale in ("last.pt", BEST, HISTORY):
                (out / stale).unlink(missing_ok=True)
            text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            checkpoint.write_atomically(out / "recipe.yaml", text.encode())
        board = SummaryWriter(str(out / "tensorboard"), purge_step=run.step + 1)
        with board, bar(run, quiet) as tick, finishing_the_step(run):
            loop(run, min(until or recipe.steps, recipe.steps), board, tick)
    if run.interrupted:
        raise KeyboardInterrupt
    return run


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


def loop(run: Run, until: int, board: SummaryWriter, tick: Any) -> None:
    recipe = run.recipe
    sketch, trace = Sketch(trained(run.learner)), math.ceil(recipe.steps / PATH_POINTS)
    if not run.history.rows["trajectory"]:
        run.history.add(run.step, "trajectory", sketch())
    run.learner.train()
    while run.step < until and not run.interrupted:
        started = time.perf_counter()
        episode = draw_episode(run.sampler, recipe.episodes, f"{recipe.seed}/{run.step}")
        factor = recipe.optimizer.factor(run.step, recipe.steps)
        for group, base in zip(run.optimizer.param_groups, run.rates, strict=True):
            group["lr"] = base * factor
        run.optimizer.zero_grad(set_to_none=True)
        loss, metrics = run.objective.backward(run.learner, episode, step_of(run))
        if recipe.optimizer.clip:
            nn.utils.clip_grad_norm_(run.parameters, recipe.optimizer.clip)
        run.optimizer.step()
        run.step += 1

        for name, rows in metrics.items():
            if rows.ndim:
                run.history.add(run.step, name, rows)
        if run.step % trace == 0:
            run.history.add(run.step, "trajectory", sketch())
        if run.step % LOG_EVERY == 0:
            metrics = {"loss": loss, **metrics}
            scalars = {k: float(v.detach()) for k, v in metrics.items() if not v.ndim}
            if not math.isfinite(scalars["loss"]):
                raise RecipeError(
                    f"{recipe.id}: the loss is {scalars['loss']} at step {run.step}; lower "
                    "optimizer.lr or set optimizer.clip, then start again with --fresh"
                )
            for name, value in scalars.items():
                board.add_scalar(f"train/{name}", value, run.step)
            tick(run.step, scalars)
        regular = run.step % recipe.validation.every == 0 or run.step == recipe.steps
        if regular or run.step == until:
            accuracy = run.validate(extra=not regular)
            board.add_scalar("val/accuracy", accuracy, run.step)
            if regular:
                run.history.add(run.step, "validation", torch.tensor(accuracy))
            tick(run.step, {"val": accuracy})
        run.seconds += time.perf_counter() - started
        if run.step % recipe.checkpoint_every == 0 or run.step == until:
            run.save()
    if run.interrupted:
        run.save()


def step_of(run: Run) -> Step:
    """What the objective may ask for in the step under way."""
    recipe, sampler = run.recipe, run.sampler

    def new() -> Episode:
        return draw_episode(sampler, recipe.episodes, f"{recipe.seed}/{run.step}/new")

    def next_one() -> Episode:
        kept = sampler.generator.get_state()
        episode = draw_episode(sampler, recipe.episodes, f"{recipe.seed}/{run.step + 1}")
        sampler.generator.set_state(kept)
        return episode

    return Step(
        autocast=lambda: torch.autocast(
            run.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ),
        rate=run.optimizer.param_groups[0]["lr"],
        new=new,
        next=next_one,
    )


@contextmanager
def finishing_the_step(run: Run) -> Iterator[None]:
    """Ctrl-C ends the loop after the step under way; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def bar(run: Run, quiet: bool) -> Iterator[Any]:
    """A progress bar with ETA; on a file or with `quiet`, nothing but the bar's last state."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
        disable=quiet,
    )
    shown: dict[str, float] = {}
    with progress:
        task = progress.add_task(
            run.recipe.id, total=run.recipe.steps, completed=run.step, facts=""
        )

        def tick(step: int, facts: dict[str, float]) -> None:
            shown.update(facts)
            text = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
            progress.update(task, completed=step, facts=text)

        yield tick
