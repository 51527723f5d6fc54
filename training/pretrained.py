"""`fewshot models add`: a pretrained network under a head, as an entry that needs no training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import torch
from rich.console import Console
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model

from models_zoo import registry
from models_zoo.backbones.pretrained import PREFIX, Pretrained, blank, find, input_spec
from models_zoo.cards import (
    MAX_FILE_BYTES,
    Card,
    Limits,
    Paper,
    Pretraining,
    ZooError,
    describe,
)
from models_zoo.learner import InputShape
from models_zoo.patches import PatchAttention
from models_zoo.weights import WEIGHTS
from training.commands import user_errors
from training.export import attention_of, check_place, example_answer, write_entry
from training.graphs import to_onnx
from training.parity import compare

#: What an encode graph holds beside its weights.
_GRAPH_BYTES = 16 << 20
_LIMITS = Limits(max_way=100, max_shot=100, max_support=250, max_query=200)
_BSD = "torchvision's weights, as they are licensed there (code: BSD-3-Clause)"


@dataclass(frozen=True)
class Head:
    """A head that works untrained, on vectors of length `Pretrained.LENGTH`."""

    learner: str
    says: str
    paper: Paper
    config: dict[str, object] = field(default_factory=dict)


_PROTOTYPES = Paper(
    title="Prototypical Networks for Few-shot Learning", authors="Snell, Swersky, Zemel", year=2017
)
HEADS = {
    "prototypical": Head("prototypical", "the nearest class mean decides", _PROTOTYPES),
    "cosine": Head(
        "prototypical",
        "the class mean of the most similar direction decides",
        _PROTOTYPES,
        {"distance": "cosine", "scale": 10.0},
    ),
    "ridge": Head(
        "metaoptnet",
        "a ridge regression fitted to your examples decides",
        Paper(
            title="Meta-Learning with Differentiable Convex Optimization",
            authors="Lee, Maji, Ravichandran, Soatto",
            year=2019,
        ),
        {"regularization": 5.0, "scale": 10.0},
    ),
    "alpaca": Head(
        "alpaca",
        "a Bayesian regression decides and says how uncertain it is",
        Paper(
            title="Meta-Learning Priors for Efficient Online Bayesian Regression",
            authors="Harrison, Sharma, Pavone",
            year=2018,
        ),
        {"prior": "isotropic", "precision": 5.0, "noise": 0.05},
    ),
}


def add(
    backbone: str, head: str, entry: str, weights: Path | None, zoo: Path, replace: bool
) -> None:
    """Write the entry into `zoo` and say so. User errors exit with code 2."""
    with user_errors():
        card = make(backbone, head, entry, weights, zoo, replace)
    where = zoo / card.id
    megabytes = sum(fact.bytes for fact in card.files.values()) / 1e6
    Console(markup=False, emoji=False).print(
        f"{card.id}: {card.summary} {megabytes:.0f} MB in {where}. Next: fewshot serve --zoo {zoo}",
        soft_wrap=True,
    )


def make(
    backbone: str, head: str, entry: str, weights: Path | None, zoo: Path, replace: bool
) -> Card:
    """Load, export, compare with PyTorch, write. Raises `ZooError`, `ParityError`, `OSError`."""
    check_place(entry, zoo, replace)
    try:
        network, origin = find(backbone)
        name = f"{PREFIX}{network}/{origin.name}"
        chosen = HEADS[head]
        encoder = load(name, weights)
    except ValueError as error:
        raise ZooError(str(error)) from None
    config = dict(chosen.config)
    if chosen.learner == "alpaca":
        config["dim"] = encoder.dim
    learner = PatchAttention(registry.learner_class(chosen.learner)(**config), encoder).eval()
    spec = input_spec(origin)
    shape = InputShape(spec.channels, spec.height, spec.width)
    tensors = {key: value.contiguous() for key, value in learner.state_dict().items()}
    files = {WEIGHTS: save(tensors), **to_onnx(learner, shape)}
    compare(learner, shape, files)
    answer = example_answer(learner, shape)
    title = network.replace("_", " ")
    card = Card(
        id=entry,
        version="1",
        title=f"{title} for photos, {head} head",
        summary=f"Photos, by a pretrained {title}; {chosen.says}. No accuracy was measured.",
        learner=chosen.learner,
        family=registry.family(chosen.learner),
        paper=chosen.paper,
        backbone=f"{PREFIX}{network}",
        parameters=sum(p.numel() for p in learner.parameters()),
        config={**config, "backbone": name},
        input=spec,
        limits=_LIMITS,
        attention=attention_of(learner, answer),
        uncertainty=answer.uncertainty is not None,
        transductive=False,
        pretrained=Pretraining(
            weights=str(origin) if weights is None else f"for torchvision's {network}",
            source=origin.url if weights is None else f"the file {weights.name}",
        ),
        license=license_of(origin) if weights is None else f"that of {weights.name}",
        files={file: describe(data) for file, data in files.items()},
    )
    write_entry(card, files, zoo, replace)
    return card


def license_of(origin: WeightsEnum) -> str:
    return str(origin.meta.get("license", _BSD))


def load(name: str, weights: Path | None) -> Pretrained:
    """The encoder with its weights: downloaded by torchvision, or from a file.

    Raises `ValueError`, and `ZooError` where the weights cannot be had or do not fit.
    """
    network, origin = find(name)
    size = 4 * origin.meta["num_params"]
    if size > MAX_FILE_BYTES - _GRAPH_BYTES:
        raise ZooError(f"{name} has {size / 1e9:.1f} GB of weights; an ONNX file holds 2 GiB")
    if weights is not None:
        encoder = Pretrained.of(name)
        fill(encoder, blank(network, origin), read(weights), weights.name)
        return encoder
    try:
        return Pretrained.of(name, lambda network, origin: get_model(network, weights=origin))
    except (URLError, TimeoutError, RuntimeError) as error:  # the last: another sha256
        reason = getattr(error, "reason", error)
        raise ZooError(
            f"cannot download {origin.url}: {reason}; --weights takes a file that you have"
        ) from None


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or what `torch.save` wrote; nothing else is unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # as many kinds as there are ways in which bytes are no pickle
        # Not in PyTorch's words: they advise to run whatever code the file holds.
        raise ZooError(
            f"{path}: no weights in it, or more than weights; a state dict is wanted, as "
            "torch.save (.pth) or safetensors writes it"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ZooError(f"{path}: not a state dict, tensors by name")
    return found


def fill(encoder: Pretrained, whole: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Weights of a whole network into its encoder; the classifier's, of any size, are left out.

    Raises `ZooError` where they are another network's.
    """
    # DenseNet's weights were saved under older names: norm.1 for norm1.
    tensors = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", k): v for k, v in tensors.items()}
    known = whole.state_dict()
    if strange := sorted(tensors.keys() - known.keys()):
        raise ZooError(f"{name}: weights of another network: {strange[0]} has no place in this one")
    for part in (encoder.trunk, encoder.tail):
        wanted = part.state_dict()
        for key, value in wanted.items():
            if key not in tensors:
                raise ZooError(f"{name}: weights of another network: {key} is missing")
            if tensors[key].shape != value.shape:
                shapes = f"{tuple(tensors[key].shape)}, not {tuple(value.shape)}"
                raise ZooError(f"{name}: weights of another network: {key} is {shapes}")
        part.load_state_dict({key: tensors[key] for key in wanted})
