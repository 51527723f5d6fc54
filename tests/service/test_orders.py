"""Averaging over presentation orders: by hand, over HTTP, for stored sets; what it counts for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import fewshot
from models_zoo.cards import find_card
from service.app import create_app
from service.classifier import Classifier
from service.engine.episode import Answer, Episode
from service.engine.onnx import OnnxRuntime
from service.engine.orders import permutations
from service.engine.runtime import Runtime
from service.engine.stages import answers
from service.settings import Settings
from tests.service.asking import ask, ask_set, assert_problem, encoded, make_set, noise, task
from tests.service.gate import episode
from tests.service.test_caches import QUERIES, Stored
from tests.service.test_predictions import by_label
from tests.service.zoo import build_ordered


@pytest.fixture(scope="module")
def ordered_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_ordered(tmp_path_factory.mktemp("ordered"))


@pytest.fixture(scope="module", params=["each task by itself", "tasks together"])
def runtime(request: pytest.FixtureRequest, ordered_zoo: Path) -> Runtime:
    made = OnnxRuntime(find_card("ordered", ordered_zoo), ordered_zoo, "cpu", 1)
    made.joins_tasks = request.param == "tasks together"
    return made


def problem(seed: int, way: int, shot: int, queries: int) -> Episode:
    """A random colour episode, all of whose attention is asked for."""
    return replace(episode(seed, way, shot, queries, "attentive"), model="ordered", remember=True)


def only(runtime: Runtime, *episodes: Episode) -> list[Answer]:
    found = dict(answers(runtime, episodes))
    for answer in found.values():
        assert isinstance(answer, Answer), answer
    return [found[row] for row in range(len(episodes))]  # type: ignore[misc]


def turned(one: Episode, order: np.ndarray) -> Episode:
    return replace(one, support=one.support[order], labels=one.labels[order])


def test_orders_are_fixed_different_and_begin_with_the_one_that_was_sent() -> None:
    found = permutations(7, 6)
    assert [order.tolist() for order in found] == [o.tolist() for o in permutations(7, 6)]
    assert [order.tolist() for order in permutations(7, 3)] == [o.tolist() for o in found[:3]]
    assert found[0].tolist() == list(range(7))
    assert all(sorted(order) == list(range(7)) for order in found)
    assert len({tuple(order) for order in found}) == 6


def test_the_answer_is_the_mean_of_those_in_each_order(runtime: Runtime) -> None:
    one = problem(3, 3, 2, 4)
    (found,) = only(runtime, replace(one, orders=5))
    orders = permutations(6, 5)
    apart = [only(runtime, turned(one, order))[0] for order in orders]
    assert not np.allclose(apart[0].probabilities, apart[1].probabilities, atol=1e-3)
    expected = sum(answer.probabilities for answer in apart) / 5
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    task_attention = np.zeros((2, 4, 6))
    for order, answer in zip(orders, apart, strict=True):
        for place, example in enumerate(order):
            assert answer.attention.task is not None
            task_attention[:, :, example] += answer.attention.task[:, :, place] / 5
    np.testing.assert_allclose(found.attention.task, task_attention, atol=1e-6)
    # The maps of an image are the same in every order: those of the first order, as they came.
    np.testing.assert_allclose(found.attention.query, apart[0].attention.query, atol=1e-6)
    np.testing.assert_allclose(found.attention.support, apart[0].attention.support, atol=1e-6)


def test_batches_of_several_orders_and_sizes_answer_as_alone(runtime: Runtime) -> None:
    several = [
        replace(problem(seed, way, 2, queries), orders=orders)
        for seed, way, queries, orders in [(1, 3, 2, 4), (2, 3, 2, 1), (3, 2, 1, 3), (4, 3, 2, 4)]
    ]
    for one, together in zip(several, only(runtime, *several), strict=True):
        (alone,) = only(runtime, one)
        np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=1e-6)


def test_what_was_learned_in_every_order_is_used_again(runtime: Runtime) -> None:
    one = replace(problem(5, 3, 2, 2), orders=3)
    (first,) = only(runtime, one)
    assert first.state is not None and first.features is not None
    assert {len(value) for value in first.state.values()} == {3}
    known = replace(one, orders=1, remember=True)
    np.testing.assert_array_equal(first.features, only(runtime, known)[0].features)
    (again,) = only(runtime, replace(one, support=one.support[:0], state=first.state))
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-6)
    np.testing.assert_allclose(again.attention.task, first.attention.task, atol=1e-6)


@pytest.fixture
def client(ordered_zoo: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(zoo=ordered_zoo, device="cpu", data_dir=tmp_path)
    with TestClient(create_app(settings)) as made:
        yield made


def test_a_request_and_a_stored_set_give_the_same_mean(client: TestClient) -> None:
    support, query = task("abc", 2), [encoded(noise(9))]
    one = ask(client, support, query, model="ordered")
    sent = ask(client, support, query, model="ordered", orders=4)
    assert sent.status_code == 200, sent.text
    mine = by_label(sent.json()["predictions"][0])
    assert mine != by_label(one.json()["predictions"][0])
    assert (
        ask(client, support, query, model="ordered", orders=1).json()["predictions"]
        == (one.json()["predictions"])
    )
    set_id = make_set(client, support).json()["support_set"]["id"]
    for orders in (4, None, 4):  # learned anew, not from what another number of orders left
        more = {} if orders is None else {"orders": orders}
        answer = ask_set(client, set_id, query, model="ordered", **more)
        expected = mine if orders else by_label(one.json()["predictions"][0])
        assert by_label(answer.json()["predictions"][0]) == pytest.approx(expected, abs=1e-6)


def test_the_card_says_that_the_order_matters(client: TestClient) -> None:
    assert client.get("/v1/models/ordered").json()["order_dependent"] is True


def test_every_order_of_a_request_counts_for_the_permit(client: TestClient) -> None:
    admission, support = client.app.state.classifier.admission, task("cab", 2)
    query = [one.data for one in QUERIES]
    free = 4 * 8
    admission.held = admission._max_images - free + 1
    refused = ask(client, support, query, model="ordered", orders=4)
    assert_problem(refused, 429, "overloaded")
    admission.held -= 1
    assert ask(client, support, query, model="ordered", orders=4).status_code == 200


def test_every_order_of_a_stored_set_counts_for_the_permit(ordered_zoo: Path) -> None:
    classifier = Classifier(Settings(zoo=ordered_zoo, device="cpu"))
    classifier.start()
    try:
        stored = Stored(task("cab", 2))
        seen = stored.seen()
        assert classifier.images_to_run("ordered", seen, 2, orders=4) == 4 * 8
        asyncio.run(classifier.classify_stored("ordered", seen, QUERIES, orders=4))
        assert classifier.images_to_run("ordered", seen, 2, orders=4) == 4 * 2
        assert classifier.images_to_run("ordered", seen, 2, orders=3) == 3 * 2
        assert classifier.states.misses == 1
        asyncio.run(classifier.classify_stored("ordered", seen, QUERIES, orders=3))
        assert classifier.states.misses == 2
    finally:
        classifier.close()


def test_the_command_line_averages_too(ordered_zoo: Path, tmp_path: Path) -> None:
    for number, (label, data) in enumerate(task("ab", 2)):
        (tmp_path / "support" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "support" / label / f"{number}.png").write_bytes(data)
    (tmp_path / "q.png").write_bytes(encoded(noise(9)))
    base = ["classify", "--model", "ordered", "--zoo", str(ordered_zoo), "--device", "cpu"]
    base += ["--support", str(tmp_path / "support"), "--query", str(tmp_path / "q.png"), "--json"]
    runner = CliRunner()
    one, four = (
        json.loads(runner.invoke(fewshot.app, [*base, *more]).stdout)["predictions"][0]
        for more in ([], ["--orders", "4"])
    )
    assert one["confidence"] != four["confidence"]
    saved = runner.invoke(
        fewshot.app, [*base, "--orders", "4", "--save", str(tmp_path / "mine.onnx")]
    )
    assert saved.exit_code == 2
    assert "omit --orders or --save" in saved.stderr
