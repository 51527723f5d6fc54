"""Episodes read back from their own pixels: every image says which class and drawing it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.sampler import IGNORE, Augment, Episode, EpisodeSampler
from training.data.store import DataError, PackedStore

MARK = 255


def store(counts: list[int], groups: list[str] | None = None, side: int = 4) -> PackedStore:
    """Square images: a mark in the first corner, then the class, then the number of the drawing."""

    def drawings(label: int, count: int) -> np.ndarray:
        images = np.zeros((count, 1, side, side), np.uint8)
        images[:, 0, 0, 0] = MARK
        images[:, 0, 0, 1] = label
        images[:, 0, 0, 2] = np.arange(count)
        return images

    groups = groups or [""] * len(counts)
    return PackedStore.pack(
        (f"class{i}", group, drawings(i, count))
        for i, (group, count) in enumerate(zip(groups, counts, strict=True))
    )


@dataclass(frozen=True)
class Seen:
    """What the pixels of one image say; `turn` counts quarter turns anticlockwise."""

    label: int
    drawing: int
    turn: int


def read(image: Tensor) -> Seen:
    pixels = (image * 255).round().long()[0]
    for turn in range(4):
        upright = torch.rot90(pixels, -turn)
        if upright[0, 0] == MARK:
            return Seen(int(upright[0, 1]), int(upright[0, 2]), turn)
    raise AssertionError("no mark")


@dataclass(frozen=True)
class Task:
    """One task of a batch: (image, slot, global class) of the real images."""

    support: list[tuple[Seen, int, int]]
    query: list[tuple[Seen, int, int]]

    @property
    def everything(self) -> list[tuple[Seen, int, int]]:
        return self.support + self.query


def tasks(episode: Episode) -> list[Task]:
    found = []
    for b in range(len(episode.query)):
        support = [
            (read(x), int(y), int(c))
            for x, y, c, real in zip(
                episode.support.x[b],
                episode.support.labels[b],
                episode.support_classes[b],
                episode.support.mask[b],
                strict=True,
            )
            if real
        ]
        query = [
            (read(x), int(y), int(c))
            for x, y, c in zip(
                episode.query[b], episode.targets[b], episode.query_classes[b], strict=True
            )
            if y != IGNORE
        ]
        found.append(Task(support, query))
    return found


UNEQUAL = [6, 9, 7, 20, 6, 12, 8]


def test_classes_and_images_are_distinct_and_labels_right() -> None:
    episode = EpisodeSampler(store(UNEQUAL), seed=1).sample(50, 4, 2, 3)
    assert episode.support.x.shape == (50, 8, 1, 4, 4)
    assert episode.query.shape == (50, 12, 1, 4, 4)
    assert episode.support.mask.all()
    for task in tasks(episode):
        assert len({(seen.label, seen.drawing) for seen, _, _ in task.everything}) == 4 * 5
        labels = {slot: seen.label for seen, slot, _ in task.everything}
        assert sorted(labels) == [0, 1, 2, 3]
        assert len(set(labels.values())) == 4
        for seen, slot, label in task.everything:
            assert seen.label == labels[slot] == label
            assert seen.turn == 0
        for slot in range(4):
            assert sum(s == slot for _, s, _ in task.support) == 2
            assert sum(s == slot for _, s, _ in task.query) == 3


def test_the_support_set_is_in_no_order() -> None:
    labels = EpisodeSampler(store(UNEQUAL)).sample(200, 3, 1, 1).support.labels
    orders = {tuple(row) for row in labels.tolist()}
    assert len(orders) == 6


def test_mixed_ways_and_shots_share_a_batch_behind_masks() -> None:
    ways, shots = [2, 5, 3, 4] * 10, [4, 1, 3, 2] * 10
    episode = EpisodeSampler(store([9] * 8), seed=2).sample(40, ways, shots, 2)
    assert episode.support.x.shape[:2] == (40, 5 * 4)
    assert episode.query.shape[:2] == (40, 5 * 2)
    padding = ~episode.support.mask
    assert (episode.support_classes[padding] == IGNORE).all()
    assert (episode.query_classes[episode.targets == IGNORE] == IGNORE).all()
    for task, way, shot, present in zip(
        tasks(episode), ways, shots, episode.support.class_mask, strict=True
    ):
        slots = [slot for _, slot, _ in task.support]
        assert sorted(slots) == sorted(list(range(way)) * shot)
        assert sorted(slot for _, slot, _ in task.query) == sorted(list(range(way)) * 2)
        assert present.tolist() == [slot < way for slot in range(5)]
        assert len({(seen.label, seen.drawing) for seen, _, _ in task.everything}) == way * (
            shot + 2
        )


def test_slots_are_drawn_at_random_and_agree_between_support_and_query() -> None:
    sampler = EpisodeSampler(store(UNEQUAL), slots=6, seed=3)
    episode = sampler.sample(600, 2, 1, 1)
    assert episode.support.class_mask.shape == (600, 6)
    used = torch.zeros(6)
    for task, present in zip(tasks(episode), episode.support.class_mask, strict=True):
        slot_of = {seen.label: slot for seen, slot, _ in task.support}
        assert len(set(slot_of.values())) == 2
        assert all(slot_of[seen.label] == slot for seen, slot, _ in task.query)
        assert set(present.nonzero().flatten().tolist()) == set(slot_of.values())
        used[list(slot_of.values())] += 1
    # 1200 slots over 6: 200 each, standard deviation 11.5.
    assert (used - 200).abs().max() < 60


def test_turned_classes_are_classes_of_their_own() -> None:
    names = ["b", "a", "b", "a", "c", "c", "a"]
    sampler = EpisodeSampler(store(UNEQUAL, names), rotations="classes", seed=4)
    assert sampler.class_count == 4 * 7
    assert sampler.group_count == 4 * 3
    turns = set()
    for task in tasks(sampler.sample(150, 5, 1, 2)):
        assert len({label for _, _, label in task.everything}) == 5
        for seen, slot, label in task.everything:
            assert label == seen.turn * 7 + seen.label
            assert int(sampler.group_of[label]) == seen.turn * 3 + sorted("abc").index(
                names[seen.label]
            )
            assert slot in range(5)
        together: dict[int, set[int]] = {}
        for seen, _, _ in task.everything:
            together.setdefault(seen.label, set()).add(seen.turn)
        turns.add(max(len(t) for t in together.values()))
    assert turns >= {1, 2}  # a character may meet itself turned


def test_the_share_of_turned_classes_can_be_set() -> None:
    for rotations, turns in (("classes", 4), ("mirrored", 8)):
        sampler = EpisodeSampler(store([4] * 9), rotations=rotations, turned=0.25, seed=8)  # type: ignore[arg-type]
        drawn = sampler.sample(4000, 1, 1, 1).query_classes[:, 0]
        counts = torch.bincount(drawn, minlength=turns * 9).view(turns, 9).float()
        assert abs(float(counts[1:].sum()) - 1000) < 140  # standard deviation 27
        assert (counts[0] / (3000 / 9) - 1).abs().max() < 0.3
        assert (counts[1:].sum(1) / (1000 / (turns - 1)) - 1).abs().max() < 0.5
        several = sampler.sample(200, 9, 1, 1)
        for task in tasks(several):
            assert len({label for _, _, label in task.everything}) == 9
    with pytest.raises(DataError, match="turned needs rotations"):
        EpisodeSampler(store([4] * 9), turned=0.25)


def test_a_turn_is_drawn_for_every_class_of_every_task() -> None:
    sampler = EpisodeSampler(store([9] * 8), rotations="per_class", seed=5)
    several, count = 0, torch.zeros(4)
    for task in tasks(sampler.sample(300, 4, 2, 2)):
        turn_of: dict[int, set[int]] = {}
        for seen, _, _ in task.everything:
            turn_of.setdefault(seen.label, set()).add(seen.turn)
        assert len(turn_of) == 4, "a class and its turned self never meet"
        assert all(len(turns) == 1 for turns in turn_of.values())
        turns = [next(iter(turns)) for turns in turn_of.values()]
        several += len(set(turns)) > 1
        for turn in turns:
            count[turn] += 1
    assert several > 270  # 1 - 1/64 of them, were it drawn once for a task: none
    assert (count - 300).abs().max() < 75  # standard deviation 15


def test_every_class_and_drawing_is_drawn_equally_often() -> None:
    counts = [5, 5, 10, 20]
    classes, drawings = torch.zeros(4), [torch.zeros(n) for n in counts]
    sampler = EpisodeSampler(store(counts), seed=6)
    for task in tasks(sampler.sample(2000, 2, 1, 1)):
        for seen, _, _ in task.everything:
            drawings[seen.label][seen.drawing] += 1
            classes[seen.label] += 1
    assert (classes / 2000 - 1).abs().max() < 0.12  # standard deviation 0.022 and twice an image
    for count, seen_often in zip(counts, drawings, strict=True):
        expected = 2000 / count
        assert (seen_often - expected).abs().max() < 6 * expected**0.5


def test_the_seed_decides() -> None:
    def draw(seed: int) -> list[Tensor]:
        sampler = EpisodeSampler(store(UNEQUAL), rotations="classes", slots=6, seed=seed)
        episodes = [sampler.sample(3, [2, 3, 4], 1, 2) for _ in range(3)]
        return [t for e in episodes for t in (e.support.x, e.query, e.targets, e.support.labels)]

    assert all(torch.equal(a, b) for a, b in zip(draw(7), draw(7), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draw(7), draw(8), strict=True))


def test_no_two_batches_are_alike() -> None:
    sampler = EpisodeSampler(store(UNEQUAL), seed=8)
    assert not torch.equal(sampler.sample(4, 3, 1, 2).query, sampler.sample(4, 3, 1, 2).query)


def test_the_whole_class_may_be_used_up() -> None:
    (task,) = tasks(EpisodeSampler(store([3, 3])).sample(1, 2, 1, 2))
    assert {(seen.label, seen.drawing) for seen, _, _ in task.everything} == {
        (label, drawing) for label in range(2) for drawing in range(3)
    }


@pytest.mark.parametrize(
    ("way", "shot", "queries", "message"),
    [
        (8, 1, 1, "8 classes, there are 7"),
        ([2, 8], 1, 1, "8 classes, there are 7"),
        (2, 3, 4, "7 images per class needed, the smallest class, '\\w+', has 6"),
        (2, [1, 6], 1, "smallest class, '\\w+', has 6"),
        (5, 1, 1, "do not fit into 4 slots"),
    ],
)
def test_what_the_data_cannot_give_is_said(
    way: int | list[int], shot: int | list[int], queries: int, message: str
) -> None:
    sampler = EpisodeSampler(store(UNEQUAL), slots=4)
    with pytest.raises(DataError, match=message):
        sampler.sample(2, way, shot, queries)


def test_turning_needs_square_images() -> None:
    wide = PackedStore.pack((str(i), "", np.zeros((2, 1, 4, 5), np.uint8)) for i in range(2))
    assert EpisodeSampler(wide).sample(1, 2, 1, 1).query.shape[2:] == (1, 4, 5)
    with pytest.raises(DataError, match="square"):
        EpisodeSampler(wide, rotations="classes")


@pytest.mark.parametrize("augment", ["crop_flip", "affine"])
def test_augmentation_changes_each_image_by_itself_and_nothing_else(augment: Augment) -> None:
    plain = EpisodeSampler(store([30] * 4, side=8), seed=9).sample(1, 2, 5, 5)
    moved = EpisodeSampler(store([30] * 4, side=8), seed=9, augment=augment).sample(1, 2, 5, 5)
    assert torch.equal(plain.support.labels, moved.support.labels)
    assert torch.equal(plain.query_classes, moved.query_classes)
    changed = (plain.query != moved.query)[0].flatten(1)
    assert changed.any(1).sum() >= 5
    assert len({tuple(row) for row in changed.tolist()}) > 5
    assert moved.query.min() >= 0
    assert moved.query.max() <= 1


def test_mirrored_classes_are_eight_distinct_versions_of_each_class() -> None:
    pixels = np.arange(2 * 3 * 9, dtype=np.uint8).reshape(6, 1, 3, 3)
    packed = PackedStore.pack([("a", "g", pixels[:3]), ("b", "h", pixels[3:])])
    sampler = EpisodeSampler(packed, rotations="mirrored")
    assert (sampler.class_count, sampler.group_count) == (16, 16)
    first = sampler.images[sampler.starts].reshape(8, 2, 3, 3)
    square = torch.from_numpy(pixels[0, 0])
    expected = [torch.rot90(version, k) for version in (square, square.flip(1)) for k in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first[:, 0], expected, strict=True))
    assert len({tuple(version.flatten().tolist()) for version in first[:, 0]}) == 8


def test_some_queries_are_drawn_of_every_class_with_their_targets_and_never_padding() -> None:
    sampler = EpisodeSampler(store([9] * 6), seed=0)
    seen: set[tuple[int, int]] = set()
    for count in (1, 3, 5):
        for _ in range(20):
            whole = sampler.sample(2, [2, 4], 1, 3)
            some = sampler.some(whole, count)
            assert some.targets.shape == (2, count) and some.support is whole.support
            for task in range(2):
                images = [read(image) for image in some.query[task]]
                assert len(set(images)) == count
                assert [image.label for image in images] == some.query_classes[task].tolist()
                before = zip(whole.query_classes[task], whole.targets[task], strict=True)
                slots = {int(label): int(slot) for label, slot in before}
                assert [slots[image.label] for image in images] == some.targets[task].tolist()
                assert IGNORE not in some.targets[task]
                seen |= {(task, int(slot)) for slot in some.targets[task]}
    assert len(seen) == 2 + 4
    assert torch.equal(sampler.some(whole, 99).targets.sort(1).values, whole.targets.sort(1).values)
