"""What `fewshot plot attention`, `similarity` and `embedding` show, asked of an entry without a
server. `training.plots` draws it: here is no plotting library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models_zoo.cards import Card
from service.archives import ArchiveLimits
from service.attention_rows import EXAMPLES, Row, block, numbers
from service.classifier import Classifier, Outcome
from service.commands.errors import quiet_log, user_errors
from service.commands.local import examples, local_classifier, members, queries, query_files
from service.engine.episode import Floats
from service.images import Upload, clean_name, decode
from service.problems import FileRef, InvalidRequest, NoQuery
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
        files, taught = _files(asked), examples(classifier, support)
        if len(files) > _QUERIES:
            raise InvalidRequest(f"{len(files)} queries; one picture has room for {_QUERIES}")
        outcome = _answer(classifier, model, taught, files)
        places = [f"{y} {x}" for y, x in np.ndindex(*(spec.query or spec.support or (0, 0)))]
        some = f": {EXAMPLES} of {len(taught)} examples, those of the largest weight"
        return AttentionFigure(
            card.id + some * (len(taught) > EXAMPLES),
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
    with each other, not queries. It is a softmax of MM-Net's dot products (seed 003, Eq. 2 and 9),
    of which seed 003 shows the products themselves; learners that score classes divide a
    class's weight evenly among its examples. With `cosine`, and for entries without task attention:
    the cosine of the encoder's vectors (`vectors_of`), which knows of no support set. User errors,
    an entry with neither among them, exit with code 2.
    """
    with _asking(model, zoo, device) as (classifier, card):
        weights = card.attention.task and not cosine
        if not (weights or card.encodes):
            raise InvalidRequest(_no_encoder(card))
        files, taught = _files(asked), examples(classifier, support)
        if weights:
            outcome = _answer(classifier, model, taught, files)
            found = outcome.answer.attention.task
            assert found is not None
            values, measure = found[-1].T, "Task attention"
            if len(found) > 1:
                measure += f" of layer {len(found)}"
        else:
            uploads = [*(example.upload for example in taught), *queries(files)]
            vectors = _encoded(classifier, card, uploads)
            units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            values = units[: len(taught)] @ units[len(taught) :].T
            measure = "Cosine similarity"
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
    its memory reads, not what it makes of them. User errors, an entry that has no encoder apart
    from its task among them, exit with code 2.
    """
    with _asking(model, zoo, device) as (classifier, card):
        if not card.encodes:
            raise InvalidRequest(_no_encoder(card))
        found = members(images, _EMBEDDED, "images")
        uploads = [
            Upload(FileRef("images", index, clean_name(member.path)), member.data)
            for index, member in enumerate(found)
        ]
        names, classes = [m.path for m in found], [m.label for m in found]
        vectors = _encoded(classifier, card, uploads)
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
    with user_errors(), quiet_log(), local_classifier(zoo, device) as classifier:
        yield classifier, classifier.models.card(model)


def _no_encoder(card: Card) -> str:
    return (
        f"{card.id} has no encoder of its own: it adapts its whole network to a task, so an image "
        "has no place by itself"
    )


def _files(asked: Sequence[Path]) -> list[Path]:
    """Raises `NoQuery`."""
    if not asked:
        raise NoQuery("name at least one image to ask about, with --query")
    return query_files(asked)


def _answer(
    classifier: Classifier, model: str, taught: Sequence[Example], files: Sequence[Path]
) -> Outcome:
    """The task answered, with attention and pictures."""
    ask = Ask(model, tuple(taught), tuple(queries(files)))
    return asyncio.run(classifier.classify(ask, attention=True, keep=True))


def _encoded(classifier: Classifier, card: Card, uploads: Sequence[Upload]) -> Floats:
    """`[M, D]`. Raises the `Problem`s of `images` and `Models`."""
    runtime = asyncio.run(classifier.models.runtime(card.id))
    found = []
    for start in range(0, len(uploads), _CHUNK):
        chunk = [
            decode(upload, card.input, classifier.image_limits).pixels
            for upload in uploads[start : start + _CHUNK]
        ]
        found.append(vectors_of(runtime.encode(np.stack(chunk))))
    return np.concatenate(found)


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names, behind their folders' where two are called alike."""
    names = [clean_name(file.name) for file in files]
    if len(set(names)) == len(names):
        return names
    return [clean_name(f"{file.resolve().parent.name}/{file.name}") for file in files]
