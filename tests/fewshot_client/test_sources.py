"""Images in whatever form they are at hand: all of them arrive, or it is told what does not."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from fewshot_client import Client, NotSent
from tests.service.asking import encoded, noise, zipped

ROOT = Path(__file__).parents[2]
CAT, DOG = (encoded(noise(seed)) for seed in (1, 2))


def test_every_form_of_images_answers_alike(client: Client, tmp_path: Path) -> None:
    folder = filled(tmp_path / "set", {"cat/1.png": CAT, "dog/1.png": DOG})
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped({"cat/1.png": CAT, "dog/1.png": DOG}))
    picture = Image.open(io.BytesIO(DOG))
    supports = [
        {"cat": CAT, "dog": [DOG]},
        {"cat": str(folder / "cat" / "1.png"), "dog": picture},
        {"cat": folder / "cat", "dog": io.BytesIO(DOG)},
        folder,
        archive,
    ]
    queries = [[DOG, CAT], [picture, io.BytesIO(CAT)], [folder / "dog" / "1.png", CAT]]
    answers = [client.classify("mean", s, [DOG, CAT]) for s in supports]
    answers += [client.classify("mean", supports[0], q) for q in queries]
    for answer in answers:
        assert answer.classes == ["cat", "dog"]
        assert answer.labels == ["dog", "cat"]
        assert answer.predictions[0].probabilities == answers[0].predictions[0].probabilities


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_images_that_are_not_there_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    support = ROOT / "samples" / "support"
    with Client("http://127.0.0.1:1") as client:
        for call, words in (
            (lambda: client.ask("set_x", "mean", support), f"{support} holds no images"),
            (lambda: client.ask("set_x", "mean", []), "no images to ask about"),
            (lambda: client.classify("mean", support, "nope.png"), "no such file: nope.png"),
            (lambda: client.create_set("nope"), "no such folder or zip: nope"),
            (lambda: client.create_set({"cat": tmp_path}), f"{tmp_path} holds no images"),
            (lambda: client.add("set_x", tmp_path), "has no folders of images"),
        ):
            with pytest.raises(NotSent, match=re.escape(words)) as refused:
                call()
            assert refused.value.__cause__ is None
