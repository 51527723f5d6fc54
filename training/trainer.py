"""The training loop: one recipe, one readable loop, resumable to the bit."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from models_zoo import registry
from models_zoo.learner import Learner
from training import checkpoint
from training.averaging import WeightAverage, take_statistics
from training.data.load import load_splits
from training.data.sampler import Episode, EpisodeSampler
from training.data.splits import fingerprint
from training.data.store import PackedStore
from training.evaluate import evaluate
from training.history import HISTORY, History
from training.objectives import Step, build_objective
from training.optimizers import make_optimizer, trained
from training.recipe import EpisodeConfig, Recipe, RecipeError
from training.rehearsal import fitting, rehearse
from training.sketch import Sketch
from training.state import BEST, LAST, Best, resume, save
from training.surroundings import alone, bar, finishing_the_step
from training.tuning import keep_memory

#: Steps between two looks at the loss; looking waits for an accelerator.
LOG_EVERY = 25
#: Points of a run's path through the space of weights that its history keeps.
PATH_POINTS = 500
VALIDATION_SEED = 20_000
STATISTICS_SEED = 30_000


class Stopped(KeyboardInterrupt):
    """Ctrl-C, where the checkpoint of `step` is kept: the last step, unless it came twice."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step


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
            turned=recipe.data.turned,
            slots=recipe.episodes.slots,
            augment=recipe.data.augment,
            device=device,
            seed=recipe.seed,
        )
        config, check = recipe.episodes, recipe.validation
        most = max(config.shots) + config.queries
        self.sampler.check(max(config.ways), most, "to train on")
        # On the CPU, so that every device is validated on the same tasks.
        self.validation = EpisodeSampler(store["val"], rotations=check.rotations)
        self.validation.check(check.way, check.shot + check.queries, "to validate with")
        if self.learner.max_way and recipe.entry.limits.max_way > self.learner.max_way:
            raise RecipeError(
                f"{recipe.id}: entry.limits.max_way is {recipe.entry.limits.max_way}, but the "
                f"learner takes at most {self.learner.max_way} classes"
            )
        self.objective = build_objective(
            recipe.objective, self.learner, self.sampler, recipe.episodes.tasks
        ).to(device)
        if (self.learner.default_inner_lr() is None) != (recipe.entry.adaptation is None):
            raise RecipeError(
                f"{recipe.id}: entry.adaptation is for learners by gradient steps, and needed there"
            )
        #: The classes it trains on and is validated with, for whoever goes on or tests it.
        self.seen = fingerprint(store["train"].classes + store["val"].classes)
        self.parameters = trained(self.learner, self.objective)
        self.optimizer = make_optimizer(recipe, self.learner, self.objective)
        #: Learning rate of each of the optimiser's groups, before the schedule.
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        average = recipe.optimizer.average
        #: What is validated and kept once it has begun.
        self.average = (
            WeightAverage(self.learner, recipe.steps - average.steps) if average else None
        )
        self.step = 0
        self.interrupted = False
        self.seconds = 0.0
        #: Way gone through the space of weights, over every update (`training.sketch`); NaN in a
        #: run that was begun before it was kept.
        self.length = torch.zeros((), dtype=torch.float64, device=device)
        self.best = Best()
        self.history = History()

    def validate(self, extra: bool = False) -> float | None:
        """Accuracy on validation classes, always of the same tasks; keeps the best weights, or the
        last where these classes are trained on.

        An `extra` validation, where a run is cut short between two regular ones, counts only until
        a regular one: else a run taken up again might keep other weights than one in one go. From
        then on nothing is measured there, and the answer is None.
        """
        if extra and self.best.step and not self.best.extra:
            return None
        config, adaptation = self.recipe.validation, self.recipe.entry.adaptation
        self.validation.generator.manual_seed(VALIDATION_SEED)
        learner = self.averaged() or self.learner
        score = evaluate(
            learner,
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
            weights = {k: v.contiguous().cpu() for k, v in learner.state_dict().items()}
            facts = {"best": json.dumps(asdict(self.best))}
            checkpoint.write_atomically(self.out / BEST, to_safetensors(weights, facts))
        return score.mean

    def averaged(self) -> Learner | None:
        """The learner with the mean of its weights, if there is one already."""
        learner = self.average.learner() if self.average else None
        if learner is None:
            return None
        mean, kept = learner, self.sampler.generator.get_state()

        def forward(batch: int) -> None:
            episode = draw_episode(self.sampler, self.recipe.episodes, f"statistics/{batch}")
            with autocast(self):
                self.objective(mean, episode)

        with torch.random.fork_rng():  # the same batches every time, and the run sees none of it
            torch.manual_seed(STATISTICS_SEED)
            self.sampler.generator.manual_seed(STATISTICS_SEED)
            take_statistics(mean, forward)
        self.sampler.generator.set_state(kept)
        return mean


def autocast(run: Run) -> torch.autocast:
    """The precision that the recipe asks for."""
    wanted = run.recipe.precision == "bfloat16"
    return torch.autocast(run.device.type, torch.bfloat16, enabled=wanted)


def draw_episode(sampler: EpisodeSampler, config: EpisodeConfig, seed: str) -> Episode:
    """A batch of one way and shot, with as many queries, drawn from the recipe's lists as `seed`
    says."""
    dice = random.Random(seed)  # not the sampler's generator: reading that waits for a GPU
    way, shot = dice.choice(config.ways), dice.choice(config.shots)
    episode = sampler.sample(config.count(way, shot), way, shot, config.queries)
    return sampler.some(episode, dice.choice(config.asked)) if config.asked else episode


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
    After Ctrl-C the step under way is finished and saved, then `Stopped` is raised; after a second
    one it is raised at once, if there is a checkpoint.
    Raises `RecipeError`, `DataError`, `CheckpointError`.
    """
    keep_memory()
    end = min(until or recipe.steps, recipe.steps)
    with fitting(recipe):
        registry.checked(recipe.learner, recipe.config)
    stores = load_splits(recipe.data, root, download)
    place = torch.device(device)
    with fitting(recipe):
        run = Run(recipe, out, stores, place)
        rehearse(run)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        if (out / LAST).exists() and not fresh:
            resume(run)
        else:
            for stale in (LAST, BEST, HISTORY):
                (out / stale).unlink(missing_ok=True)
            text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
            checkpoint.write_atomically(out / "recipe.yaml", text.encode())
        try:
            board = SummaryWriter(str(out / "tensorboard"), purge_step=run.step + 1)
            with board, bar(run, end, quiet) as tick, finishing_the_step(run):
                loop(run, end, board, tick)
        except KeyboardInterrupt:
            if not (out / LAST).exists():
                raise
            kept = checkpoint.load(out / LAST, torch.device("cpu"))
            raise Stopped(kept["step"]) from None
    if run.step < end:
        raise Stopped(run.step)
    return run


def loop(run: Run, until: int, board: SummaryWriter, tick: Any) -> None:
    recipe = run.recipe
    sketch, trace = Sketch(trained(run.learner)), math.ceil(recipe.steps / PATH_POINTS)
    here = sketch()
    if not run.history.rows["trajectory"]:
        run.history.add(run.step, "trajectory", here)
        run.history.add(run.step, "length", run.length)
    if run.step >= until and not run.best.step:  # an earlier call was interrupted here
        run.validate(extra=run.step < recipe.steps)
        save(run)
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
            for group in run.optimizer.param_groups:  # each by itself: no scale in common
                nn.utils.clip_grad_norm_(group["params"], recipe.optimizer.clip)
        run.optimizer.step()
        run.step += 1
        if run.average:
            run.average.add(run.step, run.learner)
        before, here = here, sketch()
        run.length = run.length + (here - before).norm()

        for name, rows in metrics.items():
            if rows.ndim:
                run.history.add(run.step, name, rows)
        if run.step % trace == 0:
            run.history.add(run.step, "trajectory", here)
            run.history.add(run.step, "length", run.length)
        regular = run.step % recipe.validation.every == 0 or run.step == recipe.steps
        wanted = regular or run.step == until
        if (run.step % LOG_EVERY == 0 or wanted) and not bool(loss.isfinite()):
            raise RecipeError(
                f"{recipe.id}: the loss is {float(loss.detach())} at step {run.step}; lower "
                "optimizer.lr or set optimizer.clip, then start again with --fresh"
            )
        scalars = {}
        if run.step % LOG_EVERY == 0:
            metrics = {"loss": loss.detach(), **metrics}
            scalars = {k: float(v.detach()) for k, v in metrics.items() if not v.ndim}
            for name, value in scalars.items():
                board.add_scalar(f"train/{name}", value, run.step)
        tick(run.step, scalars)
        if wanted:
            accuracy = run.validate(extra=not regular)
            if accuracy is not None:
                board.add_scalar("val/accuracy", accuracy, run.step)
                if regular:
                    run.history.add(run.step, "validation", torch.tensor(accuracy))
                tick(run.step, {"val": accuracy})
        run.seconds += time.perf_counter() - started
        if run.step % recipe.checkpoint_every == 0 or run.step == until:
            save(run)
    if run.interrupted:
        save(run)


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
        autocast=lambda: autocast(run),
        rate=run.optimizer.param_groups[0]["lr"],
        new=new,
        next=next_one,
    )
