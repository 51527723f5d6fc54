"""`fewshot models add`, with small weights from a file, and from where torchvision keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from fewshot import app
from models_zoo.backbones.pretrained import blank, find
from models_zoo.cards import load_card
from models_zoo.episode import Support
from models_zoo.learner import InputShape
from models_zoo.metric.prototypical import PrototypicalNetwork
from models_zoo.patches import PatchAttention
from models_zoo.weights import load_learner
from tests.models_zoo.networks import made
from training.graphs import to_onnx
from training.parity import OnnxLearner, compare

NETWORK = "shufflenet_v2_x0_5"  # 1.4 million weights
run = CliRunner().invoke


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the network, its statistics in motion; the variances as small as those of
    random weights are, or the images would hardly reach the last layer."""
    torch.manual_seed(seed)
    found = blank(*find(f"torchvision/{NETWORK}")).state_dict()
    for key, value in found.items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.3)
        elif key.endswith("running_var"):
            value.fill_(0.2)
    return found


def add(zoo: Path, *rest: object, backbone: str = f"torchvision/{NETWORK}", entry: str = "mine"):
    command = ["models", "add", "--backbone", backbone, "--id", entry, "--zoo", str(zoo)]
    return run(app, [*command, *map(str, rest)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `torch.save` writes it, of somebody who trained it further for seven classes."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(tensors() | {"fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}, path)
    return path


@pytest.fixture(scope="module")
def zoo(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("added") / "zoo[bold]"  # rich would read it as a style
    result = add(root, "--weights", file, "--head", "alpaca")
    assert result.exit_code == 0, result.output
    assert "No accuracy was measured" in result.stdout
    assert result.stdout.endswith(f"fewshot serve --zoo {root}\n")
    return root


def test_the_card_tells_what_it_is_and_claims_nothing(zoo: Path) -> None:
    card = load_card(zoo / "mine")
    assert card.training is None and card.accuracy == ()
    assert card.pretrained is not None and "weights.pth" in card.pretrained.source
    assert (card.learner, card.backbone) == ("alpaca", f"torchvision/{NETWORK}")
    assert (card.input.height, card.input.resize, card.input.fit) == (224, 256, "crop")
    assert card.attention.query == (7, 7)
    assert card.uncertainty
    shown = run(app, ["models", "show", "mine", "--zoo", str(zoo)]).output
    assert "weights.pth" in shown and "not measured" in shown
    assert run(app, ["models", "verify", "--zoo", str(zoo)]).exit_code == 0


@torch.no_grad()
def test_the_entry_answers_in_both_runtimes_as_the_weights_of_the_file(zoo: Path) -> None:
    card = load_card(zoo / "mine")
    learner = load_learner(card, zoo)
    support = Support.of(torch.rand(1, 3, 3, 224, 224), torch.tensor([[0, 1, 0]]))
    query = torch.rand(1, 2, 3, 224, 224)
    ours, theirs = learner(support, query), OnnxLearner.of(card, zoo)(support, query)
    assert torch.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
    for name in ("query_attention", "task_attention", "uncertainty"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)

    network = blank(*find(f"torchvision/{NETWORK}")).eval()
    network.load_state_dict(tensors())
    network.fc = torch.nn.Identity()
    preset = find(f"torchvision/{NETWORK}")[1].transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    expected = network((query[0] - mean) / std)
    cosine = torch.nn.functional.cosine_similarity(learner.encode(query[0])[:, 0], expected)
    assert torch.allclose(cosine, torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("kind", ["convnext", "vit", "swin"])
def test_transformers_and_their_like_export_too(kind: str) -> None:
    _, encoder, images = made(kind)
    learner = PatchAttention(PrototypicalNetwork(backbone="conv4-8"), encoder).eval()
    shape = InputShape(*images.shape[1:])
    assert compare(learner, shape, to_onnx(learner, shape)).largest < 1e-4


def test_it_classifies_from_files(zoo: Path, tmp_path: Path) -> None:
    for label, colour in (("a", "white"), ("b", "navy")):
        (tmp_path / "support" / label).mkdir(parents=True)
        Image.new("RGB", (60, 40), colour).save(tmp_path / "support" / label / "1.png")
    query = tmp_path / "support" / "b" / "1.png"
    where = ["--zoo", str(zoo), "--model", "mine", "--support", str(tmp_path / "support")]
    attention = ["--attention", str(tmp_path / "seen")]
    result = run(app, ["classify", *where, "--query", str(query), "--json", *attention])
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout)["predictions"]
    assert answer["label"] == "b"
    assert answer["uncertainty"] > 0
    assert np.sum(answer["attention"]["query"][0]) == pytest.approx(1, abs=1e-4)


def test_what_torchvision_has_downloaded_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loader, which finds the file where it would have put it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _, weights = find(f"torchvision/{NETWORK}")
    kept = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    kept.parent.mkdir(parents=True)
    torch.save(tensors(), kept)
    result = add(tmp_path / "zoo", "--head", "ridge")
    assert result.exit_code == 0, result.output
    card = load_card(tmp_path / "zoo" / "mine")
    assert card.pretrained is not None
    assert (card.pretrained.weights, card.pretrained.source) == (str(weights), weights.url)
    found = load_learner(card, tmp_path / "zoo").state_dict()
    assert torch.equal(found["backbone.trunk.conv1.0.weight"], tensors()["conv1.0.weight"])


def test_a_network_that_cannot_be_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    check(add(tmp_path / "zoo"), "cannot download https://download.pytorch.org")


def check(result: object, expected: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fewshot: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr


def test_a_mistake_is_one_line_and_leaves_nothing(file: Path, zoo: Path, tmp_path: Path) -> None:
    text, whole, other = (
        tmp_path / name for name in ("text.pth", "whole.pth", "other.safetensors")
    )
    text.write_text("weights")
    torch.save({"epoch": 3, "model": tensors()}, whole)
    save_file({"conv1.weight": torch.zeros(3)}, other)
    short, narrow = tmp_path / "short.pth", tmp_path / "narrow.pth"
    kept = tensors()
    torch.save({key: kept[key] for key in kept if not key.startswith("conv5")}, short)
    torch.save(kept | {"conv5.0.weight": torch.zeros(5, 192, 1, 1)}, narrow)
    new = tmp_path / "zoo"
    check(add(zoo, "--weights", file), "mine is there already; --id gives this one another id")
    check(add(new, backbone="resnet50"), "did you mean torchvision/resnet50")
    check(add(new, backbone="torchvision/resnet50/V7"), "known: IMAGENET1K_V1")
    check(add(new, backbone="torchvision/vit_h_14"), "2.5 GB of weights; an ONNX file holds 2 GiB")
    check(add(new, entry="../out"), "cannot be an id")
    check(add(new, "--weights", tmp_path / "none.pth"), "no such file")
    check(add(new, "--weights", text), "no weights in it")
    text.write_bytes(b"ustar" * 200)
    check(add(new, "--weights", text), "no weights in it")
    assert "weights_only" not in add(new, "--weights", text).stderr
    check(add(new, "--weights", whole), "not a state dict")
    check(add(new, "--weights", other), "conv1.weight has no place in this one")
    check(add(new, "--weights", short), "conv5.0.weight is missing")
    check(add(new, "--weights", narrow), "conv5.0.weight is (5, 192, 1, 1), not (1024, 192, 1, 1)")
    assert not new.exists()
    assert add(new, "--head", "svm").exit_code == 2


def test_an_entry_that_was_not_trained_here_is_not_evaluated(zoo: Path) -> None:
    check(run(app, ["evaluate", "mine", "--zoo", str(zoo)]), "was not trained here")
