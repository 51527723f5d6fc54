"""Every option of a recipe's objective reaches what is built of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models_zoo import registry
from tests.training.making import LEARNERS, recipe
from training.data.load import load_splits
from training.data.sampler import EpisodeSampler
from training.objectives import Objective, build_objective
from training.objectives.task_attention import SharedNetwork
from training.recipe import OPTIONS, ObjectiveConfig

#: Learner, the options (none at its default), and where the built objective has them.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "margin": ("mmnet", {"margin": 2.5}, {}),
    "semantic": ("stanet", {"weight": 0.2, "cutmix": 0.4}, {}),
    "base_classes": ("dynamic", {"weight": 0.2}, {}),
    "verification": ("siamese", {"different": 0.3}, {}),
    "relation": ("relation", {"different": 0.3}, {}),
    "reptile": ("reptile", {"inner_steps": 3, "minibatch": 4}, {"inner_steps": "steps"}),
    "inequality": (
        "maml",
        {"weight": 0.2, "measure": "atkinson", "losses": "adapted", "order": 2.0},
        {},
    ),
    "task_attention": ("maml", {"fresh": "next"}, {}),
}


def built(name: str, made_data: Path, **options: Any) -> Objective:
    learner = CASES[name][0]
    store = load_splits(recipe().data, made_data)["train"]
    config = ObjectiveConfig(name=name, **options)  # type: ignore[arg-type]
    return build_objective(
        config, registry.build(learner, LEARNERS[learner]), EpisodeSampler(store), 4
    )


@pytest.mark.parametrize("name", sorted(CASES))
def test_an_option_reaches_the_objective(name: str, made_data: Path) -> None:
    _, options, attributes = CASES[name]
    objective, usual = built(name, made_data, **options), built(name, made_data)
    for option, value in options.items():
        attribute = attributes.get(option, option)
        assert getattr(objective, attribute) == value
        assert getattr(usual, attribute) != value, "else the test would not tell"


def test_the_other_options_reach_it_too(made_data: Path) -> None:
    attention = built("task_attention", made_data, network="shared", lr=0.007)
    assert isinstance(attention.network, SharedNetwork)
    assert attention.settings is not None and attention.settings["lr"] == 0.007
    with pytest.raises(ValueError, match="one group of classes only"):
        built("semantic", made_data, labels="group")
    assert built("inequality", made_data).weight == 0.05
    tested = {name: set(options) for name, (_, options, _) in CASES.items()}
    tested["task_attention"] |= {"network", "lr"}
    tested["semantic"] |= {"labels"}
    assert tested == OPTIONS
