"""Recipes: everything a training run depends on, as one checked YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from models_zoo import registry
from models_zoo.cards import Adaptation, EntryId, InputSpec, Limits, Paper
from models_zoo.names import closest

RECIPES = Path(__file__).parent / "recipes"

Way = Annotated[int, Field(ge=2)]
Shot = Annotated[int, Field(ge=1)]


class RecipeError(Exception):
    """A recipe that is missing or wrong. The message is for users."""


class Section(BaseModel):
    """Settings. One that does nothing beside the others is refused, and is not written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def idle(self) -> dict[str, str]:
        """Those that do nothing, and beside which setting."""
        return {}

    @model_validator(mode="after")
    def _used(self) -> Self:
        for name, beside in self.idle().items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with {beside}; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self.idle()
        return {name: value for name, value in write(self).items() if name not in idle}


class DataConfig(Section):
    dataset: str = Field(description="omniglot, cifar100, miniimagenet, tieredimagenet or folder")
    split: str
    root: Path | None = Field(
        None, description="Where the archives are, if not in the usual places"
    )
    input: InputSpec
    classes: Literal["train", "train+val"] = Field(
        "train",
        description="train+val: the validation classes are trained on too, as papers do once steps "
        "and sizes are chosen; the last weights are kept, since nothing is left to choose by",
    )
    rotations: Literal["none", "classes", "mirrored", "per_class"] = "none"
    turned: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of rotations classes and mirrored: the share of turned classes among those "
        "drawn; without it all are drawn alike",
    )
    augment: Literal["none", "crop_flip", "photo", "affine"] = Field(
        "none",
        description="Random changes of training images: crop_flip or, with changed colours too, "
        "photo for photos; affine for drawings",
    )


class EpisodeConfig(Section):
    """Episodes of one training step. Lists are mixed: one of each is drawn for each step."""

    tasks: int = Field(ge=1)
    ways: tuple[Way, ...] = Field(min_length=1)
    shots: tuple[Shot, ...] = Field(min_length=1)
    queries: int = Field(ge=1, description="per class")
    asked: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="How many of a task's queries are asked, of any classes; None: all. A "
        "transductive learner is at a loss with fewer than it knows from training",
    )
    max_images: int | None = Field(
        None,
        ge=1,
        description="Fewer tasks in a step that would exceed this many images",
    )
    slots: int | None = Field(
        None, ge=2, description="Draw label slots from this many (fixed-output learners)"
    )

    def count(self, way: int, shot: int) -> int:
        """Tasks in a step of so many classes and shots."""
        if self.max_images is None:
            return self.tasks
        return max(1, min(self.tasks, self.max_images // (way * (shot + self.queries))))

    @property
    def fewest(self) -> int:
        """Tasks in the smallest step."""
        return self.count(max(self.ways), max(self.shots))


#: Which options each objective has.
OPTIONS: dict[str, set[str]] = {
    "margin": {"margin"},
    "semantic": {"weight", "labels", "cutmix"},
    "base_classes": {"weight"},
    "verification": {"different"},
    "relation": {"different"},
    "reptile": {"inner_steps", "minibatch"},
    "inequality": {"weight", "measure", "losses", "order"},
    "task_attention": {"network", "lr", "fresh"},
}


class ObjectiveConfig(Section):
    """What is minimised, with the options of this objective."""

    name: Literal[
        "episode",
        "margin",
        "matching",
        "semantic",
        "verification",
        "relation",
        "reptile",
        "base_classes",
        "sequence",
        "inequality",
        "task_attention",
    ] = "episode"
    weight: float | None = Field(
        None,
        ge=0,
        description="Of the semantic loss or the base classes' loss (default 0.5), or of the "
        "inequality (default 0.05)",
    )
    margin: float = Field(4.0, gt=0, description="of the margin loss, in logits")
    labels: Literal["class", "group", "both"] = Field(
        "class", description="What the semantic loss tells apart: classes, their parents or both"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Of the semantic loss: share of the steps in which each query has a piece of "
        "another one of its task, and part of its label",
    )
    different: float = Field(
        1.0, gt=0, description="Weight of pairs of two classes, those of one weighing 1 together"
    )
    measure: Literal["theil", "atkinson", "entropy", "gini"] = Field(
        "theil", description="Of inequality"
    )
    losses: Literal["initial", "adapted"] = Field(
        "initial", description="Whose inequality: before or after adaptation"
    )
    order: float | None = Field(
        None,
        ge=0,
        le=5,
        description="alpha of the generalised entropy (2), epsilon of Atkinson (0.5)",
    )
    network: Literal["batch", "shared"] = Field(
        "batch", description="Task attention as in its paper, or blind to the tasks' order"
    )
    lr: float = Field(
        1e-3, gt=0, description="gamma, the rate of the task attention network, also scheduled"
    )
    fresh: Literal["new", "next"] = Field(
        "new", description="The tasks that judge the attention: more tasks, or the next step's"
    )
    inner_steps: int = Field(5, ge=1, description="Reptile's steps in training")
    minibatch: int = Field(10, ge=1, description="Examples in each of these steps")

    def idle(self) -> dict[str, str]:
        options = OPTIONS.get(self.name, set()) | {"name"}
        others = (name for name in type(self).model_fields if name not in options)
        idle = dict.fromkeys(others, f"name: {self.name}")
        if self.measure in ("theil", "gini"):
            idle.setdefault("order", f"measure: {self.measure}")
        return idle


class AverageConfig(Section):
    """The last steps of a run at a constant rate, with the mean of their weights as its result."""

    steps: int = Field(ge=1, description="How many; the schedule ends before them")
    rate: float = Field(0.3, gt=0, le=1, description="Their learning rate over `lr`")


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's, of sgd; 0 = none")
    clip: float | None = Field(None, gt=0, description="Largest gradient norm")
    schedule: Literal["constant", "cosine", "linear", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    warmup: int = Field(0, ge=0)
    average: AverageConfig | None = Field(
        None, description="Stochastic weight averaging over the last steps"
    )

    def idle(self) -> dict[str, str]:
        idle = {} if self.name == "sgd" else {"momentum": f"name: {self.name}"}
        if self.schedule != "step":
            idle |= dict.fromkeys(("milestones", "gamma"), f"schedule: {self.schedule}")
        return idle

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of a step over `lr`; a pure function, so resuming is exact."""
        from math import cos, pi

        if self.average:
            steps -= self.average.steps
            if step >= steps:
                return self.average.rate
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            return 0.5 * (1 + cos(pi * step / steps))
        if self.schedule == "linear":
            return 1 - step / steps
        if self.schedule == "step":
            return float(self.gamma ** sum(step >= m for m in self.milestones))
        return 1.0


class ValidationConfig(Section):
    every: int = Field(500, ge=1)
    tasks: int = Field(300, ge=2)
    way: Way = 5
    shot: Shot = 1
    queries: int = Field(15, ge=1)
    rotations: Literal["none", "classes"] = Field(
        "none",
        description='"classes": turned classes count as classes of their own, as in the test',
    )


class EntryConfig(Section):
    """What the card says beyond what the run itself knows."""

    title: str
    summary: str
    paper: Paper
    limits: Limits
    adaptation: Adaptation | None = None


class Recipe(Section):
    id: EntryId
    learner: str
    config: dict[str, object] = {}
    data: DataConfig
    episodes: EpisodeConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()
    steps: int = Field(ge=1)
    seed: int = Field(0, ge=0, lt=2**32)  # generators take no more than 64 bits
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = Field(250, ge=1)
    entry: EntryConfig

    @model_validator(mode="after")
    def _known(self) -> Recipe:
        if self.learner not in registry.names():
            raise ValueError(
                f"unknown learner {self.learner!r}; known: {', '.join(registry.names())}"
            )
        average, objective = self.optimizer.average, self.objective
        if average and average.steps >= self.steps:
            raise ValueError("optimizer.average.steps must be fewer than steps")
        if average and self.config.get("statistics") == "per_step":
            raise ValueError(
                "optimizer.average does not go with config.statistics: per_step, whose tables "
                "belong to other weights than the mean"
            )
        fixed = objective.name == "task_attention" and objective.network == "batch"
        if fixed and self.episodes.max_images:
            raise ValueError("objective.network: batch needs equal batches; omit max_images")
        if objective.name == "task_attention" and self.optimizer.name == "sgd":
            raise ValueError(
                "task attention's gradients are too small for sgd; set optimizer.name: adam"
            )
        if objective.name in ("inequality", "task_attention") and self.episodes.fewest < 2:
            raise ValueError(
                f"objective {objective.name} compares tasks; raise episodes.tasks, or "
                "episodes.max_images, to at least two tasks in every step"
            )
        if objective.name == "reptile" and len(self.episodes.ways) > 1:
            raise ValueError("Reptile's moments belong to one number of classes; name one way")
        return self


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2 (to PyYAML it is text), and no setting stands
    twice (of two, PyYAML takes the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} stands there twice", key.start_mark
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    """Raises `yaml.YAMLError`, and `ValueError` for a date that there is not."""
    return yaml.load(text, Loader)


def load_recipe(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, or a shipped one by its name, with `changes` such as
    "episodes.ways=[20]". Raises `RecipeError`."""
    path = Path(name)
    by_name = not path.suffix and os.sep not in str(name)
    if by_name:
        path = RECIPES / f"{name}.yaml"
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not by_name:
            raise RecipeError(f"{path}: no such file") from None
        shipped = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        near = " or ".join(closest(str(name), shipped))
        hint = f"did you mean {near}?" if near else f"shipped: {', '.join(shipped)}"
        raise RecipeError(f"unknown recipe {str(name)!r}; {hint}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {unreadable(error)}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: not a mapping of settings")
    for change in changes:
        set_leaf(content, change)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A setting that is misspelt is missing too; it is named before what is missing.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        said = (change for change in changes if f"{where}.".startswith(f"{key_of(change)}."))
        blamed = next((f"--set {change}" for change in said), path)
        raise RecipeError(f"{blamed}: {where}: {reason(first)}") from None


def reason(error: Mapping[str, Any]) -> str:
    """What is wrong, in the words of recipes."""
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    if error["type"] == "tuple_type":
        given = error["input"]
        return f"a list of whole numbers is wanted, as in [{given if type(given) is int else 20}]"
    if error["type"] == "model_type":
        return f"has settings in it, as in {error['loc'][-1]}.name=..."
    return str(error["msg"]).removeprefix("Value error, ")


def unreadable(error: OSError | ValueError | yaml.YAMLError) -> str:
    """Why there are no settings to be read, without the parser's own affairs."""
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, UnicodeDecodeError):
        return "not a text file"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"not YAML in line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def key_of(change: str) -> str:
    return change.partition("=")[0].strip()


def set_leaf(content: dict[str, Any], change: str) -> None:
    """Set one leaf: keys with dots between, "=", and a value as in YAML. Raises `RecipeError`."""
    keys, equals, text = change.partition("=")
    *sections, last = keys.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"{change!r} is not of the form key.key=value, as in episodes.ways=[20]")
    for key in sections:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{change!r}: {key} is a value and has no settings in it")
    try:
        content[last] = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{change!r}: {unreadable(error)}") from None
