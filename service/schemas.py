"""What the predictions route answers, as documented types."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_EXAMPLE: dict[str, JsonValue] = {
    "model": "stanet-omniglot",
    "model_ref": "stanet-omniglot@1.0",
    "classes": ["cross", "hook", "loop"],
    "predictions": [
        {
            "index": 0,
            "filename": "cross.png",
            "label": "cross",
            "confidence": 0.94,
            "probabilities": [
                {"label": "cross", "probability": 0.94},
                {"label": "hook", "probability": 0.04},
                {"label": "loop", "probability": 0.02},
            ],
            "uncertainty": None,
            "attention": {
                "task": [
                    [
                        {"example": 0, "label": "cross", "weight": 0.91},
                        {"example": 1, "label": "hook", "weight": 0.05},
                        {"example": 2, "label": "loop", "weight": 0.04},
                    ]
                ],
                "query": ["data:image/png;base64,iVBORw0KGgo..."],
                "support": [
                    [
                        "data:image/png;base64,iVBORw0KGgo...",
                        "data:image/png;base64,iVBORw0KGgo...",
                        "data:image/png;base64,iVBORw0KGgo...",
                    ]
                ],
            },
        }
    ],
    "timing_ms": {"decode": 3.1, "queue": 0.2, "encode": 2.4, "adapt": 0.6, "predict": 1.9},
}


class AttentionMode(StrEnum):
    """How attention is answered."""

    none = "none"
    maps = "maps"
    overlay = "overlay"


class Probability(BaseModel):
    """One class and how probable it is."""

    label: str
    probability: float = Field(ge=0, le=1)


class ExampleWeight(BaseModel):
    """How much one support example counted for a query."""

    example: int = Field(description="Position of the example in the support set, from 0.")
    label: str
    weight: float


class Attention(BaseModel):
    """What the model looked at. A part is null where the model has none of its kind."""

    task: list[list[ExampleWeight]] | None = Field(
        description="Per layer, the weight of each support example."
    )
    query: list[list[list[float]]] | list[str] | None = Field(
        description="Per layer, weights over the query image: rows of numbers over the model's "
        "input (`maps`), or a PNG data URL in the image's own aspect (`overlay`)."
    )
    support: list[list[list[list[float]]]] | list[list[str]] | None = Field(
        description="Per layer and support example, the same over the support images, as this "
        "query drew attention to them."
    )


class QueryPrediction(BaseModel):
    """The answer for one query image."""

    index: int = Field(description="Position of the query among `query_images`, from 0.")
    filename: str
    label: str = Field(description="The most probable class.")
    confidence: float = Field(ge=0, le=1, description="Its probability.")
    probabilities: list[Probability] = Field(
        description="Most probable first; all classes, which sum to 1, unless `top_k` cuts them."
    )
    uncertainty: float | None = Field(
        None,
        ge=0,
        description="Of models whose card says `uncertainty`, else null: the variance with which "
        "the model predicts each class's target, which is 1 for the right class and 0 for the "
        "others. The larger, the less the query is like the examples; to be compared between "
        "queries of one model, not between models.",
    )
    attention: Attention | None = Field(description="Null unless asked for.")


class TimingMs(BaseModel):
    """Milliseconds per stage. `queue` covers the wait for the worker and, on a model's first use,
    its loading."""

    decode: float
    queue: float
    encode: float
    adapt: float
    predict: float


class Predictions(BaseModel):
    """The answer to one few-shot task."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    model: str
    model_ref: str = Field(description="The model and its version: `id@version`.")
    support_set_ref: str | None = Field(
        None, description="The support set and its revision, `id@revision`, where one was asked."
    )
    classes: list[str] = Field(
        description="Sorted, whichever came first: equal support sets are equal tasks."
    )
    predictions: list[QueryPrediction]
    timing_ms: TimingMs


class ProblemFile(BaseModel):
    """The file at fault."""

    field: str = Field(description="The form field that it came in.")
    index: int = Field(description="Its position within that field, from 0.")
    name: str


class ProblemDocument(BaseModel):
    """RFC 9457. `type` is stable: programs may decide by it."""

    type: str = Field(examples=["urn:fewshot:problem:damaged-image"])
    title: str = Field(examples=["An image is truncated or damaged"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["support_images[2] (cat.jpg) is truncated or damaged"])
    file: ProblemFile | None = None
    request_id: str | None = Field(
        None, description="As in the answer's X-Request-Id; the server's log has it too."
    )
