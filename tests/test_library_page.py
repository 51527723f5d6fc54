"""The page on the library can be followed: its blocks, pasted in order, do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from models_zoo.cards import ENTRIES, find_card, list_cards
from models_zoo.preprocess import to_pixels
from tests.training.conftest import real_root

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
#: Those that need Omniglot's images, and those that need no PyTorch.
OMNIGLOT = [block for block in BLOCKS if "load_splits" in block or "sampler.sample" in block]
GRAPHS = BLOCKS[-2:]
ANSWER = "['cross', 'hook', 'loop']\n"


def followed(blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is defined after each of the blocks, run one after another in the root."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "page"}
    seen = []
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
        seen.append(dict(names))
    return seen


def test_its_blocks_run_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSHOT_DATA", str(real_root("omniglot")))
    trained = followed(BLOCKS, monkeypatch)[BLOCKS.index(OMNIGLOT[-1])]
    assert capsys.readouterr().out == 3 * ANSWER
    assert len(OMNIGLOT) == 2 and len(trained["stores"]["train"].classes) == 1028
    assert trained["logits"].shape == (2, 100, 20) and trained["loss"].isfinite()


def test_those_that_need_no_data_run_without_and_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch by the card's steps, as the page says they are, and the graph by those it names."""
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path))
    seen = followed([block for block in BLOCKS if block not in OMNIGLOT], monkeypatch)
    assert capsys.readouterr().out == 3 * ANSWER
    card, rates = seen[0]["card"], seen[-1]["rates"]
    assert rates.tolist() == pytest.approx(card.adaptation.rates)
    assert seen[-1]["answer"]["logits"] == pytest.approx(seen[0]["answer"].logits.numpy(), abs=1e-2)


def test_the_graphs_need_nothing_of_the_project() -> None:
    away = "import sys\nfor name in ('torch', 'models_zoo', 'training', 'service'):\n"
    text = "\n".join([away + "    sys.modules[name] = None", *GRAPHS])
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * ANSWER


def test_its_pixels_are_those_of_the_cards_whose_graphs_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = sorted((ROOT / "samples").glob("**/*.png"))
    found = followed(GRAPHS[:1], monkeypatch)[0]["pixels"](paths)
    for entry in sorted(set(re.findall(r"([\w-]+)/\w+\.onnx", "".join(GRAPHS)))):
        spec = find_card(entry).input
        expected = np.stack([to_pixels(Image.open(path), spec) for path in paths]) / 255
        assert found == pytest.approx(expected, abs=1e-6), entry


def test_what_it_says_of_entries_is_so() -> None:
    """Which have no encode.onnx, and how the graphs call their inputs and outputs."""
    for card in list_cards(ENTRIES).values():
        inputs = {}
        for name in (name for name in card.files if name.endswith(".onnx")):
            graph = onnx.load(ENTRIES / card.id / name).graph
            inputs[name] = {value.name for value in graph.input}
        assert card.encodes or card.adaptation is not None, card.id
        assert ("inner_lr" in inputs["adapt.onnx"]) == (card.adaptation is not None), card.id
        assert {"support", "labels", "mask", "class_mask"} <= inputs["adapt.onnx"], card.id
        assert "query" in inputs["predict.onnx"], card.id


def test_the_pages_that_it_and_others_link_to_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]*)", PAGE) if link]
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert "docs/library.md" in (ROOT / "README.md").read_text("utf-8")
