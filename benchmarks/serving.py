"""What the service adds to the work itself, what a registered set saves, what batching gains.

    python -m benchmarks.serving [overhead] [batching] [registered] [--rounds 5] [--threads 1] \\
        [--workers 1 [--pin]]

One run measures everything, arms taking turns, and reports medians over the rounds and medians of
each round's ratios. Beside the clock stands the server's CPU time, which a busy machine disturbs
less; the client's own is in neither. Floor = parse + decode + bare sessions, each alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.floor import Case, Floor, timed
from benchmarks.load import Run, Server, serving
from models_zoo.cards import list_cards

LARGE = Case("stanet-cifar100", way=5, shot=5, queries=15, shown=32)
SMALL = Case("prototypical-omniglot", way=5, shot=1, queries=15, shown=105)
#: Of several kinds of learners: what a registered set saves is most where adapting costs most.
STORED = [
    Case(model, way=5, shot=5, queries=5, shown=32 if "cifar" in model else 105)
    for model in (
        "stanet-cifar100",
        "stanet-omniglot",
        "prototypical-omniglot",
        "mmnet-omniglot",
        "snail-omniglot",
        "maml-omniglot",
    )
]
PARTS = ("parse", "decode", "sessions", "stages", "answer")
WHAT = ("registered", "overhead", "batching")
CONCURRENCY = (1, 8, 64)
ASIDE = 8  # connections of the comparisons that are not about concurrency

#: Measured arm -> (seconds by the clock, seconds of CPU time) of a request, one per round.
Arms = dict[str, list[tuple[float, float]]]


def overhead(floor: Floor, server: Server, rounds: int, requests: int) -> Arms:
    """The floor's parts, and whole requests one at a time and several at once."""
    arms: Arms = defaultdict(list)
    for _ in range(rounds):
        for part in PARTS:
            arms[part].append(timed(getattr(floor, part), max(4, requests // 4)))
        for connections in (1, ASIDE):
            run = server.run(floor.request, requests, connections)
            arms[f"http {connections}"].append(seconds_of(run))
    return arms


def batching(floor: Floor, on: Server, off: Server, rounds: int, requests: int) -> Arms:
    arms: Arms = defaultdict(list)
    for i in range(rounds):
        for connections in CONCURRENCY:
            turns = [("on", on), ("off", off)]
            for name, server in turns if i % 2 else reversed(turns):
                run = server.run(floor.request, max(requests, 2 * connections), connections)
                arms[f"{name} {connections}"].append(seconds_of(run))
    return arms


def registered(floor: Floor, server: Server, rounds: int, requests: int) -> Arms:
    """Sending the support set each time, and asking the registered one; both floors."""
    made = json.loads(server.ask(floor.create()))
    stored = floor.ask_stored(f"/v1/support-sets/{made['support_set']['id']}")
    server.ask(stored)
    arms: Arms = defaultdict(list)
    server.run(stored, requests, ASIDE)  # every worker keeps what it learns
    for _ in range(rounds):
        for name, request in (("stateless", floor.request), ("registered", stored)):
            arms[name].append(seconds_of(server.run(request, requests, ASIDE)))
            parts = [partial(getattr(floor, p), request is stored) for p in PARTS[:3]]
            each = [timed(part, max(4, requests // 4)) for part in parts]
            arms[f"floor {name}"].append((sum(t[0] for t in each), sum(t[1] for t in each)))
    return arms


def seconds_of(run: Run) -> tuple[float, float]:
    return run.seconds, run.cpu_seconds


def ratio(arms: Arms, over: Sequence[str], under: Sequence[str], clock: int) -> float:
    """Median over the rounds of the sums' ratio; clock 0 is the wall's, 1 the CPU's."""
    each = zip(*(arms[name] for name in (*over, *under)), strict=True)
    sums = ((row[: len(over)], row[len(over) :]) for row in each)
    return median(sum(a[clock] for a in up) / sum(b[clock] for b in down) for up, down in sums)


def summary(arms: Arms) -> dict[str, dict[str, float]]:
    """Milliseconds of one request, by arm."""
    return {
        name: {
            "wall_ms": round(median(run[0] for run in runs) * 1000, 3),
            "cpu_ms": round(median(run[1] for run in runs) * 1000, 3),
        }
        for name, runs in arms.items()
    }


def both(arms: Arms, over: Sequence[str], under: Sequence[str]) -> dict[str, float]:
    return {
        "wall": round(ratio(arms, over, under, 0), 3),
        "cpu": round(ratio(arms, over, under, 1), 3),
    }


def measure(
    what: Sequence[str], rounds: int, requests: int, threads: int, workers: int, pinned: bool
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Title and result of each comparison, as they come."""
    cards = list_cards()
    cases = [LARGE, SMALL] if set(what) - {"registered"} else []
    cases += STORED if "registered" in what else []
    floors = {case: Floor(case, cards[case.model], threads) for case in cases}
    settings = {"device": "cpu", "threads": threads, "queue_images": 10**6, "workers": workers}
    settings["pin_workers"] = pinned
    with serving(**settings) as on, serving(**settings, batching=False) as off:
        for floor in floors.values():  # models load, shapes are seen once
            for server in (on, off):
                server.run(floor.request, 16 * workers, ASIDE)
        for case in STORED if "registered" in what else ():
            arms = registered(floors[case], on, rounds, requests)
            yield (
                f"registered: {case.name}",
                {
                    "request": summary(arms),
                    "stateless / registered": both(arms, ["stateless"], ["registered"]),
                    "the same of the floors": both(arms, ["floor stateless"], ["floor registered"]),
                },
            )
        for case in (LARGE, SMALL):
            if "overhead" in what:
                arms = overhead(floors[case], on, rounds, requests)
                yield (
                    f"overhead: {case.name}",
                    {
                        "request": summary(arms),
                        "bare sessions / http": both(arms, ["sessions"], [f"http {ASIDE}"]),
                        "http / floor": both(arms, [f"http {ASIDE}"], PARTS[:3]),
                    },
                )
            if "batching" in what:
                arms = batching(floors[case], on, off, rounds, requests)
                ratios = {
                    f"off / on at {n}": both(arms, [f"off {n}"], [f"on {n}"]) for n in CONCURRENCY
                }
                yield f"batching: {case.name}", {"request": summary(arms), **ratios}


def table(title: str, result: dict[str, dict[str, Any]]) -> Table:
    made = Table(title=title, title_justify="left", min_width=60)
    made.add_column("")
    made.add_column("clock", justify="right")
    made.add_column("CPU", justify="right")
    for name, run in result["request"].items():
        made.add_row(name, f"{run['wall_ms']:.2f} ms", f"{run['cpu_ms']:.2f} ms")
    made.add_section()
    for name, value in result.items():
        if name != "request":
            made.add_row(name, f"{value['wall']:.2f}", f"{value['cpu']:.2f}", style="bold")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"which of {', '.join(WHAT)}; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64, help="of each arm in each round")
    parser.add_argument("--threads", type=int, default=1, help="of each model run")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--pin", action="store_true", help="each to cores of its own")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    wanted = parser.parse_args()
    what = wanted.what or WHAT
    if unknown := set(what) - set(WHAT):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(WHAT)}")
    console, found = Console(), {}
    sizes = (wanted.rounds, wanted.requests, wanted.threads, wanted.workers, wanted.pin)
    for title, result in measure(what, *sizes):
        found[title] = result
        if not wanted.json:
            console.print(table(title, result))
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
