"""What the predictions route answers, against the same sums done by hand in numpy."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from models_zoo.cards import ENTRIES
from service.app import create_app
from service.settings import Settings
from tests.service.asking import Pixels, ask, encoded, noise, task, zipped


def features(pixels: Pixels, invert: bool) -> NDArray[np.float64]:
    """4 x 4 means of a 16 x 16 image in [0, 1]."""
    values = (255 - pixels if invert else pixels).astype(np.float64) / 255
    if values.ndim == 3:
        values = values.mean(-1)
    return values.reshape(4, 4, 4, 4).mean((1, 3)).reshape(16)


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def by_label(prediction: dict[str, list[dict[str, object]]]) -> dict[object, object]:
    return {row["label"]: row["probability"] for row in prediction["probabilities"]}


def test_answers_are_the_nearest_class_means_of_the_paper_formula(client: TestClient) -> None:
    shots = {"a": [4], "b": [1, 2, 3], "c": [5, 6]}
    sent = ("b", "a", "c")  # unequal shots, labels not sorted
    support = [(label, encoded(noise(s))) for label in sent for s in shots[label]]
    answer = ask(client, support, [encoded(noise(7)), encoded(noise(8))]).json()

    assert answer["model"] == "mean"
    assert answer["classes"] == ["a", "b", "c"]
    means = np.stack(
        [np.mean([features(noise(s), True) for s in seeds], 0) for seeds in shots.values()]
    )
    for index, seed in enumerate((7, 8)):
        found = answer["predictions"][index]
        expected = softmax(-((features(noise(seed), True) - means) ** 2).sum(1))
        got = by_label(found)
        np.testing.assert_allclose([got[c] for c in answer["classes"]], expected, rtol=1e-5)
        assert (found["index"], found["filename"]) == (index, f"q{index}.png")
        assert found["label"] == answer["classes"][int(expected.argmax())]
        assert found["confidence"] == max(got.values())
        assert found["attention"] is None
    assert set(answer["timing_ms"]) == {"decode", "queue", "encode", "adapt", "predict"}


def test_probabilities_sum_to_one_and_fall(client: TestClient) -> None:
    answer = ask(client, task("abcdef", 3), [encoded(noise(s)) for s in range(100, 110)]).json()
    for prediction in answer["predictions"]:
        values = [row["probability"] for row in prediction["probabilities"]]
        assert sum(values) == pytest.approx(1, abs=1e-12)
        assert values == sorted(values, reverse=True)


def test_an_example_sent_as_query_gets_its_own_class(client: TestClient) -> None:
    support = task(["x", "y"], 1)
    answer = ask(client, support, [data for _, data in support]).json()
    assert [p["label"] for p in answer["predictions"]] == ["x", "y"]


def test_two_identical_requests_agree_bit_for_bit(client: TestClient) -> None:
    for model in ("mean", "attentive", "descent"):
        first, second = (
            ask(client, task(), [encoded(noise(50))], model=model, attention="maps").json()
            for _ in range(2)
        )
        assert first["predictions"] == second["predictions"]


def test_the_order_of_the_classes_does_not_matter(client: TestClient) -> None:
    support, query = task("abcd", 2), [encoded(noise(60))]
    forth = ask(client, support, query).json()["predictions"][0]
    answer = ask(client, support[::-1], query).json()
    assert answer["classes"] == ["a", "b", "c", "d"]
    back = answer["predictions"][0]
    assert back["label"] == forth["label"]
    expected = by_label(forth)
    for label, probability in by_label(back).items():
        assert probability == pytest.approx(expected[label], rel=1e-6)


def test_it_makes_no_difference_which_class_is_sent_first() -> None:
    folder = Path(__file__).parents[2] / "samples"
    support = [(p.parent.name, p.read_bytes()) for p in sorted(folder.glob("support/*/*.png"))]
    queries = [path.read_bytes() for path in sorted(folder.glob("queries/*.png"))]
    shown = {"model": "maml-omniglot", "top_k": 3}  # each of its outputs has weights of its own
    with TestClient(create_app(Settings(zoo=ENTRIES, device="cpu", threads=1))) as client:
        forth = ask(client, support, queries, **shown).json()["predictions"]
        back = ask(client, support[::-1], queries, **shown).json()["predictions"]
    for one, other in zip(forth, back, strict=True):
        assert by_label(one) == pytest.approx(by_label(other), abs=1e-4)


def test_a_query_is_not_affected_by_the_others(client: TestClient) -> None:
    queries = [encoded(noise(s)) for s in range(70, 80)]
    together = ask(client, task(), queries, attention="maps", model="attentive").json()
    for index, query in enumerate(queries):
        alone = ask(client, task(), [query], attention="maps", model="attentive").json()
        expected, found = alone["predictions"][0], together["predictions"][index]
        assert by_label(found) == pytest.approx(by_label(expected), rel=1e-6)
        np.testing.assert_allclose(
            found["attention"]["query"], expected["attention"]["query"], atol=1e-6
        )


def test_top_k_cuts_the_list_but_not_the_confidence(client: TestClient) -> None:
    whole = ask(client, task(), [encoded(noise(9))]).json()["predictions"][0]
    cut = ask(client, task(), [encoded(noise(9))], top_k=2).json()["predictions"][0]
    assert cut["probabilities"] == whole["probabilities"][:2]
    assert cut["confidence"] == whole["confidence"]
    more = ask(client, task(), [encoded(noise(9))], top_k=99).json()["predictions"][0]
    assert more == whole


def test_an_archive_answers_like_the_same_images_in_pairs(client: TestClient) -> None:
    support, query = task("ab", 2), [encoded(noise(10))]
    files = {f"{label}/{i}.png": data for i, (label, data) in enumerate(support)}
    pairs = ask(client, support, query).json()
    for prefix in ("", "my set/"):
        # Written backwards: the order inside the archive must not matter.
        names = reversed(files)
        archive = zipped({prefix + name: files[name] for name in names})
        answer = ask(client, queries=query, archive=archive).json()
        assert answer["classes"] == ["a", "b"]
        assert answer["predictions"] == pairs["predictions"]


def test_attention_maps_are_those_of_the_graph(client: TestClient) -> None:
    seeds, labels = [1, 2, 3], ["a", "b", "a"]
    colour = (16, 16, 3)
    support = [(label, encoded(noise(s, colour))) for label, s in zip(labels, seeds, strict=True)]
    answer = ask(
        client, support, [encoded(noise(4, colour))], model="attentive", attention="maps"
    ).json()
    found = answer["predictions"][0]["attention"]
    examples = np.stack([features(noise(s, colour), False) for s in seeds])
    query = features(noise(4, colour), False)
    for layer, scale in enumerate((1, 3)):
        rows = found["task"][layer]
        assert [(row["example"], row["label"]) for row in rows] == list(enumerate(labels))
        expected = softmax(scale * examples @ query)
        np.testing.assert_allclose([row["weight"] for row in rows], expected, atol=1e-5)
        np.testing.assert_allclose(found["query"][layer], softmax(query).reshape(4, 4), atol=1e-5)
        np.testing.assert_allclose(
            found["support"][layer], softmax(examples).reshape(3, 4, 4), atol=1e-5
        )


def test_overlays_are_pictures_of_the_upload_in_its_aspect(client: TestClient) -> None:
    wide = Image.fromarray(noise(1, (60, 240, 3)))
    tall = Image.fromarray(noise(2, (400, 100, 3)))
    answer = ask(
        client,
        [("a", encoded(wide)), ("b", encoded(tall))],
        [encoded(tall)],
        model="attentive",
        attention="overlay",
    ).json()
    found = answer["predictions"][0]["attention"]
    sizes = [_opened(url).size for url in found["query"]]
    assert sizes == [(56, 224)] * 2  # one per layer, long side 224, a quarter as wide
    for layer in found["support"]:
        assert [_opened(url).size for url in layer] == [(112, 28), (28, 112)]
    # The heat lies over the picture: it is not the plain picture, and not the heat alone.
    plain = np.asarray(tall.resize((56, 224), Image.Resampling.BILINEAR), np.float64)
    drawn = np.asarray(_opened(found["query"][0]), np.float64)
    assert np.abs(drawn - plain).mean() > 5
    assert np.corrcoef(drawn[:80].ravel(), plain[:80].ravel())[0, 1] > 0.5


def test_a_model_without_attention_says_so(client: TestClient) -> None:
    answer = ask(client, task(), [encoded(noise(5))], attention="overlay").json()
    assert answer["predictions"][0]["attention"] == {"task": None, "query": None, "support": None}


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.5), (1, 0.5), (4, 0.25), (None, None)])
def test_steps_and_inner_lr_reach_the_adaptation(
    client: TestClient, steps: int | None, rate: float | None
) -> None:
    given = {} if steps is None else {"steps": steps, "inner_lr": rate}
    support = [("a", encoded(noise(1))), ("b", encoded(noise(2)))]
    answer = ask(client, support, [encoded(noise(3))], model="descent", **given).json()
    # S steps of p <- p + lr (mean - p) from 0 end at mean (1 - (1 - lr)^S); the card's: 3 of 0.5
    reached = 1 - (1 - (rate or 0.5)) ** (3 if steps is None else steps)
    images = [noise(s).astype(np.float64).ravel() / 255 for s in (1, 2, 3)]
    distances = [((images[2] - reached * mean) ** 2).sum() for mean in images[:2]]
    expected = softmax(-np.array(distances))
    got = by_label(answer["predictions"][0])
    np.testing.assert_allclose([got["a"], got["b"]], expected, rtol=1e-3)


def _opened(url: str) -> Image.Image:
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def test_uncertainty_comes_from_the_models_that_have_it(client: TestClient) -> None:
    """The test entry's is the squared distance to the nearest class mean."""
    pixels = {label: noise(seed, (16, 16, 3)) for seed, label in enumerate("ab")}
    support = [(label, encoded(image)) for label, image in pixels.items()]
    asked = noise(9, (16, 16, 3))
    told = ask(client, support, [encoded(asked)], model="attentive").json()["predictions"][0]
    means = [features(image, invert=False) for image in pixels.values()]
    away = [((features(asked, invert=False) - mean) ** 2).sum() for mean in means]
    assert told["uncertainty"] == pytest.approx(min(away), rel=1e-4)
    told = ask(client, support, [encoded(asked)], model="mean").json()["predictions"][0]
    assert told["uncertainty"] is None
    cards = {card["id"]: card for card in client.get("/v1/models").json()["models"]}
    assert {name: card["uncertainty"] for name, card in cards.items()} == {
        "attentive": True,
        "descent": False,
        "mean": False,
    }
