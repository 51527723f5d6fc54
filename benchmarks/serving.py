"""What the service adds to the work itself, what a registered set saves, what batching gains.

    python -m benchmarks.serving [overhead] [batching] [registered] [--rounds 5] [--threads 1] \\
        [--workers 1 [--pin]] [--one-core] [--model ID...]

One run measures everything, arms taking turns, and reports medians over the rounds and medians of
each round's ratios, with the least and the largest. Beside the clock stands the server's CPU time,
which a busy machine disturbs less; the client's own is in neither. Floor = parse + decode + bare
sessions, each alone. `--one-core`: floor and server have the first core, and the client the others,
so that the clock compares like with like.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.floor import Case, Floor, timed
from benchmarks.load import Request, Server, kept_to, serving
from benchmarks.untrained import ID as RESNET12
from benchmarks.untrained import zoo
from models_zoo.cards import list_cards

RESNET = Case(RESNET12, way=5, shot=5, queries=15, shown=84)
LARGE = Case("stanet-cifar100", way=5, shot=5, queries=15, shown=32)
SMALL = Case("prototypical-omniglot", way=5, shot=1, queries=15, shown=105)
#: Of several kinds of learners: what a registered set saves is most where adapting costs most.
STORED = [
    Case(model, way=5, shot=5, queries=5, shown=shown)
    for model, shown in (
        ("stanet-cifar100", 32),
        ("stanet-cifar100", 256),
        ("stanet-omniglot", 105),
        ("prototypical-omniglot", 105),
        ("mmnet-omniglot", 105),
        ("snail-omniglot", 105),
        ("maml-omniglot", 105),
    )
]
PARTS = ("parse", "decode", "sessions", "stages", "answer")
WHAT = ("registered", "overhead", "batching")
CONCURRENCY = (1, 8, 64)
ASIDE = 8  # connections of the comparisons that are not about concurrency

#: Measured arm -> (seconds by the clock, seconds of CPU time) of a request, one per round.
Arms = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Bench:
    """How much of each arm there is in a run, of which models (none: all), and where: the cores of
    the work and the client's."""

    rounds: int
    requests: int
    models: Sequence[str] = ()
    work: set[int] | None = None
    client: set[int] | None = None

    def of(self, cases: Iterable[Case]) -> list[Case]:
        return [case for case in cases if case.model in self.models or not self.models]

    def alone(self, part: Callable[[], None]) -> tuple[float, float]:
        with kept_to(self.work):
            return timed(part, max(4, self.requests // 4))

    def asked(self, server: Server, request: Request, connections: int) -> tuple[float, float]:
        with kept_to(self.client):
            run = server.run(request, max(self.requests, 2 * connections), connections)
        return run.seconds, run.cpu_seconds


def overhead(floor: Floor, server: Server, bench: Bench) -> Arms:
    """The floor's parts, and whole requests one at a time and several at once."""
    arms: Arms = defaultdict(list)
    for _ in range(bench.rounds):
        for part in PARTS:
            arms[part].append(bench.alone(getattr(floor, part)))
        for connections in (1, ASIDE):
            arms[f"http {connections}"].append(bench.asked(server, floor.request, connections))
    return arms


def batching(floor: Floor, servers: Sequence[Server], bench: Bench) -> Arms:
    """With and without; and without once more, by another server, for what chance does."""
    arms: Arms = defaultdict(list)
    turns = list(zip(("on", "off", "off again"), servers, strict=True))
    for i in range(bench.rounds):
        for connections in CONCURRENCY:
            for name, server in turns[i % 3 :] + turns[: i % 3]:
                taken = bench.asked(server, floor.request, connections)
                arms[f"{name} {connections}"].append(taken)
    return arms


def registered(floor: Floor, server: Server, bench: Bench) -> Arms:
    """Sending the support set each time, and asking the registered one; both floors."""
    made = json.loads(server.ask(floor.create()))
    stored = floor.ask_stored(f"/v1/support-sets/{made['support_set']['id']}")
    server.ask(stored)
    arms: Arms = defaultdict(list)
    server.run(stored, bench.requests, ASIDE)  # every worker keeps what it learns
    for _ in range(bench.rounds):
        for name, request in (("stateless", floor.request), ("registered", stored)):
            arms[name].append(bench.asked(server, request, ASIDE))
            parts = [partial(getattr(floor, p), request is stored) for p in PARTS[:3]]
            each = [bench.alone(part) for part in parts]
            arms[f"floor {name}"].append((sum(t[0] for t in each), sum(t[1] for t in each)))
    return arms


def ratios(arms: Arms, over: Sequence[str], under: Sequence[str], clock: int) -> list[float]:
    """Of the sums, in each round; clock 0 is the wall's, 1 the CPU's."""
    each = zip(*(arms[name] for name in (*over, *under)), strict=True)
    sums = ((row[: len(over)], row[len(over) :]) for row in each)
    return [sum(a[clock] for a in up) / sum(b[clock] for b in down) for up, down in sums]


def summary(arms: Arms) -> dict[str, dict[str, float]]:
    """Milliseconds of one request, by arm."""
    return {
        name: {
            "wall_ms": round(median(run[0] for run in runs) * 1000, 3),
            "cpu_ms": round(median(run[1] for run in runs) * 1000, 3),
        }
        for name, runs in arms.items()
    }


def both(arms: Arms, over: Sequence[str], under: Sequence[str]) -> dict[str, list[float]]:
    """Median, least and largest of the rounds' ratios."""
    return {
        name: [round(each(ratios(arms, over, under, clock)), 3) for each in (median, min, max)]
        for clock, name in enumerate(("wall", "cpu"))
    }


def measure(
    what: Sequence[str], bench: Bench, threads: int, workers: int, pinned: bool
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Title and result of each comparison, as they come."""
    stored = bench.of(STORED if "registered" in what else ())
    whole = bench.of([RESNET, LARGE, SMALL] if "overhead" in what else ())
    joined = bench.of([LARGE, SMALL] if "batching" in what else ())
    cases = {*stored, *whole, *joined}
    settings = {"device": "cpu", "threads": threads, "queue_images": 10**6, "workers": workers}
    settings["pin_workers"] = pinned
    with zoo({case.model for case in cases}) as root, ExitStack() as stack:
        cards = list_cards(root)
        floors = {case: Floor(case, cards[case.model], root, threads) for case in cases}
        with kept_to(bench.work):
            on = stack.enter_context(serving(**settings, zoo=root))
            others = [
                stack.enter_context(serving(**settings, zoo=root, batching=False))
                for _ in range(2 * ("batching" in what))
            ]
        for floor in floors.values():  # models load, shapes are seen once
            for server in (on, *others):
                server.run(floor.request, 16 * workers, ASIDE)
        for case in stored:
            arms = registered(floors[case], on, bench)
            yield (
                f"registered: {case.name}",
                {
                    "request": summary(arms),
                    "stateless / registered": both(arms, ["stateless"], ["registered"]),
                    "the same of the floors": both(arms, ["floor stateless"], ["floor registered"]),
                },
            )
        for case in whole:
            arms = overhead(floors[case], on, bench)
            yield (
                f"overhead: {case.name}",
                {
                    "request": summary(arms),
                    "bare sessions / http": both(arms, ["sessions"], [f"http {ASIDE}"]),
                    "http / floor": both(arms, [f"http {ASIDE}"], PARTS[:3]),
                },
            )
        for case in joined:
            arms = batching(floors[case], [on, *others], bench)
            found = {
                f"{over} / {under} at {n}": both(arms, [f"{over} {n}"], [f"{under} {n}"])
                for over, under in (("off", "on"), ("off", "off again"))
                for n in CONCURRENCY
            }
            yield f"batching: {case.name}", {"request": summary(arms), **found}


def table(title: str, result: dict[str, dict[str, Any]]) -> Table:
    made = Table(title=title, title_justify="left", min_width=80)
    made.add_column("")
    made.add_column("clock", justify="right")
    made.add_column("CPU", justify="right")
    for name, run in result["request"].items():
        made.add_row(name, f"{run['wall_ms']:.2f} ms", f"{run['cpu_ms']:.2f} ms")
    made.add_section()
    for name, value in result.items():
        if name != "request":
            cells = ("{:.2f} ({:.2f} to {:.2f})".format(*value[clock]) for clock in ("wall", "cpu"))
            made.add_row(name, *cells, style="bold")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"which of {', '.join(WHAT)}; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64, help="of each arm in each round")
    parser.add_argument("--threads", type=int, default=1, help="of each model run")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--pin", action="store_true", help="each to cores of its own")
    parser.add_argument(
        "--one-core", action="store_true", help="floor and server on one, the client on the others"
    )
    parser.add_argument("--model", action="append", default=[], help="of this alone; repeatable")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    wanted = parser.parse_args()
    what = wanted.what or WHAT
    if unknown := set(what) - set(WHAT):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(WHAT)}")
    known = {case.model for case in (RESNET, LARGE, SMALL, *STORED)}
    if unknown := set(wanted.model) - known:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(sorted(known))}")
    console, found = Console(), {}
    bench = Bench(wanted.rounds, wanted.requests, wanted.model)
    if wanted.one_core:
        first, *others = sorted(os.sched_getaffinity(0))
        bench = replace(bench, work={first}, client=set(others) or {first})
    sizes = (wanted.threads, wanted.workers, wanted.pin)
    for title, result in measure(what, bench, *sizes):
        found[title] = result
        if not wanted.json:
            console.print(table(title, result))
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
