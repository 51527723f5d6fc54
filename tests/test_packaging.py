"""What is declared is what is imported, and what is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {
    "fewshot",
    "fewshot_client",
    "models_zoo",
    "service",
    "training",
    "tests",
    "samples",
    "benchmarks",
}
#: The part of the zoo that serving reads.
SERVED_ZOO = ("models_zoo/__init__.py", "models_zoo/cards.py", "models_zoo/preprocess.py")


#: Whose modules these are, where an extra that the tests do not need is not installed.
OWNERS = {"pynvml": ["nvidia-ml-py"]}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*groups: list[str]) -> set[str]:
    """The names of requirements such as `onnxruntime-gpu[cuda]>=1.20; sys_platform == …`."""
    return {normal(re.match(r"[\w.-]+", text).group()) for group in groups for text in group}  # type: ignore[union-attr]


def imported(*patterns: str) -> dict[str, Path]:
    """Third-party modules imported by the files, each with one file that does."""
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)}
    if "service/**/*.py" in patterns:  # loaded only where the setting asks for it
        paths.discard(ROOT / "service/engine/torch.py")
    found = {}
    for path in sorted(paths):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found |= {name.split(".")[0]: path.relative_to(ROOT) for name in names}
    known = OURS | sys.stdlib_module_names
    return {name: path for name, path in found.items() if name not in known}


SERVING = PROJECT["dependencies"]
CASES = {
    # Imported where they are wanted, and done without where they are not.
    "serving": (
        declared(SERVING, EXTRAS["gpu"], EXTRAS["otel"], EXTRAS["postgres"]),
        ("fewshot.py", "service/**/*.py", *SERVED_ZOO),
    ),
    "client": ({"httpx", "pydantic"}, ("fewshot_client/*.py",)),
    "training": (
        declared(SERVING, EXTRAS["train"]),
        ("models_zoo/**/*.py", "training/**/*.py", "samples/*.py", "service/engine/torch.py"),
    ),
    "tests": (declared(SERVING, EXTRAS["train"], EXTRAS["dev"]), ("tests/**/*.py",)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_import_is_declared(case: str) -> None:
    names, patterns = CASES[case]
    owners = OWNERS | packages_distributions()
    missing = {
        module: str(path)
        for module, path in imported(*patterns).items()
        if not names & {normal(owner) for owner in owners.get(module, [module])}
    }
    assert missing == {}


def test_serving_declares_no_training_package() -> None:
    assert not declared(SERVING) & declared(EXTRAS["train"])


def test_constraints_are_names_and_versions_and_cover_what_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)] == []
    names = [line.split("==")[0] for line in pins]
    assert len(names) == len(set(names))
    assert declared(SERVING, *EXTRAS.values()) - set(names) == set()


def test_the_builder_is_sent_all_that_the_dockerfile_copies() -> None:
    """.dockerignore leaves out everything but what it names again."""
    kept = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in kept
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert {"service", "fewshot_client", "pyproject.toml"} <= copied
    assert copied == {line[1:] for line in kept if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)
