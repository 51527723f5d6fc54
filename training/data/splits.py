"""Which classes train, which choose the checkpoint and which test: fixed, disjoint lists.

Omniglot
    vinyals                the 1200/423 characters of Vinyals et al. (2016), in the lists published
                           with Prototypical Networks (Snell et al., 2017): 1028 / 172 / 423
    vinyals-220            the same test, and 220 of the 1200 for validation, as in Aimen et al.,
                           who do not say which: those of `vinyals` and Gujarati, whole alphabets:
                           980 / 220 / 423
    background-evaluation  964/659 of Lake et al. (2015); validation is five whole alphabets of the
                           background set: 816 / 148 / 659
CIFAR-100
    easy, moderate, hard   Meta-CIFAR100 of STANet, section 5.2; the lists were drawn once:
                           72 / 8 / 20, 72 / 8 / 20 and, by whole super-classes, 70 / 10 / 20
    cifar-fs               Bertinetto et al. (2019): 64 / 16 / 20
    fc100                  Oreshkin et al. (2018), by whole super-classes: 60 / 20 / 20
miniImageNet
    ravi                   Ravi and Larochelle (2017): 64 / 16 / 20
tieredImageNet
    ren                    Ren et al. (2018), as their files are divided: 351 / 97 / 160
miniImageNet, tieredImageNet, folder
    files                  as the files themselves are divided into train, val and test
folder
    60/20/20, 70/15/15@7   percentages of the classes, drawn with an optional seed (0)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from training.data.store import DataError, PackedStore

Part = Literal["train", "val", "test"]
Split = dict[Part, tuple[str, ...]]
Lists = dict[Part, list[str] | dict[str, list[int] | str]]

PARTS: tuple[Part, ...] = ("train", "val", "test")
LISTS = Path(__file__).parent / "class_lists"
TOTALS = {"omniglot": 1623, "cifar100": 100, "miniimagenet": 100}
REN = (351, 97, 160)
BY_FILES = ("miniimagenet", "tieredimagenet", "folder")
PERCENTAGES = re.compile(r"(\d{1,3})/(\d{1,3})/(\d{1,3})(?:@(\d{1,9}))?")


def split_names(dataset: str) -> tuple[str, ...]:
    """The named splits of a data set (percentages of `folder` come besides)."""
    named = tuple(_lists(dataset))
    named += ("ren",) if dataset == "tieredimagenet" else ()
    return (*named, "files") if dataset in BY_FILES else named


def split_classes(dataset: str, split: str, store: PackedStore) -> Split:
    """The class names of `split`: each of the store's classes is in exactly one part.

    Raises `DataError` on an unknown split and when the store lacks classes the split lists.
    """
    lists = _lists(dataset).get(split)
    if lists is not None:
        parts = _by_lists(lists, TOTALS[dataset], store, f"split {split!r} of {dataset}")
    elif split == "files" and dataset in BY_FILES:
        parts = _by_files(store)
    elif dataset == "tieredimagenet" and split == "ren":
        parts = _by_files(store)
        if (sizes := tuple(len(names) for names in parts.values())) != REN:
            raise DataError(f"tieredimagenet: {sizes} classes, not Ren's {REN}; take split 'files'")
    elif dataset == "folder" and (match := PERCENTAGES.fullmatch(split)):
        percent = [int(number) for number in match.groups()[:3]]
        parts = _by_percentages(percent, int(match[4] or 0), store)
    else:
        known = split_names(dataset) + (
            ("60/20/20", "60/20/20@seed") if dataset == "folder" else ()
        )
        raise DataError(
            f"unknown split {split!r} of {dataset}; known: {', '.join(known) or 'none'}"
        )
    if not parts["train"] or not parts["test"]:
        raise DataError(f"split {split!r} leaves no classes to train on or none to test on")
    return parts


def fingerprint(classes: Iterable[str]) -> str:
    """Of a set of class names, to know it again: percentages deal other classes out anew."""
    return hashlib.sha256("\n".join(sorted(set(classes))).encode()).hexdigest()


def _lists(dataset: str) -> dict[str, Lists]:
    path = LISTS / f"{dataset}.json"
    if dataset not in TOTALS:
        return {}
    content: dict[str, Lists] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _by_lists(lists: Lists, total: int, store: PackedStore, title: str) -> Split:
    """Validation and test as listed; every other class trains."""
    part_of: dict[str, Part] = {}
    for part in ("val", "test"):
        listed = lists[part]
        if isinstance(listed, list):
            part_of |= dict.fromkeys(listed, part)
            continue
        for group, numbers in listed.items():
            if numbers == "all":
                found = zip(store.classes, store.groups, strict=True)
                names = [name for name, of in found if of == group] or [group]
            else:
                names = [f"{group}/character{int(number):02d}" for number in numbers]
            part_of |= dict.fromkeys(names, part)
    absent = sorted(set(part_of) - set(store.classes))
    if absent or len(store.classes) != total:
        example = f", such as {absent[0]}" if absent else ""
        raise DataError(
            f"{title}: {total} classes expected, {len(store.classes)} found; "
            f"{len(absent)} of those listed are absent{example}"
        )
    return _collect([part_of.get(name, "train") for name in store.classes], store)


def _by_files(store: PackedStore) -> Split:
    """The first step of each class's group names its part (see `training.data.folder`)."""
    parts = [group.split("/")[0] for group in store.groups]
    if not set(parts) <= set(PARTS):
        raise DataError("these files are not divided into train, val and test; name percentages")
    return _collect(parts, store)


def _by_percentages(percent: list[int], seed: int, store: PackedStore) -> Split:
    """Shuffles the sorted class names, so that the answer does not depend on the store's order."""
    if any(group.split("/")[0] in PARTS for group in store.groups):
        raise DataError(
            "these files are divided into train, val and test, which percentages would mix: "
            "name the split 'files' (in a recipe: --set data.split=files)"
        )
    if sum(percent) != 100:
        raise DataError(f"percentages {'/'.join(map(str, percent))} do not add up to 100")
    names = sorted(store.classes)
    random.Random(seed).shuffle(names)
    train = round(len(names) * percent[0] / 100)
    val = round(len(names) * (percent[0] + percent[1]) / 100)
    part_of = {
        name: "train" if i < train else "val" if i < val else "test" for i, name in enumerate(names)
    }
    return _collect([part_of[name] for name in store.classes], store)


def _collect(parts: list[str] | list[Part], store: PackedStore) -> Split:
    return {
        part: tuple(name for name, of in zip(store.classes, parts, strict=True) if of == part)
        for part in PARTS
    }
