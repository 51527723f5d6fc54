"""Entries whose folder was tampered with are refused, told in the log, and harm no other."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient

from models_zoo.cards import CARD_NAME, MAX_CARD_BYTES, describe, load_card
from service.app import create_app
from service.engine.models import Models
from service.settings import Settings
from tests.service.asking import SETS, ask, assert_problem, encoded, make_set, noise, task
from tests.service.zoo import build_zoo

QUERY = [encoded(noise(50))]
SECRET = "of-the-machine-and-none-of-yours"

Poison = Callable[[Path, Path], None]


def flipped_bit(folder: Path, _: Path) -> None:
    file = folder / "predict.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def longer_than_said(folder: Path, _: Path) -> None:
    with (folder / "predict.onnx").open("ab") as file:
        file.write(b"\0")


def missing(folder: Path, _: Path) -> None:
    (folder / "predict.onnx").unlink()


def link_out_to_the_same_bytes(folder: Path, outside: Path) -> None:
    file = folder / "predict.onnx"
    (outside / "predict.onnx").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside / "predict.onnx")


def link_to_a_secret(folder: Path, outside: Path) -> None:
    file = folder / "predict.onnx"
    file.unlink()
    file.symlink_to(outside / "secret")
    _say(folder, (outside / "secret").read_bytes())


def not_a_graph(folder: Path, _: Path) -> None:
    _replace(folder, b"neither a graph nor protobuf \xff\xfe")


def weights_from_outside(folder: Path, outside: Path) -> None:
    """The file is as the card says; what it would read is not in the folder."""
    model = onnx.load_model_from_string((folder / "predict.onnx").read_bytes())
    weight = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "outside")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    place = os.path.relpath(outside / "secret", Path.cwd())
    for key, value in {"location": place, "offset": "0", "length": "4"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    [last] = [node for node in model.graph.node if "logits" in node.output]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "outside"], ["logits"]))
    _replace(folder, model.SerializeToString())


def a_terabyte(folder: Path, _: Path) -> None:
    """Without holes it would not fit anywhere; the card says the same size."""
    with (folder / "predict.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    card = json.loads((folder / CARD_NAME).read_text())
    card["files"]["predict.onnx"]["bytes"] = 1 << 40
    (folder / CARD_NAME).write_text(json.dumps(card))


def folder_linked_out(folder: Path, outside: Path) -> None:
    folder.rename(outside / "mean")
    folder.symlink_to(outside / "mean")


def card_linked_out(folder: Path, outside: Path) -> None:
    (folder / CARD_NAME).rename(outside / CARD_NAME)
    (folder / CARD_NAME).symlink_to(outside / CARD_NAME)


def card_is_a_secret(folder: Path, outside: Path) -> None:
    (folder / CARD_NAME).unlink()
    (folder / CARD_NAME).symlink_to(outside / "secret")


def card_without_end(folder: Path, _: Path) -> None:
    (folder / CARD_NAME).unlink()
    (folder / CARD_NAME).symlink_to("/dev/zero")


def card_that_nobody_writes(folder: Path, _: Path) -> None:
    (folder / CARD_NAME).unlink()
    os.mkfifo(folder / CARD_NAME)


def oversized_card(folder: Path, _: Path) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    card["summary"] = "x" * MAX_CARD_BYTES
    (folder / CARD_NAME).write_text(json.dumps(card))


def file_outside_on_the_card(folder: Path, _: Path) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    card["files"]["../attentive/predict.onnx"] = card["files"].pop("predict.onnx")
    (folder / CARD_NAME).write_text(json.dumps(card))


def _replace(folder: Path, data: bytes) -> None:
    (folder / "predict.onnx").write_bytes(data)
    _say(folder, data)


def _say(folder: Path, data: bytes) -> None:
    """The card tells of these bytes, as its poisoner would make it."""
    card = json.loads((folder / CARD_NAME).read_text())
    card["files"]["predict.onnx"] = describe(data).model_dump()
    (folder / CARD_NAME).write_text(json.dumps(card))


POISONS = [
    flipped_bit, longer_than_said, missing, link_out_to_the_same_bytes, link_to_a_secret,
    not_a_graph, weights_from_outside, a_terabyte, folder_linked_out, card_linked_out,
    card_is_a_secret, card_without_end, card_that_nobody_writes, oversized_card,
    file_outside_on_the_card,
]  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    return folder


@pytest.fixture
def own_zoo(tmp_path: Path) -> Path:
    return build_zoo(tmp_path / "zoo")


def serve(zoo: Path) -> TestClient:
    return TestClient(create_app(Settings(zoo=zoo, device="cpu", threads=1)))


@pytest.fixture(params=POISONS, ids=[poison.__name__ for poison in POISONS])
def poisoned(request: pytest.FixtureRequest, own_zoo: Path, outside: Path) -> Iterator[TestClient]:
    request.param(own_zoo / "mean", outside)
    with serve(own_zoo) as client:
        yield client


def test_a_poisoned_entry_answers_503_and_the_others_answer(
    poisoned: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = []
    for _ in range(2):  # nor is it taken the second time
        refused = ask(poisoned, task(), QUERY, model="mean")
        assert_problem(refused, 503, "model-unavailable")
        texts.append(refused.text)
    assert ask(poisoned, task(), QUERY, model="attentive").status_code == 200
    texts.append(poisoned.get("/v1/models").text)
    set_id = make_set(poisoned, task()).json()["support_set"]["id"]
    file = poisoned.get(f"{SETS}/{set_id}/classifier.onnx", params={"model": "mean"})
    assert_problem(file, 503, "model-unavailable")
    judged = poisoned.post(f"{SETS}/{set_id}/evaluations")
    numbers = {m["model"]: m["accuracy"] for m in judged.json()["models"]}
    assert numbers.pop("mean", None) is None
    assert all(numbers.values()) and len(numbers) == 2
    for text in (*texts, file.text, judged.text):
        assert str(tmp_path) not in text and SECRET not in text
    assert SECRET not in caplog.text
    assert poisoned.get("/readyz").status_code == 200


def test_what_is_swapped_under_a_loaded_model_reaches_no_file(
    own_zoo: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model goes on answering from memory; the file would be made from the disk."""
    with serve(own_zoo) as client:
        assert ask(client, task(), QUERY).status_code == 200
        set_id = make_set(client, task()).json()["support_set"]["id"]
        url = f"{SETS}/{set_id}/classifier.onnx"
        assert client.get(url, params={"model": "mean"}).status_code == 200
        flipped_bit(own_zoo / "mean", outside)
        with caplog.at_level(logging.ERROR):
            assert_problem(client.get(url, params={"model": "mean"}), 503, "model-unavailable")
        assert "sha256 differs" in caplog.text
        assert ask(client, task(), QUERY).status_code == 200


def test_a_zoo_of_nothing_but_poison_still_starts(own_zoo: Path, outside: Path) -> None:
    for name in ("mean", "attentive", "descent"):
        card_without_end(own_zoo / name, outside)
    models = Models(own_zoo, lambda card, root: pytest.fail("nothing is to be loaded"))
    assert models.cards == {}
    models.close()


def test_the_test_zoo_is_sound_before_it_is_poisoned(own_zoo: Path) -> None:
    assert load_card(own_zoo / "mean").id == "mean"
    with serve(own_zoo) as client:
        assert ask(client, task(), QUERY, model="mean").status_code == 200
