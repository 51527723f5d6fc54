"""A service with small limits, on both databases, whose time the tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from service.store.store import Store
from tests.service.sets.making import Clock


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def client(zoo: Path, database_url: str, clock: Clock) -> Iterator[TestClient]:
    settings = Settings(
        zoo=zoo, device="cpu", threads=1, database_url=database_url, max_body_mb=2, max_files=40,
        max_set_examples=12, max_set_mb=1, max_sets=200,
    )  # fmt: skip
    store = Store(settings)
    store.sets.clock = clock
    with TestClient(create_app(settings, store=store)) as client:
        yield client
