"""Name -> learner class. Modules are imported on first use."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from models_zoo.learner import Learner

#: What a backbone that is not ours begins with: its images become vectors of a fixed encoder.
PRETRAINED = "torchvision/"

_WHERE = {
    "prototypical": "models_zoo.metric.prototypical:PrototypicalNetwork",
    "matching": "models_zoo.metric.matching:MatchingNetwork",
    "siamese": "models_zoo.metric.siamese:SiameseNetwork",
    "gnn": "models_zoo.metric.gnn:GraphNetwork",
    "dynamic": "models_zoo.metric.dynamic:DynamicFewShot",
    "activations": "models_zoo.metric.activations:ParametersFromActivations",
    "relation": "models_zoo.metric.relation:RelationNetwork",
    "stanet": "models_zoo.metric.stanet:STANet",
    "mmnet": "models_zoo.metric.mmnet:MMNet",
    "maml": "models_zoo.optimization.maml:MAML",
    "metasgd": "models_zoo.optimization.metasgd:MetaSGD",
    "metalstm": "models_zoo.optimization.metalstm:MetaLSTM",
    "sca": "models_zoo.optimization.sca:SCA",
    "reptile": "models_zoo.optimization.reptile:Reptile",
    "mann": "models_zoo.model_based.mann:MANN",
    "metanet": "models_zoo.model_based.metanet:MetaNet",
    "siamese_memory": "models_zoo.model_based.siamese_memory:SiameseMemory",
    "snail": "models_zoo.model_based.snail:SNAIL",
    "alpaca": "models_zoo.closed_form.alpaca:ALPaCA",
    "metaoptnet": "models_zoo.closed_form.metaoptnet:MetaOptNet",
}


def names() -> list[str]:
    return sorted(_WHERE)


def family(name: str) -> str:
    """The learner's folder: metric, model_based, optimization or closed_form."""
    return _WHERE[name].split(".")[1]


def learner_class(name: str) -> type[Learner]:
    """Raises `KeyError` for an unknown name."""
    module, _, attribute = _WHERE[name].partition(":")
    found: type[Learner] = getattr(import_module(module), attribute)
    return found


def build(name: str, config: dict[str, object]) -> Learner:
    """A fresh learner from its name and its keyword arguments (a card's or a recipe's `config`).

    Raises `ValueError` where they do not go together.
    """
    config = checked(name, config)
    backbone = config.get("backbone")
    if isinstance(backbone, str) and backbone.startswith(PRETRAINED):
        from models_zoo.backbones.pretrained import Pretrained
        from models_zoo.patches import PatchAttention

        rest = {key: value for key, value in config.items() if key != "backbone"}
        return PatchAttention(learner_class(name)(**rest), Pretrained.of(backbone))
    return learner_class(name)(**config)


def checked(name: str, config: dict[str, object]) -> dict[str, object]:
    """`config` with its values as the learner's arguments are annotated.

    Raises `ValueError` for an argument that there is not, and for a value that does not fit.
    """
    make = learner_class(name)
    hints = get_type_hints(make.__init__)
    bare = [key for key in signature(make).parameters if key not in hints]
    if bare:
        raise ValueError(f"{make.__name__}.__init__: annotate the type of {', '.join(bare)}")
    arguments: dict[str, Any] = {
        key: (hints[key], ... if argument.default is argument.empty else argument.default)
        for key, argument in signature(make).parameters.items()
    }
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **arguments)(**config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(
                f"config.{where}: no such argument; there are {', '.join(arguments)}"
            ) from None
        raise ValueError(f"config.{where}: {first['msg']}") from None
    return {key: getattr(model, key) for key in config}
