"""A run's history: what was added is what is read, and a run taken up again has the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.checkpoint import CheckpointError
from training.history import HISTORY, History, read_history


def filled(until: int) -> History:
    history = History()
    for step in range(1, until + 1):
        history.add(step, "weights", torch.full((3, 2), float(step)))
        if step % 2 == 0:
            history.add(step, "validation", torch.tensor(step / 10))
    return history


def test_what_was_added_is_read(tmp_path: Path) -> None:
    filled(4).save(tmp_path)
    found = read_history(tmp_path)
    assert set(found) == {"weights", "validation"}
    steps, values = found["weights"]
    assert steps.tolist() == [1, 2, 3, 4]
    assert values.shape == (4, 3, 2)
    assert values[2].tolist() == [[3, 3]] * 3
    assert found["validation"][1].tolist() == pytest.approx([0.2, 0.4])


def test_later_rows_are_dropped_and_made_anew(tmp_path: Path) -> None:
    filled(6).save(tmp_path)
    whole = (tmp_path / HISTORY).read_bytes()
    again = History()
    again.load(tmp_path, until=3)
    for step in range(4, 7):
        again.add(step, "weights", torch.full((3, 2), float(step)))
        if step % 2 == 0:
            again.add(step, "validation", torch.tensor(step / 10))
    again.save(tmp_path)
    assert (tmp_path / HISTORY).read_bytes() == whole


def test_a_name_that_the_checkpoint_does_not_know_yet_is_forgotten(tmp_path: Path) -> None:
    """As after a crash between the first validation's history and its checkpoint."""
    history = History()
    for step in (1, 2):
        history.add(step, "weights", torch.ones(3))
    history.add(2, "validation", torch.tensor(0.5))
    history.save(tmp_path)
    again = History()
    again.load(tmp_path, until=1)
    again.save(tmp_path)
    assert set(read_history(tmp_path)) == {"weights"}


def test_shorter_rows_are_filled_up(tmp_path: Path) -> None:
    history = History()
    history.add(1, "losses", torch.tensor([1.0, 2.0]))
    history.add(2, "losses", torch.tensor([3.0]))
    history.save(tmp_path)
    values = read_history(tmp_path)["losses"][1]
    assert np.array_equal(values, [[1, 2], [3, np.nan]], equal_nan=True)


@pytest.mark.parametrize("damage", [b"", b"not a file of arrays", b"PK\x03\x04torn"])
def test_a_damaged_file_is_told(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_bytes(damage)
    with pytest.raises(CheckpointError, match="unreadable"):
        read_history(tmp_path)
