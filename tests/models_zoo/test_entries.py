"""The trained entries that are shipped: whole, small, and the same in both runtimes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from models_zoo import registry
from models_zoo.cards import ENTRIES, Card, list_cards, load_card, read_file, verify
from models_zoo.episode import Prediction, Support
from models_zoo.preprocess import to_pixels
from models_zoo.weights import WEIGHTS, load_learner
from training.parity import OnnxLearner
from training.recipe import load_recipe

IDS = sorted(path.parent.name for path in ENTRIES.glob("*/card.json"))
SAMPLES = ENTRIES.parents[1] / "samples"
MEGABYTE = 1e6

each_entry = pytest.mark.parametrize("entry", IDS)


def card_of(entry: str) -> Card:
    return load_card(ENTRIES / entry)


def drawings(card: Card, *leading: int, seed: int) -> Tensor:
    """Smooth random pictures: noise of a quarter of the size, enlarged."""
    spec = card.input
    random = np.random.default_rng(seed)
    coarse = random.random((int(np.prod(leading)), spec.channels, 7, 7), dtype=np.float32)
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), (spec.height, spec.width), mode="bilinear"
    )
    return fine.unflatten(0, leading)


def test_the_zoo_lists_its_entries() -> None:
    assert list(list_cards()) == IDS


@each_entry
def test_an_entry_holds_what_its_card_lists_and_no_more(entry: str) -> None:
    card = card_of(entry)
    verify(card)
    assert {path.name for path in (ENTRIES / entry).iterdir()} == {*card.files, "card.json"}
    assert {WEIGHTS, "adapt.onnx", "predict.onnx"} <= set(card.files)


@each_entry
def test_an_entry_is_small(entry: str) -> None:
    card = card_of(entry)
    limit = 16.0 if "resnet" in card.backbone else 1.5
    if card.learner in ("stanet", "mmnet") or card.adaptation:  # Meta-SGD has a rate per weight
        limit = max(limit, 2.0)
    assert sum(path.stat().st_size for path in (ENTRIES / entry).iterdir()) < limit * MEGABYTE


@each_entry
def test_the_card_says_what_the_weights_are(entry: str) -> None:
    card = card_of(entry)
    learner = load_learner(card)
    assert card.parameters == sum(p.numel() for p in learner.parameters())
    assert card.family == registry.family(card.learner)
    assert card.encodes == learner.encodes
    assert card.order_dependent == learner.order_dependent
    assert card.attention.layers == learner.attention_layers
    assert learner.max_way is None or card.limits.max_way <= learner.max_way
    assert (card.adaptation is None) == (learner.default_inner_lr() is None)
    assert all(tensor.isfinite().all() for tensor in load(read_file(card, WEIGHTS)).values())


@each_entry
def test_the_page_has_a_line_that_answers_can_be_above(entry: str) -> None:
    """Below `confidence_p5` it asks "None of these?"; at 1 it would ask of every answer."""
    assert all(0 < row.confidence_p5 < 1 for row in card_of(entry).accuracy)


@each_entry
def test_the_card_was_made_by_the_recipe_it_names(entry: str) -> None:
    card = card_of(entry)
    recipe = load_recipe(ENTRIES.parents[1] / card.training.recipe)
    assert (recipe.id, recipe.learner, recipe.config) == (card.id, card.learner, card.config)
    assert (recipe.data.input, recipe.entry.limits) == (card.input, card.limits)
    assert (recipe.data.dataset, recipe.data.split) == (card.training.dataset, card.training.split)
    assert card.training.steps <= card.training.run_steps == recipe.steps
    assert card.training.seed == recipe.seed


@torch.no_grad()
@each_entry
def test_the_graphs_answer_as_the_weights_do(entry: str) -> None:
    """On two tasks of unequal way and shot, with padding amid the examples."""
    card = card_of(entry)
    way = min(5, card.limits.max_way)
    first = [i % way for i in range(2 * way)]
    second = [1, 0, None, 0, *[None] * (2 * way - 4)]
    mask = torch.tensor([[label is not None for label in row] for row in (first, second)])
    labels = torch.tensor([[label or 0 for label in row] for row in (first, second)])
    support = Support.of(drawings(card, 2, 2 * way, seed=0), labels, mask, way)
    query = drawings(card, 2, 7, seed=1)
    # In float64, since a ReLU that single precision turns the other way changes what gradient
    # steps learn.
    exact = Support.of(support.x.double(), labels, mask, way)
    expected = load_learner(card).double()(exact, query.double())
    found = OnnxLearner.of(card)(support, query)

    def gap(name: str) -> float:
        a, b = getattr(expected, name), getattr(found, name)
        assert (a is None) == (b is None)
        return 0.0 if a is None else float((a - b).abs().max())

    tolerance = 1e-2 if card.adaptation else 1e-4
    assert gap("probabilities") < tolerance
    names = [name for name in Prediction.__dataclass_fields__ if name.endswith("_attention")]
    assert all(gap(name) < tolerance for name in names)
    assert torch.equal(expected.logits.argmax(-1), found.logits.argmax(-1))
    assert (found.task_attention is not None) == card.attention.task
    for name, size in (("query", card.attention.query), ("support", card.attention.support)):
        maps = getattr(found, f"{name}_attention")
        assert (None if maps is None else tuple(maps.shape[-2:])) == size


@torch.no_grad()
@pytest.mark.parametrize("entry", [e for e in IDS if card_of(e).training.dataset == "omniglot"])
def test_an_entry_for_drawings_knows_the_sample_drawings(entry: str) -> None:
    """The pictures of the README's tour: three of each of three signs, and one query of each."""
    card = card_of(entry)
    classes = sorted(folder.name for folder in (SAMPLES / "support").iterdir())

    def read(paths: list[Path]) -> Tensor:
        images = [to_pixels(Image.open(path), card.input) for path in paths]
        return torch.from_numpy(np.stack(images))[None] / 255

    examples = sorted((SAMPLES / "support").glob("*/*.png"))
    queries = sorted((SAMPLES / "queries").glob("*.png"))
    labels = torch.tensor([[classes.index(path.parent.name) for path in examples]])
    answers = load_learner(card)(Support.of(read(examples), labels), read(queries)).logits.argmax(
        -1
    )
    assert [classes[i] for i in answers[0]] == ["cross", "hook", "loop"]


@each_entry
def test_every_accuracy_has_its_protocol_and_the_command_that_gives_it(entry: str) -> None:
    card = card_of(entry)
    assert card.accuracy, "an entry without a measured accuracy"
    # A transductive entry's rows have others beside them, of queries that were asked one by one.
    assert {row.transductive for row in card.accuracy} == {False, card.transductive}
    for row in card.accuracy:
        words = shlex.split(row.command)
        assert words[:3] == ["fewshot", "evaluate", entry]
        apart = "--apart" in words
        if apart:
            words.remove("--apart")
        said = dict(zip(words[3::2], words[4::2], strict=True))
        assert said.pop("--runtime") in ("torch", "onnx")
        asked = {"--queries": str(row.queries_per_class)}
        if row.presentation is not None:
            asked = {"--presentation": str(row.presentation)}
        assert said == asked | {
            "--way": str(row.way),
            "--shot": str(row.shot),
            "--tasks": str(row.tasks),
            "--rotations": row.rotations,
            "--seed": str(row.seed),
        }
        assert row.tasks >= 1000
        assert 1 / row.way < row.mean < 1
        assert 0 < row.ci95 < 0.02
        assert row.transductive == (card.transductive and not apart)
        assert (row.dataset, row.split) == (card.training.dataset, card.training.split)
        assert row.way <= card.limits.max_way
        assert row.shot <= card.limits.max_shot


@each_entry
def test_the_graphs_tell_nothing_of_the_machine_they_were_made_on(entry: str) -> None:
    card = card_of(entry)
    for name in card.files:
        data = read_file(card, name)
        for trace in (b".py", b"site-packages", b"/work/", b"/home/", b"/tmp/", b"/root/"):
            assert trace not in data, (name, trace)
        if name.endswith(".onnx"):
            model = onnx.load_from_string(data)
            assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert "/work" not in json.dumps(card.model_dump(mode="json"))
