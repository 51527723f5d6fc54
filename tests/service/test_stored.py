"""Asking a stored support set answers as sending its images would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from service.classifier import Classifier
from service.images import Upload
from service.problems import FileRef, NoAdaptation, OneClass, SetChanged
from service.settings import Settings
from service.stored import StoredSupport
from service.tasks import Ask, Example
from tests.service.asking import encoded, noise, task


def stored(support: list[tuple[str, bytes]], loaded: list[int]) -> StoredSupport:
    def load(positions: Sequence[int]) -> list[Upload]:
        loaded.extend(positions)
        return [Upload(FileRef("examples", i, f"{i}.png"), support[i][1]) for i in positions]

    labels = tuple(label for label, _ in support)
    return StoredSupport("set@1", labels, tuple("0" * 64 for _ in labels), load, "")


QUERIES = [Upload(FileRef("query_images", 0, "q"), encoded(noise(90)))]


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_a_stored_set_answers_like_its_images(settings: Settings, model: str) -> None:
    support = task("cab", 2)
    examples = [Example(label, Upload(FileRef("s", 0, "s"), data)) for label, data in support]

    async def both() -> None:
        sent = await classifier.classify(Ask(model, tuple(examples), tuple(QUERIES)), True)
        kept = await classifier.classify_stored(model, stored(support, []), QUERIES, attention=True)
        assert kept.classes == sent.classes == ["a", "b", "c"]
        assert kept.labels == sent.labels
        np.testing.assert_array_equal(kept.answer.logits, sent.answer.logits)

    classifier = Classifier(settings)
    classifier.start()
    try:
        asyncio.run(both())
    finally:
        classifier.close()


def test_faults_are_told_before_anything_is_loaded(settings: Settings) -> None:
    loaded: list[int] = []
    classifier = Classifier(settings)
    with pytest.raises(OneClass):
        asyncio.run(classifier.classify_stored("mean", stored(task("a"), loaded), QUERIES))
    with pytest.raises(NoAdaptation):
        asyncio.run(classifier.classify_stored("mean", stored(task(), loaded), QUERIES, steps=3))
    assert loaded == []


def test_an_example_deleted_meanwhile_is_told(settings: Settings) -> None:
    def gone(_: Sequence[int]) -> list[Upload]:
        raise SetChanged("an example was deleted meanwhile")

    classifier = Classifier(settings)
    labels = ("a", "b")
    with pytest.raises(SetChanged):
        asyncio.run(
            classifier.classify_stored(
                "mean", StoredSupport("s@1", labels, labels, gone, ""), QUERIES
            )
        )
