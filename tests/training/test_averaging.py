"""Weight averaging against its definition, and as a part of a run that can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.training.making import recipe, recipe_content
from training import averaging, checkpoint
from training.averaging import WeightAverage, take_statistics
from training.recipe import OptimizerConfig, Recipe
from training.trainer import train

START, STEPS = 7, 12


def averaged(**changes: Any) -> Recipe:
    optimizer = {"lr": 3e-3, "average": {"steps": STEPS - START, "rate": 0.5}}
    data = recipe_content()["data"] | {"classes": "train+val"}  # the last weights are kept
    return recipe("stanet", optimizer=optimizer, data=data, **changes)


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "last.pt", torch.device("cpu"))


@pytest.fixture(scope="module")
def states(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The learner's state after each step of a run that is stopped after each; and its best."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(made_folder.parent / "cache"))
        found = []
        for step in range(1, STEPS + 1):
            train(averaged(), folder, root=made_folder, until=step, quiet=True)
            found.append(last(folder)["learner"])
    return [*found, load_file(folder / "best.safetensors")]


def test_the_rate_is_constant_while_weights_are_averaged() -> None:
    config = OptimizerConfig.model_validate({"average": {"steps": 4, "rate": 0.25}})
    factors = [config.factor(step, 12) for step in range(12)]
    assert factors[:8] == [OptimizerConfig().factor(step, 8) for step in range(8)]
    assert factors[8:] == [0.25] * 4


def test_all_steps_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match=r"average\.steps must be fewer than steps"):
        recipe("stanet", optimizer={"average": {"steps": STEPS}})


def test_the_average_is_the_mean_of_what_follows_its_start() -> None:
    learner = nn.Linear(3, 2)
    average, seen = WeightAverage(learner, start=2), []  # type: ignore[arg-type]
    assert average.learner() is None
    for step in range(1, 6):
        nn.init.normal_(learner.weight)
        average.add(step, learner)  # type: ignore[arg-type]
        seen.append(learner.weight.detach().clone())
    mean = average.learner()
    assert mean is not None
    torch.testing.assert_close(mean.weight, torch.stack(seen[2:]).mean(0))


def test_a_run_keeps_the_mean_of_its_last_weights(states: list[dict[str, Tensor]]) -> None:
    *path, best = states
    means, raw = 0, 0
    for name, kept in best.items():
        if "running" in name or "num_batches" in name:
            continue
        wanted = torch.stack([state[name] for state in path[START:]]).double().mean(0)
        torch.testing.assert_close(kept.double(), wanted, rtol=1e-5, atol=1e-6)
        means += 1
        raw += bool(torch.allclose(kept, path[-1][name], rtol=1e-5, atol=1e-6))
    assert raw < means / 2  # the last weights are others: the mean was not taken of one


def test_statistics_are_those_of_the_batches_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "BATCHES", 3)
    norm = nn.BatchNorm1d(4).double().eval()
    norm.running_mean += 7.0
    batches = torch.randn(3, 10, 4, dtype=torch.float64)
    take_statistics(norm, lambda batch: norm(batches[batch]))  # type: ignore[arg-type]
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, batches.var(1).mean(0))
    assert norm.momentum == 0.1
    assert not norm.training


def test_statistics_belong_to_the_mean_weights(states: list[dict[str, Tensor]]) -> None:
    *path, best = states
    name = "backbone.stages.0.1.running_mean"
    passes = 2 * averaging.BATCHES  # support and query images
    assert int(best[name.replace("running_mean", "num_batches_tracked")]) == passes
    assert not torch.allclose(best[name], path[-1][name])


def test_a_run_in_one_go_is_the_stopped_one(
    states: list[dict[str, Tensor]], made_data: Path, tmp_path: Path
) -> None:
    """Neither the stops nor the batches for statistics at other moments leave a trace."""
    for every in (4, 3):
        validation = {"every": every, "tasks": 10, "way": 3, "shot": 1, "queries": 3}
        out = tmp_path / str(every)
        train(averaged(validation=validation), out, root=made_data, quiet=True)
        ended = last(out)["learner"]
        assert all(torch.equal(ended[name], tensor) for name, tensor in states[-2].items())
        mean = last(out)["average"]
        assert int(mean["n_averaged"]) == STEPS - START
