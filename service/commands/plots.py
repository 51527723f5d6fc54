"""What `fewshot plot attention`, `similarity` and `embedding` show, asked of an entry without a
server. `training.plots` draws it: here is no plotting library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models_zoo.cards import Card
from service.archives import ArchiveLimits
from service.attention_rows import EXAMPLES, GRADIENT_MAP, Row, block, numbers
from service.classifier import Classifier, Outcome
from service.commands.errors import quiet_log, user_errors
from service.commands.local import examples, local_classifier, members, queries, query_files
from service.engine.episode import Floats, State
from service.images import Upload, clean_name, decode
from service.problems import FileRef, InvalidRequest
from service.tasks import Ask, Example, classes_of

#: Queries that one picture of attention has room for.
_QUERIES = 6
#: Files of an embedding, and their bytes; images of it decoded and encoded at a time.
_EMBEDDED, _CHUNK = ArchiveLimits(10_000, 2 << 30), 64


@dataclass(frozen=True)
class AttentionFigure:
    """A block of rows for each query, and the numbers: `heading` names the columns of `table`."""

    title: str
    blocks: list[list[Row]]
    heading: list[str]
    table: list[list[str | int | float]]


@dataclass(frozen=True)
class SimilarityFigure:
    """`values` `[N, Q]` of examples, which come class by class, and queries."""

    title: str
    examples: list[str]
    classes: list[str]
    queries: list[str]
    values: Floats


@dataclass(frozen=True)
class EmbeddingFigure:
    """One vector for each image: `[M, D]`."""

    title: str
    images: list[str]
    classes: list[str]
    vectors: Floats


def attention(
    model: str, support: Path, asked: Sequence[Path], zoo: Path | None, device: str | None
) -> AttentionFigure:
    """The images under their spatial attention, layer by layer, and their task attention.

    What an entry does not give is not shown: without spatial attention the images are plain. User
    errors, an entry without any attention among them, exit with code 2.
    """
    with _asking(model, zoo, device) as (classifier, card):
        spec = card.attention
        if not (spec.task or spec.query or spec.support):
            raise InvalidRequest(f"{model} has no attention, neither to places nor to examples")
        files, taught = query_files(asked), examples(classifier, support)
        if len(files) > _QUERIES:
            raise InvalidRequest(f"{len(files)} queries; one picture has room for {_QUERIES}")
        outcome = _answer(classifier, model, taught, files)
        places = [f"{y} {x}" for y, x in np.ndindex(*(spec.query or spec.support or (0, 0)))]
        some = f": {EXAMPLES} of {len(taught)} examples, those of the largest weight"
        title = card.id + some * (len(taught) > EXAMPLES)
        if card.adaptation is not None and spec.query:
            title += f"; {GRADIENT_MAP}: where the answer comes from"
        return AttentionFigure(
            title,
            [block(outcome, index) for index in range(len(files))],
            ["query", "layer", "image", "class", "task attention", *places],
            [row for index in range(len(files)) for row in numbers(outcome, index)],
        )


def similarity(
    model: str,
    support: Path,
    asked: Sequence[Path],
    cosine: bool,
    zoo: Path | None,
    device: str | None,
) -> SimilarityFigure:
    """How alike each example and each query are to an entry, in the entry's own measure if it has
    one.

    That is the last layer's task attention: the weight of an example for a query, after whatever
    the learner makes of the support set first. A query's weights sum to 1, so they compare examples
    with each other, not queries. It is a softmax of MM-Net's dot products (Cai et al., Eq. 2, 9),
    who show the products themselves; learners that score classes divide a class's weight evenly
    among its examples. With `cosine`, and for entries without task attention: the cosine of the
    encoder's vectors (`vectors_of`), which knows of no support set; for entries that adapt their
    whole network to it, of the vectors under the head after adaptation. User errors, an entry with
    none of these among them, exit with code 2.
    """
    with _asking(model, zoo, device) as (classifier, card):
        weights = card.attention.task and not cosine
        if not weights:
            _check_vectors(card)
        files, taught = query_files(asked), examples(classifier, support)
        if weights:
            outcome = _answer(classifier, model, taught, files)
            found = outcome.answer.attention.task
            assert found is not None
            values, measure = found[-1].T, "Task attention"
            if len(found) > 1:
                measure += f" of layer {len(found)}"
        else:
            uploads = [*(example.upload for example in taught), *queries(files)]
            measure = "Cosine similarity"
            if card.encodes:
                vectors = _encoded(classifier, card, uploads)
            else:
                state = _answer(classifier, model, taught, files, remember=True).answer.state
                assert state is not None
                vectors = _under_the_head(classifier, card, state, uploads)
                measure += " after adaptation"
            units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            values = units[: len(taught)] @ units[len(taught) :].T
        classes = classes_of([example.label for example in taught])
        order = sorted(range(len(taught)), key=lambda i: classes.index(taught[i].label))
        return SimilarityFigure(
            f"{measure}, {card.id}",
            [taught[i].upload.ref.name for i in order],
            [taught[i].label for i in order],
            _names(files),
            values[order],
        )


def embedding(model: str, images: Path, zoo: Path | None, device: str | None) -> EmbeddingFigure:
    """The encoder's vectors (`vectors_of`) of a folder or zip with a sub-folder per class.

    They are what the entry knows of an image before it sees a support set: MM-Net's are those that
    its memory reads, not what it makes of them. Of an entry that adapts its whole network they are
    those under the head before the first step, normalised by the images shown. User errors, an
    entry that has neither among them, exit with code 2.
    """
    with _asking(model, zoo, device) as (classifier, card):
        _check_vectors(card)
        found = members(images, _EMBEDDED, "images")
        uploads = [
            Upload(FileRef("images", index, clean_name(member.path)), member.data)
            for index, member in enumerate(found)
        ]
        names, classes = [m.path for m in found], [m.label for m in found]
        if card.encodes:
            vectors = _encoded(classifier, card, uploads)
        else:
            state = _unadapted(classifier, card, uploads)
            vectors = _under_the_head(classifier, card, state, uploads)
        return EmbeddingFigure(card.id, names, classes, vectors)


def vectors_of(features: Floats) -> Floats:
    """An encoder's features -> `[M, D]`.

    Maps `[M, C, h, w]` are flattened, as the learners that compare images do with them; of tokens
    `[M, 1 + h w, D]` the first is taken, which is the whole image's.
    """
    if features.ndim == 3:
        return features[:, 0]
    return features.reshape(len(features), -1)


@contextmanager
def _asking(model: str, zoo: Path | None, device: str | None) -> Iterator[tuple[Classifier, Card]]:
    """A classifier and the entry's card; user errors become one line."""
    with user_errors(), quiet_log(), local_classifier(model, zoo, device) as classifier:
        yield classifier, classifier.models.card(model)


def _check_vectors(card: Card) -> None:
    """Raises `InvalidRequest` where an image has no vector by itself."""
    if card.encodes:
        return
    if card.transductive:
        raise InvalidRequest(
            f"{card.id} adapts to the images asked about as well, so that none of them has a "
            "place by itself"
        )
    if card.adaptation is None:
        raise InvalidRequest(f"{card.id} has no encoder of its own")


def _answer(
    classifier: Classifier,
    model: str,
    taught: Sequence[Example],
    files: Sequence[Path],
    remember: bool = False,
) -> Outcome:
    """The task answered, with attention and pictures; with what was learned if `remember`."""
    ask = Ask(model, tuple(taught), tuple(queries(files)))
    return asyncio.run(classifier.classify(ask, attention=True, keep=True, remember=remember))


def _encoded(classifier: Classifier, card: Card, uploads: Sequence[Upload]) -> Floats:
    """`[M, D]`. Raises the `Problem`s of `images` and `Models`."""
    runtime = asyncio.run(classifier.models.runtime(card.id))
    parts = _pixels(classifier, card, uploads)
    return np.concatenate([vectors_of(runtime.encode(part)) for part in parts])


def _pixels(
    classifier: Classifier, card: Card, uploads: Sequence[Upload]
) -> Iterator[NDArray[np.uint8]]:
    """The images `[m, C, H, W]`, a chunk at a time. Raises the `Problem`s of `images`."""
    for start in range(0, len(uploads), _CHUNK):
        chunk = uploads[start : start + _CHUNK]
        limits = classifier.image_limits
        yield np.stack([decode(upload, card.input, limits).pixels for upload in chunk])


def _unadapted(classifier: Classifier, card: Card, uploads: Sequence[Upload]) -> State:
    """The network as it is before a task, normalised by images spread over those shown.

    A step at rate 0 changes nothing, so that the labels do not matter.
    """
    count = min(len(uploads), card.limits.max_support)
    spread = [uploads[i * len(uploads) // count] for i in range(count)]
    runtime = asyncio.run(classifier.models.runtime(card.id))
    support = np.concatenate([runtime.encode(part) for part in _pixels(classifier, card, spread)])
    return runtime.adapt(
        support[None],
        (np.arange(count) % 2)[None],
        np.ones((1, count), np.bool_),
        np.ones((1, 2), np.bool_),
        np.zeros(1, np.float32),
    )


def _under_the_head(
    classifier: Classifier, card: Card, state: State, uploads: Sequence[Upload]
) -> Floats:
    """What the network of `state` gives its linear head, `[M, D]`: its logits with D classes, each
    of which is one feature. Raises `InvalidRequest` where there is no such head."""
    if "state.head" not in state:
        raise InvalidRequest(f"{card.id} has no encoder of its own, and no linear head")
    width = state["state.head"].shape[1]
    bare = state | {
        "state.head": np.eye(width, dtype=np.float32)[None],
        "state.offset": np.zeros((1, 1, width), np.float32),
        "state.class_mask": np.ones((1, width), np.bool_),
    }
    runtime = asyncio.run(classifier.models.runtime(card.id))
    parts = _pixels(classifier, card, uploads)
    return np.concatenate([runtime.predict(bare, runtime.encode(p)[None]).logits[0] for p in parts])


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names, behind their folders' where two are called alike."""
    names = [clean_name(file.name) for file in files]
    if len(set(names)) == len(names):
        return names
    return [clean_name(f"{file.resolve().parent.name}/{file.name}") for file in files]
