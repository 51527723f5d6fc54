"""The service's answers as types. What a newer server adds is kept, as extra attributes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class ProblemFile(Document):
    """The file at fault: form field, position within it, and name."""

    field: str
    index: int
    name: str


class Problem(Document):
    """RFC 9457. `type` is stable: decide by it, or by its end, `kind`."""

    type: str
    title: str
    status: int
    detail: str
    file: ProblemFile | None = None
    request_id: str | None = None

    @property
    def kind(self) -> str:
        """`unknown-model` of `urn:fewshot:problem:unknown-model`."""
        return self.type.rsplit(":", 1)[-1]


class InputSpec(Document):
    channels: int
    height: int
    width: int


class ModelLimits(Document):
    max_way: int
    max_shot: int
    max_support: int
    max_query: int


class AttentionSpec(Document):
    """Which parts of an `Attention` the model answers: `query` and `support` are the height and
    width of their maps, None where it has none."""

    layers: int
    task: bool
    query: tuple[int, int] | None = None
    support: tuple[int, int] | None = None


class Adaptation(Document):
    """Gradient steps and their rate, where a request names none, and the most that it may name."""

    steps: int
    max_steps: int
    inner_lr: float
    max_inner_lr: float


class Model(Document):
    """The main facts of a model's card; the rest are extra attributes. `adaptation` is None where
    it takes no gradient steps."""

    id: str
    version: str
    title: str
    summary: str
    learner: str
    input: InputSpec
    limits: ModelLimits
    attention: AttentionSpec
    uncertainty: bool = False
    adaptation: Adaptation | None = None
    transductive: bool
    order_dependent: bool = False


class ModelList(Document):
    models: list[Model]


class Limits(Document):
    """What the service takes, whatever the model."""

    body_bytes: int
    files: int
    archive_bytes: int
    image_pixels: int
    image_side: int
    image_formats: list[str]
    label_characters: int
    support_sets: int
    support_set_examples: int
    support_set_bytes: int
    set_name_characters: int
    metadata_bytes: int
    ttl_s: int
    queue_images: int
    request_timeout_s: float
    max_request_timeout_s: float
    overlay_side: int
    overlays: int
    map_values: int


class Probability(Document):
    label: str
    probability: float


class ExampleWeight(Document):
    """How much a support example, by its position, counted for a query."""

    example: int
    label: str
    weight: float


class Attention(Document):
    """Per layer; pictures are PNG data URLs (`overlay`), maps are rows of numbers (`maps`)."""

    task: list[list[ExampleWeight]] | None
    query: list[Any] | None
    support: list[Any] | None


class Prediction(Document):
    """The answer for one query image. `uncertainty` is a variance, None where a model has none."""

    index: int
    filename: str
    label: str
    confidence: float
    probabilities: list[Probability]
    uncertainty: float | None = None
    attention: Attention | None


class Predictions(Document):
    """The answer to one task."""

    model: str
    model_ref: str
    support_set_ref: str | None = None
    classes: list[str]
    predictions: list[Prediction]
    timing_ms: dict[str, float]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each query, in order."""
        return [prediction.label for prediction in self.predictions]


class ClassCount(Document):
    label: str
    examples: int


class SupportSet(Document):
    """A registered support set; `classes` is None in lists."""

    id: str
    name: str
    metadata: dict[str, Any]
    ttl: int | None
    revision: int
    examples: int
    bytes: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    classes: list[ClassCount] | None = None


class SupportSetPage(Document):
    support_sets: list[SupportSet]
    next_cursor: str | None


class Example(Document):
    """A stored example."""

    id: str
    label: str
    filename: str
    sha256: str
    media_type: str
    width: int
    height: int
    bytes: int
    created_at: datetime


class ExamplePage(Document):
    examples: list[Example]
    revision: int
    next_cursor: str | None


class FileResult(Document):
    """What became of one image that was sent. A `duplicate` has a `problem` where the image is
    there under another label."""

    index: int
    filename: str
    status: Literal["created", "duplicate", "rejected"]
    example: Example | None
    problem: Problem | None


class AddedExamples(Document):
    """The support set after images were sent, and what became of each."""

    support_set: SupportSet
    results: list[FileResult]


class LeftOutAccuracy(Document):
    """Examples told right, of those that were left out; `low` and `high` bound 95% of it."""

    correct: int
    count: int
    value: float
    low: float
    high: float


class ClassAccuracy(Document):
    """How well one class is told; `accuracy` is None where the class was skipped."""

    label: str
    accuracy: LeftOutAccuracy | None


class ExampleVerdict(Document):
    """What the others took one example for; `example` is its position in the set."""

    example: int
    sha256: str
    label: str
    predicted: str
    correct: bool
    confidence: float


class ModelEvaluation(Document):
    """One model's numbers, or the `problem` for which there are none.

    `confusion[i][j]`: how often an example of class i was taken for class j, in the order of the
    evaluation's `classes`.
    """

    model: str
    model_ref: str
    accuracy: LeftOutAccuracy | None
    mean_confidence: float | None
    confusion: list[list[int]]
    classes: list[ClassAccuracy]
    examples: list[ExampleVerdict]
    seconds: float
    problem: Problem | None


class EvaluationAdvice(Document):
    """The model to use, the classes that need more examples, and both in words."""

    model: str | None
    more_examples: list[str]
    text: list[str]


class Evaluation(Document):
    """Leave-one-out accuracies of a support set's examples, for each model."""

    support_set_ref: str
    classes: list[str]
    examples: int
    left_out: int
    skipped: list[str]
    models: list[ModelEvaluation]
    advice: EvaluationAdvice
