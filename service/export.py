"""From what was learned to a file that classifies by itself (see `service.standalone`)."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence

from models_zoo.cards import Card, ZooError, read_file
from service.classifier import Classifier, Learned
from service.engine.episode import State
from service.problems import ModelUnavailable
from service.stored import StoredSupport
from service.tasks import check_limits, learning_rates

log = logging.getLogger(__name__)

#: Counts up when the same task comes to be written as another file.
_FORM = 2
_GRAPHS = ("encode.onnx", "predict.onnx")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def etag(
    classifier: Classifier,
    model: str,
    stored: StoredSupport,
    steps: int | None = None,
    inner_lr: float | None = None,
) -> str:
    """Changes whenever the file would; told without making it.

    Weak: on another kind of processor the last bits may differ. Raises as `Classifier.learn`,
    where the model does not take the set.
    """
    card = classifier.models.card(model)
    check_limits(stored.labels, 1, card)
    rates = learning_rates(steps, inner_lr, card)
    graphs = [card.files[name].sha256 for name in sorted(card.files) if name.endswith(".onnx")]
    facts = [_FORM, card.id, card.version, card.license, graphs, stored.key, rates]
    return f'W/"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"'


async def export_stored(
    classifier: Classifier,
    model: str,
    stored: StoredSupport,
    steps: int | None = None,
    inner_lr: float | None = None,
    deadline: float | None = None,
) -> tuple[str, bytes]:
    """A registered support set's classifier: a name for the file, and the file.

    Raises as `Classifier.learn`. The file is made in the pool that decodes images.
    """
    learned = await classifier.learn(model, stored, steps, inner_lr, deadline=deadline)
    data = await classifier.off_loop(_file, classifier, learned, stored.key)
    return file_name(learned.card, stored.key), data


def _file(classifier: Classifier, learned: Learned, support: str) -> bytes:
    return write(
        classifier, learned.card, learned.classes, learned.state, learned.rates, support=support
    )


def write(
    classifier: Classifier,
    card: Card,
    labels: Sequence[str],
    state: State,
    rates: Sequence[float] | None,
    support: str | None = None,
) -> bytes:
    """The file of one adapted task. It blocks. Raises `ModelUnavailable`."""
    from service.standalone import Facts, standalone  # the onnx package is for this alone

    try:
        names: list[str] = [name for name in _GRAPHS if name in card.files]
        graphs = {name: read_file(card, name, classifier.settings.zoo) for name in names}
        if "predict.onnx" not in graphs:
            raise ZooError(f"{card.id}: the card lists no predict.onnx")
        return standalone(graphs, state, Facts(card, labels, support, rates))
    except ZooError as error:
        log.error("cannot export %s: %s", card.id, error)
        detail = f"{card.id} cannot be made into one file; the server's log says why"
        raise ModelUnavailable(detail) from error


def file_name(card: Card, support: str) -> str:
    """A name that is safe in a header and on any disk."""
    return _UNSAFE.sub("-", f"{card.id}-{support}") + ".onnx"
