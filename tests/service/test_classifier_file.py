"""A task taken away as one ONNX file answers as the service does, with ONNX Runtime alone."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from PIL import ExifTags, Image, ImageOps

from models_zoo.cards import ENTRIES, InputSpec, list_cards, read_file
from models_zoo.preprocess import to_pixels
from service.app import create_app
from service.engine.episode import Answer
from service.engine.onnx import OnnxRuntime
from service.engine.stages import answers
from service.settings import Settings
from service.standalone import Facts, describe_input, standalone
from tests.service.asking import SETS, ask_set, assert_problem, encoded, make_set, noise, task
from tests.service.test_shipped_entries import episode

SAMPLES = Path(__file__).parents[2] / "samples"
SHIPPED = list_cards()

#: Isolated, in an empty folder: nothing of this project can be imported.
BARE = """
import json, sys
import numpy as np
import onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
[images], [probabilities] = session.get_inputs(), session.get_outputs()
found = session.run(None, {"images": np.load(sys.argv[2])})[0]
np.save(sys.argv[3], found)
print(json.dumps({
    "input": [images.name, images.type, images.shape],
    "output": [probabilities.name, probabilities.type, probabilities.shape],
    "metadata": session.get_modelmeta().custom_metadata_map,
    "modules": sorted(m for m in sys.modules if m.partition(".")[0] in ("service", "models_zoo")),
}))
"""


def bare(folder: Path, file: bytes, images: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
    """Run the file where there is nothing but ONNX Runtime and numpy."""
    (folder / "classifier.onnx").write_bytes(file)
    np.save(folder / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-I", "-c", BARE, "classifier.onnx", "images.npy", "found.npy"],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", "")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "found.npy"), json.loads(done.stdout)


def drawings() -> list[Image.Image]:
    """The sample queries, and between each two of them some that are half the one, half the other:
    a model is not sure of all."""
    pure = [Image.open(path).convert("L") for path in sorted((SAMPLES / "queries").glob("*.png"))]
    blends = [
        Image.blend(one, other, part)
        for one, other in combinations(pure, 2)
        for part in (0.3, 0.5, 0.7)
    ]
    return [*pure, *blends]


def answered(client: TestClient, set_id: str, queries: list[bytes], **fields: object) -> np.ndarray:
    """The service's probabilities `[Q, way]`, in the order of the classes."""
    document = ask_set(client, set_id, queries, **fields).json()
    assert "predictions" in document, document
    rows = [
        {p["label"]: p["probability"] for p in q["probabilities"]} for q in document["predictions"]
    ]
    return np.array([[row[label] for label in document["classes"]] for row in rows])


@pytest.fixture(scope="module")
def shipped() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(zoo=ENTRIES, device="cpu", threads=2))) as client:
        yield client


@pytest.fixture(scope="module")
def sample_set(shipped: TestClient) -> str:
    made = make_set(shipped, archive=(SAMPLES / "support.zip").read_bytes())
    set_id: str = made.json()["support_set"]["id"]
    return set_id


@pytest.mark.parametrize("model", SHIPPED)
def test_a_shipped_models_file_answers_alone_as_the_service(
    shipped: TestClient, sample_set: str, model: str, tmp_path: Path
) -> None:
    card = SHIPPED[model]
    spec = card.input
    pictures = drawings()
    pixels = np.stack([to_pixels(picture, spec) for picture in pictures])
    response = shipped.get(f"{SETS}/{sample_set}/classifier.onnx", params={"model": model})
    assert response.status_code == 200, response.text

    found, told = bare(tmp_path, response.content, pixels)
    wanted = answered(shipped, sample_set, [encoded(picture) for picture in pictures], model=model)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert np.ptp(wanted, axis=0).min() > 0.01  # images that it tells apart

    assert told["modules"] == []
    size = [spec.channels, spec.height, spec.width]
    assert told["input"] == ["images", "tensor(uint8)", ["N", *size]]
    assert told["output"] == ["probabilities", "tensor(float)", ["N", 3]]
    metadata = told["metadata"]
    assert isinstance(metadata, dict)
    assert json.loads(metadata["labels"]) == ["cross", "hook", "loop"]
    assert metadata["model"] == f"{model}@{card.version}"
    assert metadata["support_set"] == f"{sample_set}@1"
    assert metadata["license"] == card.license
    assert json.loads(metadata["preprocessing"]).items() >= spec.model_dump(mode="json").items()
    rates = json.loads(metadata.get("inner_lr", "null"))
    assert rates == (card.adaptation and list(card.adaptation.rates))


@pytest.mark.parametrize("model", SHIPPED)
def test_the_file_holds_what_it_needs_and_no_more(
    shipped: TestClient, sample_set: str, model: str
) -> None:
    file = shipped.get(f"{SETS}/{sample_set}/classifier.onnx", params={"model": model}).content
    graph = onnx.load_model_from_string(file).graph
    onnx.checker.check_model(file, full_check=True)
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["probabilities"]
    used = {name for node in graph.node for name in node.input} | {"probabilities"}
    for node in graph.node:
        assert used.intersection(node.output), f"{node.name} is for nothing"
        assert not node.doc_string and not node.metadata_props
    assert {tensor.name for tensor in graph.initializer} <= used
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert "attention" not in " ".join(used)
    for trace in (b".py", b"site-packages", b"stack_trace", b"/home/", b"/tmp/", b"Traceback"):
        assert trace not in file
    weights = sum(SHIPPED[model].files[n].bytes for n in SHIPPED[model].files if n.endswith("x"))
    assert len(file) < 2 * weights


@pytest.mark.parametrize("model", ["mean", "attentive", "descent"])
def test_the_file_of_other_graphs_and_labels(
    client: TestClient, model: str, tmp_path: Path
) -> None:
    """Classes of different shots, labels of any script, steps of one's own."""
    support = [("日本", noise(1)), ("b", noise(2)), ("日本", noise(3)), ("c'\"", noise(4))]
    set_id = make_set(client, [(label, encoded(image)) for label, image in support]).json()[
        "support_set"
    ]["id"]
    own = {"steps": 2, "inner_lr": 0.25} if model == "descent" else {}
    response = client.get(f"{SETS}/{set_id}/classifier.onnx", params={"model": model, **own})
    raw = np.stack([noise(90), noise(91)])
    pixels = {"mean": 255 - raw[:, None], "descent": raw[:, None]}.get(
        model, np.repeat(raw[:, None], 3, axis=1)
    )
    found, told = bare(tmp_path, response.content, pixels)
    queries = [encoded(image) for image in raw]
    wanted = answered(client, set_id, queries, model=model, **own)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    metadata = told["metadata"]
    assert isinstance(metadata, dict)
    assert json.loads(metadata["labels"]) == ["b", "c'\"", "日本"]
    if own:
        assert json.loads(metadata["inner_lr"]) == [0.25, 0.25]


class Reader:
    """Does what `preprocessing` says, step by step, with Pillow and what a stranger knows."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.target = told["width"], told["height"]
        self.resample = Image.Resampling[told["resampling"].partition(",")[0].upper()]

    def pixels(self, image: Image.Image) -> np.ndarray:
        for step in self.told["order"]:
            image = getattr(self, step)(image)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def orientation(self, image: Image.Image) -> Image.Image:
        assert self.told["orientation"] == "upright, by EXIF"
        return ImageOps.exif_transpose(image)

    def depth(self, image: Image.Image) -> Image.Image:
        if image.mode not in ("I;16", "F"):
            return image
        rule = self.told["depth"]
        assert rule.startswith("grey of more than 8 bits: value * 255 / top, rounded, ")
        values = np.asarray(image, np.float64)
        tops = re.findall(r"1 of floats" if image.mode == "F" else r"\d{3,}", rule)[-3:]
        largest = values.max()
        top = next((t for t in (float(t.split()[0]) for t in tops) if largest <= t), largest)
        return Image.fromarray((values * 255 / top).round().clip(0, 255).astype(np.uint8))

    def transparency(self, image: Image.Image) -> Image.Image:
        colour = self.told["transparency"].removeprefix("on ")
        if not image.has_transparency_data:
            return image
        ground = Image.new("RGBA", image.size, colour)
        return Image.alpha_composite(ground, image.convert("RGBA"))

    def color(self, image: Image.Image) -> Image.Image:
        grey = self.told["color"] == "grey, 0.299 R + 0.587 G + 0.114 B"
        assert grey or self.told["color"] == "RGB"
        return image.convert("L" if grey else "RGB")

    def size(self, image: Image.Image) -> Image.Image:
        width, height = self.target
        if self.told["fit"] == "stretch":
            return image.resize(self.target, self.resample)
        if self.told["fit"] == "pad":
            colour, place = self.told["padding"].split(", ")
            assert place == "the image in the middle"
            scale = min(width / image.width, height / image.height)
            inner = image.resize(
                (round(image.width * scale), round(image.height * scale)), self.resample
            )
            ground = Image.new(image.mode, self.target, colour)
            ground.paste(
                inner, (round((width - inner.width) / 2), round((height - inner.height) / 2))
            )
            return ground
        if self.told["resize"] is None:
            scale = min(image.width / width, image.height / height)
            left, upper = (image.width - width * scale) / 2, (image.height - height * scale) / 2
            box = (left, upper, left + width * scale, upper + height * scale)
            return image.resize(self.target, self.resample, box=box)
        scale = self.told["resize"] / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), self.resample)
        left, upper = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, upper, left + width, upper + height))

    def inversion(self, image: Image.Image) -> Image.Image:
        assert self.told["inversion"] == "255 - value, of the padding too"
        return ImageOps.invert(image)


def odd_pictures() -> list[bytes]:
    """None as high as wide: in colour, turned by its EXIF, of 12 and 16 bits, half transparent."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    coloured = Image.fromarray(noise(1, (40, 61, 3)))
    deep = [
        Image.fromarray(np.linspace(0, top, 50 * 33).reshape(33, 50).astype(np.uint16))
        for top in (3000, 60_000)
    ]
    clear = Image.fromarray(noise(2, (71, 30, 4)))
    photo = encoded(coloured, "JPEG", exif=turned)
    return [encoded(coloured), photo, *map(encoded, deep), encoded(clear)]


@pytest.mark.parametrize(
    "spec",
    [
        {"channels": 1, "fit": "pad", "invert": True},
        {"channels": 3, "fit": "pad"},
        {"channels": 3, "fit": "crop"},
        {"channels": 1, "fit": "stretch", "invert": True},
        {"channels": 3, "fit": "crop", "resize": 32, "resample": "bicubic"},
    ],
)
def test_whoever_does_what_preprocessing_says_has_the_very_pixels(spec: dict[str, Any]) -> None:
    wanted = InputSpec.model_validate({"height": 28, "width": 24} | spec)
    reader = Reader(json.loads(json.dumps(describe_input(wanted))))
    for data in odd_pictures():
        with Image.open(io.BytesIO(data)) as one, Image.open(io.BytesIO(data)) as same:
            np.testing.assert_array_equal(reader.pixels(one), to_pixels(same, wanted))


def test_whoever_does_what_preprocessing_says_has_the_very_answers(
    shipped: TestClient, sample_set: str, tmp_path: Path
) -> None:
    asked = {"model": "prototypical-omniglot"}
    file = shipped.get(f"{SETS}/{sample_set}/classifier.onnx", params=asked).content
    told = {each.key: each.value for each in onnx.load_model_from_string(file).metadata_props}
    reader = Reader(json.loads(told["preprocessing"]))
    queries = odd_pictures()
    pixels = [reader.pixels(Image.open(io.BytesIO(data))) for data in queries]
    found, _ = bare(tmp_path, file, np.stack(pixels))
    wanted = answered(shipped, sample_set, queries, **asked)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


# Tasks of few classes are never padded to more, so MAML's five are out.
@pytest.mark.parametrize("model", [m for m, card in SHIPPED.items() if card.limits.max_way > 9])
def test_a_task_adapted_together_with_a_larger_one_keeps_its_own_classes(model: str) -> None:
    """As on a GPU, where its state is padded to the larger one's classes and examples."""
    card = SHIPPED[model]
    runtime = OnnxRuntime(card, ENTRIES, "cpu", threads=2)
    runtime.joins_tasks = True
    pair = [episode(card, way, way, 1, 3) for way in (9, 10)]
    found = dict(answers(runtime, pair))[0]
    assert isinstance(found, Answer) and found.state is not None
    padded = {value.shape for value in found.state.values() if 10 in value.shape}
    assert padded  # they did share a pass
    graphs = {name: read_file(card, name) for name in ("encode.onnx", "predict.onnx")}
    labels = [str(i) for i in range(9)]
    file = standalone(graphs, found.state, Facts(card, labels))
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    [probabilities] = session.run(None, {"images": pair[0].query})
    # Other shapes are summed in another order.
    np.testing.assert_allclose(probabilities, found.probabilities, rtol=0, atol=1e-5)
    assert "support_set" not in session.get_modelmeta().custom_metadata_map


def test_headers_and_the_etag(client: TestClient) -> None:
    made = make_set(client, task(), name='x"\r\nSet-Cookie: a=b; filename="../../etc/passwd')
    assert_problem(made, 422, "invalid-request")
    set_id = make_set(client, task(), name='"../../x.exe').json()["support_set"]["id"]
    url = f"{SETS}/{set_id}/classifier.onnx"
    first = client.get(url, params={"model": "mean"})
    assert first.headers["content-disposition"] == (f'attachment; filename="mean-{set_id}-1.onnx"')
    assert first.headers["content-type"] == "application/octet-stream"
    assert first.headers["x-content-type-options"] == "nosniff"
    tag = first.headers["etag"]
    assert client.get(url, params={"model": "mean"}).content == first.content

    def again(**params: object) -> int:
        given = {"If-None-Match": f'"other", {tag}'}
        response = client.get(url, params=params, headers=given)
        assert response.status_code != 304 or not response.content
        return response.status_code

    assert again(model="mean") == 304
    assert again(model="descent") == 200
    one = client.get(url, params={"model": "descent", "steps": 1}).headers["etag"]
    assert one != client.get(url, params={"model": "descent", "steps": 2}).headers["etag"]
    files = [("images", ("n.png", encoded(noise(77))))]
    added = client.post(f"{SETS}/{set_id}/examples", data={"labels": "a"}, files=files)
    assert added.status_code == 201
    assert again(model="mean") == 200  # of another revision


def test_what_cannot_be_taken_away_is_told(client: TestClient) -> None:
    set_id = make_set(client, task()).json()["support_set"]["id"]
    url = f"{SETS}/{set_id}/classifier.onnx"
    assert_problem(client.get(url), 422, "invalid-request")
    response = client.get(url, params={"model": "descent", "step": 0})
    detail = assert_problem(response, 422, "invalid-request")["detail"]
    assert detail == "no such parameter: step; there are model, steps, inner_lr"
    assert_problem(client.get(url, params={"model": "none"}), 404, "unknown-model")
    asked = {"model": "mean", "steps": 1}
    assert_problem(client.get(url, params=asked), 422, "no-adaptation")
    asked = {"model": "descent", "steps": 9999}
    assert_problem(client.get(url, params=asked), 422, "adaptation-range")
    asked = {"model": "descent", "steps": 50, "inner_lr": 1e6}
    assert_problem(client.get(url, params=asked), 422, "adaptation-diverged")
    missing = f"{SETS}/set_{'0' * 24}/classifier.onnx"
    assert_problem(client.get(missing, params={"model": "mean"}), 404, "unknown-support-set")
    empty = make_set(client).json()["support_set"]["id"]
    asked = {"model": "mean"}
    assert_problem(client.get(f"{SETS}/{empty}/classifier.onnx", params=asked), 422, "no-support")
    single = make_set(client, task("a")).json()["support_set"]["id"]
    assert_problem(client.get(f"{SETS}/{single}/classifier.onnx", params=asked), 422, "one-class")
