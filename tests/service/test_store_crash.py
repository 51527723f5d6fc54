"""SIGKILL in the middle of 200 concurrent writes: what was acknowledged is there, and all whole."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import httpx

from tests.service.asking import SETS, encoded, noise
from tests.service.process import Server, serving

WRITES, ENOUGH = 200, 40


def _image(number: int) -> bytes:
    """About 200 kB: written in many pages, so that half of it could be missing."""
    return encoded(noise(number, (256, 256, 3)))


async def _write_until_killed(server: Server, path: str) -> dict[str, str]:
    """Add `WRITES` images at once; kill the server when `ENOUGH` are acknowledged. Returns the
    acknowledged examples: id -> sha256."""
    acknowledged: dict[str, str] = {}

    async def write(client: httpx.AsyncClient, number: int) -> None:
        data = _image(number)
        try:
            response = await client.post(
                path, data={"labels": "ab"[number % 2]}, files={"images": (f"{number}.png", data)}
            )
        except httpx.TransportError:
            return
        assert response.status_code == 201, response.text
        example = response.json()["results"][0]["example"]
        acknowledged[example["id"]] = hashlib.sha256(data).hexdigest()
        if len(acknowledged) == ENOUGH:
            os.kill(server.process.pid, signal.SIGKILL)

    limits = httpx.Limits(max_connections=WRITES)
    async with httpx.AsyncClient(base_url=server.base, timeout=300, limits=limits) as client:
        await asyncio.gather(*(write(client, number) for number in range(WRITES)))
    return acknowledged


def test_acknowledged_examples_survive_sigkill(
    zoo: Path, tmp_path: Path, database_url: str
) -> None:
    flags = ("--database-url", database_url, "--request-timeout-s", 300)
    with serving(zoo, tmp_path, *flags, killed=True) as server:
        made = httpx.post(server.base + SETS, data={"name": "crash"}, timeout=60)
        path = f"{SETS}/{made.json()['support_set']['id']}"
        acknowledged = asyncio.run(_write_until_killed(server, f"{path}/examples"))
    assert ENOUGH <= len(acknowledged) < WRITES

    with (
        serving(zoo, tmp_path, *flags) as server,
        httpx.Client(base_url=server.base, timeout=60) as client,
    ):
        found, cursor = [], None
        while True:
            params = {"cursor": cursor} if cursor else {}
            page = client.get(f"{path}/examples", params=params).json()
            found += page["examples"]
            if (cursor := page["next_cursor"]) is None:
                break
        stored = {one["id"]: one["sha256"] for one in found}
        assert acknowledged.items() <= stored.items()
        for one in found:  # those that were written but not acknowledged are whole as well
            image = client.get(f"{path}/examples/{one['id']}/image").content
            assert hashlib.sha256(image).hexdigest() == one["sha256"]
        shown = client.get(path).json()
        assert shown["examples"] == len(found)
        assert shown["bytes"] == sum(one["bytes"] for one in found)
        assert shown["revision"] == 1 + len(found)
        # Nothing is left locked.
        files = {"images": ("new.png", _image(WRITES))}
        again = client.post(f"{path}/examples", data={"labels": "a"}, files=files)
        assert again.status_code == 201
