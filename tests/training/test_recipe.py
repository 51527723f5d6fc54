"""Recipes: the shipped ones hold together, and a wrong one is told in a line."""

from __future__ import annotations

import inspect
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from models_zoo import registry
from tests.training.making import recipe, recipe_content, write_recipe
from training.data.splits import split_names
from training.recipe import RECIPES, OptimizerConfig, Recipe, RecipeError, load_recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_holds_together(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.id == name
    learner = registry.build(loaded.learner, loaded.config)
    accepted = inspect.signature(registry.learner_class(loaded.learner)).parameters
    spec, episodes = loaded.data.input, loaded.episodes
    assert loaded.config.get("channels", accepted["channels"].default) == spec.channels
    if "image_size" in accepted:
        assert loaded.config.get("image_size") == spec.height == spec.width
    if loaded.data.dataset != "folder":
        assert loaded.data.split in split_names(loaded.data.dataset)
    ways = [*episodes.ways, loaded.validation.way, loaded.entry.limits.max_way]
    assert learner.max_way is None or max(ways) <= learner.max_way
    if episodes.slots:
        assert max(episodes.ways) <= episodes.slots <= (learner.max_way or math.inf)
    assert (loaded.entry.adaptation is None) == (learner.default_inner_lr() is None)
    assert loaded.entry.limits.max_support >= loaded.entry.limits.max_way


def test_the_shipped_recipes_cover_every_learner_in_the_zoo() -> None:
    assert {load_recipe(name).learner for name in SHIPPED} == set(registry.names())


@pytest.mark.parametrize(
    ("regimen", "plain"),
    [
        ("ta-maml-omniglot", "maml-omniglot"),
        ("ta-metasgd-omniglot", "metasgd-omniglot"),
        ("ta-metalstmpp-omniglot", "metalstmpp-omniglot"),
        ("taml-omniglot", "maml-omniglot"),
        ("ta-maml-miniimagenet", "maml-miniimagenet"),
        ("ta-metasgd-miniimagenet", "metasgd-miniimagenet"),
        ("ta-metalstmpp-miniimagenet", "metalstmpp-miniimagenet"),
        ("taml-miniimagenet", "maml-miniimagenet"),
    ],
)
def test_a_regimen_is_compared_with_the_same_learner_on_the_same_budget(
    regimen: str, plain: str
) -> None:
    """Steps, tasks in a step, data, optimiser: all alike; tasks are drawn besides only where the
    paper's own setting is what the recipe holds, on miniImageNet."""
    one = load_recipe(regimen)
    budget = re.search(
        r"^# .* on this budget: (.*)$", (RECIPES / f"{regimen}.yaml").read_text(), re.MULTILINE
    )
    changes = [] if budget is None else budget[1].replace("--set ", "").split()
    other = load_recipe(plain, changes)
    if one.objective.name == "task_attention":
        assert one.objective.fresh == ("new" if regimen.endswith("-miniimagenet") else "next")
    differing = {"id", "objective"}
    assert one.model_dump(exclude={*differing, "entry"}) == other.model_dump(
        exclude={*differing, "entry"}
    )
    assert one.entry.adaptation == other.entry.adaptation
    assert one.entry.limits == other.entry.limits


def test_a_network_over_the_batch_needs_equal_batches() -> None:
    episodes = {"tasks": 4, "ways": [3], "shots": [1], "queries": 2, "max_images": 20}
    with pytest.raises(ValueError, match="too small for sgd"):
        recipe("maml", objective={"name": "task_attention"}, optimizer={"name": "sgd"})
    with pytest.raises(ValueError, match="omit max_images"):
        recipe("maml", episodes=episodes, objective={"name": "task_attention"})
    recipe("maml", episodes=episodes, objective={"name": "task_attention", "network": "shared"})


def test_a_recipe_may_be_a_path_or_a_shipped_name(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml")
    assert load_recipe(path) == load_recipe(str(path)) == recipe()
    assert load_recipe(SHIPPED[0]).id == SHIPPED[0]


def test_settings_may_be_changed_one_by_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml")
    changes = ["episodes.ways=[3, 2]", "objective={name: semantic, labels: group}", "steps = 7"]
    changes += ["optimizer.clip=null"]
    changed = load_recipe(path, changes)
    plain = recipe()
    assert (changed.episodes.ways, changed.steps) == ((3, 2), 7)
    assert changed.objective.labels == "group"
    assert changed.optimizer.clip is None
    assert changed.data == plain.data
    assert load_recipe(path, ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3  # text in YAML 1.1
    assert load_recipe(path, ["config.scale=2e1"]).config["scale"] == 20.0
    for change, message in [
        ("steps", "not of the form"),
        ("=3", "not of the form"),
        ("steps.more=3", "steps is a value"),
        ("steps=[", "steps=["),
        ("steps=many", "steps: "),
        ("episodes.tsks=3", "--set episodes.tsks=3: episodes.tsks: there is no such setting"),
        ("episodes.ways=20", "a list of whole numbers is wanted, as in [20]"),
        ("objective=reptile", "as in objective.name="),
        ("id=2021-99-99", "month"),
        ("optimizer.lr=.nan", "optimizer.lr: "),
    ]:
        with pytest.raises(RecipeError, match=re.escape(message)):
            load_recipe(path, [change])


NOT_RUN = re.findall(
    r"`fewshot train ([^`]+)`", (ROOT / "docs/results/optimization.md").read_text()
)


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_was_not_run_has_a_recipe_that_would(command: str) -> None:
    name, *rest = shlex.split(command)
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    for more in ([], ["episodes.shots=[5]", "validation.shot=5"], ["episodes.ways=[10]"]):
        loaded = load_recipe(name, [*rest[1::2], *more])
        learner = registry.build(loaded.learner, loaded.config)
        assert learner.max_way is not None
        assert max(*loaded.episodes.ways, loaded.entry.limits.max_way) <= learner.max_way
        assert loaded.data.split in split_names(loaded.data.dataset)
        if name.endswith("miniimagenet"):  # as many steps in the test as in training
            assert loaded.entry.adaptation is not None
            assert loaded.entry.adaptation.steps == loaded.config["steps"]


def test_a_recipe_survives_writing_and_reading() -> None:
    for name in SHIPPED:
        loaded = load_recipe(name)
        text = yaml.safe_dump(loaded.model_dump(mode="json"))
        assert Recipe.model_validate(yaml.safe_load(text)) == loaded


def wrong(**changes: Any) -> dict[str, Any]:
    """A recipe with one leaf changed: keys are paths such as `data__split`."""
    content = recipe_content()
    for path, value in changes.items():
        *steps, last = path.split("__")
        section = content
        for step in steps:
            section = section[step]
        if value is None:
            del section[last]
        else:
            section[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrong(learning_rate=1), "learning_rate: "),
        (wrong(optimizer__learning_rate=1), "optimizer.learning_rate: "),
        (wrong(optimizer__lr=-1), "optimizer.lr: "),
        (wrong(optimizer__name="lion"), "optimizer.name: "),
        (wrong(learner="resnet"), "unknown learner 'resnet'; known: "),
        (wrong(learner=None), "learner: "),
        (wrong(episodes__ways=[]), "episodes.ways: "),
        (wrong(episodes__ways="five"), "episodes.ways: "),
        (wrong(steps=0), "steps: "),
        (wrong(id="../evil"), "id: "),
        (wrong(data__input__height=1), "data.input.height: "),
        (wrong(data__rotations="sometimes"), "data.rotations: "),
        (wrong(optimizer__gamma=-1), "optimizer.gamma: "),
        (wrong(episodes__slots=0), "episodes.slots: "),
        (wrong(objective={"name": "inequality"}, episodes__tasks=1), "compares tasks"),
        (wrong(objective={"name": "inequality"}, episodes__max_images=9), "compares tasks"),
        (wrong(objective={"name": "inequality", "order": 50}), "objective.order: "),
        (wrong(objective={"name": "reptile"}, episodes__ways=[2, 3]), "name one way"),
        (wrong(objective={"network": "shared"}), "network does nothing with name: episode"),
        (
            wrong(objective={"name": "task_attention", "weight": 3}),
            "weight does nothing with name: task_attention",
        ),
        (
            wrong(objective={"name": "inequality", "order": 3}),
            "order does nothing with measure: theil",
        ),
        (wrong(optimizer__momentum=0.5), "momentum does nothing with name: adam"),
        (wrong(optimizer__milestones=[5]), "milestones does nothing with schedule: c"),
        (wrong(optimizer__gamma=0.5), "gamma does nothing with schedule: c"),
        (
            wrong(
                config={"statistics": "per_step"},
                optimizer__average={"steps": 1},
            ),
            "does not go with config.statistics",
        ),
        (
            wrong(entry__adaptation={"steps": 9, "max_steps": 5, "inner_lr": 1, "max_inner_lr": 4}),
            "must not exceed",
        ),
        (wrong(entry__paper=None), "entry.paper: "),
        (["a list"], "not a mapping"),
        (None, "not a mapping"),
    ],
)
def test_a_wrong_recipe_names_the_setting_in_one_line(
    content: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError) as told:
        load_recipe(path)
    assert str(told.value).startswith(f"{path}: ")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_misspelt_setting_is_named_rather_than_the_one_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(wrong(steps=None, stepz=3)))
    with pytest.raises(RecipeError, match="stepz: there is no such setting"):
        load_recipe(path)


@pytest.mark.parametrize(("value", "example"), [("twenty", "[20]"), ("7", "[7]")])
def test_a_list_is_asked_for_by_an_example_that_works(value: str, example: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"whole numbers is wanted, as in {example}")):
        load_recipe("maml-omniglot", [f"episodes.ways={value}"])
    load_recipe("maml-omniglot", [f"episodes.ways={example}"])


def test_a_recipe_that_is_not_there_names_what_comes_closest() -> None:
    with pytest.raises(RecipeError) as told:
        load_recipe("prototypical-omniglt")
    start = "unknown recipe 'prototypical-omniglt'; did you mean prototypical-omniglot"
    assert str(told.value).startswith(start)
    assert str(told.value).count("omniglot") <= 3
    with pytest.raises(RecipeError, match=r"unknown recipe 'zzz'; shipped: .*maml-omniglot"):
        load_recipe("zzz")
    with pytest.raises(RecipeError, match=r"^mine\.yaml: no such file$"):
        load_recipe("mine.yaml")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\na: [1", "not YAML in line 2: expected ',' or ']'"),
        (b"a: b: c", "not YAML in line 1: mapping values are not allowed here"),
        (b"a: 1\nb: {c: 1}\na: 2", "not YAML in line 3: 'a' stands there twice"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"a: !!python/object:os.x", "not YAML in line 1: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as told:
        load_recipe(path)
    assert str(told.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(told.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        load_recipe(f"{tmp_path}/")


def test_the_cosine_goes_from_one_to_nothing_in_a_half_wave() -> None:
    config = OptimizerConfig(schedule="cosine")
    factors = [config.factor(step, 1000) for step in range(1000)]
    assert factors[0] == 1
    assert factors[500] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0, abs=1e-5)
    assert factors == sorted(factors, reverse=True)
    assert factors[250] == pytest.approx((1 + 2**-0.5) / 2)


def test_the_warmup_is_a_straight_line_and_never_zero() -> None:
    config = OptimizerConfig(schedule="constant", warmup=4)
    assert [config.factor(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_line_falls_to_nothing() -> None:
    config = OptimizerConfig(schedule="linear")
    assert [config.factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_steps_multiply_at_their_milestones() -> None:
    config = OptimizerConfig(schedule="step", milestones=(3, 5), gamma=0.2)
    found = [config.factor(step, 10) for step in range(7)]
    assert found == pytest.approx([1, 1, 1, 0.2, 0.2, 0.04, 0.04])
