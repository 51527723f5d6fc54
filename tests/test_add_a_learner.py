"""The page that adds a learner can be followed: its files, put where it says, train and serve."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from models_zoo import registry
from models_zoo.cards import load_card
from tests.service.process import serving
from tests.training.making import draw_data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-learner.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
#: Its path, the line that a part of a file goes below (none for a whole file), and the text.
FILES = re.findall(
    r"^\*\*`([\w/.-]+)`\*\*, (?:new|below `([^`]+)`):\n\n```\w+\n(.*?)^```$",
    PAGE,
    re.MULTILINE | re.DOTALL,
)
COMMANDS = [shlex.split(line) for line in BLOCKS[-1].splitlines()]
ENTRY = "shrunken-omniglot"
COPIED = ("models_zoo", "training", "tests/models_zoo", "tests/training")


def command(*start: str) -> list[str]:
    """The one of the page's commands that begins so."""
    found = [words for words in COMMANDS if tuple(words[: len(start)]) == start]
    assert len(found) == 1, (start, COMMANDS)
    return found[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a learner needs, with the page's files in it."""
    place = tmp_path_factory.mktemp("checkout")
    unread = shutil.ignore_patterns("__pycache__", "entries")
    for name in COPIED:
        shutil.copytree(ROOT / name, place / name, ignore=unread)
    for name in ("fewshot.py", "pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, place / name)
    for name, above, text in FILES:
        path = place / name
        if above:
            old = path.read_text("utf-8")
            assert old.count(f"{above}\n") == 1, (name, above)
            path.write_text(old.replace(f"{above}\n", f"{above}\n{text}"), "utf-8")
        else:
            assert not path.exists(), name
            path.write_text(text, "utf-8")
    return place


def run(checkout: Path, words: Sequence[str], *more: object) -> str:
    """What one of the page's commands says in the copy, with `more` options."""
    start = [sys.executable, *([] if words[0] == "python" else ["fewshot.py"])]
    done = subprocess.run(
        [*start, *words[1:], *map(str, more)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "FEWSHOT_CACHE": str(checkout / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def zoo(checkout: Path) -> Path:
    """The zoo after the page's commands up to `serve`, over drawings made here in a few steps."""
    data = draw_data(checkout / "drawings")
    recipe = checkout / "training" / "recipes" / f"{ENTRY}.yaml"
    text = recipe.read_text("utf-8")
    swaps = {": omniglot\n": ": folder\n", ": vinyals\n": ": 50/25/25\n", "[20]": "[5]"}
    for old, new in swaps.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    recipe.write_text(text, "utf-8")
    said = run(checkout, command("fewshot", "train"), "--data", data, "--until", 3)
    assert "after step 3" in said
    assert "same answer in 100%" in run(checkout, command("fewshot", "export"))
    run(checkout, command("fewshot", "evaluate"), "--data", data, "--tasks", 5, "--queries", 5)
    return checkout / "zoo"


def test_it_has_fewer_than_100_lines_of_code_and_every_block_is_used() -> None:
    assert sum(block.count("\n") for block in BLOCKS) < 100
    assert [text for *_, text in FILES] == BLOCKS[:-1]
    assert len(FILES) == 6


def test_its_learner_is_not_in_the_zoo_yet() -> None:
    assert "shrunken" not in registry.names()


def test_its_tests_and_those_of_every_learner_pass(checkout: Path) -> None:
    _, *words = command("python", "-m", "pytest")
    # Of the two folders that it names, the files that this learner could break soonest.
    files = [
        "models_zoo/test_shrunken.py",
        "models_zoo/test_contract.py",
        "training/test_trainer.py",
    ]
    words = [word for word in words if not word.startswith("tests/")]
    said = run(checkout, ["python", *words], *(f"tests/{name}" for name in files))
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > 15, said


def test_its_commands_make_an_entry_with_an_accuracy(zoo: Path) -> None:
    card = load_card(zoo / ENTRY)
    assert (card.learner, card.family, card.attention.task) == ("shrunken", "metric", True)
    assert {"encode.onnx", "adapt.onnx", "predict.onnx"} < set(card.files)
    assert [(row.way, row.shot, row.tasks) for row in card.accuracy] == [(5, 1, 5)]


def test_the_service_serves_it_without_the_learner(zoo: Path, tmp_path: Path) -> None:
    assert command("fewshot", "serve") == ["fewshot", "serve", "--zoo", "zoo"]
    drawings = sorted((zoo.parent / "drawings").glob("class0[0-2]/*.png"))
    shown = [path for path in drawings if path.name in ("0.png", "1.png")][:5]  # of 2, 2 and 1
    files = [("support_images", (path.name, path.read_bytes())) for path in shown]
    files += [("query_images", (path.name, path.read_bytes())) for path in drawings[-2:]]
    form = {
        "model": ENTRY,
        "support_labels": [path.parent.name for path in shown],
        "attention": "maps",
    }
    with serving(zoo, tmp_path) as server:
        answer = httpx.post(f"{server.base}/v1/predictions", data=form, files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["classes"] == ["class00", "class01", "class02"]
    asked = answer.json()["predictions"]
    assert len(asked) == 2
    for prediction in asked:
        assert sum(p["probability"] for p in prediction["probabilities"]) == pytest.approx(1)
        (layer,) = prediction["attention"]["task"]
        assert [weight["label"] for weight in layer] == form["support_labels"]
        assert sum(weight["weight"] for weight in layer) == pytest.approx(1, abs=1e-5)
