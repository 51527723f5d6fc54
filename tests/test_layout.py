"""The rooms of the house: who may import whom, and that serving stays free of PyTorch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fewshot_client", "models_zoo", "service", "training")
#: The one place in the service that may ever import PyTorch.
TORCH_RUNTIME = "service.engine.torch"
#: A script that Alembic runs: it is no module to import.
SCRIPT = "service.store.migrations.env"
#: The one place in the service that may import the onnx package, on first use.
ONNX_FILES = "service.standalone"
#: Read by the service, hence free of PyTorch.
SERVED = ("models_zoo", "models_zoo.cards", "models_zoo.names", "models_zoo.preprocess")
TORCH = ("torch", "torchvision")

#: Who, and what it must not import. A name stands for itself and everything below it.
FORBIDDEN = (
    ("models_zoo", ("service", "training", "fewshot", "tests")),
    ("training", ("service", "fewshot", "tests")),
    ("fewshot_client", ("models_zoo", "service", "training", "fewshot", "tests")),
    (
        "service",
        (
            "training",
            "fewshot",
            "fewshot_client",
            "tests",
            "models_zoo.registry",
            "models_zoo.learner",
        ),
    ),
    # Within the service: api -> engine, store -> models_zoo, and nothing reaches back.
    ("service.api", ("service.app", "service.commands")),
    ("service.engine", ("service.api", "service.app", "service.classifier", "service.store")),
    ("service.stored", ("service.api", "service.classifier", "service.engine", "service.store")),
    ("service.store", ("service.api", "service.app", "service.classifier", "service.engine")),
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for path in [
        ROOT / "fewshot.py",
        *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")),
    ]
}


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def imports_of(module: str) -> frozenset[str]:
    """Every module that this one names, wherever in the file: at the top, lazily, as a string."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from service import app` may name a module or something inside one.
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(?:service|training|models_zoo|torch)\.[\w.]+", node.value))
    return frozenset(found)


@pytest.mark.parametrize(("who", "what"), FORBIDDEN, ids=[rule[0] for rule in FORBIDDEN])
def test_imports_run_one_way(who: str, what: tuple[str, ...]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if is_in(module, (who,))
        for name in sorted(imports_of(module))
        if is_in(name, what)
    ]
    assert wrong == []


def test_only_the_top_of_the_service_imports_its_routers_and_commands() -> None:
    above = {
        "service.api": ("service.api", "service.app"),
        "service.app": ("service.app", "service.commands"),
        "service.commands": ("service.commands", "fewshot"),
    }
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in sorted(imports_of(module))
        for room, users in above.items()
        if is_in(name, (room,)) and not is_in(module, users)
    ]
    assert wrong == []


def test_the_service_and_what_it_reads_name_no_torch() -> None:
    served = [m for m in MODULES if is_in(m, ("service", "fewshot")) or m in SERVED]
    wrong = [
        f"{module} imports {name}"
        for module in served
        if not is_in(module, (TORCH_RUNTIME,))
        for name in sorted(imports_of(module))
        if is_in(name, TORCH)
    ]
    assert wrong == []


def test_the_whole_service_can_be_imported_where_torch_cannot() -> None:
    """What the rules above miss, such as an import by way of a third module."""
    modules = sorted(
        m
        for m in MODULES
        if is_in(m, ("service",)) and not is_in(m, (TORCH_RUNTIME, ONNX_FILES, SCRIPT))
    )
    program = (
        "import sys, importlib\n"
        "for name in ('torch', 'torchvision', 'training', 'onnx', 'yaml', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {['fewshot', *SERVED, *modules]!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_only_one_module_of_the_service_imports_the_onnx_package() -> None:
    """It takes a while to load, and serving does without: see the test above."""
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if is_in(module, ("service", "fewshot", *SERVED)) and module != ONNX_FILES
        for name in sorted(imports_of(module))
        if is_in(name, ("onnx",))
    ]
    assert wrong == []


def test_the_command_line_is_thin() -> None:
    """`fewshot --help` loads neither the service nor an array library."""
    heavy = ("service", "training", "models_zoo", "numpy", "torch", "fastapi", "onnxruntime")
    program = f"import sys, fewshot; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()] == []
