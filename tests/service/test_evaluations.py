"""Leave-one-out over a registered set equals asking without each example, one after another."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from models_zoo.cards import ENTRIES, Card, list_cards
from service.advice import advise, share, surely_better
from service.app import create_app
from service.classifier import Classifier
from service.engine.models import Models
from service.engine.onnx import OnnxRuntime
from service.evaluation import Judgement, Verdict, leave_one_out
from service.problems import TooManyClasses
from service.settings import Settings
from tests.service.asking import SETS, ask, assert_problem, encoded, make_set, noise, task
from tests.service.test_stored import stored

SAMPLES = Path(__file__).parents[2] / "samples"
Support = list[tuple[str, bytes]]

#: Labels in no order; shots that differ.
MIXED = [(label, encoded(noise(40 + i))) for i, label in enumerate("babcacbda")]


def likely(classes: str = "abc", shots: int = 3, spread: int = 60) -> Support:
    """Images around one of their class, so that models tell some of them right."""
    rng, found = np.random.default_rng(5), []
    for place, label in enumerate(classes):
        middle = noise(place).astype(int)
        for _ in range(shots):
            image = np.clip(middle + rng.normal(0, spread, middle.shape), 0, 255)
            found.append((label, encoded(image.astype(np.uint8))))
    return found


def evaluate(client: TestClient, set_id: str, **fields: object) -> httpx.Response:
    return client.post(f"{SETS}/{set_id}/evaluations", data=fields)


def judged(client: TestClient, support: Support, **fields: object) -> dict[str, object]:
    set_id = make_set(client, support).json()["support_set"]["id"]
    response = evaluate(client, set_id, **fields)
    assert response.status_code == 200, response.text
    document: dict[str, object] = response.json()
    return document


def naive(client: TestClient, support: Support, model: str) -> list[tuple[int, str, float]]:
    """Each example asked about by the others on the stateless route: position, label, confidence"""
    found, shots = [], Counter(label for label, _ in support)
    for i, (label, image) in enumerate(support):
        if shots[label] > 1:
            answer = ask(client, support[:i] + support[i + 1 :], [image], model=model)
            [query] = answer.json()["predictions"]
            found.append((i, query["label"], query["confidence"]))
    return found


def check_numbers(document: dict[str, object], support: Support, client: TestClient) -> None:
    """Everything in the answer, counted again from the naive loop."""
    labels = [label for label, _ in support]
    classes = sorted(set(labels))
    assert document["classes"] == classes
    for model in document["models"]:
        wanted = naive(client, support, model["model"])
        got = [(e["example"], e["predicted"], e["confidence"]) for e in model["examples"]]
        assert got == wanted  # to the bit
        pairs = Counter((labels[i], said) for i, said, _ in wanted)
        assert model["confusion"] == [[pairs[a, b] for b in classes] for a in classes]
        right = sum(labels[i] == said for i, said, _ in wanted)
        assert (model["accuracy"]["correct"], model["accuracy"]["count"]) == (right, len(wanted))
        assert model["accuracy"]["value"] == right / len(wanted)
        mean = sum(confidence for _, _, confidence in wanted) / len(wanted)
        assert math.isclose(model["mean_confidence"], mean)
        for each in model["classes"]:
            asked = [said for i, said, _ in wanted if labels[i] == each["label"]]
            counted = each["accuracy"] and (each["accuracy"]["correct"], each["accuracy"]["count"])
            assert counted == ((asked.count(each["label"]), len(asked)) if asked else None)
        assert model["problem"] is None
        assert model["seconds"] > 0


@pytest.mark.parametrize("support", [MIXED, likely()], ids=["mixed", "likely"])
def test_numbers_are_those_of_asking_one_by_one(client: TestClient, support: Support) -> None:
    document = judged(client, support)
    assert [model["model"] for model in document["models"]] == ["attentive", "descent", "mean"]
    check_numbers(document, support, client)


def test_shipped_models_are_judged_as_asked_one_by_one() -> None:
    folder = SAMPLES / "support"
    support = [(p.parent.name, p.read_bytes()) for p in sorted(folder.glob("*/*.png"))]
    with TestClient(create_app(Settings(zoo=ENTRIES, device="cpu", threads=2))) as client:
        document = judged(client, support)
        assert [model["model"] for model in document["models"]] == list(list_cards())
        check_numbers(document, support, client)


def test_a_class_of_one_is_skipped_and_said(client: TestClient) -> None:
    document = judged(client, [*likely("ab"), ("alone", encoded(noise(99)))], models=["mean"])
    assert document["skipped"] == ["alone"]
    assert (document["examples"], document["left_out"]) == (7, 6)
    [model] = document["models"]
    assert [e["example"] for e in model["examples"]] == list(range(6))
    assert model["classes"][1] == {"label": "alone", "accuracy": None}
    assert model["confusion"][1] == [0, 0, 0]
    assert document["advice"]["more_examples"][0] == "alone"
    assert any("'alone'" in sentence for sentence in document["advice"]["text"])


def test_sets_that_leave_nothing_out(client: TestClient) -> None:
    def asked(support: Support, status: int, kind: str, **fields: object) -> None:
        set_id = make_set(client, support).json()["support_set"]["id"]
        assert_problem(evaluate(client, set_id, **fields), status, kind)

    asked([], 422, "no-support")
    asked(task("a", 3), 422, "one-class")
    asked(task("abc", 1), 422, "nothing-to-leave-out")
    asked(task(), 404, "unknown-model", models=["mean", "none"])
    missing = evaluate(client, f"set_{'0' * 24}")
    assert_problem(missing, 404, "unknown-support-set")
    made = make_set(client, task()).json()["support_set"]["id"]
    wrong = client.post(f"{SETS}/{made}/evaluations", json={"models": ["mean"]})
    assert_problem(wrong, 415, "not-multipart")


def test_models_are_named_once_each_as_a_form_or_multipart(client: TestClient) -> None:
    set_id = make_set(client, likely()).json()["support_set"]["id"]
    form = evaluate(client, set_id, models=["mean", "attentive", "mean"])
    parts = [("models", (None, name)) for name in ("mean", "attentive")]
    multipart = client.post(f"{SETS}/{set_id}/evaluations", files=parts)
    for response in (form, multipart):
        assert [m["model"] for m in response.json()["models"]] == ["mean", "attentive"]
    assert form.json()["support_set_ref"] == f"{set_id}@1"


def test_a_model_that_does_not_take_the_set_says_why(client: TestClient) -> None:
    """All of the test zoo take six classes and five shots."""
    document = judged(client, likely("abcdefg", 2))
    for model in document["models"]:
        assert model["problem"]["type"].endswith(":too-many-classes")
        assert (model["accuracy"], model["confusion"], model["examples"]) == (None, [], [])
    assert document["advice"]["model"] is None
    assert document["advice"]["more_examples"] == []


def test_one_that_diverges_harms_no_other(zoo: Path) -> None:
    def load(card: Card, root: Path) -> OnnxRuntime:
        runtime = OnnxRuntime(card, root, "cpu", 1)
        if card.id == "descent":
            predict = runtime.predict

            def diverged(*args: object) -> object:
                found = predict(*args)
                found.logits[:] = np.nan
                return found

            runtime.predict = diverged
        return runtime

    settings = Settings(zoo=zoo, device="cpu", threads=1)
    with TestClient(create_app(settings, Classifier(settings, Models(zoo, load)))) as client:
        document = judged(client, likely())
    faults = {m["model"]: m["problem"] and m["problem"]["type"] for m in document["models"]}
    assert faults.pop("descent").endswith(":adaptation-diverged")
    assert faults == {"mean": None, "attentive": None}
    assert document["advice"]["model"] in faults
    assert any(
        "Not judged: Test entry descent. " in sentence for sentence in document["advice"]["text"]
    )


class Counted(OnnxRuntime):
    """Counts what it is given; `slow` waits until it is told."""

    joins_tasks = False
    opened = threading.Event()

    def __init__(self, card: Card, root: Path, joins: bool, slow: bool = False) -> None:
        super().__init__(card, root, "cpu", 1)
        self.joins_tasks, self._slow = joins, slow
        self.images, self.tasks = 0, []
        self._counting = True

    def encode(self, images: np.ndarray) -> np.ndarray:
        if getattr(self, "_counting", False):
            self.images += len(images)
        return super().encode(images)

    def adapt(self, *arrays: np.ndarray | None) -> dict[str, np.ndarray]:
        self.tasks.append(len(arrays[0]))
        if self._slow:
            assert self.opened.wait(60)
        return super().adapt(*arrays)


@pytest.mark.parametrize("joins", [False, True])
def test_an_example_is_encoded_once_and_tasks_share_passes(zoo: Path, joins: bool) -> None:
    support = likely("abc", 3)
    runtimes: list[Counted] = []

    def load(card: Card, root: Path) -> Counted:
        runtimes.append(Counted(card, root, joins))
        return runtimes[-1]

    settings = Settings(zoo=zoo, device="cpu", threads=1, batch_images=36)
    classifier = Classifier(settings, Models(zoo, load))
    classifier.start()
    try:
        distinct = replace(stored(support, []), digests=tuple(map(str, range(9))))
        verdicts = asyncio.run(leave_one_out(classifier, "mean", distinct))
    finally:
        classifier.close()
    [runtime] = runtimes
    assert runtime.images == 9 + 1  # and the blank that is asked about to learn the set
    assert sum(runtime.tasks) == 1 + 9
    # 36 images are four tasks of nine; a class one short has another padding than none.
    assert max(runtime.tasks) == (4 if joins else 1)
    alone = Settings(zoo=zoo, device="cpu", threads=1)
    with TestClient(create_app(alone)) as client:
        wanted = naive(client, support, "mean")
    assert [("abc"[v.said]) for v in verdicts] == [said for _, said, _ in wanted]
    got = [v.confidence for v in verdicts]
    np.testing.assert_allclose(got, [c for _, _, c in wanted], atol=1e-5)


def test_one_that_is_not_done_in_time_leaves_the_others_numbers(zoo: Path) -> None:
    def load(card: Card, root: Path) -> Counted:
        return Counted(card, root, joins=False, slow=card.id == "descent")

    settings = Settings(zoo=zoo, device="cpu", threads=1)
    Counted.opened.clear()
    try:
        with TestClient(create_app(settings, Classifier(settings, Models(zoo, load)))) as client:
            set_id = make_set(client, likely()).json()["support_set"]["id"]
            for model in ("mean", "attentive"):  # in memory, so that nothing but descent is slow
                assert evaluate(client, set_id, models=[model]).status_code == 200
            url = f"{SETS}/{set_id}/evaluations"
            document = client.post(url, headers={"X-Request-Timeout": "8"}).json()
            faults = {m["model"]: m["problem"] and m["problem"]["type"] for m in document["models"]}
            assert faults.pop("descent").endswith(":deadline-exceeded")
            assert faults == {"mean": None, "attentive": None}
            told = " ".join(document["advice"]["text"])
            assert "Not judged in time: Test entry descent; ask again with a longer" in told
            alone = client.post(
                url, data={"models": "descent"}, headers={"X-Request-Timeout": "0.5"}
            )
            assert_problem(alone, 504, "deadline-exceeded")
            Counted.opened.set()
    finally:
        Counted.opened.set()


def test_without_a_model_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(zoo=tmp_path, device="cpu"))) as client:
        set_id = make_set(client, likely()).json()["support_set"]["id"]
        assert_problem(evaluate(client, set_id), 503, "not-ready")


def test_it_waits_in_the_queue_like_any_other(zoo: Path) -> None:
    """Counted as the examples: the models are judged one after another."""
    settings = Settings(zoo=zoo, device="cpu", threads=1, queue_images=40)
    with TestClient(create_app(settings)) as client:
        set_id = make_set(client, likely()).json()["support_set"]["id"]
        admission = client.app.state.classifier.admission
        admission._take(32)
        refused = evaluate(client, set_id)  # 32 + 9
        assert_problem(refused, 429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        admission.held = 31
        assert evaluate(client, set_id).status_code == 200
        assert admission.held == 31


def verdicts(said: str, truth: str) -> list[Verdict]:
    names = sorted(set(truth))
    pairs = zip(said, truth, strict=True)
    return [
        Verdict(i, names.index(t), names.index(s), 0.9, 0.9 if s == t else 0.1)
        for i, (s, t) in enumerate(pairs)
    ]


@pytest.fixture
def cards(zoo: Path) -> Iterator[list[Card]]:
    yield list(list_cards(zoo).values())


def test_wilsons_interval() -> None:
    """Where it is: the shares p at which the observed one lies just z standard errors off."""
    for correct, count in ((0, 5), (3, 7), (10, 10), (450, 500)):
        found = share(correct, count)
        for end, exact in ((found.low, correct == 0), (found.high, correct == count)):
            if exact:
                assert end == pytest.approx(correct / count)
            else:
                off = abs(correct / count - end) / math.sqrt(end * (1 - end) / count)
                assert off == pytest.approx(1.96, abs=1e-4)


def test_an_interval_holds_the_share_that_was_observed() -> None:
    for count in range(1, 31):
        for correct in (0, count // 2, count):
            found = share(correct, count)
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_advice_names_the_best_model_and_the_worst_class(cards: list[Card]) -> None:
    truth = "aaaabbbbcccc"
    best = Judgement(cards[0], verdicts("aaaabbbcbbcc", truth))
    poor = Judgement(cards[1], verdicts("bbbbaaaaaaaa", truth))
    gone = Judgement(cards[2], fault=TooManyClasses("too many"))
    found = advise([poor, gone, best], truth, list("abc"))
    assert found.model == cards[0].id
    assert found.classes == ["c", "b"]
    text = " ".join(found.sentences)
    assert "9 right (75%)" in text and "between 47% and 91%" in text
    assert "'c' needs more examples first: 2 of 4 were misread, most often as 'b'" in text
    assert f"{cards[0].title} did best: of 12 examples" in text
    assert cards[1].title not in text  # it is surely worse
    assert "guessing" not in text


def test_advice_says_what_may_be_chance(cards: list[Card]) -> None:
    truth = "aabb"
    one, other = (
        Judgement(card, verdicts(said, truth))
        for card, said in zip(cards, ("aabb", "aaba"), strict=False)
    )
    assert not surely_better(one, other)
    text = " ".join(advise([other, one], truth, ["a", "b"]).sentences)
    assert f"The difference to {cards[1].title!r} may be chance" in text
    assert "As many right" not in text
    assert "misread none" in text
    text = " ".join(advise([other], truth, ["a", "b"]).sentences)
    assert "not surely better than guessing (50%)" in text


def test_advice_names_those_that_are_as_good(cards: list[Card]) -> None:
    judgements = [
        Judgement(card, verdicts(said, "aabb"))
        for card, said in zip(cards, ("aabb", "aabb", "aaba"), strict=True)
    ]
    text = " ".join(advise(judgements, "aabb", ["a", "b"]).sentences)
    assert f"None did better than {cards[0].title}: of 4 examples" in text
    assert f"As many right, so as good a choice by these examples: {cards[1].title!r}." in text
    assert f"The difference to {cards[2].title!r} may be chance" in text


def test_sign_test_needs_six_of_six(cards: list[Card]) -> None:
    """Two-sided, 5%: 2 / 2^5 is more, 2 / 2^6 is less."""
    for count, sure in ((5, False), (6, True)):
        truth = "a" * count + "b" * 4
        ours = Judgement(cards[0], verdicts(truth, truth))
        theirs = Judgement(cards[1], verdicts("b" * (count + 4), truth))
        assert surely_better(ours, theirs) is sure
        assert not surely_better(theirs, ours)
