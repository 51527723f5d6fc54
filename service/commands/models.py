"""`fewshot models list|show|verify`: the zoo as tables, or as JSON for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models_zoo.cards import (
    CARD_NAME,
    ENTRIES,
    Accuracy,
    AttentionSpec,
    Card,
    Speed,
    ZooError,
    find_card,
    load_card,
    verify,
)
from service.commands.errors import fail, user_errors
from service.commands.paths import check_zoo


def list_models(zoo: Path | None, as_json: bool) -> None:
    """Every entry on a line."""
    with user_errors():
        cards = [find_card(name, _root(zoo)) for name in _names(zoo)]
        if as_json:
            write_json([card.model_dump(mode="json") for card in cards])
            return
        table = Table(
            title=f"{len(cards)} {'model' if len(cards) == 1 else 'models'}",
            caption="Accuracy: 5-way 1-shot, of queries one by one; on Omniglot, "
            "turned classes too.\nAll about one: fewshot models show MODEL",
        )
        # Ids are for copying: they are never cut.
        table.add_column("Model", no_wrap=True)
        for column in ("Data set", "Classes", "Accuracy"):
            table.add_column(column)
        for card in cards:
            data = card.training.dataset if card.training else "pretrained"
            table.add_row(card.id, data, f"2-{card.limits.max_way}", _usual(card))
        Console(markup=False, emoji=False).print(table)


def show_model(entry: str, zoo: Path | None, as_json: bool) -> None:
    """One card."""
    with user_errors():
        card = find_card(entry, _root(zoo))
        if as_json:
            write_json(card.model_dump(mode="json"))
            return
        table = Table(title=f"{card.id} {card.version}", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        limits, training = card.limits, card.training
        facts = {
            "Title": card.title,
            "Summary": card.summary,
            "Learner": f"{card.learner} ({card.family.replace('_', ' ')})",
            "Paper": f"{card.paper.authors}: {card.paper.title} ({card.paper.year})",
            "Backbone": f"{card.backbone}, {card.parameters:,} parameters",
            "Images": _input(card),
            "Limits": f"{limits.max_way} classes, {limits.max_shot} images each, "
            f"{limits.max_support} in all, {limits.max_query} queries",
            "Transductive": "yes" if card.transductive else "no",
            "Order matters": "yes, of the examples" if card.order_dependent else "no",
            "Uncertainty": "yes" if card.uncertainty else "no",
            "Attention": _attention(card.attention),
            "Licence": card.license,
        }
        if training is not None:
            facts["Trained on"] = (
                f"{training.dataset} ({training.split}), {training.run_steps} steps, "
                f"{training.minutes:g} min on {training.hardware}"
            )
        if card.pretrained is not None:
            facts["Weights"] = f"{card.pretrained.weights}, from {card.pretrained.source}"
        if not card.accuracy:
            facts["Accuracy"] = "not measured"
        if card.adaptation is not None:
            spec = card.adaptation
            facts["Adaptation"] = (
                f"{spec.steps} steps (at most {spec.max_steps}), inner_lr {spec.inner_lr:g} "
                f"(at most {spec.max_inner_lr:g})"
            )
        for name, value in facts.items():
            table.add_row(name, value)
        for measured in card.accuracy:
            table.add_row("Accuracy", f"{_accuracy(measured)}, {_test_of(measured)}")
            table.add_row("", measured.command)
        for timed in card.speed:
            table.add_row("Speed", f"{speed_of(timed)}; {timed.hardware}")
            table.add_row("", timed.command)
        for name, fact in card.files.items():
            table.add_row("File", f"{name}, {fact.bytes:,} bytes, sha256 {fact.sha256[:16]}...")
        Console(markup=False, emoji=False).print(table)


def verify_models(entries: list[str], zoo: Path | None, as_json: bool) -> None:
    """Check the files of the named entries, or of all. Exit code 2 if any differs."""
    with user_errors():
        found: dict[str, str] = {}
        known = _names(zoo)
        for entry in entries:
            if entry not in known:
                find_card(entry, _root(zoo))  # says so
        for entry in entries or known:
            try:
                verify(load_card(_root(zoo) / entry), _root(zoo))
                found[entry] = "ok"
            except ZooError as error:
                found[entry] = str(error)
        if as_json:
            write_json(found)
        else:
            table = Table("Model", "Files")
            for entry, result in found.items():
                table.add_row(entry, result, style=None if result == "ok" else "red")
            Console(markup=False, emoji=False).print(table)
        bad = [entry for entry, result in found.items() if result != "ok"]
        if bad:
            fail(f"{len(bad)} of {len(found)} entries differ from their cards: {', '.join(bad)}")


def _root(zoo: Path | None) -> Path:
    """Raises `typer.Exit` where there is no such folder."""
    root = ENTRIES if zoo is None else zoo
    check_zoo(root)
    return root


def _names(zoo: Path | None) -> list[str]:
    return sorted(path.parent.name for path in _root(zoo).glob(f"*/{CARD_NAME}"))


def _input(card: Card) -> str:
    spec = card.input
    return f"{spec.width} x {spec.height} {'grey' if spec.channels == 1 else 'colour'}"


def _accuracy(measured: Accuracy) -> str:
    return f"{_score(measured)} ({measured.way}-way {measured.shot}-shot, {measured.tasks} tasks)"


def _usual(card: Card) -> str:
    """5-way 1-shot by the usual protocol, as in the README."""
    wanted = (5, 1, None)
    for row in card.accuracy:
        if row.standard and (row.way, row.shot, row.presentation) == wanted:
            return _score(row)
    return "not measured"


def _score(measured: Accuracy) -> str:
    return f"{measured.mean:.2%} ± {measured.ci95:.2%}"


def _test_of(measured: Accuracy) -> str:
    """What was classified, and how, where that is not one query at a time."""
    turned = ", turned too" if measured.rotations == "classes" else ""
    together = ", asked together" if measured.transductive else ""
    return f"{measured.dataset}{turned}{together}"


def _attention(spec: AttentionSpec) -> str:
    """To what, and in how many layers."""
    kinds = {
        "which examples count": spec.task,
        "where in the query": spec.query,
        "where in the examples": spec.support,
    }
    told = ", ".join(kind for kind, given in kinds.items() if given)
    return f"{told} (layers: {spec.layers})" if told else "none"


def speed_of(row: Speed) -> str:
    """The times of a card's row in words."""
    return (
        f"{row.total_ms:.1f} ms (encode {row.encode_ms:.1f}, adapt {row.adapt_ms:.1f}, predict "
        f"{row.predict_ms:.1f}; {row.way}-way {row.shot}-shot, {row.queries_per_class} queries "
        "per class)"
    )


def write_json(value: object) -> None:
    """To standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
