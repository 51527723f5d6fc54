"""What a request cannot cost less than: parsing its form, decoding its images, its graphs."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
from PIL import Image, ImageDraw
from starlette.requests import Request as Incoming

from benchmarks.load import Request
from models_zoo.cards import Card, read_file
from service.answers import build
from service.classifier import Outcome
from service.engine.episode import Answer, Episode
from service.engine.onnx import OnnxRuntime
from service.engine.stages import answers
from service.images import ImageLimits, Upload, decode
from service.problems import FileRef
from service.schemas import AttentionMode
from service.settings import Settings

_CHUNK = 64 << 10  # as Uvicorn hands a body on


@dataclass(frozen=True)
class Case:
    """One episode: `shown` is the side of the pictures in pixels, `queries` counts all classes."""

    model: str
    way: int
    shot: int
    queries: int
    shown: int

    @property
    def name(self) -> str:
        return (
            f"{self.model}, {self.way}-way {self.shot}-shot, {self.queries} queries, "
            f"pictures of {self.shown} px"
        )


def picture(seed: int, side: int, channels: int) -> bytes:
    """A PNG: strokes on paper, or for colour models blotches, which compress like a photo."""
    rng = np.random.default_rng(seed)
    if channels == 3:
        small = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    else:
        image = Image.new("L", (side, side), "white")
        points = [tuple(int(v) for v in p) for p in rng.integers(0, side, (6, 2))]
        ImageDraw.Draw(image).line(points, fill="black", width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Floor:
    """The parts of one request, each on its own; every method does that part once. `stored`: of
    one to a set that is registered, whose state is remembered."""

    def __init__(self, case: Case, card: Card, zoo: Path, threads: int) -> None:
        self.case, self.card = case, card
        count, spec = case.way * case.shot, card.input
        data = [picture(i, case.shown, spec.channels) for i in range(count + case.queries)]
        self.support, self.queries = data[:count], data[count:]
        self.labels = [f"class {i % case.way}" for i in range(count)]
        self.request = self._form(
            "/v1/predictions",
            {"model": case.model, "support_labels": self.labels},
            {"support_images": self.support, "query_images": self.queries},
        )
        self._stored_request = self.ask_stored("/v1/support-sets/it")
        self._uploads = [Upload(FileRef("f", i, f"{i}.png"), d) for i, d in enumerate(data)]
        self._limits = ImageLimits(10**8, 10**5)
        self._loop = asyncio.new_event_loop()
        self._runtime = OnnxRuntime(card, zoo, "cpu", threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._sessions = {
            name: onnxruntime.InferenceSession(
                read_file(card, f"{name}.onnx", zoo), options, providers=["CPUExecutionProvider"]
            )
            for name in ("encode", "adapt", "predict")
            if f"{name}.onnx" in card.files
        }
        pictures = [decode(upload, spec, self._limits) for upload in self._uploads]
        self._images = np.stack([p.pixels for p in pictures])
        rates = card.adaptation and (card.adaptation.inner_lr,) * card.adaptation.steps
        self._episode = Episode(
            card.id,
            self._images[:count],
            np.arange(count) % case.way,
            case.way,
            self._images[count:],
            rates,
        )
        [(_, answer)] = answers(self._runtime, [self._episode])
        assert isinstance(answer, Answer)
        answer.seconds["queue"] = 0.0
        classes = self.labels[: case.way]
        shown, asked = pictures[:count], pictures[count:]
        self._outcome = Outcome(card, classes, self.labels, shown, asked, answer, 0.0)
        self._settings = Settings()
        self._state = self._adapted(self._encoded(self._images[:count]))

    def create(self) -> Request:
        """The request that registers the support set."""
        return self._form("/v1/support-sets", {"labels": self.labels}, {"images": self.support})

    def ask_stored(self, location: str) -> Request:
        fields: dict[str, str | list[str]] = {"model": self.case.model}
        return self._form(f"{location}/predictions", fields, {"query_images": self.queries})

    def parse(self, stored: bool = False) -> None:
        """The form by Starlette, as the service does."""
        request = self._stored_request if stored else self.request
        body = request.body
        parts = [body[i : i + _CHUNK] for i in range(0, len(body), _CHUNK)]
        messages = iter(parts)

        async def receive() -> dict[str, object]:
            part = next(messages)
            return {"type": "http.request", "body": part, "more_body": part is not parts[-1]}

        headers = [(b"content-type", request.content_type.encode())]
        incoming = Incoming({"type": "http", "method": "POST", "headers": headers}, receive)

        async def read() -> None:
            form = await incoming.form(max_files=1000, max_fields=1000)
            for _, value in form.multi_items():
                if not isinstance(value, str):
                    await value.read()

        self._loop.run_until_complete(read())

    def decode(self, stored: bool = False) -> None:
        """All images, one after another."""
        for upload in self._uploads[len(self.support) if stored else 0 :]:
            decode(upload, self.card.input, self._limits)

    def sessions(self, stored: bool = False) -> None:
        """The bare graphs on arrays that lie ready."""
        count = len(self.support)
        features = self._encoded(self._images[count if stored else 0 :])
        state = self._state if stored else self._adapted(features[:count])
        query = features if stored else features[count:]
        self._run("predict", {**state, "query": query[None]}, ["logits"])

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        """`[M, ...]` for the other graphs."""
        images = pixels.astype(np.float32) / np.float32(255)
        if "encode" not in self._sessions:
            return images
        (features,) = self._sessions["encode"].run(None, {"images": images})
        return features

    def _adapted(self, support: np.ndarray) -> dict[str, np.ndarray]:
        feed = {
            "support": support[None],
            "labels": self._episode.labels[None],
            "mask": np.ones((1, len(support)), bool),
            "class_mask": np.ones((1, self.case.way), bool),
        }
        if self._episode.inner_lr is not None:
            feed["inner_lr"] = np.asarray(self._episode.inner_lr, np.float32)
        return self._run("adapt", feed)

    def stages(self) -> None:
        """The same by way of the engine's code, checks and copies included."""
        list(answers(self._runtime, [self._episode]))

    def answer(self) -> None:
        """Probabilities, and the answer as JSON."""
        build(self._outcome, AttentionMode.none, None, self._settings).model_dump_json().encode()

    def _run(
        self, name: str, feed: dict[str, np.ndarray], outputs: list[str] | None = None
    ) -> dict[str, np.ndarray]:
        session = self._sessions[name]
        outputs = outputs or [output.name for output in session.get_outputs()]
        wanted = {argument.name for argument in session.get_inputs()}
        given = {key: value for key, value in feed.items() if key in wanted}
        return dict(zip(outputs, session.run(outputs, given), strict=True))

    @staticmethod
    def _form(
        path: str, fields: dict[str, str | list[str]], files: dict[str, list[bytes]]
    ) -> Request:
        parts = [
            (k, (f"{i}.png", d, "image/png")) for k, v in files.items() for i, d in enumerate(v)
        ]
        made = httpx.Client().build_request("POST", "http://x", data=fields, files=parts)
        return Request(path, made.read(), made.headers["content-type"])


def timed(part: Callable[[], None], times: int) -> tuple[float, float]:
    """Seconds by the clock and of CPU time, for each of some calls; the first is not counted."""
    part()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        part()
    return (time.perf_counter() - start) / times, (time.process_time() - cpu) / times
