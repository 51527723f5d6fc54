"""The training loop on a tiny made data set: it learns and keeps the best."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models_zoo import registry
from models_zoo.cards import Adaptation
from tests.training.making import LEARNERS, OBJECTIVES, recipe
from training import surroundings, trainer
from training.data.load import load_splits
from training.data.sampler import Episode, EpisodeSampler
from training.data.store import DataError, PackedStore
from training.evaluate import Score
from training.history import read_history
from training.objectives import Step, build_objective
from training.objectives.task_attention import TaskAttention
from training.recipe import EpisodeConfig, ObjectiveConfig, RecipeError
from training.trainer import draw_episode, train

ADAPTATION = Adaptation(steps=1, max_steps=1, inner_lr=1.0, max_inner_lr=1.0)

every_learner = pytest.mark.parametrize("name", sorted(LEARNERS))


@pytest.fixture
def store(made_data: Path) -> PackedStore:
    return load_splits(recipe().data, made_data)["train"]


def parts(name: str, store: PackedStore) -> tuple[torch.nn.ModuleList, Episode]:
    """A fresh learner and its objective, and one episode of unequal tasks."""
    torch.manual_seed(0)
    learner = registry.build(name, LEARNERS[name])
    sampler = EpisodeSampler(store, slots=4, seed=3)
    config = ObjectiveConfig(name=OBJECTIVES.get(name, "episode"))  # type: ignore[arg-type]
    objective = build_objective(config, learner, sampler)
    return torch.nn.ModuleList([learner, objective]), sampler.sample(3, [4, 3, 4], [2, 2, 1], 3)


def test_every_learner_of_the_registry_is_trained_here() -> None:
    assert sorted(LEARNERS) == registry.names()


@every_learner
def test_steps_on_one_episode_learn_it(name: str, store: PackedStore) -> None:
    both, episode = parts(name, store)
    learner, objective = both.train()
    optimizer = torch.optim.Adam(both.parameters(), 1e-2)
    losses, metrics = [], {}
    for _ in range(25):
        loss, metrics = objective(learner, episode)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.4 * losses[0], losses
    # Reptile learns from the support sets alone.
    assert float(metrics["accuracy"]) > (0.6 if name == "reptile" else 0.9)


@every_learner
def test_the_objective_reaches_every_trainable_weight(name: str, store: PackedStore) -> None:
    both, episode = parts(name, store)
    learner, objective = both.train()
    objective(learner, episode)[0].backward()
    idle = [
        key
        for key, value in both.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.any())
    ]
    assert idle == []


@every_learner
def test_task_attention_weighs_the_tasks_of_any_learner(name: str, store: PackedStore) -> None:
    both, episode = parts(name, store)
    learner, objective = both.train()[0], TaskAttention(3, "shared")
    step = Step(nullcontext, 0.1, new=lambda: episode, next=lambda: episode)
    loss, metrics = objective.backward(learner, episode, step)
    assert loss.isfinite() and metrics["attention_inputs"].isfinite().all()
    for each in (learner, objective):
        gradients = [p.grad for p in each.parameters() if p.grad is not None]
        assert all(d.isfinite().all() for d in gradients)
        assert any(d.any() for d in gradients)


@every_learner
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_keeps_the_learner_s_weights_in_float32(
    name: str, precision: str, made_data: Path, tmp_path: Path
) -> None:
    wanted = recipe(name, precision=precision, steps=4)
    run = train(wanted, tmp_path, root=made_data, quiet=True)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["best"]) == asdict(run.best)
    assert run.best.step == run.step == 4
    weights = load_file(tmp_path / "best.safetensors")
    learner = registry.build(name, LEARNERS[name])
    learner.load_state_dict(weights)  # neither more nor fewer: the objective's own stay behind
    assert all(v.isfinite().all() for v in weights.values())
    assert {v.dtype for v in weights.values()} <= {torch.float32, torch.int64}


def test_what_a_run_trains_on_is_multiplied_in_the_recipe_s_precision(
    made_data: Path, tmp_path: Path
) -> None:
    """Batch norm's statistics under mean weights, too."""

    def products(precision: str) -> set[torch.dtype]:
        found = set()

        def look(module: torch.nn.Module, _: Any, output: Any) -> None:
            if isinstance(module, torch.nn.Conv2d) and module.training:
                found.add(output.dtype)

        optimizer = {"name": "adam", "lr": 1e-3, "average": {"steps": 2}}
        wanted = recipe(precision=precision, steps=4, optimizer=optimizer)
        hook = torch.nn.modules.module.register_module_forward_hook(look)
        try:
            train(wanted, tmp_path / precision, root=made_data, quiet=True)
        finally:
            hook.remove()
        return found

    assert products("float32") == {torch.float32}
    assert products("bfloat16") == {torch.bfloat16}


def run_of(data: dict[str, Any], root: Path, out: Path, **validation: Any) -> trainer.Run:
    """A run before its first step, with changes to its recipe's sections of these names."""
    wanted = recipe()
    changes = {"data": data, "validation": validation}
    sections = {name: getattr(wanted, name).model_copy(update=changes[name]) for name in changes}
    wanted = wanted.model_copy(update=sections)
    return trainer.Run(wanted, out, load_splits(wanted.data, root), torch.device("cpu"))


@pytest.mark.parametrize(
    ("rotations", "versions"), [("none", 1), ("classes", 4), ("mirrored", 8), ("per_class", 4)]
)
def test_a_run_trains_on_the_turned_classes_of_its_recipe(
    rotations: str, versions: int, made_data: Path, tmp_path: Path, store: PackedStore
) -> None:
    run = run_of({"rotations": rotations}, made_data, tmp_path)
    assert run.sampler.class_count == versions * len(store.classes)
    assert run.sampler.rotations == rotations
    assert run.sampler.weights is None


@pytest.mark.parametrize(("rotations", "versions"), [("none", 1), ("classes", 4)])
def test_a_run_is_validated_with_the_turned_classes_of_its_recipe(
    rotations: str, versions: int, made_data: Path, tmp_path: Path
) -> None:
    upright = load_splits(recipe().data, made_data)["val"]
    run = run_of({}, made_data, tmp_path, rotations=rotations)
    assert run.validation.class_count == versions * len(upright.classes)


def test_a_run_draws_as_many_turned_classes_as_its_recipe_says(
    made_data: Path, tmp_path: Path, store: PackedStore
) -> None:
    run = run_of({"rotations": "classes", "turned": 0.1}, made_data, tmp_path)
    drawn = run.sampler.sample(400, 1, 1, 1).query_classes
    share = float((drawn >= len(store.classes)).double().mean())
    assert share == pytest.approx(0.1, abs=0.05)  # 0.75 where all are drawn alike


@pytest.mark.parametrize("augment", ["none", "crop_flip", "affine"])
def test_a_run_changes_the_images_it_trains_on_as_its_recipe_says(
    augment: str, made_data: Path, tmp_path: Path
) -> None:
    run = run_of({"augment": augment}, made_data, tmp_path)
    assert (run.sampler.augment, run.validation.augment) == (augment, "none")


def test_training_learns_to_tell_classes_it_never_saw(made_data: Path, tmp_path: Path) -> None:
    run = train(recipe(steps=24), tmp_path, root=made_data, quiet=True)
    assert run.best.accuracy > 0.6  # one in three by chance


def test_the_best_weights_have_the_accuracy_they_claim(made_data: Path, tmp_path: Path) -> None:
    run = train(recipe(), tmp_path, root=made_data, quiet=True)
    best = run.best
    run.learner.load_state_dict(load_file(tmp_path / "best.safetensors"))
    assert run.validate() == best.accuracy


@pytest.mark.parametrize(("classes", "kept"), [("train", (0.9, 8)), ("train+val", (0.7, 12))])
def test_the_kept_weights_are_the_best_or_with_nothing_held_out_the_last(
    classes: str,
    kept: tuple[float, int],
    made_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies, weights = [0.5, 0.9, 0.7], []

    def scripted(learner: torch.nn.Module, *_: Any, **__: Any) -> Score:
        weights.append({k: v.clone() for k, v in learner.state_dict().items()})
        return Score(accuracies[len(weights) - 1], 0.01, 10, 0.5)

    monkeypatch.setattr(trainer, "evaluate", scripted)
    wanted = recipe()
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"classes": classes})})
    run = train(wanted, tmp_path, root=made_data, quiet=True)
    accuracy, step = kept
    assert run.best == trainer.Best(accuracy, 0.01, step)
    found = load_file(tmp_path / "best.safetensors")
    same = [all(torch.equal(found[key], each[key]) for key in found) for each in weights]
    assert same == [value == accuracy for value in accuracies]


def test_validation_is_of_validation_classes_at_the_recipe_s_steps(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(self: trainer.Run, extra: bool) -> float:
        assert not extra
        seen.append((self.step, len(self.validation.counts)))
        return 0.5

    monkeypatch.setattr(trainer.Run, "validate", spy)
    monkeypatch.setattr(trainer, "LOG_EVERY", 5)
    train(recipe(), tmp_path, root=made_data, quiet=True)
    splits = load_splits(recipe().data, made_data)
    assert [step for step, _ in seen] == [4, 8, 12]
    assert all(classes == len(splits["val"].classes) for _, classes in seen)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in curves.Scalars("val/accuracy")] == [4, 8, 12]
    assert [e.step for e in curves.Scalars("train/loss")] == [5, 10]
    assert {"train/accuracy", "train/loss"} <= set(curves.Tags()["scalars"])


def test_a_stop_after_a_regular_validation_logs_no_accuracy_it_did_not_measure(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at 2, where it is measured, and at 6; the regular one is at 4."""
    shown: list[tuple[int, dict[str, float]]] = []
    bar = nullcontext(lambda step, facts: shown.append((step, facts)))
    monkeypatch.setattr(trainer, "bar", lambda *_: bar)
    for until in (2, 6):
        train(recipe(), tmp_path, root=made_data, until=until, quiet=True)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in curves.Scalars("val/accuracy")] == [2, 4]
    assert [(step, list(facts)) for step, facts in shown if facts] == [(2, ["val"]), (4, ["val"])]
    assert sorted({step for step, _ in shown}) == [1, 2, 3, 4, 5, 6]  # else slow ones have no ETA


def test_steps_that_take_minutes_have_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    made: list[Progress] = []

    def progress(*columns: Any, **options: Any) -> Progress:
        made.append(Progress(*columns, **options, get_time=lambda: now))
        return made[0]

    monkeypatch.setattr(surroundings, "Progress", progress)
    run = SimpleNamespace(recipe=recipe(), step=2)
    with surroundings.bar(run, 9, quiet=True) as tick:
        for step in (3, 4, 5):
            now += 120
            tick(step, {})
    (task,) = made[0].tasks
    assert (task.total, task.time_remaining) == (9, 4 * 120)


def test_every_step_has_the_rate_of_the_schedule(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    wanted = recipe()

    def make(*args: Any) -> torch.optim.Optimizer:
        optimizer = real(*args)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    def told(run: trainer.Run) -> Step:
        steps.append(offered(run))
        return steps[-1]

    steps: list[Step] = []
    real, offered = trainer.make_optimizer, trainer.step_of
    monkeypatch.setattr(trainer, "make_optimizer", make)
    monkeypatch.setattr(trainer, "step_of", told)
    train(wanted, tmp_path, root=made_data, quiet=True)
    assert rates == [wanted.optimizer.lr * wanted.optimizer.factor(i, 12) for i in range(12)]
    assert [step.rate for step in steps] == rates, "what Eq. 2 of task attention moves by"


def test_theta_and_the_attention_are_clipped_apart(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def norms(clip: float | None) -> list[float]:
        found = []

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                grads = [p.grad.flatten() for p in group["params"] if p.grad is not None]
                found.append(float(torch.cat(grads).norm()))

        def make(*args: Any) -> torch.optim.Optimizer:
            optimizer = real(*args)
            optimizer.register_step_pre_hook(look)
            return optimizer

        monkeypatch.setattr(trainer, "make_optimizer", make)
        wanted = recipe("maml", objective={"name": "task_attention"}, steps=1)
        clipped = wanted.optimizer.model_copy(update={"clip": clip})
        wanted = wanted.model_copy(update={"optimizer": clipped})
        train(wanted, tmp_path / str(clip), root=made_data, quiet=True)
        return found

    real = trainer.make_optimizer
    theta, delta = norms(None)
    assert theta > 100 * delta > 0
    assert norms(theta / 2) == pytest.approx([theta / 2, delta], rel=1e-3)


def test_training_episodes_mix_the_recipe_s_ways_and_shots(store: PackedStore) -> None:
    config = EpisodeConfig(tasks=8, ways=(2, 4), shots=(1, 3), queries=2, max_images=50)
    sampler = EpisodeSampler(store)
    seen = set()
    for number in range(60):
        episode = draw_episode(sampler, config, str(number))
        tasks, way = episode.support.class_mask.shape
        shot = episode.support.mask.shape[1] // way
        seen.add((way, shot))
        assert tasks == min(8, 50 // (way * (shot + 2)))
    assert seen == {(2, 1), (2, 3), (4, 1), (4, 3)}


def test_training_episodes_ask_as_many_queries_as_the_recipe_says(store: PackedStore) -> None:
    config = EpisodeConfig(tasks=2, ways=(3,), shots=(1,), queries=2, asked=(1, 4))
    sampler = EpisodeSampler(store)
    drawn = [draw_episode(sampler, config, str(number)).targets.shape for number in range(20)]
    assert set(drawn) == {(2, 1), (2, 4)}


def drawn_in(
    objective: dict[str, Any], data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """The queries of every batch that a short run draws."""
    batches = []

    def spy(*args: Any) -> Episode:
        episode = draw_episode(*args)
        batches.append(episode.query)
        return episode

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "draw_episode", spy)
        train(recipe("maml", objective=objective, steps=4), out, root=data, quiet=True)
    return batches


def test_task_attention_sees_the_plain_run_s_tasks_or_as_many_again(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ahead, besides = (
        drawn_in(objective, made_data, tmp_path / name, monkeypatch)
        for name, objective in {
            "plain": {"name": "episode"},
            "next": {"name": "task_attention", "fresh": "next"},
            "new": {"name": "task_attention", "fresh": "new"},
        }.items()
    )
    assert (len(plain), len(ahead), len(besides)) == (4, 8, 8)
    assert all(torch.equal(x, y) for x, y in zip(plain, ahead[::2], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(plain[1:], ahead[1:-1:2], strict=True))
    assert len({float(batch.double().sum()) for batch in besides}) == 8


def test_a_run_with_task_attention_keeps_every_step_s_weights_and_inputs(
    made_data: Path, tmp_path: Path
) -> None:
    run = train(
        recipe("maml", objective={"name": "task_attention", "lr": 0.02}, steps=5),
        tmp_path,
        root=made_data,
        quiet=True,
    )
    history = read_history(tmp_path)
    steps, weights = history["attention"]
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert history["attention_inputs"][1].shape == (5, 2, 4)
    assert history["validation"][0].tolist() == [4, 5]
    theta, delta = run.optimizer.param_groups
    factor = run.recipe.optimizer.factor(4, 5)
    assert theta["lr"] == pytest.approx(run.recipe.optimizer.lr * factor)
    assert delta["lr"] == pytest.approx(0.02 * factor)


def test_a_step_s_inputs_stand_in_the_order_of_its_weights(made_data: Path, tmp_path: Path) -> None:
    objective = {"name": "task_attention", "network": "shared", "lr": 1e-9}  # as good as fixed
    run = train(recipe("maml", objective=objective, steps=3), tmp_path, root=made_data, quiet=True)
    history = read_history(tmp_path)
    weights, inputs = history["attention"][1], history["attention_inputs"][1]
    assert isinstance(run.objective, TaskAttention)
    for row, given in zip(weights, inputs, strict=True):
        again = run.objective.network(torch.from_numpy(given)).detach()
        assert again.tolist() == pytest.approx(row.tolist(), rel=1e-4)
        assert abs(row[0] - row[1]) > 1e-3 * row[0], "else any order would do"


def test_a_step_too_large_for_max_images_still_has_one_task(store: PackedStore) -> None:
    config = EpisodeConfig(tasks=8, ways=(4,), shots=(3,), queries=2, max_images=5)
    assert draw_episode(EpisodeSampler(store), config, "").support.x.shape[:2] == (1, 12)


def test_the_seed_decides_the_run(made_data: Path, tmp_path: Path) -> None:
    def final(folder: str, seed: int) -> list[torch.Tensor]:
        run = train(recipe(seed=seed, steps=3), tmp_path / folder, root=made_data, quiet=True)
        return list(run.learner.state_dict().values())

    first, again, other = final("a", 0), final("b", 0), final("c", 1)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("learner", "changes", "message"),
    [
        ("prototypical", {"config": {"chanels": 1}}, "chanels"),
        ("prototypical", {"config": {"channels": 1, "backbone": "vgg"}}, "unknown backbone 'vgg'"),
        ("prototypical", {"config": {"channels": 3}}, "channels"),
        ("stanet", {"config": LEARNERS["stanet"] | {"max_way": 3}}, "at most 3"),
        ("stanet", {"config": LEARNERS["stanet"] | {"image_size": 32}}, "stanet"),
        ("mmnet", {"objective": {"name": "semantic"}}, "backbone"),
        ("maml", {"objective": {"name": "matching"}}, "maml"),
    ],
)
def test_a_learner_that_does_not_fit_is_told_before_the_first_step(
    learner: str, changes: dict[str, Any], message: str, made_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message) as told:
        train(recipe(learner, **changes), tmp_path / "run", root=made_data, quiet=True)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"validation": {"way": 40}}, "40-way tasks need 40 classes, there are \\d+ to valid"),
        ({"validation": {"way": 3, "queries": 500}}, "501 images per class needed"),
        ({"episodes": {"tasks": 1, "ways": [3], "shots": [1, 400], "queries": 2}}, "402 images"),
    ],
)
def test_tasks_that_the_data_cannot_give_are_told_before_the_first_step(
    changes: dict[str, Any], reason: str, made_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        train(recipe(**changes), tmp_path / "run", root=made_data, quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_entry_may_not_promise_more_classes_than_its_learner_takes(
    made_data: Path, tmp_path: Path
) -> None:
    wanted = recipe("maml")
    entry = wanted.entry.model_copy(
        update={"limits": wanted.entry.limits.model_copy(update={"max_way": 99})}
    )
    with pytest.raises(RecipeError, match="max_way is 99"):
        train(wanted.model_copy(update={"entry": entry}), tmp_path, root=made_data, quiet=True)


def test_a_loss_that_is_no_number_stops_the_run(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 2)
    wild = recipe(optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf)"):
        train(wild, tmp_path, root=made_data, quiet=True)


def test_a_loss_that_is_no_number_is_seen_before_it_is_validated(
    made_data: Path, tmp_path: Path
) -> None:
    """Without a class to prefer, it would pass for a model that is right by chance."""
    wild = recipe(optimizer={"name": "sgd", "lr": 1e30})
    assert wild.validation.every < trainer.LOG_EVERY
    with pytest.raises(RecipeError, match=r"the loss is (nan|inf)"):
        train(wild, tmp_path, root=made_data, quiet=True)
    assert not (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize(("name", "adaptation"), [("maml", None), ("prototypical", ADAPTATION)])
def test_adaptation_is_for_learners_by_gradient_steps(
    name: str, adaptation: Adaptation | None, made_data: Path, tmp_path: Path
) -> None:
    wanted = recipe(name)
    entry = wanted.entry.model_copy(update={"adaptation": adaptation})
    with pytest.raises(RecipeError, match=r"entry\.adaptation"):
        train(wanted.model_copy(update={"entry": entry}), tmp_path, root=made_data, quiet=True)


def test_an_argument_that_there_is_not_is_told_before_the_data_are_read(tmp_path: Path) -> None:
    wanted = recipe().model_copy(update={"config": {"chanels": 1}})
    with pytest.raises(RecipeError, match=r"config\.chanels: no such argument; there are channels"):
        train(wanted, tmp_path, root=tmp_path / "nowhere", quiet=True)


def test_validation_adapts_as_the_entry_will(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []

    def spy(*_: Any, inner_lr: Any, **__: Any) -> Score:
        rates.append(inner_lr)
        return Score(0.5, 0.1, 10, 0.5)

    monkeypatch.setattr(trainer, "evaluate", spy)
    train(recipe("maml", steps=4), tmp_path / "maml", root=made_data, quiet=True)
    train(recipe(steps=4), tmp_path / "proto", root=made_data, quiet=True)
    assert rates == [(1.0, 1.0), None]
