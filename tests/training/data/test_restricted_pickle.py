"""Other people's pickles are data here: what they ask to run is never run."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.data import restricted_pickle
from training.data.store import DataError


class Attack:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol):
    target = tmp_path / "ran"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"image_data": Attack(os.mkdir, str(target))}, protocol))
    with pytest.raises(DataError, match=r"evil\.pkl: asks for .*mkdir, which is refused"):
        restricted_pickle.load(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists(), "the attack itself works"


@pytest.mark.parametrize(
    "attack",
    [
        Attack(eval, "1"),
        Attack(getattr, "", "format"),
        Attack(__import__, "os"),
        Attack(np.load, "x.npy"),
        Attack(np.ndarray, (2,), "O"),
        Attack(np.dtype, [("a", "O")]),
        Attack(np.dtype, "O"),
        np.array([object], dtype=object),
        np.zeros(2, dtype=[("a", "u1"), ("b", "u1")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
    ids=repr,
)
def test_other_callables_and_odd_arrays_are_refused(attack):
    with pytest.raises(DataError):
        restricted_pickle.loads(pickle.dumps(attack), "x")


def test_allowed_names_cannot_be_changed():
    # BUILD with the state (None, {"_check": str}) is setattr(numpy.dtype's stand-in, "_check", str)
    build = b"\x80\x02cnumpy\ndtype\nN}X\x06\x00\x00\x00_checkcbuiltins\nstr\ns\x86b."
    with pytest.raises(DataError, match="change"):
        restricted_pickle.loads(build, "x")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "f4", "?", "S3", "U3"])
def test_numeric_arrays_come_back(protocol, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    content = {
        "plain": values,
        "fortran": np.asfortranarray(values),
        "part": values[:, 1],
        "empty": values[:0],
        "scalar": values[1, 2, 3],
        "many": [values[0], (values[1], b"\xff\x00bytes", "text", {1, 2}, None, 1.5)],
        "order": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, n01=[1, 2]),
    }
    back = restricted_pickle.loads(pickle.dumps(content, protocol), "x")
    assert list(back) == list(content)
    for name in ("plain", "fortran", "part", "empty", "scalar"):
        np.testing.assert_array_equal(back[name], content[name])
        assert back[name].dtype.newbyteorder("=") == content[name].dtype.newbyteorder("=")
    np.testing.assert_array_equal(back["many"][0], values[0])
    np.testing.assert_array_equal(back["many"][1][0], values[1])
    assert back["many"][1][1:] == content["many"][1][1:]
    assert back["order"] == content["order"]
    assert back["default"] == content["default"]


def test_arrays_of_python_2_are_read():
    # {'data': np.arange(4, dtype=uint8)} as Python 2 writes it: raw bytes in a str.
    old = (
        b"\x80\x02}q\x00U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x04\x85q\x08cnumpy\ndtype\nq\t"
        b"U\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
        b"\x00tq\x0ebI00\nU\x04\x00\x01\xfe\xffq\x0ftq\x10bs."
    )
    np.testing.assert_array_equal(restricted_pickle.loads(old, "x")["data"], [0, 1, 254, 255])


def test_a_lying_shape_is_refused():
    honest = pickle.dumps(np.zeros(4, np.uint8), protocol=2)
    lying = honest.replace(b"K\x01K\x04\x85", b"K\x01M\xff\xff\x85")
    assert lying != honest
    with pytest.raises(DataError):
        restricted_pickle.loads(lying, "x")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
@example(b"")
@example(pickle.dumps([np.zeros(3)])[:-9])
def test_a_damaged_pickle_is_a_data_error(data):
    try:
        restricted_pickle.loads(data, "x")
    except DataError as error:
        assert "\n" not in str(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pkl"):
        restricted_pickle.load(tmp_path / "none.pkl")
