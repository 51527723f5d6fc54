"""What a request must not pay for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.app import NOUNS
from tests.service.asking import encoded, noise, task


def _all(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all(inner)


def test_no_route_or_dependency_is_sent_to_a_thread() -> None:
    """FastAPI runs in a thread whatever is no coroutine, to no end here."""
    routes = [r for noun in NOUNS for r in noun.router.routes if isinstance(r, APIRoute)]
    calls = {one.call for route in routes for one in _all(route.dependant)}
    assert len(calls) > 20

    def is_async(call: object) -> bool:
        return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)

    assert [call for call in calls if not is_async(call)] == []


def test_a_set_is_listed_once_for_each_revision(client: TestClient) -> None:
    """And an edit is seen at once."""
    labels = [label for label, _ in task("ab")]
    files = [("images", (f"{i}.png", data)) for i, (_, data) in enumerate(task("ab"))]
    made = client.post("/v1/support-sets", data={"labels": labels}, files=files)
    address = f"/v1/support-sets/{made.json()['support_set']['id']}"
    listings: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "examples.sha256" in statement and "ORDER BY" in statement:
            listings.append(statement)

    def ask() -> list[str]:
        sent = {"query_images": ("q.png", encoded(noise(90)))}
        answer = client.post(f"{address}/predictions", data={"model": "mean"}, files=sent)
        assert answer.status_code == 200, answer.text
        classes: list[str] = answer.json()["classes"]
        return classes

    engine = client.app.state.store.database.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", note)
    try:
        assert ask() == ask() == ["a", "b"]
        assert len(listings) == 1
        more = {"images": ("c.png", encoded(noise(91)))}
        client.post(f"{address}/examples", data={"labels": "c"}, files=more)
        listings.clear()
        assert ask() == ask() == ["a", "b", "c"]
        assert len(listings) == 1
    finally:
        event.remove(engine, "before_cursor_execute", note)
