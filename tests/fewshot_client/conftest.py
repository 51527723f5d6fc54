"""A real server over the tiny zoo, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewshot_client import Client
from tests.service.process import Server, serving
from tests.service.zoo import build_zoo

PATIENT = 120.0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    zoo = build_zoo(tmp_path_factory.mktemp("zoo"))
    with serving(zoo, folder, "--data-dir", folder / "data") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.base, timeout=PATIENT) as client:
        yield client
