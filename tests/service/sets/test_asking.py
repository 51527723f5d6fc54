"""Support sets asked: as sending the images would answer. On both databases."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.service.asking import SETS, ask, ask_set, assert_problem, task
from tests.service.sets.making import QUERIES, made


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_it_answers_as_sending_the_images_would(client: TestClient, model: str) -> None:
    support, set_id = task("cab", 2), made(client, task("cab", 2))
    stateless = ask(client, support, QUERIES, model=model, attention="maps", top_k=2).json()
    stored = ask_set(client, set_id, QUERIES, model=model, attention="maps", top_k=2).json()
    assert stored["predictions"] == stateless["predictions"]
    assert stored["classes"] == stateless["classes"] == ["a", "b", "c"]
    assert stored["model_ref"] == stateless["model_ref"] == f"{model}@1.0"
    assert stored["support_set_ref"] == f"{set_id}@1"
    assert stateless["support_set_ref"] is None


def test_a_set_that_a_model_does_not_take_is_told_when_asked(client: TestClient) -> None:
    empty = made(client, [])
    for response in (
        ask_set(client, empty, QUERIES),
        client.get(f"{SETS}/{empty}/classifier.onnx", params={"model": "mean"}),
    ):
        document = assert_problem(response, 422, "no-support")
        assert document["detail"] == "the support set has no examples; add some"
    assert_problem(ask_set(client, empty, QUERIES, model="none"), 404, "unknown-model")
    assert_problem(ask_set(client, made(client, task("a")), QUERIES), 422, "one-class")
    many = made(client, task("abcdefg", 1))
    assert_problem(ask_set(client, many, QUERIES), 422, "too-many-classes")


def test_a_set_edited_while_it_is_asked_is_asked_as_it_is_then(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_id = made(client, task("abc", 1, seed=300))
    examples = client.get(f"{SETS}/{set_id}/examples").json()["examples"]
    store = client.app.state.store
    read = store.sets.stored

    def then_deleted(owner: str, which: str) -> object:
        """An example goes between the reading of the list and the loading of the images."""
        found = read(owner, which)
        if examples:
            store.sets.delete_example(owner, which, examples.pop()["id"])
        return found

    monkeypatch.setattr(store.sets, "stored", then_deleted)
    del examples[:2]
    answer = ask_set(client, set_id, QUERIES).json()
    assert answer["support_set_ref"] == f"{set_id}@2"
    assert answer["classes"] == ["a", "b"]

    which = made(client, task("abcdef", 1, seed=400))
    examples += client.get(f"{SETS}/{which}/examples").json()["examples"]
    assert_problem(ask_set(client, which, QUERIES), 409, "set-changed")
