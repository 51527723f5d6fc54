"""What every test is kept from, the data folder and the database of whoever runs it and the signals
that its shell ignores; and the names under which they ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        for name in ("DATABASE_URL", "FEWSHOT_DATABASE_URL", "FEWSHOT_AUTH", "FEWSHOT_ZOO"):
            patch.delenv(name, raising=False)
        # What the tests' clients put into Host.
        patch.setenv("FEWSHOT_ALLOWED_HOSTS", "testserver,test,x")
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heeded() -> None:
    """A shell has what it starts in the background ignore it, and so would all that is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
