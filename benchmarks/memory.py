"""Does the service's memory stay flat? Mixed ways, shots, sizes and models for some minutes.

    python -m benchmarks.memory [--minutes 10] [--connections 4] [--json]

Each connection asks at random: stateless tasks with and without attention, support sets made,
asked, changed and deleted, broken images among them. The process's resident memory is read every
second. After a warm-up of a fifth of the time, in which models load and arenas fill, the medians of
the first and the last quarter are compared. The caches are kept so small (`CACHE_MB` each) that
they are full by then: at their usual bounds they would go on filling up for longer than this runs.
How full they are is printed beside the memory.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.floor import picture
from benchmarks.load import Server, serving
from models_zoo.cards import Card, list_cards

WARM_UP = 0.2
CACHE_MB = 16
SIDES = (28, 32, 105, 300, 1000)
SETS = "/v1/support-sets"


@dataclass
class Load:
    """Connections that ask until they are told to stop; `answers` counts statuses."""

    server: Server
    stop: threading.Event = field(default_factory=threading.Event)
    answers: dict[int, int] = field(default_factory=dict)

    def work(self, seed: int) -> None:
        dice = random.Random(seed)
        cards = list(list_cards().values())
        pictures = [picture(i, dice.choice(SIDES), 1 + 2 * (i % 2)) for i in range(60)]
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=120) as client:
            while not self.stop.is_set():
                for answer in (stored if dice.random() < 0.3 else stateless)(
                    client, dice, cards, pictures
                ):
                    self.answers[answer.status_code] = self.answers.get(answer.status_code, 0) + 1


def episode(
    dice: random.Random, card: Card, pictures: list[bytes]
) -> tuple[list[bytes], list[str], list[bytes]]:
    """Images, labels and queries of a task that the model takes."""
    way = dice.randint(2, min(10, card.limits.max_way))
    labels = [f"class {i}" for i in range(way) for _ in range(dice.choice((1, 1, 2, 5)))]
    images = [dice.choice(pictures) for _ in labels]
    return images, labels, [dice.choice(pictures) for _ in range(dice.choice((1, 3, 15)))]


def files(name: str, images: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, (f"{i}.png", data)) for i, data in enumerate(images)]


def stateless(
    client: httpx.Client, dice: random.Random, cards: list[Card], pictures: list[bytes]
) -> list[httpx.Response]:
    card = dice.choice(cards)
    images, labels, queries = episode(dice, card, pictures)
    if dice.random() < 0.05:
        queries[0] = queries[0][:100]  # a broken image
    form = {
        "model": card.id,
        "support_labels": labels,
        "attention": dice.choice(("none", "none", "maps", "overlay")),
    }
    sent = files("support_images", images) + files("query_images", queries[:3])
    return [client.post("/v1/predictions", data=form, files=sent)]


def stored(
    client: httpx.Client, dice: random.Random, cards: list[Card], pictures: list[bytes]
) -> list[httpx.Response]:
    """A set's life: made, asked of several models, changed, asked again, deleted."""
    card = dice.choice(cards)
    images, labels, queries = episode(dice, card, pictures)
    made = client.post(SETS, data={"labels": labels}, files=files("images", images))
    if made.status_code != 201:
        return [made]
    address = f"{SETS}/{made.json()['support_set']['id']}"
    found = [made]
    for _ in range(dice.randint(1, 6)):
        form = {"model": dice.choice(cards).id}
        found.append(
            client.post(f"{address}/predictions", data=form, files=files("query_images", queries))
        )
    more = files("images", [dice.choice(pictures)])
    found.append(client.post(f"{address}/examples", data={"labels": labels[0]}, files=more))
    found.append(client.delete(address))
    return found


def resident(pid: int) -> float:
    """MB of resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def cached(server: Server) -> float:
    """MB that the caches hold."""
    text = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).text
    return sum(map(float, re.findall(r"^fewshot_cache_bytes{.*} (.+)$", text, re.M))) / 1e6


def measure(minutes: float, connections: int) -> dict[str, object]:
    settings = {"feature_cache_mb": CACHE_MB, "state_cache_mb": CACHE_MB, "queue_images": 100_000}
    with serving(device="cpu", request_timeout_s=120, **settings) as server:
        load = Load(server)
        threads = [threading.Thread(target=load.work, args=(i,)) for i in range(connections)]
        for thread in threads:
            thread.start()
        start, seen = time.monotonic(), list[tuple[float, float, float]]()
        while (now := time.monotonic() - start) < 60 * minutes:
            seen.append((now, resident(server.pid), cached(server)))
            time.sleep(1)
        load.stop.set()
        for thread in threads:
            thread.join()
    warm = [mb for at, mb, _ in seen if at > WARM_UP * 60 * minutes]
    quarter = max(1, len(warm) // 4)
    first, last = median(warm[:quarter]), median(warm[-quarter:])
    step = max(1, len(seen) // 20)
    return {
        "minutes": minutes,
        "answers": dict(sorted(load.answers.items())),
        "mb": [[round(value) for value in row] for row in seen[::step]],
        "first_quarter_mb": round(first, 1),
        "last_quarter_mb": round(last, 1),
        "last / first": round(last / first, 3),
    }


def show(found: dict[str, object]) -> None:
    table = Table(title=f"Resident memory over {found['minutes']:g} minutes", title_justify="left")
    table.add_column("second", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("of it in caches", justify="right")
    for row in found["mb"]:  # type: ignore[attr-defined]
        table.add_row(*map(str, row))
    table.add_section()
    table.add_row("first quarter after the warm-up", str(found["first_quarter_mb"]))
    table.add_row("last quarter", f"{found['last_quarter_mb']} (x {found['last / first']})")
    console = Console()
    console.print(table)
    console.print("Answers by status:", found["answers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    found = measure(wanted.minutes, wanted.connections)
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        show(found)


if __name__ == "__main__":
    main()
