"""From the start of `fewshot serve` to the first 200 of /readyz, with all shipped entries.

    python -m benchmarks.start [--runs 5]

Asked every 50 ms. Files are warm but for the first run of all, which is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

from benchmarks.load import serving
from models_zoo.cards import list_cards


def seconds(workers: int) -> float:
    start = time.perf_counter()
    with serving(device="cpu", workers=workers):
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each number of workers")
    wanted = parser.parse_args()
    seconds(1)
    for workers in (1, 2):
        taken = [seconds(workers) for _ in range(wanted.runs)]
        sys.stdout.write(
            f"{len(list_cards())} entries, workers {workers}: {median(taken):.2f} s "
            f"({min(taken):.2f} to {max(taken):.2f})\n"
        )


if __name__ == "__main__":
    main()
