"""Sets to test with, and their time."""

from __future__ import annotations

from fastapi.testclient import TestClient

from tests.service.asking import encoded, make_set, noise, task

QUERIES = [encoded(noise(900)), encoded(noise(901))]


class Clock:
    """Time that tests move."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def made(
    client: TestClient, support: list[tuple[str, bytes]] | None = None, **fields: object
) -> str:
    response = make_set(client, task() if support is None else support, **fields)
    assert response.status_code == 201, response.text
    set_id: str = response.json()["support_set"]["id"]
    return set_id
