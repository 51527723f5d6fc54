"""Do the ONNX graphs answer as PyTorch does? Measured at export time on fresh random episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from models_zoo.cards import ENTRIES, Card, read_file
from models_zoo.episode import Prediction, Support
from models_zoo.learner import InputShape, Learner
from training.graphs import PREDICTED, hyperparameters

#: (tasks, way, shot, queries per task, padded examples) of the episodes compared.
EPISODES = ((1, 2, 1, 1, 0), (3, 5, 1, 4, 0), (2, 5, 5, 3, 4), (2, 3, 2, 7, 9), (4, 4, 3, 1, 1))
#: Largest difference of a probability or an attention weight that passes.
TOLERANCE = 1e-4
#: Gradient-based adaptation amplifies rounding: there the 90th percentile must pass.
QUANTILE = 0.9


class ParityError(Exception):
    """ONNX and PyTorch disagree."""


@dataclass(frozen=True)
class Difference:
    """Absolute difference of probabilities and attention weights over all episodes compared."""

    episodes: int
    median: float
    p90: float
    largest: float
    same_answer: float


def session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxLearner(Learner):
    """The graphs of `to_onnx`, run one after another; as a learner it can be evaluated."""

    def __init__(self, files: dict[str, bytes], inner_lr: tuple[float, ...] = ()) -> None:
        super().__init__()
        threads = torch.get_num_threads()
        self.sessions = {
            name.removesuffix(".onnx"): session(data, threads)
            for name, data in files.items()
            if name.endswith(".onnx")
        }
        self.hyper = {"inner_lr": np.array(inner_lr, np.float32)} if inner_lr else {}

    @classmethod
    def of(cls, card: Card, root: Path = ENTRIES) -> OnnxLearner:
        """The graphs of a zoo entry. Raises `ZooError`."""
        names = [name for name in card.files if name.endswith(".onnx")]
        adaptation = card.adaptation
        rates = adaptation.rates if adaptation else ()
        return cls({name: read_file(card, name, root) for name in names}, rates)

    def run(self, name: str, **inputs: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        used = self.sessions[name]
        wanted = {argument.name for argument in used.get_inputs()}
        outputs = [output.name for output in used.get_outputs()]
        given = {key: value for key, value in inputs.items() if key in wanted}
        return dict(zip(outputs, used.run(None, given), strict=True))

    def forward(
        self, support: Support, query: torch.Tensor, inner_lr: torch.Tensor | None = None
    ) -> Prediction:
        found = self.answer(support, query)
        return Prediction(**{name: torch.from_numpy(found[name]) for name in found})

    def answer(self, support: Support, query: torch.Tensor) -> dict[str, NDArray[np.generic]]:
        """The outputs of the predict graph, from images."""
        state = self.run(
            "adapt",
            support=self.features(support.x.numpy()),
            labels=support.labels.numpy(),
            mask=support.mask.numpy(),
            class_mask=support.class_mask.numpy(),
            **self.hyper,
        )
        return self.run("predict", query=self.features(query.numpy()), **state)

    def features(self, images: NDArray[np.float32]) -> NDArray[np.generic]:
        """Images `[B, N, C, H, W]` -> features `[B, N, ...]` (the images where nothing encodes)."""
        if "encode" not in self.sessions:
            return images
        flat = images.reshape(-1, *images.shape[2:])
        features = self.run("encode", images=flat)["features"]
        return features.reshape(*images.shape[:2], *features.shape[1:])


def random_episode(
    shape: InputShape, case: tuple[int, int, int, int, int], generator: torch.Generator
) -> tuple[Support, torch.Tensor]:
    """Random images with a class-dependent pattern; some examples are padding."""
    tasks, way, shot, queries, padding = case
    pixels = (shape.channels, shape.height, shape.width)
    patterns = torch.rand(tasks, way, *pixels, generator=generator)

    def images(labels: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(*labels.shape, *pixels, generator=generator)
        chosen = patterns[torch.arange(tasks)[:, None], labels]
        return 0.7 * chosen + 0.3 * noise

    labels = torch.arange(way * shot + padding).remainder(way).expand(tasks, -1).contiguous()
    mask = (torch.arange(way * shot + padding) < way * shot).expand(tasks, -1).contiguous()
    asked = torch.randint(way, (tasks, queries), generator=generator)
    return Support.of(images(labels), labels, mask, way), images(asked)


@torch.no_grad()
def compare(
    learner: Learner, shape: InputShape, files: dict[str, bytes], seed: int = 0
) -> Difference:
    """Run both on the same episodes. Raises `ParityError` when they differ too much."""
    hyper = hyperparameters(learner)
    onnx = OnnxLearner(files, tuple(hyper[0].tolist()) if hyper else ())
    generator = torch.Generator().manual_seed(seed)
    compared = 0
    differences: list[NDArray[np.float64]] = []
    same: list[bool] = []
    for case in EPISODES:
        if learner.max_way and case[1] > learner.max_way:
            continue
        compared += 1
        support, query = random_episode(shape, case, generator)
        encoded = support.with_x(learner.encode_batch(support.x))
        state = learner.adapt(encoded, *hyper)
        expected: Prediction = learner.predict(state, learner.encode_batch(query))
        got = onnx.answer(support, query)
        for name in PREDICTED:
            tensor = getattr(expected, name)
            if tensor is None:
                continue
            mine = torch.from_numpy(got[name])
            if mine.shape != tensor.shape:
                raise ParityError(
                    f"{name}: ONNX gives {tuple(mine.shape)}, torch {tuple(tensor.shape)}"
                )
            if name == "logits":
                same.append(bool((mine.argmax(-1) == tensor.argmax(-1)).all()))
                mine, tensor = mine.softmax(-1), tensor.softmax(-1)
            differences.append((mine - tensor).abs().double().flatten().numpy())
    everything = np.concatenate(differences)
    found = Difference(
        compared,
        float(np.median(everything)),
        float(np.quantile(everything, QUANTILE)),
        float(everything.max()),
        float(np.mean(same)),
    )
    measured = found.p90 if hyper else found.largest
    if not np.isfinite(found.largest) or measured > TOLERANCE:
        raise ParityError(f"ONNX and PyTorch differ by {found.largest:.2e} (p90 {found.p90:.2e})")
    return found
