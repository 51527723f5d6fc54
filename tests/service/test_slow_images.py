"""Few bytes may be many pixels: who sends such images waits for them, and nobody else does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.service.asking import assert_problem, encoded, noise, task, zipped
from tests.service.process import PATIENCE, Server, serving


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("slow")
    with serving(zoo, folder, "--decode-threads", 1, "--request-timeout-s", PATIENCE) as running:
        yield running


#: 526 bytes, 12 megapixels.
FLAT = encoded(Image.new("RGB", (4000, 3000)), "WEBP", lossless=True)


def ask(server: Server, queries: list[bytes], timeout_s: float = PATIENCE) -> httpx.Response:
    examples = task(("a", "b"))
    return httpx.post(
        server.base + "/v1/predictions",
        data={"model": "mean", "support_labels": [label for label, _ in examples]},
        files=[("support_images", ("s.png", data)) for _, data in examples]
        + [("query_images", ("q", data)) for data in queries],
        headers={"X-Request-Timeout": str(timeout_s)},
        timeout=PATIENCE,
    )


def add(server: Server, images: list[bytes]) -> httpx.Response:
    files = [("images", (f"{i}", data)) for i, data in enumerate(images)]
    url = server.base + "/v1/support-sets"
    return httpx.post(url, data={"labels": ["a"]}, files=files, timeout=PATIENCE)


def timed(server: Server, queries: list[bytes]) -> float:
    start = time.perf_counter()
    assert ask(server, queries).status_code == 200
    return time.perf_counter() - start


def answers_between(server: Server, work: Callable[[], object]) -> None:
    """Small requests are answered between two of the images of `work`, a slow one."""
    slow = threading.Thread(target=work)
    slow.start()
    time.sleep(0.3)
    for seed in range(3):
        timed(server, [encoded(noise(seed))])
        assert slow.is_alive(), "answered only after all of the others' images"
    slow.join()


def test_a_small_request_need_not_wait_for_all_of_a_slow_one(server: Server) -> None:
    assert len(FLAT) < 1000
    timed(server, [encoded(noise(1))])
    answers_between(server, lambda: timed(server, [FLAT] * 20))


def test_nor_for_all_the_examples_that_somebody_adds(server: Server) -> None:
    timed(server, [encoded(noise(1))])
    answers: list[httpx.Response] = []
    answers_between(server, lambda: answers.append(add(server, [FLAT] * 20)))
    assert answers[0].status_code == 201


def test_nothing_is_decoded_for_a_request_whose_time_is_over(server: Server) -> None:
    whole = timed(server, [FLAT] * 20)
    assert_problem(ask(server, [FLAT] * 20, timeout_s=whole / 10), 504, "deadline-exceeded")
    assert timed(server, [encoded(noise(1))]) < whole


def test_reading_an_archive_s_list_has_the_same_deadline(server: Server) -> None:
    """It comes before the permit, and waits for the threads that decode."""
    archive = zipped({"a/1.png": encoded(noise(1)), "b/1.png": encoded(noise(2))})
    slow = threading.Thread(target=timed, args=(server, [FLAT] * 20))
    slow.start()
    time.sleep(0.3)
    asked = {
        "/v1/support-sets": {"archive": archive},
        "/v1/predictions": {"support_archive": archive, "query_images": encoded(noise(3))},
    }
    for path, files in asked.items():
        answer = httpx.post(
            server.base + path,
            data={"model": "mean"} if "query_images" in files else {},
            files=[(field, ("x", data)) for field, data in files.items()],
            headers={"X-Request-Timeout": "0.001"},
            timeout=PATIENCE,
        )
        assert_problem(answer, 504, "deadline-exceeded")
        assert slow.is_alive(), "answered only after all of the others' images"
    slow.join()
