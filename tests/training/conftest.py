"""The real data sets, where this machine has them, and a small made one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.training.making import draw_data
from training.data.sources import find_source

REPOSITORY = Path(__file__).parents[2]


def real_root(dataset: str) -> Path:
    """The folder that holds a data set; the test is skipped where there is none."""
    roots = [REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"]
    if os.environ.get("FEWSHOT_DATA"):
        roots.insert(0, Path(os.environ["FEWSHOT_DATA"]))
    for root in roots:
        if find_source(dataset).find(root):
            return root
    pytest.skip(f"{dataset} is not in {', '.join(map(str, roots))}; name its folder: FEWSHOT_DATA")


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    return real_root("omniglot")


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    return real_root("cifar100")


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("made") / "images")


@pytest.fixture
def made_data(made_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one folder of small images per class; packs are kept beside it."""
    monkeypatch.setenv("FEWSHOT_CACHE", str(made_folder.parent / "cache"))
    return made_folder
