"""Every split divides all classes into disjoint parts, as its paper says, and never changes."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from training.data import cifar100, omniglot
from training.data.splits import split_classes, split_names
from training.data.store import DataError


def digest(split):
    """Pins the lists, so that a published number stays comparable."""
    lines = [f"{part} {name}" for part, names in split.items() for name in sorted(names)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_partition(split, store, sizes):
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == sizes
    together = [name for names in split.values() for name in names]
    assert len(set(together)) == len(together), "a class is in two parts"
    assert set(together) == set(store.classes)


@pytest.fixture
def omniglot_names(omniglot_root, names_only):
    with omniglot.open_archives(omniglot.find(omniglot_root)) as reader:
        return names_only((listing.name, listing.group) for listing in reader.listings)


@pytest.fixture
def cifar_names(names_only):
    return names_only(sorted(cifar100.superclasses().items()))


def test_vinyals_is_the_published_split(omniglot_names):
    split = split_classes("omniglot", "vinyals", omniglot_names)
    check_partition(split, omniglot_names, (1028, 172, 423))
    # The published lists are the first 1200 characters, background then evaluation, and the rest.
    assert split["test"] == omniglot_names.classes[1200:]
    assert digest(split) == "d1a38f1e57da55b7"


def test_vinyals_220_has_seed_001_s_validation_and_the_published_test(omniglot_names):
    split = split_classes("omniglot", "vinyals-220", omniglot_names)
    check_partition(split, omniglot_names, (980, 220, 423))
    published = split_classes("omniglot", "vinyals", omniglot_names)
    assert split["test"] == published["test"]
    assert set(published["val"]) < set(split["val"])
    alphabets = {part: {name.split("/")[0] for name in names} for part, names in split.items()}
    assert not alphabets["val"] & (alphabets["train"] | alphabets["test"])
    assert digest(split) == "25f430b3cb1db3f4"


def test_background_evaluation_tests_unseen_alphabets(omniglot_names):
    split = split_classes("omniglot", "background-evaluation", omniglot_names)
    check_partition(split, omniglot_names, (816, 148, 659))
    assert split["test"] == omniglot_names.classes[964:]
    alphabets = {part: {name.split("/")[0] for name in names} for part, names in split.items()}
    assert {part: len(names) for part, names in alphabets.items()} == {
        "train": 25,
        "val": 5,
        "test": 20,
    }  # 50 in all, so none is shared
    assert digest(split) == "bab345a33b27460f"


SIZES = {
    "easy": (72, 8, 20),
    "moderate": (72, 8, 20),
    "hard": (70, 10, 20),
    "cifar-fs": (64, 16, 20),
    "fc100": (60, 20, 20),
}
PINNED = {
    "easy": "3492c381e19f4bc0",
    "moderate": "36e1f340a06a9282",
    "hard": "76c6c3a31c8882f4",
    "cifar-fs": "5e009e6d239bd0ee",
    "fc100": "5b641e1d61329cc2",
}


@pytest.mark.parametrize("name", SIZES)
def test_cifar_splits_are_fixed_partitions(name, cifar_names):
    split = split_classes("cifar100", name, cifar_names)
    check_partition(split, cifar_names, SIZES[name])
    assert digest(split) == PINNED[name]


def parents_of(split, part):
    return Counter(cifar100.superclasses()[name] for name in split[part])


def test_easy_tests_one_class_of_every_parent(cifar_names):
    split = split_classes("cifar100", "easy", cifar_names)
    assert set(parents_of(split, "test").values()) == {1}
    assert len(parents_of(split, "test")) == 20
    assert set(parents_of(split, "val").values()) == {1}


def test_moderate_tests_two_or_three_classes_of_seven_parents(cifar_names):
    split = split_classes("cifar100", "moderate", cifar_names)
    assert sorted(parents_of(split, "test").values()) == [2, 3, 3, 3, 3, 3, 3]
    assert set(parents_of(split, "test")) <= set(parents_of(split, "train"))
    assert not set(parents_of(split, "val")) & set(parents_of(split, "test"))


@pytest.mark.parametrize(("name", "tested"), [("hard", 4), ("fc100", 4)])
def test_hard_and_fc100_share_no_parent(name, tested, cifar_names):
    split = split_classes("cifar100", name, cifar_names)
    parents = {part: parents_of(split, part) for part in split}
    assert all(set(count.values()) == {5} for count in parents.values())
    assert len(parents["test"]) == tested
    assert sum(map(len, parents.values())) == 20


def test_incomplete_data_are_not_split(cifar_names):
    with pytest.raises(DataError, match="100 classes expected, 99 found"):
        split_classes("cifar100", "easy", cifar_names.select(cifar_names.classes[1:]))


def test_an_unknown_split_names_the_known_ones(cifar_names):
    with pytest.raises(DataError, match="known: easy, moderate, hard, cifar-fs, fc100"):
        split_classes("cifar100", "vinyals", cifar_names)
    assert split_names("miniimagenet") == ("ravi", "files")


def test_miniimagenet_lists_are_disjoint(names_only):
    # The lists name validation and test alone: with 64 others they make up the data set.
    from training.data.splits import _lists

    lists = _lists("miniimagenet")["ravi"]
    store = names_only(
        [(f"n{i}", "train") for i in range(64)]
        + [(name, "files") for part in ("val", "test") for name in lists[part]]
    )
    check_partition(split_classes("miniimagenet", "ravi", store), store, (64, 16, 20))


def test_percentages_depend_on_names_and_seed_alone(names_only):
    store = names_only([(f"class{i:03d}", "") for i in range(50)])
    backwards = store.select(reversed(store.classes))
    split = split_classes("folder", "60/20/20", store)
    check_partition(split, store, (30, 10, 10))
    again = split_classes("folder", "60/20/20", backwards)
    assert {part: set(names) for part, names in again.items()} == {
        part: set(names) for part, names in split.items()
    }
    assert split_classes("folder", "60/20/20@0", store) == split
    assert split_classes("folder", "60/20/20@1", store) != split


@pytest.mark.parametrize("split", ["60/20/30", "0/0/100", "100/0/0", "sixty", "60/20"])
def test_useless_percentages_are_refused(split, names_only):
    with pytest.raises(DataError):
        split_classes("folder", split, names_only([(f"class{i}", "") for i in range(10)]))


def test_percentages_do_not_mix_what_the_files_have_divided(names_only):
    store = names_only([(f"class{i}", "test" if i > 7 else "train") for i in range(10)])
    with pytest.raises(DataError, match="which percentages would mix: name the split 'files'"):
        split_classes("folder", "60/20/20", store)


def test_files_divide_themselves(names_only):
    store = names_only([("a", "train"), ("b", "test/dogs"), ("c", "train"), ("d", "val")])
    split = split_classes("tieredimagenet", "files", store)
    assert split == {"train": ("a", "c"), "val": ("d",), "test": ("b",)}
    with pytest.raises(DataError, match="not Ren's"):
        split_classes("tieredimagenet", "ren", store)
    with pytest.raises(DataError, match="not divided into train, val and test"):
        split_classes("folder", "files", names_only([("a", ""), ("b", "")]))
