"""What is said of a name that there is not."""

from __future__ import annotations

from models_zoo.names import closest, unknown

MODELS = ["stanet-omniglot", "metanet-omniglot", "stanet-cifar100", "maml-omniglot"]


def test_what_begins_so_comes_before_what_is_spelt_alike() -> None:
    assert closest("stanet", MODELS) == ["stanet-cifar100", "stanet-omniglot"]
    assert closest("STANet-omniglot", MODELS)[0] == "stanet-omniglot"
    assert closest("maml_OMNIGLOT", [each.upper() for each in MODELS])[0] == "MAML-OMNIGLOT"
    assert closest("mamll-omniglot", MODELS)[0] == "maml-omniglot"
    assert closest("", MODELS) == []
    assert len(closest("a", [f"a{i}" for i in range(9)])) == 3


def test_one_wording() -> None:
    assert unknown("model", "zzz", MODELS, "`list`") == "unknown model 'zzz'; `list` names all"
    assert unknown("model", "stanet-c", MODELS, "`list`") == (
        "unknown model 'stanet-c'; did you mean stanet-cifar100? `list` names all"
    )
