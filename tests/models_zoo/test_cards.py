"""Cards and files of an entry: read strictly, refused when they are not what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models_zoo.cards import (
    MAX_CARD_BYTES,
    Card,
    ZooError,
    describe,
    find_card,
    list_cards,
    load_card,
    read_file,
    verify,
    write_card,
)

FILES = {"model.safetensors": b"weights " * 9, "adapt.onnx": b"adapt", "predict.onnx": b"predict"}

SPEED = {
    "way": 5,
    "shot": 1,
    "queries_per_class": 15,
    "runs": 31,
    "encode_ms": 7.5,
    "adapt_ms": 0.5,
    "predict_ms": 1.0,
    "hardware": "a CPU, 1 thread",
    "command": "fewshot models time tiny",
}


def content(name: str = "tiny") -> dict[str, Any]:
    return {
        "id": name,
        "version": "1",
        "title": "Tiny",
        "summary": "For tests.",
        "learner": "prototypical",
        "family": "metric",
        "paper": {"title": "T", "authors": "A", "year": 2017},
        "backbone": "conv4-8",
        "parameters": 1,
        "config": {"channels": 1},
        "input": {"channels": 1, "height": 16, "width": 16, "fit": "pad"},
        "limits": {"max_way": 5, "max_shot": 5, "max_support": 25, "max_query": 20},
        "attention": {"layers": 1, "task": True},
        "transductive": False,
        "training": {
            "dataset": "folder",
            "split": "files",
            "recipe": "mine",
            "steps": 3,
            "run_steps": 4,
            "seed": 0,
            "minutes": 0.1,
            "hardware": "none",
        },
        "license": "MIT",
        "files": {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for file, data in FILES.items()
        },
    }


def build(root: Path, name: str = "tiny", **changes: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, data in FILES.items():
        (folder / file).write_bytes(data)
    (folder / "card.json").write_text(json.dumps(content(name) | changes))
    return folder


def test_an_entry_s_files_are_read_and_verified(tmp_path: Path) -> None:
    card = load_card(build(tmp_path))
    verify(card, tmp_path)
    assert {name: read_file(card, name, tmp_path) for name in card.files} == FILES
    assert describe((tmp_path / "tiny" / "adapt.onnx").read_bytes()) == card.files["adapt.onnx"]
    assert not card.encodes


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_is_refused(tmp_path: Path, name: str, place: int) -> None:
    card = load_card(build(tmp_path))
    data = bytearray(FILES[name])
    data[place] ^= 1
    (tmp_path / "tiny" / name).write_bytes(data)
    with pytest.raises(ZooError, match="sha256"):
        read_file(card, name, tmp_path)
    with pytest.raises(ZooError, match=name):
        verify(card, tmp_path)


@pytest.mark.parametrize("data", [b"", b"adap", b"adapt "])
def test_another_size_is_refused(tmp_path: Path, data: bytes) -> None:
    card = load_card(build(tmp_path))
    (tmp_path / "tiny" / "adapt.onnx").write_bytes(data)
    with pytest.raises(ZooError, match=f"{len(data)} bytes, the card says 5"):
        verify(card, tmp_path)


def test_links_are_refused_even_to_the_right_bytes(tmp_path: Path) -> None:
    card = load_card(build(tmp_path / "zoo"))
    file = tmp_path / "zoo" / "tiny" / "adapt.onnx"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match="not a plain file"):
        read_file(card, "adapt.onnx", tmp_path / "zoo")
    build(tmp_path / "far", "linked")
    (tmp_path / "zoo" / "linked").symlink_to(tmp_path / "far" / "linked")
    with pytest.raises(ZooError, match="not a plain file"):
        verify(load_card(tmp_path / "zoo" / "linked"), tmp_path / "zoo")


def test_a_file_that_is_missing_a_folder_or_unlisted_is_refused(tmp_path: Path) -> None:
    card = load_card(build(tmp_path))
    (tmp_path / "tiny" / "adapt.onnx").unlink()
    with pytest.raises(ZooError, match=r"adapt\.onnx"):
        verify(card, tmp_path)
    (tmp_path / "tiny" / "adapt.onnx").mkdir()
    with pytest.raises(ZooError, match="not a plain file"):
        verify(card, tmp_path)
    for name in ("card.json", "../tiny/predict.onnx", "encode.onnx"):
        with pytest.raises(ZooError, match="lists no"):
            read_file(card, name, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "other"}, "the folder is 'tiny'"),
        ({"surprise": 1}, "surprise"),
        ({"version": ""}, "version"),
        ({"title": None}, "title"),
        ({"family": "magic"}, "family"),
        ({"input": {"channels": 2, "height": 16, "width": 16, "fit": "pad"}}, r"input\.channels"),
        (
            {"input": {"channels": 3, "height": 64, "width": 64, "fit": "crop", "resize": 60}},
            "no shorter than height and width",
        ),
        (
            {"input": {"channels": 3, "height": 64, "width": 64, "fit": "pad", "resize": 80}},
            "resize goes with crop",
        ),
        ({"input": {"channels": 1, "height": 10**6, "width": 16, "fit": "pad"}}, r"input\.height"),
        ({"speed": [SPEED | {"predict_ms": -1}]}, r"speed\.0\.predict_ms"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
        ({"files": {"a/b.onnx": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
        ({"files": {"a.onnx": {"sha256": "0" * 63, "bytes": 1}}}, r"files\.a\.onnx\.sha256"),
        ({"files": {"a.onnx": {"sha256": "0" * 64, "bytes": -1}}}, "bytes"),
    ],
)
def test_a_malformed_card_names_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = build(tmp_path, **changes)
    with pytest.raises(ZooError, match=message) as told:
        load_card(folder)
    assert "\n" not in str(told.value)
    with pytest.raises(ZooError):
        list_cards(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_card_is_told_in_one_line(tmp_path: Path, text: bytes) -> None:
    folder = build(tmp_path)
    (folder / "card.json").write_bytes(text)
    with pytest.raises(ZooError) as told:
        load_card(folder)
    assert "\n" not in str(told.value)


def test_an_oversized_card_is_not_parsed(tmp_path: Path) -> None:
    folder = build(tmp_path)
    card = folder / "card.json"
    padding = MAX_CARD_BYTES - card.stat().st_size
    card.write_text(card.read_text() + " " * padding)
    load_card(folder)
    card.write_text(card.read_text() + " ")
    with pytest.raises(ZooError, match="larger"):
        load_card(folder)


def test_entries_are_found_by_id_and_listed_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        build(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README").write_text("no entry")
    assert list(list_cards(tmp_path)) == ["a", "b", "c"]
    assert find_card("b", tmp_path).id == "b"
    for name in ("d", "empty", "../b", "", "."):
        listed = f"`fewshot models list --zoo {tmp_path}` names all"
        with pytest.raises(ZooError, match=f"unknown model '{name}'; {listed}"):
            find_card(name, tmp_path)
    with pytest.raises(ZooError, match="unknown model 'a'"):
        find_card("a", tmp_path / "nowhere")
    with pytest.raises(ZooError, match=r"no card\.json"):
        load_card(tmp_path / "empty")


def test_a_card_may_tell_how_long_a_task_takes(tmp_path: Path) -> None:
    [row] = load_card(build(tmp_path, speed=[SPEED])).speed
    assert (row.way, row.total_ms) == (5, 9)
    assert load_card(build(tmp_path, "silent")).speed == ()


def test_a_written_card_is_read_back_the_same(tmp_path: Path) -> None:
    card = load_card(build(tmp_path))
    changed = card.model_copy(update={"title": "Über"})
    assert write_card(changed, tmp_path) == tmp_path / "tiny" / "card.json"
    assert load_card(tmp_path / "tiny") == changed
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == sorted([*FILES, "card.json"])


def test_a_card_is_not_changed_by_accident(tmp_path: Path) -> None:
    card: Card = load_card(build(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        card.title = "Other"  # type: ignore[misc]
