"""A run that was killed or stopped goes on as if nothing had been: same bits, same best."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.training.making import recipe, write_recipe
from training import checkpoint, trainer
from training.checkpoint import CheckpointError, write_atomically
from training.recipe import RecipeError
from training.trainer import train

ROOT = Path(__file__).parents[2]
LEARNER = "stanet"  # with the semantic loss: weights of its own that must come back too

#: Trains until the moment named by the arguments, then dies by SIGKILL.
VICTIM = """
import os, signal, sys
from pathlib import Path
from training import checkpoint, trainer
from training.recipe import load_recipe

recipe, out, data, where, count = *map(Path, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Torn:
    # A file that takes half of the first thing written to it.
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def write(self, data):
        self.file.write(bytes(data)[: len(data) // 2])
        self.file.flush()
        die()

calls = 0

def counting(name, real):
    def wrapped(*args, **kwargs):
        global calls
        path = Path(str(args[0])).name
        if where == name or where == f"{name} {path}":
            calls += 1
            if calls == count:
                if name == "write":
                    real_open = Path.open
                    Path.open = lambda *a, **k: Torn(real_open(*a, **k))
                else:
                    die()
        return real(*args, **kwargs)
    return wrapped

trainer.draw_episode = counting("step", trainer.draw_episode)
checkpoint.save = counting("write", checkpoint.save)
checkpoint.write_atomically = counting("write", checkpoint.write_atomically)
trainer.train(load_recipe(recipe), out, root=data, quiet=True)
"""


def state_of(folder: Path) -> dict[str, Any]:
    """Everything that decides how a run goes on, and what it has kept."""
    last = checkpoint.load(folder / "last.pt", torch.device("cpu"))
    del last["seconds"]
    kept = {"best weights": "best.safetensors", "history": "history.npz"}
    return last | {what: (folder / name).read_bytes() for what, name in kept.items()}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def die(source: Path, out: Path, data: Path, where: str, count: int) -> None:
    """Train until the moment named, in a process of its own that is killed there."""
    script = [sys.executable, "-W", "ignore", "-c", VICTIM, source, out, data, where, count]
    died = subprocess.run([str(part) for part in script], cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.fixture(scope="module")
def undisturbed(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state after all steps of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(made_folder.parent / "cache"))
        train(recipe(LEARNER), folder, root=made_folder, quiet=True)
    return state_of(folder)


@pytest.mark.parametrize(
    ("where", "count", "kept"),
    [
        ("step", 9, 6),  # between two checkpoints, after a validation that was not checkpointed
        ("write last.pt", 3, 6),  # in the middle of the checkpoint of step 9
        ("write best.safetensors", 1, 3),  # in the middle of the first best weights
        ("write last.pt", 1, None),  # before there is any checkpoint
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    where: str,
    count: int,
    kept: int | None,
    undisturbed: dict[str, Any],
    made_data: Path,
    tmp_path: Path,
) -> None:
    source, out = write_recipe(tmp_path / "tiny.yaml", LEARNER), tmp_path / "run"
    die(source, out, made_data, where, count)
    if kept is None:
        assert not (out / "last.pt").exists()
    else:
        assert checkpoint.load(out / "last.pt", torch.device("cpu"))["step"] == kept
    run = train(recipe(LEARNER), out, root=made_data, quiet=True)
    assert run.step == 12
    assert_same(undisturbed, state_of(out))


@pytest.mark.parametrize(("fresh", "network"), [("new", "batch"), ("next", "shared")])
def test_a_killed_run_with_task_attention_ends_as_an_undisturbed_one(
    fresh: str, network: str, made_data: Path, tmp_path: Path
) -> None:
    """The network, its moments and the fresh batches come back too; killed amid step 9."""
    options = {"name": "task_attention", "fresh": fresh, "network": network}
    episodes = {"tasks": 3, "ways": [3, 4], "shots": [1, 2], "queries": 2}
    wanted = recipe("maml", objective=options, episodes=episodes)
    train(wanted, tmp_path / "whole", root=made_data, quiet=True)
    source = write_recipe(tmp_path / "tiny.yaml", "maml", objective=options, episodes=episodes)
    die(source, tmp_path / "run", made_data, "step", 18)
    assert checkpoint.load(tmp_path / "run" / "last.pt", torch.device("cpu"))["step"] == 6
    train(wanted, tmp_path / "run", root=made_data, quiet=True)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "run"))


def test_a_run_made_before_an_option_existed_goes_on(made_data: Path, tmp_path: Path) -> None:
    train(recipe(), tmp_path, root=made_data, until=3, quiet=True)
    path = tmp_path / "recipe.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["optimizer"]["average"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert train(recipe(), tmp_path, root=made_data, until=6, quiet=True).step == 6


def test_a_run_made_before_lengths_were_kept_goes_on_without(
    made_data: Path, tmp_path: Path
) -> None:
    train(recipe(), tmp_path, root=made_data, until=3, quiet=True)
    state = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
    assert state.pop("length") > 0
    checkpoint.save(tmp_path / "last.pt", state)
    run = train(recipe(), tmp_path, root=made_data, until=6, quiet=True)
    assert run.length.isnan()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_and_saves_the_step_under_way(
    number: signal.Signals,
    undisturbed: dict[str, Any],
    made_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(number)
    drawn = 0

    def interrupting(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 8:
            signal.raise_signal(number)
        return real(*args)

    real = trainer.draw_episode
    monkeypatch.setattr(trainer, "draw_episode", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(LEARNER), tmp_path, root=made_data, quiet=True)
    assert signal.getsignal(number) is handler
    assert checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))["step"] == 8
    train(recipe(LEARNER), tmp_path, root=made_data, quiet=True)
    assert drawn == 12
    assert_same(undisturbed, state_of(tmp_path))


def test_ctrl_c_between_two_steps_is_saved_too(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal may come after the loop has decided whether to write a checkpoint."""

    real, steps = trainer.time.perf_counter, []

    def clock() -> float:
        steps.append(1)
        if len(steps) == 10:  # the end of step 5: two looks at the clock a step
            signal.raise_signal(signal.SIGINT)
        return real()

    monkeypatch.setattr(trainer.time, "perf_counter", clock)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path, root=made_data, quiet=True)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))["step"] == 5


def test_ctrl_c_in_the_last_step_is_no_stop(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = trainer.draw_episode, []

    def interrupting(*args: Any) -> Any:
        drawn.append(1)
        if len(drawn) == recipe().steps:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "draw_episode", interrupting)
    assert train(recipe(), tmp_path, root=made_data, quiet=True).step == recipe().steps


def test_a_run_that_ends_where_it_was_stopped_is_validated(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.draw_episode

    def interrupting(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "draw_episode", interrupting)
        with pytest.raises(trainer.Stopped):
            train(recipe(), tmp_path, root=made_data, quiet=True)
    assert not (tmp_path / "best.safetensors").exists()
    assert train(recipe(), tmp_path, root=made_data, until=1, quiet=True).best.step == 1
    assert (tmp_path / "best.safetensors").exists()


def test_a_run_can_be_stopped_at_a_step_and_taken_up_again(
    undisturbed: dict[str, Any], made_data: Path, tmp_path: Path
) -> None:
    assert train(recipe(LEARNER), tmp_path, root=made_data, until=4, quiet=True).step == 4
    assert train(recipe(LEARNER), tmp_path, root=made_data, until=4, quiet=True).step == 4
    train(recipe(LEARNER), tmp_path, root=made_data, quiet=True)
    assert_same(undisturbed, state_of(tmp_path))


def test_an_extra_validation_never_decides_which_weights_are_best(
    undisturbed: dict[str, Any], made_data: Path, tmp_path: Path
) -> None:
    """Stopped at 2 and 6, between the validations of every fourth step."""
    cut = train(recipe(LEARNER), tmp_path, root=made_data, until=2, quiet=True)
    assert cut.best.extra
    assert cut.best.step == 2
    cut = train(recipe(LEARNER), tmp_path, root=made_data, until=6, quiet=True)
    assert not cut.best.extra
    assert cut.best.step == 4
    train(recipe(LEARNER), tmp_path, root=made_data, quiet=True)
    assert_same(undisturbed, state_of(tmp_path))


def test_two_runs_do_not_share_a_folder(made_data: Path, tmp_path: Path) -> None:
    with trainer.alone(tmp_path), pytest.raises(RecipeError, match="another process"):
        train(recipe(), tmp_path, root=made_data, quiet=True)
    assert not (tmp_path / "last.pt").exists()
    train(recipe(steps=3), tmp_path, root=made_data, quiet=True)


def test_another_recipe_does_not_go_on_in_the_same_folder(made_data: Path, tmp_path: Path) -> None:
    train(recipe(steps=3), tmp_path, root=made_data, quiet=True)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    episodes = {"tasks": 2, "ways": [3], "shots": [1, 2], "queries": 2}
    for other, told in (
        (recipe(steps=4), r"\(steps: 3 there, 4 here\)"),
        (recipe(steps=3, seed=1), r"\(seed: 0 there, 1 here\)"),
        (recipe(steps=3, episodes=episodes), r"\(episodes\.ways: \[3, 4\] there, \[3\] here\)"),
        (recipe("maml", steps=3), "learner: prototypical there, maml here; .*; …"),
    ):
        with pytest.raises(RecipeError, match=f"another recipe .*{told}.*another --out, or --fre"):
            train(other, tmp_path, root=made_data, quiet=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}


def test_other_classes_do_not_go_on_in_the_same_folder(made_data: Path, tmp_path: Path) -> None:
    """One class more, and percentages deal all of them out anew."""
    data = tmp_path / "data"
    shutil.copytree(made_data, data)
    train(recipe(steps=6), tmp_path / "run", root=data, until=3, quiet=True)
    shutil.copytree(data / "class00", data / "another")
    with pytest.raises(RecipeError, match="trained on other classes than the data have now"):
        train(recipe(steps=6), tmp_path / "run", root=data, quiet=True)
    shutil.rmtree(data / "another")
    assert train(recipe(steps=6), tmp_path / "run", root=data, quiet=True).step == 6


def test_fresh_forgets_the_old_run_at_once(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash before the first checkpoint would go on with the old weights."""
    train(recipe(steps=3), tmp_path, root=made_data, quiet=True)
    other = recipe(seed=1, steps=3)

    def crash(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "draw_episode", crash)
        with pytest.raises(MemoryError):
            train(other, tmp_path, root=made_data, fresh=True, quiet=True)
    run = train(other, tmp_path, root=made_data, quiet=True)
    clean = train(other, tmp_path / "clean", root=made_data, quiet=True)
    assert_same(dict(clean.learner.state_dict()), dict(run.learner.state_dict()))


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_told(
    damage: bytes | None, made_data: Path, tmp_path: Path
) -> None:
    train(recipe(steps=3), tmp_path, root=made_data, quiet=True)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-200] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"last\.pt: unreadable"):
        train(recipe(steps=3), tmp_path, root=made_data, quiet=True)


def test_a_checkpoint_is_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"step": Bomb()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_file_is_the_old_one_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(CheckpointError, match="space"):
            write_atomically(path, b"new")
        with pytest.raises(CheckpointError, match="space"):
            checkpoint.save(path, {"step": 1})
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_without_room_is_told_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a full disk, an error
    try:
        with pytest.raises(CheckpointError, match=r"last\.pt cannot be written: .*is kept"):
            checkpoint.save(path, {"step": 2, "weights": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.load(path, torch.device("cpu")) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
