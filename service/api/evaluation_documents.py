"""Evaluations as documented types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field

from service.advice import Advice, Share, advise, confusion, share
from service.evaluation import Judgement, Verdict, left_out
from service.schemas import ProblemDocument
from service.stored import StoredSupport
from service.tasks import classes_of


class LeftOutAccuracy(BaseModel):
    """Examples told right, of those that were left out."""

    correct: int
    count: int
    value: float = Field(ge=0, le=1, description="`correct` / `count`.")
    low: float = Field(ge=0, le=1, description="Lower end of the 95% Wilson interval.")
    high: float = Field(ge=0, le=1, description="Its upper end.")

    @classmethod
    def of(cls, found: Share) -> Self:
        return cls(**vars(found), value=found.value)


class ClassAccuracy(BaseModel):
    """How well one class is told."""

    label: str
    accuracy: LeftOutAccuracy | None = Field(description="Null where the class was skipped.")


class ExampleVerdict(BaseModel):
    """What the others took one example for."""

    example: int = Field(description="Its position in the set, from 0.")
    sha256: str = Field(description="Of its image, as in `GET .../examples`.")
    label: str = Field(description="What it is.")
    predicted: str = Field(description="What it was taken for.")
    correct: bool
    confidence: float = Field(ge=0, le=1, description="Probability of `predicted`.")


class ModelEvaluation(BaseModel):
    """One model's numbers; or the `problem` for which there are none."""

    model: str
    model_ref: str = Field(description="`model@version`.")
    accuracy: LeftOutAccuracy | None
    mean_confidence: float | None = Field(
        description="Mean probability of what was predicted; far above the accuracy, the model is "
        "surer than it should be."
    )
    confusion: list[list[int]] = Field(
        description="How often an example of the row's class was taken for the column's; both in "
        "the order of `classes`. Empty where there is a `problem`."
    )
    classes: list[ClassAccuracy]
    examples: list[ExampleVerdict]
    seconds: float = Field(description="Wall time, with loading the model where it was not.")
    problem: ProblemDocument | None = Field(
        description="Why it has no numbers: the set is beyond its limits, it was not done in "
        "time, ... `type` tells which."
    )


class EvaluationAdvice(BaseModel):
    """What the numbers say."""

    model: str | None = Field(description="The one to use; null where none could be judged.")
    more_examples: list[str] = Field(
        description="Classes that need more examples: those with a single one, then those with "
        "misread examples, the worst first."
    )
    text: list[str] = Field(description="In plain words, with how sure it is.")

    @classmethod
    def of(cls, found: Advice) -> Self:
        return cls(model=found.model, more_examples=found.classes, text=found.sentences)


class Evaluation(BaseModel):
    """Leave-one-out accuracies of a support set's examples."""

    support_set_ref: str = Field(description="`set@revision`.")
    classes: list[str] = Field(description="Sorted.")
    examples: int = Field(description="In the set.")
    left_out: int = Field(description="Of them, those that were left out one at a time.")
    skipped: list[str] = Field(description="Classes with a single example, which cannot be.")
    models: list[ModelEvaluation]
    advice: EvaluationAdvice

    @classmethod
    def of(cls, stored: StoredSupport, judgements: Sequence[Judgement]) -> Self:
        classes, shots = classes_of(stored.labels), Counter(stored.labels)
        return cls(
            support_set_ref=stored.key,
            classes=classes,
            examples=len(stored.labels),
            left_out=len(left_out(stored.labels)),
            skipped=[label for label in classes if shots[label] == 1],
            models=[_model(each, stored, classes) for each in judgements],
            advice=EvaluationAdvice.of(advise(judgements, stored.labels, classes)),
        )


def _model(found: Judgement, stored: StoredSupport, classes: Sequence[str]) -> ModelEvaluation:
    verdicts, card = found.verdicts, found.card
    count = len(verdicts)
    problem = found.fault and ProblemDocument.model_validate(found.fault.document())
    return ModelEvaluation(
        model=card.id,
        model_ref=card.ref,
        accuracy=LeftOutAccuracy.of(share(found.correct, count)) if count else None,
        mean_confidence=sum(v.confidence for v in verdicts) / count if count else None,
        confusion=confusion(found, len(classes)) if count else [],
        classes=_by_class(verdicts, classes) if count else [],
        examples=[_example(verdict, stored, classes) for verdict in verdicts],
        seconds=round(found.seconds, 4),
        problem=problem,
    )


def _by_class(verdicts: Sequence[Verdict], classes: Sequence[str]) -> list[ClassAccuracy]:
    counts = Counter(verdict.truth for verdict in verdicts)
    right = Counter(verdict.truth for verdict in verdicts if verdict.said == verdict.truth)
    return [
        ClassAccuracy(
            label=label,
            accuracy=LeftOutAccuracy.of(share(right[i], counts[i])) if counts[i] else None,
        )
        for i, label in enumerate(classes)
    ]


def _example(verdict: Verdict, stored: StoredSupport, classes: Sequence[str]) -> ExampleVerdict:
    return ExampleVerdict(
        example=verdict.example,
        sha256=stored.digests[verdict.example],
        label=classes[verdict.truth],
        predicted=classes[verdict.said],
        correct=verdict.said == verdict.truth,
        confidence=verdict.confidence,
    )
