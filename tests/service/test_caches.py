"""Asking a stored set again: what is spared, and that the answer stays the same to the bit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.answers import build
from service.app import create_app
from service.classifier import Classifier, Outcome
from service.engine.caches import Cache
from service.engine.events import Events
from service.images import Upload
from service.problems import FileRef
from service.schemas import AttentionMode
from service.settings import Settings
from service.store.keys import Scope
from service.stored import StoredSupport
from service.tasks import Ask, Example
from tests.service.asking import ask_set, encoded, make_set, noise, task

T = TypeVar("T")
QUERIES = [Upload(FileRef("query_images", i, f"q{i}"), encoded(noise(90 + i))) for i in range(2)]


class Told(Events):
    def __init__(self) -> None:
        self.images: list[int] = []
        self.stages: list[str] = []
        self.lookups: list[tuple[str, bool]] = []

    def batch(self, model: str, lane: str, episodes: int, images: int) -> None:
        self.images.append(images)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        self.stages.append(stage)

    def cache(self, name: str, hit: bool) -> None:
        self.lookups.append((name, hit))


class Stored:
    """A support set whose loads are noted."""

    def __init__(self, support: Sequence[tuple[str, bytes]], key: str = "set@1") -> None:
        self.support, self.key = list(support), key
        self.loaded: list[list[int]] = []

    def seen(self, owner: str = "") -> StoredSupport:
        def load(positions: Sequence[int]) -> list[Upload]:
            self.loaded.append(list(positions))
            return [Upload(FileRef("examples", i, f"{i}"), self.support[i][1]) for i in positions]

        labels = tuple(label for label, _ in self.support)
        digests = tuple(hashlib.sha256(data).hexdigest() for _, data in self.support)
        return StoredSupport(self.key, labels, digests, load, owner)

    def sent(self, model: str) -> Ask:
        examples = [
            Example(label, Upload(FileRef("s", 0, "s"), data)) for label, data in self.support
        ]
        return Ask(model, tuple(examples), tuple(QUERIES))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def classifier(settings: Settings, told: Told) -> Iterator[Classifier]:
    made = Classifier(settings, events=told)
    made.start()
    yield made
    made.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    assert ours.classes == theirs.classes
    assert ours.labels == theirs.labels
    np.testing.assert_array_equal(ours.answer.logits, theirs.answer.logits)
    for part in ("task", "query", "support"):
        one, other = getattr(ours.answer.attention, part), getattr(theirs.answer.attention, part)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_asking_again_costs_the_queries_alone(
    classifier: Classifier, told: Told, model: str
) -> None:
    stored = Stored(task("cab", 2))
    sent = run(classifier.classify(stored.sent(model), attention=True))
    first = run(classifier.classify_stored(model, stored.seen(), QUERIES, attention=True))
    assert stored.loaded == [list(range(6))]
    told.stages.clear()
    again = run(classifier.classify_stored(model, stored.seen(), QUERIES, attention=True))
    assert stored.loaded == [list(range(6))]
    assert told.images == [8, 8, 2]
    assert told.stages == ["decode", "queue", "encode", "predict"]
    assert_same(first, sent)
    assert_same(again, sent)
    assert classifier.states.hits == 1


def test_the_permit_is_for_what_is_still_to_be_run(classifier: Classifier) -> None:
    before = Stored(task("cab", 2))
    after = Stored([*before.support[1:], ("d", encoded(noise(50)))], "set@2")

    def permit(model: str, stored: Stored, steps: int | None = None) -> int:
        return classifier.images_to_run(model, stored.seen(), 2, steps)

    assert permit("descent", before) == 8
    run(classifier.classify_stored("descent", before.seen(), QUERIES))
    looked_up = classifier.features.hits + classifier.features.misses
    assert permit("descent", before) == 2
    assert permit("descent", before, steps=1) == 2
    assert permit("descent", after) == 3
    assert permit("mean", before) == 8
    assert classifier.features.hits + classifier.features.misses == looked_up


def test_the_permit_is_for_the_examples_that_are_drawn_on(classifier: Classifier) -> None:
    """They are loaded and decoded again, whatever the model remembers of them."""
    stored = Stored(task("cab", 2))
    for model, drawn in (("attentive", 8), ("mean", 2)):
        run(classifier.classify_stored(model, stored.seen(), QUERIES))
        assert classifier.images_to_run(model, stored.seen(), 2) == 2
        assert classifier.images_to_run(model, stored.seen(), 2, keep=True) == drawn


def test_after_an_edit_only_what_is_new_is_loaded(classifier: Classifier, told: Told) -> None:
    """Another revision: an example gone from the front, one added at the end."""
    before = Stored(task("cab", 2))
    after = Stored([*before.support[1:], ("d", encoded(noise(50)))], "set@2")
    run(classifier.classify_stored("attentive", before.seen(), QUERIES, attention=True))
    edited = run(classifier.classify_stored("attentive", after.seen(), QUERIES, attention=True))
    assert after.loaded == [[5]]
    assert told.images == [8, 3]
    assert_same(edited, run(classifier.classify(after.sent("attentive"), attention=True)))


def test_nothing_is_recalled_of_another_owners_images(classifier: Classifier) -> None:
    """Or the time of an answer would tell who keeps the same image."""
    mine, theirs = Stored(task("ab", 2), "mine@1"), Stored(task("ab", 2), "theirs@1")
    again = Stored(task("ab", 2), "again@1")
    run(classifier.classify_stored("mean", mine.seen("me"), QUERIES))
    assert classifier.images_to_run("mean", theirs.seen("them"), 2) == 6
    run(classifier.learn("mean", theirs.seen("them")))
    assert theirs.loaded == [[0, 1, 2, 3]]
    assert classifier.images_to_run("mean", again.seen("me"), 2) == 2
    run(classifier.classify_stored("mean", again.seen("me"), QUERIES))
    assert again.loaded == []


def test_one_keys_images_are_no_hits_for_another(zoo: Path, tmp_path: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", threads=1, data_dir=tmp_path)
    with TestClient(create_app(settings)) as client:
        features = client.app.state.classifier.features
        hits = []
        for name in ("one", "other"):
            _, token = client.app.state.store.keys.create(name, [Scope.write])
            client.headers["authorization"] = f"Bearer {token}"
            for _ in range(2):
                set_id = make_set(client, task("ab", 2)).json()["support_set"]["id"]
                before = features.hits
                assert ask_set(client, set_id, [encoded(noise(90))]).status_code == 200
                hits.append(features.hits - before)
    assert hits == [0, 4, 0, 4]


def test_other_hyperparameters_and_models_are_learned_anew(classifier: Classifier) -> None:
    stored = Stored(task("ab", 2))

    def asked(model: str, steps: int | None = None) -> Outcome:
        return run(classifier.classify_stored(model, stored.seen(), QUERIES, steps=steps))

    three, one = asked("descent"), asked("descent", steps=1)
    assert not np.array_equal(three.answer.logits, one.answer.logits)
    assert_same(asked("descent", steps=1), one)
    assert_same(asked("descent"), three)
    asked("mean")
    assert stored.loaded == [[0, 1, 2, 3], [0, 1, 2, 3]]  # features are a model's own, not a task's


def test_overlays_load_the_pictures_that_they_are_drawn_on(
    classifier: Classifier, told: Told, settings: Settings
) -> None:
    stored = Stored(task("cab", 2))

    def asked(keep: bool) -> Outcome:
        work = classifier.classify_stored(
            "attentive", stored.seen(), QUERIES, None, None, True, keep
        )
        return run(work)

    fresh, drawn, numbers = asked(True), asked(True), asked(False)
    assert stored.loaded == [list(range(6))] * 2
    assert told.images == [8, 2, 2]
    assert_same(drawn, fresh)

    def answered(outcome: Outcome, mode: AttentionMode) -> object:
        return build(outcome, mode, None, settings).predictions[1].attention

    assert answered(drawn, AttentionMode.overlay) == answered(fresh, AttentionMode.overlay)
    assert answered(numbers, AttentionMode.maps) == answered(fresh, AttentionMode.maps)
    # A model that does not look at support images needs none of them.
    quiet = Stored(task("ab", 1))
    run(classifier.classify_stored("mean", quiet.seen(), QUERIES, keep=True))
    run(classifier.classify_stored("mean", quiet.seen(), QUERIES, keep=True))
    assert quiet.loaded == [[0, 1]]


def test_without_room_nothing_is_kept_and_all_is_answered(zoo: Path) -> None:
    settings = Settings(zoo=zoo, device="cpu", threads=1, feature_cache_mb=0, state_cache_mb=0)
    classifier = Classifier(settings)
    classifier.start()
    stored = Stored(task("ab", 1))
    first, second = (run(classifier.classify_stored("mean", stored.seen(), QUERIES)) for _ in "12")
    classifier.close()
    assert_same(first, second)
    assert stored.loaded == [[0, 1], [0, 1]]
    assert len(classifier.features) == len(classifier.states) == 0


def test_answers_do_not_carry_what_the_caches_hold(classifier: Classifier) -> None:
    outcome = run(classifier.classify_stored("mean", Stored(task()).seen(), QUERIES))
    assert outcome.answer.state is None
    assert outcome.answer.features is None


# The cache itself


def filled(most: int, events: Events | None = None) -> Cache[bytes]:
    return Cache("features", most, len, events or Events())


def test_what_was_used_longest_ago_goes_first_and_bytes_are_bounded() -> None:
    cache = filled(20_000)
    for key in "abcd":
        cache.put(key, bytes(4000))
        assert cache.bytes <= 20_000
    assert cache.get("a") is not None
    cache.put("e", bytes(4000))
    assert [cache.get(key) is not None for key in "abcde"] == [True, False, True, True, True]
    assert (cache.hits, cache.misses, len(cache)) == (5, 1, 4)


def test_an_entry_as_large_as_the_cache_does_not_sweep_it_out() -> None:
    cache = filled(20_000)
    cache.put("small", bytes(10))
    cache.put("large", bytes(19_000))
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_putting_a_key_again_counts_it_once() -> None:
    cache = filled(20_000)
    for _ in range(10):
        cache.put("a", bytes(1000))
    assert len(cache) == 1
    assert cache.bytes < 2000


def test_many_threads_leave_the_books_in_order() -> None:
    cache = filled(100_000)
    rng = np.random.default_rng(0)
    plans = [[(int(k), int(n)) for k, n in rng.integers(1, 3000, (300, 2))] for _ in range(4)]

    def work(plan: list[tuple[int, int]]) -> None:
        for key, size in plan:
            if cache.get(key) is None:
                cache.put(key, bytes(size))

    async def scenario() -> None:
        await asyncio.gather(*(asyncio.to_thread(work, plan) for plan in plans))

    asyncio.run(scenario())
    assert cache.bytes == sum(size for _, size in cache._entries.values()) <= 100_000
    assert cache.hits + cache.misses == 1200
