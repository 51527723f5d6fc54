"""`fewshot classify`: a few-shot task from files on disk, with no server."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models_zoo.cards import Card
from service.answers import build
from service.classifier import Classifier, Outcome
from service.commands.errors import quiet_log, user_errors
from service.commands.local import examples, local_classifier, queries, query_files
from service.commands.paths import named
from service.export import write
from service.problems import InvalidRequest
from service.schemas import AttentionMode
from service.sheet import draw_sheet
from service.tasks import Ask, learning_rates

_SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Options:
    """The command's arguments."""

    model: str
    support: Path
    queries: list[Path]
    attention: Path | None
    as_json: bool
    top_k: int | None
    steps: int | None
    inner_lr: float | None
    zoo: Path | None
    device: str | None
    save: Path | None = None
    orders: int | None = None

    @property
    def only_save(self) -> bool:
        """Nothing is asked but the classifier itself."""
        shown = self.as_json or self.attention is not None
        return self.save is not None and not self.queries and not shown


def run(options: Options) -> None:
    """Print the predictions. User errors exit with code 2."""
    with user_errors(), quiet_log():
        with local_classifier(options.model, options.zoo, options.device) as classifier:
            outcome = asyncio.run(_classify(classifier, options))
            if options.save is not None:
                with named("--save", options.save):
                    options.save.write_bytes(_file(classifier, outcome, options))
        if options.as_json:
            mode = AttentionMode.maps if options.attention else AttentionMode.none
            answer = build(outcome, mode, options.top_k, classifier.settings)
            sys.stdout.write(answer.model_dump_json(indent=2) + "\n")
        elif not options.only_save:
            Console(markup=False, emoji=False).print(_table(outcome, options.top_k))
        if options.attention is not None:
            with named("--attention", options.attention):
                written = _write_sheets(outcome, options.attention)
            sys.stderr.write(f"{written} attention pictures written to {options.attention}\n")
        if options.save is not None:
            sys.stderr.write(f"classifier written to {options.save}\n")


async def _classify(classifier: Classifier, options: Options) -> Outcome:
    if options.save is not None and options.orders is not None:
        raise InvalidRequest("a saved classifier has learned in one order: omit --orders or --save")
    # What the model does not take is told before files are read.
    _check(options, classifier.models.card(options.model))
    support = examples(classifier, options.support)
    if options.only_save and support:
        asked = [support[0].upload]  # a model learns when it is asked; any image will do
    else:
        asked = queries(query_files(options.queries))
    ask = Ask(
        options.model,
        tuple(support),
        tuple(asked),
        options.steps,
        options.inner_lr,
        options.orders,
    )
    wanted, save = options.attention is not None, options.save is not None
    return await classifier.classify(ask, attention=wanted, keep=wanted, remember=save)


def _check(options: Options, card: Card) -> None:
    """As the engine would, but by the names of the flags. Raises `InvalidRequest`."""
    if card.adaptation is None and (options.steps, options.inner_lr) != (None, None):
        raise InvalidRequest(
            f"{card.id} adapts without gradient steps: omit --steps and --inner-lr"
        )
    if options.orders is not None and not card.order_dependent:
        raise InvalidRequest(
            f"{card.id} does not depend on the order of the examples: omit --orders"
        )


def _file(classifier: Classifier, outcome: Outcome, options: Options) -> bytes:
    """The classifier as an ONNX file."""
    state, card = outcome.answer.state, outcome.card
    assert state is not None
    rates = learning_rates(options.steps, options.inner_lr, card)
    return write(classifier, card, outcome.classes, state, rates)


def _table(outcome: Outcome, top_k: int | None) -> Table:
    count = min(top_k or _SHOWN_CLASSES, len(outcome.classes))
    way, shots = len(outcome.classes), len(outcome.labels)
    table = Table(title=f"{outcome.card.id}: {way} classes, {shots} examples", title_style="bold")
    table.add_column("Image")
    table.add_column("Class", style="bold")
    table.add_column("Confidence", justify="right")
    unsure = outcome.answer.uncertainty
    if unsure is not None:
        table.add_column("Uncertainty", justify="right")
    table.add_column("Most probable")
    rows = zip(outcome.queries, outcome.answer.probabilities, strict=True)
    for index, (picture, row) in enumerate(rows):
        order = (-row).argsort(kind="stable")
        most = ", ".join(f"{outcome.classes[i]} {row[i]:.1%}" for i in order[:count])
        best = order[0]
        extra = [] if unsure is None else [f"{unsure[index]:.3g}"]
        table.add_row(picture.ref.name, outcome.classes[best], f"{row[best]:.1%}", *extra, most)
    return table


def _write_sheets(outcome: Outcome, folder: Path) -> int:
    """One picture per query; where names come twice, all get their position in front: the new
    names might be those of others else."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [Path(picture.ref.name).stem for picture in outcome.queries]
    repeated = len(set(map(str.casefold, names))) < len(names)
    for index, name in enumerate(names):
        prefix = f"{index}-" if repeated else ""
        draw_sheet(outcome, index).save(folder / f"{prefix}{name}.png")
    return len(names)
