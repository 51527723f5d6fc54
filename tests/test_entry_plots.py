"""`fewshot plot attention`, `similarity` and `embedding`: the numbers behind each picture worked
out again, pictures that open, and one line for a mistake."""

from __future__ import annotations

import csv
import glob
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

import fewshot
from models_zoo.cards import find_card
from models_zoo.episode import Support
from models_zoo.optimization.inner_loop import InnerLoop
from models_zoo.preprocess import to_pixels
from models_zoo.weights import load_learner
from service.attention_rows import EXAMPLES
from service.commands.plots import attention, vectors_of
from tests.service.asking import encoded, noise
from tests.service.zoo import build_zoo
from training.plots import label

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
HOOK = SAMPLES / "queries" / "hook.png"


def plot(*arguments: object) -> Result:
    return CliRunner().invoke(fewshot.app, ["plot", *map(str, arguments)])


def rows_of(picture: Path) -> list[dict[str, str]]:
    """The CSV beside a picture; the picture is checked to be one, with something on it."""
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > 400
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
    with picture.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawings of each glyph."""
    folder = tmp_path_factory.mktemp("drawn")
    subprocess.run([sys.executable, SAMPLES / "draw.py", folder, "12"], check=True)
    assert len(list(folder.glob("support/*/*.png"))) == 3 * 12
    return folder


def colours(seed: int) -> NDArray[np.uint8]:
    """An image `[16, 16, 3]`, brighter in one place than in others."""
    image = noise(seed, (16, 16, 3)) // 4
    image[4 * (seed % 4) :][:4] += 120
    return image


@pytest.fixture
def task(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.uint8]], list[Path]]:
    """Folder, its images by path below it, and queries. The classes' order is not the alphabet's
    alone: sorted by path, both examples of a class stand together."""
    images = {name: colours(i) for i, name in enumerate(("a/1.png", "a/2.png", "b/1.png"))}
    for name, image in images.items():
        (tmp_path / "support" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "support" / name).write_bytes(encoded(image))
    queries = []
    for i in (7, 8):
        queries.append(tmp_path / f"{i}.png")
        queries[-1].write_bytes(encoded(colours(i)))
    return tmp_path / "support", images, queries


def pooled(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The test zoo's features: the mean brightness of 4 x 4 places, `[16]`."""
    grey = image.astype(float).mean(2) / 255
    return np.array([grey[y : y + 4, x : x + 4].mean() for y in range(0, 16, 4)
                     for x in range(0, 16, 4)])  # fmt: skip


def softmax(values: list[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(values) / np.exp(values).sum()


def test_attention_s_numbers_are_the_entry_s(
    zoo: Path, task: tuple[Path, dict[str, NDArray[np.uint8]], list[Path]], tmp_path: Path
) -> None:
    support, images, queries = task
    out = tmp_path / "a.png"
    start = ("attention", "--zoo", zoo, "--model", "attentive", "--support", support)
    done = plot(*start, "--query", *queries, "--out", out)
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    assert len(rows) == 2 * 2 * (1 + 3)  # queries, layers, images
    for row in rows:
        query = pooled(colours(int(row["query"][0])))
        place = np.array([float(row[f"{y} {x}"]) for y in range(4) for x in range(4)])
        if row["image"] == row["query"]:
            assert (row["class"], row["task attention"]) == ("", "")
            assert place == pytest.approx(softmax(query), abs=1e-5)
            continue
        name = "/".join(Path(row["image"]).parts[-2:])
        assert row["class"] == name[0]
        scale = {"1": 1, "2": 3}[row["layer"]]
        weights = softmax([scale * pooled(image) @ query for image in images.values()])
        assert float(row["task attention"]) == pytest.approx(
            weights[list(images).index(name)], abs=1e-5
        )
        assert place == pytest.approx(softmax(pooled(images[name])), abs=1e-5)


def test_of_many_examples_the_heaviest_are_shown(zoo: Path, tmp_path: Path) -> None:
    for i in range(15):
        path = tmp_path / "support" / "abc"[i // 5] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(colours(i)))
    found = attention("attentive", tmp_path / "support", [HOOK], zoo, None)
    assert f"{EXAMPLES} of 15" in found.title
    assert len(found.table) == 2 * (1 + 15)
    (rows,) = found.blocks
    assert [len(tiles) for _, tiles in rows] == [1 + EXAMPLES] * 3
    for number in (1, 2):
        shown = sorted(tile[2] for tile in rows[number][1][1:])  # type: ignore[type-var]
        every = sorted(row[4] for row in found.table if row[1] == number and row[4] != "")
        assert shown == pytest.approx(every[-EXAMPLES:])


@pytest.mark.parametrize(("model", "rows"), [("stanet-omniglot", 4), ("mmnet-omniglot", 1)])
def test_shipped_entries_show_the_attention_they_have(
    model: str, rows: int, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "a.png"
    done = plot("attention", "--model", model, "--support", SAMPLES / "support.zip", HOOK,
                "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    table = rows_of(out)
    assert ("6 6" in table[0]) == (rows > 1)
    for layer in {row["layer"] for row in table}:
        weights = {row["image"]: float(row["task attention"]) for row in table
                   if row["class"] and row["layer"] == layer}  # fmt: skip
        assert sum(weights.values()) == pytest.approx(1, abs=1e-4)
        assert sum(v for name, v in weights.items() if "hook" in name) > 0.5
    (found,) = attention(model, SAMPLES / "support", [HOOK], None, None).blocks
    assert len(found) == rows
    assert found[0][1][0][1].splitlines()[:2] == ["hook.png", "hook"]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("stanet-omniglot", ["images", "layer 1", "layer 2", "layer 3"]),
        ("maml-omniglot", ["images", "gradient map"]),
        ("sca-omniglot", ["images", "gradient map"]),
    ],
)
def test_every_row_under_a_map_says_which(model: str, names: list[str], tmp_path: Path) -> None:
    found = attention(model, SAMPLES / "support", [HOOK], None, None)
    assert [[name for name, _ in block] for block in found.blocks] == [names]
    assert ("gradient map: where the answer comes from" in found.title) == (len(names) == 2)


@pytest.mark.parametrize("examples", [2, 9])
def test_nothing_touches_the_edges(examples: int, tmp_path: Path) -> None:
    """Neither the last image, nor a title that is longer than the images."""
    support = SAMPLES / "support"
    if examples == 2:
        support = tmp_path / "support"
        for glyph in ("cross", "hook"):
            (support / glyph).mkdir(parents=True)
            shutil.copy(SAMPLES / "support" / glyph / "1.png", support / glyph)
    out = tmp_path / "a.png"
    done = plot("attention", "--model", "maml-omniglot", "--support", support, HOOK, "--out", out)
    assert done.exit_code == 0, done.output
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("L"))
    marked = np.flatnonzero(pixels.min(0) < 250)
    assert marked[0] >= 16 and pixels.shape[1] - 1 - marked[-1] >= 16


def test_similarity_is_the_last_layer_s_attention(
    zoo: Path, task: tuple[Path, dict[str, NDArray[np.uint8]], list[Path]], tmp_path: Path
) -> None:
    support, images, queries = task
    out = tmp_path / "s.png"
    start = ("similarity", "--zoo", zoo, "--support", support, "--query", *queries, "--out", out)
    assert plot(*start, "--model", "attentive").exit_code == 0
    rows = rows_of(out)
    assert [row["class"] for row in rows] == ["a", "a", "b"]
    for query in queries:
        asked = pooled(colours(int(query.name[0])))
        weights = softmax([3 * pooled(image) @ asked for image in images.values()])
        assert [float(row[query.name]) for row in rows] == pytest.approx(weights, abs=1e-5)
    # By the encoder, where that is asked for, and where the entry has no attention.
    inverted: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda x: 1 - x  # noqa: E731
    for model, extra, turn in (("attentive", ["--cosine"], lambda x: x), ("mean", [], inverted)):
        done = plot(*start, "--model", model, *extra)
        assert done.exit_code == 0, done.output
        for row, image in zip(rows_of(out), images.values(), strict=True):
            for query in queries:
                x, y = turn(pooled(image)), turn(pooled(colours(int(query.name[0]))))
                cosine = x @ y / np.sqrt((x @ x) * (y @ y))
                assert float(row[query.name]) == pytest.approx(cosine, abs=2e-3)


def test_names_of_any_kind_are_drawn(zoo: Path, tmp_path: Path) -> None:
    """A pair of dollars is a formula to matplotlib, and a class "_b" none to its legends."""
    for i in range(8):
        path = tmp_path / "images" / ("$\\frac$", "_b" * 40)[i % 2] / f"{i}$x_$.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(colours(i)))
    entry = ("--zoo", zoo, "--model", "attentive")
    asked = ("--support", path.parents[1], path)
    for command, options in (
        ("attention", asked), ("similarity", asked), ("embedding", ("--images", path.parents[1]))
    ):  # fmt: skip
        out = tmp_path / f"{command}.png"
        done = plot(command, *entry, *options, "--out", out)
        assert done.exit_code == 0, done.output
        assert {row["class"] for row in rows_of(out)} - {""} == {"$\\frac$", "_b" * 40}
    assert label("_b").strip() == "_b" and label("_b") != "_b"


def test_queries_called_alike_are_told_apart(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    queries = sorted(drawn.glob("support/*/[45].png"))
    done = plot("similarity", "--model", "stanet-omniglot", "--support", SAMPLES / "support",
                *queries, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    names = [f"{glyph}/{i}.png" for glyph in ("cross", "hook", "loop") for i in (4, 5)]
    assert list(rows[0]) == ["example", "class", *names]
    for name in names:
        assert sum(float(row[name]) for row in rows) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("model", ["maml-omniglot", "metasgd-omniglot"])
def test_similarity_after_adaptation_is_that_of_the_last_layer(
    model: str, drawn: Path, tmp_path: Path
) -> None:
    """Worked out again by the learner itself, in PyTorch."""
    out, card = tmp_path / "s.png", find_card(model)
    queries = sorted(drawn.glob("support/*/4.png"))
    done = plot("similarity", "--model", model, "--support", SAMPLES / "support", *queries,
                "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = rows_of(out)

    def pixels(paths: list[Path]) -> torch.Tensor:
        images = [to_pixels(Image.open(path), card.input) for path in paths]
        return torch.from_numpy(np.stack(images))[None].float() / 255

    examples = [SAMPLES / "support" / "/".join(Path(row["example"]).parts[-2:]) for row in rows]
    labels = [sorted({row["class"] for row in rows}).index(row["class"]) for row in rows]
    learner = load_learner(card)
    assert isinstance(learner, InnerLoop) and card.adaptation is not None
    with torch.no_grad():
        support = Support.of(pixels(examples), torch.tensor([labels]))
        state = learner.adapt(support, torch.tensor(card.adaptation.rates))
        shown = pixels([*examples, *queries])
        features = learner.network.follow(state, shown)[-1][1].mean((2, 3))[0]
    units = torch.nn.functional.normalize(features)
    cosines = units[: len(rows)] @ units[len(rows) :].mT
    columns = [name for name in rows[0] if name not in ("example", "class")]
    found = [[float(row[name]) for name in columns] for row in rows]
    assert np.array(found) == pytest.approx(cosines.numpy(), abs=1e-4)
    best = cosines.view(3, 3, 3).mean(1).argmax(0)  # class by query; of each class one is asked
    assert best.tolist() == [0, 1, 2]


@pytest.mark.parametrize("model", ["prototypical-omniglot", "maml-omniglot"])
def test_an_embedding_keeps_neighbours(model: str, drawn: Path, tmp_path: Path) -> None:
    """The drawings lie in the plane beside others of their class, as they do for the encoder, or
    for the network before its first step."""
    out = tmp_path / "e.png"
    done = plot("embedding", "--model", model, "--images", drawn / "support", "--out", out)
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    assert len(rows) == len({row["image"] for row in rows}) == 36
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(36)
    right = [rows[i]["class"] == rows[int(j)]["class"] for i, j in enumerate(apart.argmin(1))]
    assert np.mean(right) > 0.9


def test_a_feature_map_is_flattened_and_of_tokens_the_image_s_is_taken() -> None:
    maps = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    assert vectors_of(maps).tolist() == [list(range(12)), list(range(12, 24))]
    assert np.array_equal(vectors_of(maps[:, :, 0, 0]), maps[:, :, 0, 0])
    tokens = maps.reshape(2, 4, 3)
    assert np.array_equal(vectors_of(tokens), tokens[:, 0])


def mistakes(folder: Path) -> dict[str, tuple[str, list[object], str]]:
    """By name: the command, its options, and what the line says."""
    text, empty, few = folder / "text.png", folder / "empty", folder / "few"
    text.write_text("text")
    empty.mkdir()
    (folder / "bad" / "a").mkdir(parents=True)
    (folder / "bad" / "a" / "1.png").write_text("text")
    for i in range(3):
        (few / str(i)).mkdir(parents=True)
        (few / str(i) / "1.png").write_bytes(encoded(noise(i)))
    for i in range(40):
        (folder / "many" / f"{i:02}").mkdir(parents=True)
        (folder / "many" / f"{i:02}" / "1.png").write_bytes(encoded(noise(i)))
        (folder / "alike" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (folder / "alike" / str(i % 2) / f"{i}.png").write_bytes(encoded(noise(0)))
    asks = ["--support", SAMPLES / "support", "--query", HOOK]
    drawings = ["--images", SAMPLES / "support"]
    found: dict[str, tuple[str, list[object], str]] = {
        "no attention": ("attention", [*asks, "--model", "mean"], "mean has no attention"),
        "no attention, no encoder": (
            "similarity", [*asks, "--model", "descent"], "no linear head"
        ),
        "no encoder": ("embedding", [*drawings, "--model", "descent"], "no linear head"),
        "many queries": (
            "attention", ["--support", SAMPLES / "support", "--query", *[HOOK] * 7], "room for 6"
        ),
        "few images": ("embedding", ["--images", few], "3 images"),
        "many classes": ("embedding", ["--images", folder / "many"], "40 classes"),
        "images alike": ("embedding", ["--images", folder / "alike"], "none of these"),
        "empty folder to embed": ("embedding", ["--images", empty], f"{empty} holds no files"),
        "no image to embed": ("embedding", ["--images", folder / "bad"], "not an image"),
        "unknown model to embed": (
            "embedding", [*drawings, "--model", "nope"], "unknown model 'nope'"
        ),
        "no PNG to embed": ("embedding", [*drawings, "--out", folder / "a.svg"], ".png"),
    }  # fmt: skip
    for command in ("attention", "similarity"):
        found |= {
            f"{command}: {name}": (command, options, part)
            for name, (options, part) in {
                "unknown model": ([*asks, "--model", "nope"], "unknown model 'nope'"),
                "no query": (["--support", SAMPLES / "support"], "--query"),
                "empty folder": (["--support", empty, "--query", HOOK], f"{empty} holds no files"),
                "no folder": (["--support", folder / "no", "--query", HOOK], "no such folder"),
                "no images asked": (["--support", SAMPLES / "support", empty], "holds no images"),
                "not an image": (["--support", SAMPLES / "support", text], "text.png"),
                "no such image": (["--support", SAMPLES / "support", folder / "no.png"], "no.png"),
                "no PNG": ([*asks, "--out", folder / "a.svg"], ".png"),
            }.items()
        }
    return found


def test_a_mistake_is_one_line_and_exit_code_2(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (command, options, part) in mistakes(tmp_path).items():
        model = [] if "--model" in options else ["--model", "attentive"]
        result = plot(command, "--zoo", zoo, *model, *options)
        assert result.exit_code == 2, (name, result.output)
        assert result.stderr.startswith("fewshot: "), name
        assert result.stderr.count("\n") == 1, (name, result.stderr)
        assert part in result.stderr, (name, result.stderr)
    assert not (tmp_path / "plots").exists()


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "training.plots.embedding", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    result = plot("embedding", "--model", "mmnet-omniglot", "--images", SAMPLES / "support")
    assert result.exit_code == 2
    assert "sklearn is missing" in result.stderr and ".[train]" in result.stderr


def shown_commands() -> list[str]:
    """Those of the help texts and of the README, on one line each."""
    texts = [getattr(fewshot, f"plot_{name}").__doc__ or "" for name in
             ("attention", "similarity", "embedding")]  # fmt: skip
    texts.append((ROOT / "README.md").read_text("utf-8").split("## Pictures")[1])
    joined = "\n".join(texts).replace("\\\n", " ")
    return re.findall(r"fewshot (plot (?:attention|similarity|embedding) .*--.*)", joined)


def test_the_commands_shown_work(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    commands = shown_commands()
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command.replace("/tmp/drawn", str(drawn)))
        expanded = [name for word in words for name in sorted(glob.glob(word)) or [word]]
        out = tmp_path / f"{words[1]}.png"
        result = CliRunner().invoke(fewshot.app, [*expanded, "--out", str(out)])
        assert result.exit_code == 0, (command, result.output)
        rows_of(out)


@pytest.mark.parametrize("name", ["attention", "similarity", "embedding"])
def test_the_readme_s_pictures_are_small(name: str) -> None:
    assert (ROOT / "docs" / f"plot-{name}.png").stat().st_size < 150_000
