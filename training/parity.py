"""Do the ONNX graphs answer as PyTorch does? Measured at export time on fresh random episodes."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from models_zoo.cards import ENTRIES, Card, read_file
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import InputShape, Learner
from training.graphs import PREDICTED, hyperparameters

#: (tasks, way, shot, queries per task, padded examples) of the episodes compared.
EPISODES = ((1, 2, 1, 1, 0), (3, 5, 1, 4, 0), (2, 5, 5, 3, 4), (2, 3, 2, 7, 9), (4, 4, 3, 1, 1))
#: Largest difference of a probability or an attention weight that passes.
TOLERANCE = 1e-4
#: Gradient-based adaptation amplifies rounding: there this quantile must pass, and the median.
QUANTILE = 0.9
MEDIAN_TOLERANCE = 1e-5
#: Share of the answers that may then be others than in double precision.
ASTRAY = 0.01


class ParityError(Exception):
    """ONNX and PyTorch disagree."""


@dataclass(frozen=True)
class Difference:
    """Absolute difference over all episodes, of the output that differs most: the probabilities, an
    attention or the uncertainty.

    From PyTorch's in double precision where a learner adapts by gradient steps, else from its own.
    `same_answer` is the share of queries for which ONNX and PyTorch name the same class.
    """

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
    """The graphs of `to_onnx`, run one after another; as a learner it can be evaluated.

    `inner_lr` holds the rates of the gradient steps where a caller gives none.
    """

    def __init__(self, files: dict[str, bytes], inner_lr: tuple[float, ...] = ()) -> None:
        super().__init__()
        threads = torch.get_num_threads()
        self.sessions = {
            name.removesuffix(".onnx"): session(data, threads)
            for name, data in files.items()
            if name.endswith(".onnx")
        }
        self.inner_lr = inner_lr

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

    def adapt(self, support: Support, inner_lr: Tensor | None = None) -> TaskState:
        rates = self.inner_lr if inner_lr is None else inner_lr.tolist()
        state = self.run(
            "adapt",
            support=support.x.numpy(),
            labels=support.labels.numpy(),
            mask=support.mask.numpy(),
            class_mask=support.class_mask.numpy(),
            inner_lr=np.array(rates, np.float32),
        )
        return {name: torch.from_numpy(value) for name, value in state.items()}

    def predict(self, state: TaskState, query: Tensor) -> Prediction:
        found = self.predicted(state, query)
        return Prediction(**{name: torch.from_numpy(found[name]) for name in found})

    def predicted(self, state: TaskState, query: Tensor) -> dict[str, NDArray[np.generic]]:
        """The outputs of the predict graph."""
        known = {name: value.numpy() for name, value in state.items()}
        return self.run("predict", query=query.numpy(), **known)

    def answer(self, support: Support, query: Tensor) -> dict[str, NDArray[np.generic]]:
        """The outputs of the predict graph, from images."""
        support, query = self.encoded(support, query)
        return self.predicted(self.adapt(support), query)

    def encoded(self, support: Support, query: Tensor) -> tuple[Support, Tensor]:
        return support.with_x(self.features(support.x)), self.features(query)

    def features(self, images: Tensor) -> Tensor:
        """Images `[B, N, C, H, W]` -> features `[B, N, ...]` (the images where nothing encodes)."""
        if "encode" not in self.sessions:
            return images
        features = self.run("encode", images=images.flatten(0, 1).numpy())["features"]
        return torch.from_numpy(features).unflatten(0, images.shape[:2])


def random_episode(
    shape: InputShape, case: tuple[int, int, int, int, int], generator: torch.Generator
) -> tuple[Support, Tensor]:
    """Random images with a class-dependent pattern; some examples are padding."""
    tasks, way, shot, queries, padding = case
    pixels = (shape.channels, shape.height, shape.width)
    patterns = torch.rand(tasks, way, *pixels, generator=generator)

    def images(labels: Tensor) -> Tensor:
        noise = torch.rand(*labels.shape, *pixels, generator=generator)
        chosen = patterns[torch.arange(tasks)[:, None], labels]
        return 0.7 * chosen + 0.3 * noise

    labels = torch.arange(way * shot + padding).remainder(way).expand(tasks, -1).contiguous()
    mask = (torch.arange(way * shot + padding) < way * shot).expand(tasks, -1).contiguous()
    asked = torch.randint(way, (tasks, queries), generator=generator)
    return Support.of(images(labels), labels, mask, way), images(asked)


@torch.no_grad()
def compare(
    learner: Learner,
    shape: InputShape,
    files: dict[str, bytes],
    seed: int = 0,
    rates: tuple[float, ...] = (),
) -> Difference:
    """Run both on the same episodes. Raises `ParityError` when they differ too much.

    Of most learners every number must be within `TOLERANCE` of PyTorch's, so that only ties can be
    answered otherwise. Gradient steps, one for each of `rates` (by default the learner's own), may
    blow up the rounding of either side: there a copy in double precision is the judge. ONNX must be
    near it in the median and the 90th percentile, and answer as it does, but for ties to within
    `TOLERANCE`, on 99% of the queries or on as many as PyTorch in single precision.
    """
    hyper = hyperparameters(learner)
    if hyper and rates:
        hyper = (torch.tensor(rates),)
    onnx = OnnxLearner(files, tuple(hyper[0].tolist()) if hyper else ())
    judge = copy.deepcopy(learner).double() if hyper else learner
    generator = torch.Generator().manual_seed(seed)
    compared = 0
    differences: defaultdict[str, list[Tensor]] = defaultdict(list)
    same: list[Tensor] = []
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for case in EPISODES:
        if learner.max_way and case[1] > learner.max_way:
            continue
        compared += 1
        support, query = random_episode(shape, case, generator)
        expected = truth = answer(learner, support, query, *hyper)
        if hyper:
            wide = [rate.double() for rate in hyper]
            truth = answer(judge, support.with_x(support.x.double()), query.double(), *wide)
        got = onnx.answer(support, query)
        for name in PREDICTED:
            tensor = getattr(truth, name)
            if tensor is None:
                continue
            mine = torch.from_numpy(got[name])
            if mine.shape != tensor.shape:
                raise ParityError(
                    f"{name}: ONNX gives {tuple(mine.shape)}, torch {tuple(tensor.shape)}"
                )
            if name == "logits":
                same.append(mine.argmax(-1) == expected.logits.argmax(-1))
                ours.append(right(mine, tensor))
                theirs.append(right(expected.logits, tensor))
                mine, tensor = mine.softmax(-1), tensor.softmax(-1)
            differences[name].append((mine - tensor).abs().double().flatten())
    # Of each output by itself: a map has many more numbers than there are probabilities.
    outputs = [torch.cat(each).numpy() for each in differences.values()]
    found = Difference(
        compared,
        float(np.max([np.median(each) for each in outputs])),
        float(np.max([np.quantile(each, QUANTILE) for each in outputs])),
        float(np.max([each.max() for each in outputs])),
        share(same),
    )
    measured = found.p90 if hyper else found.largest
    far = hyper and found.median > MEDIAN_TOLERANCE
    if not np.isfinite(found.largest) or measured > TOLERANCE or far:
        raise ParityError(f"ONNX and PyTorch differ by {found.largest:.2e} (p90 {found.p90:.2e})")
    if hyper and share(ours) < min(1 - ASTRAY, share(theirs)):
        raise ParityError(
            f"ONNX and PyTorch differ in their answers: {share(ours):.1%} of ONNX's and "
            f"{share(theirs):.1%} of PyTorch's are those of double precision"
        )
    return found


def answer(learner: Learner, support: Support, query: Tensor, *hyper: Tensor) -> Prediction:
    """What PyTorch answers, from images."""
    encoded = support.with_x(learner.encode_batch(support.x))
    return learner.predict(learner.adapt(encoded, *hyper), learner.encode_batch(query))


def right(logits: Tensor, truth: Tensor) -> Tensor:
    """Which queries get the class that is likeliest by `truth`, or one as likely to within
    `TOLERANCE`: two logits `[B, Q, way]` -> bool `[B, Q]`."""
    likely = truth.softmax(-1)
    chosen = likely.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    return chosen >= likely.amax(-1) - TOLERANCE


def share(which: list[Tensor]) -> float:
    """Share of the queries, in all episodes together."""
    return float(torch.cat([each.flatten() for each in which]).double().mean())
