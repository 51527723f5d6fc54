"""What leave-one-out verdicts say, in numbers and in plain words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from service.evaluation import Judgement
from service.problems import DeadlineExceeded

#: 95%, two-sided.
_Z = 1.959964
_CHANCE = 0.05
_MOST_NAMED = 3


@dataclass(frozen=True)
class Share:
    """`correct` of `count`, with the 95% interval of the true share."""

    correct: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.correct / self.count


@dataclass(frozen=True)
class Advice:
    """`model` to use, None where none could be judged; `classes` that need more examples, the most
    urgent first; and both in `sentences`, with how sure that is."""

    model: str | None
    classes: list[str]
    sentences: list[str]


def share(correct: int, count: int) -> Share:
    """With the Wilson score interval, which holds for few trials and for shares of 0 and 1.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    p, z2 = correct / count, _Z * _Z
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # Rounding must not put the observed share outside.
    return Share(correct, count, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def confusion(judgement: Judgement, way: int) -> list[list[int]]:
    """`[way][way]`: how often an example of the row's class was taken for the column's."""
    counts = Counter((verdict.truth, verdict.said) for verdict in judgement.verdicts)
    return [[counts[truth, said] for said in range(way)] for truth in range(way)]


def surely_better(ours: Judgement, theirs: Judgement) -> bool:
    """Whether the difference is more than chance: both judged the same examples, so those on which
    one alone is right are counted (exact sign test, 5%)."""
    pairs = zip(ours.verdicts, theirs.verdicts, strict=True)
    alone = Counter((a.said == a.truth, b.said == b.truth) for a, b in pairs)
    won, lost = alone[True, False], alone[False, True]
    trials = won + lost
    tail = sum(math.comb(trials, k) for k in range(won, trials + 1)) / 2**trials
    return won > lost and min(1.0, 2 * tail) <= _CHANCE


def advise(
    judgements: Sequence[Judgement], labels: Sequence[str], classes: Sequence[str]
) -> Advice:
    """`labels`: one per example; `classes`: in the order of the verdicts' indices."""
    shots = Counter(labels)
    single = [label for label in classes if shots[label] == 1]
    judged = [each for each in judgements if each.verdicts]
    sentences = []
    weak: list[str] = []
    best = max(judged, key=_merit, default=None)
    if best is None:
        sentences.append("No model takes this set as it is; `problem` says why of each.")
    else:
        sentences += _of_models(best, judged, len(classes))
        weak, told = _of_classes(best, classes)
        sentences += told
    sentences += _of_absent(judgements, best is not None)
    if single:
        each = " each" if len(single) > 1 else ""
        sentences.append(
            f"There is a single example of {_listed(single)}{each}, which cannot be left out: add "
            "a second one, to see how well it is told apart and to have more to go by."
        )
    return Advice(best.card.id if best else None, [*single, *weak], sentences)


def _merit(judgement: Judgement) -> tuple[int, float, float]:
    """Most examples right; then most belief in the truth; then the least time."""
    belief = sum(verdict.belief for verdict in judgement.verdicts)
    return judgement.correct, round(belief, 3), -judgement.seconds


def _of_models(best: Judgement, judged: Sequence[Judgement], way: int) -> list[str]:
    """Ties are named as such: whoever uses one of them need not change."""
    found = share(best.correct, len(best.verdicts))
    others = [each for each in judged if each is not best]
    tied = [each.card.title for each in others if each.correct == best.correct]
    title = best.card.title
    sentences = [
        f"{f'None did better than {title}' if tied else f'{title} did best'}: of {found.count} "
        f"examples, left out one at a time, it got {found.correct} right ({found.value:.0%}). With "
        f"so few examples the true accuracy may lie anywhere between {found.low:.0%} and "
        f"{found.high:.0%} (95% interval)."
    ]
    if tied:
        sentences.append(f"As many right, so as good a choice by these examples: {_listed(tied)}.")
    level = [
        each.card.title
        for each in others
        if each.correct < best.correct and not surely_better(best, each)
    ]
    if level:
        sentences.append(
            f"The difference to {_listed(level)} may be chance: more examples would tell."
        )
    if found.low <= 1 / way:
        sentences.append(
            f"That is not surely better than guessing ({1 / way:.0%}): add examples of every class."
        )
    sentences.append(
        "Each was judged by the others alone, its class one example short, so expect the whole set "
        "to do rather better."
    )
    return sentences


def _of_absent(judgements: Sequence[Judgement], others: bool) -> list[str]:
    """Which models have no numbers; why, where `others` have."""
    late, why = [], dict[str, list[str]]()
    for each in judgements:
        if isinstance(each.fault, DeadlineExceeded):
            late.append(each.card.title)
        elif each.fault is not None:
            why.setdefault(each.fault.title, []).append(each.card.title)
    sentences = []
    if late:
        sentences.append(
            f"Not judged in time: {', '.join(late)}; ask again with a longer `X-Request-Timeout`, "
            "or name fewer `models`."
        )
    if others:
        sentences += [f"Not judged: {', '.join(names)}. {title}." for title, names in why.items()]
    return sentences


def _of_classes(best: Judgement, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes with misread examples, the worst first, and what to say of them."""
    wrong: dict[int, Counter[int]] = {}
    for verdict in best.verdicts:
        if verdict.said != verdict.truth:
            wrong.setdefault(verdict.truth, Counter())[verdict.said] += 1
    counts = Counter(verdict.truth for verdict in best.verdicts)
    order = sorted(wrong, key=lambda i: (-wrong[i].total() / counts[i], counts[i], i))
    if not order:
        return [], [f"{best.card.title} misread none, so no class stands out as short of examples."]
    sentences = []
    for i in order[:_MOST_NAMED]:
        said, _ = wrong[i].most_common(1)[0]
        sentences.append(
            f"{classes[i]!r} needs more examples first: {wrong[i].total()} of {counts[i]} were "
            f"misread, most often as {classes[said]!r}."
            if i == order[0]
            else f"Then {classes[i]!r}: {wrong[i].total()} of {counts[i]}, most often as "
            f"{classes[said]!r}."
        )
    return [classes[i] for i in order], sentences


def _listed(names: Sequence[str]) -> str:
    """'a', 'b' and 'c'; of many the first ones."""
    shown = [repr(name) for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    last = f"{more} more" if more else shown.pop()
    return " and ".join(part for part in (", ".join(shown), last) if part)
