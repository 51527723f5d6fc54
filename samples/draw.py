"""Draws the sample images: three made-up glyphs by an unsteady hand. Same files on every run.

    python samples/draw.py [FOLDER [DRAWINGS]]

writes support/<class>/<n>.png, queries/<class>.png and support.zip (the same support images) into
FOLDER, by default this script's own; 3 drawings of each class, or so many.
"""

from __future__ import annotations

import math
import random
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw

Point = tuple[float, float]

SIDE, SCALE, DRAWINGS = 105, 4, 3  # Omniglot's size; drawn larger, then reduced for smooth edges


def arc(x: float, y: float, radius: float, start: float, end: float) -> list[Point]:
    """Points along a circle; angles in degrees, clockwise from the right."""
    turns = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns]


#: Strokes in a unit square.
GLYPHS: dict[str, list[list[Point]]] = {
    "hook": [
        [(0.35, 0.15), (0.35, 0.62), *arc(0.52, 0.62, 0.17, 180, 0)],
        [(0.2, 0.3), (0.6, 0.3)],
    ],
    "cross": [[(0.2, 0.2), (0.8, 0.8)], [(0.78, 0.18), (0.22, 0.82)], [(0.3, 0.5), (0.72, 0.5)]],
    "loop": [
        arc(0.5, 0.38, 0.2, 90, 450),
        [(0.5, 0.58), (0.5, 0.88)],
        [(0.34, 0.76), (0.66, 0.76)],
    ],
}


def draw(glyph: str, seed: str) -> Image.Image:
    """One drawing of a glyph: turned, shifted, stretched and shaken a little by `seed`."""
    hand = random.Random(f"{glyph} {seed}")
    turn = math.radians(hand.uniform(-9, 9))
    wide, high = hand.uniform(0.82, 1.0), hand.uniform(0.82, 1.0)
    shift_x, shift_y = hand.uniform(-0.05, 0.05), hand.uniform(-0.05, 0.05)
    image = Image.new("L", (SIDE * SCALE, SIDE * SCALE), 255)
    pen = ImageDraw.Draw(image)
    for stroke in GLYPHS[glyph]:
        bend_x, bend_y = hand.uniform(-0.03, 0.03), hand.uniform(-0.03, 0.03)
        points = []
        for i, (x, y) in enumerate(refine(stroke)):
            x, y = (x - 0.5) * wide, (y - 0.5) * high
            x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
            sway = math.sin(i / 7)
            x, y = x + 0.5 + shift_x + bend_x * sway, y + 0.5 + shift_y + bend_y * sway
            points.append((x * SIDE * SCALE, y * SIDE * SCALE))
        width = hand.uniform(2.4, 3.2) * SCALE
        pen.line(points, fill=0, width=round(width), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=0)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def refine(stroke: list[Point]) -> list[Point]:
    """The same stroke with points close together, so that it can sway."""
    fine = []
    for (x0, y0), (x1, y1) in pairwise(stroke):
        steps = max(1, round(math.hypot(x1 - x0, y1 - y0) * 40))
        fine += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps)]
    return [*fine, stroke[-1]]


def main(folder: Path, drawings: int = DRAWINGS) -> None:
    for glyph in GLYPHS:
        (folder / "support" / glyph).mkdir(parents=True, exist_ok=True)
        (folder / "queries").mkdir(exist_ok=True)
        for number in range(1, drawings + 1):
            draw(glyph, str(number)).save(folder / "support" / glyph / f"{number}.png")
        draw(glyph, "query").save(folder / "queries" / f"{glyph}.png")
    with zipfile.ZipFile(folder / "support.zip", "w") as archive:
        for path in sorted((folder / "support").rglob("*.png")):
            # A fixed date keeps the archive's bytes the same.
            info = zipfile.ZipInfo(path.relative_to(folder / "support").as_posix())
            archive.writestr(info, path.read_bytes())


if __name__ == "__main__":
    main(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent,
        int(sys.argv[2]) if len(sys.argv) > 2 else DRAWINGS,
    )
