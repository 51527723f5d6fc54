"""Episodes drawn from a packed store that lives whole on the training device.

Sampling is index arithmetic on tensors: no image is opened, no Python loop runs over tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models_zoo.episode import Support, present_classes
from training.data.augment import LUMA, affine, crop_and_flip, photo
from training.data.store import DataError, PackedStore

#: Target of a padding query; `cross_entropy` skips it.
IGNORE = -100

Rotations = Literal["none", "classes", "mirrored", "per_class"]
#: Versions of each class: turned by 0 to 270 degrees, and these once more as in a mirror.
VERSIONS = {"none": 1, "classes": 4, "mirrored": 8, "per_class": 4}
Augment = Literal["none", "crop_flip", "photo", "affine"]
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "crop_flip": crop_and_flip,
    "photo": photo,
    "affine": affine,
}


@dataclass(frozen=True)
class Episode:
    """B tasks. Labels are class slots of the task; `*_classes` are global class ids.

    support           `Support` of images [B, N, C, H, W] float in [0, 1]
    query             [B, Q, C, H, W]
    targets           [B, Q]  slots; `IGNORE` = padding
    support_classes   [B, N]  global ids; `IGNORE` = padding
    query_classes     [B, Q]
    """

    support: Support
    query: Tensor
    targets: Tensor
    support_classes: Tensor
    query_classes: Tensor

    def to(self, device: torch.device | str) -> Episode:
        """The episode on another device."""
        parts = (self.query, self.targets, self.support_classes, self.query_classes)
        return Episode(self.support.to(device), *(part.to(device) for part in parts))


def turn(images: Tensor, version: int) -> Tensor:
    """Version 0 to 7 of square images `[..., H, W]`: quarter turns, from 4 on mirrored."""
    return torch.rot90(images.flip(-1) if version >= 4 else images, version % 4, (-2, -1))


class EpisodeSampler:
    """Draws C-way k-shot episodes, mixed in one batch if asked.

    rotations: "classes"    each class turned by 90, 180, 270 degrees is a class of its own
                            (Santoro et al. 2016; Snell et al. 2017)
               "mirrored"   these, and their mirror images, are classes of their own: as many
                            again for training, where the test's protocol does not count
               "per_class"  a turn is drawn for every class of every task (Finn et al. 2017)
    turned:    of "classes" and "mirrored", the share of turned classes among those drawn; None
               draws all alike, three in four or seven in eight of them turned
    slots:     labels are drawn from 0..slots-1 at random instead of 0..way-1, so that a learner
               with a fixed number of outputs learns to do without some of them
    augment:   "crop_flip" or, with changed colours too, "photo" for photos, "affine" for drawings;
               drawn per image
    """

    def __init__(
        self,
        store: PackedStore,
        *,
        rotations: Rotations = "none",
        turned: float | None = None,
        slots: int | None = None,
        augment: Augment = "none",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        # Not copied where it lies in memory already; a memory map is read in.
        images = torch.from_numpy(np.require(store.images, requirements=["C", "W"])).to(device)
        self.names, self.base_classes = store.classes, len(store.classes)
        self.rotations, self.slots, self.augment = rotations, slots, augment
        if augment == "photo" and images.shape[1] != len(LUMA):
            raise DataError("augment: photo changes colours; grey images have none: crop_flip")
        turns = VERSIONS[rotations]
        if turns > 1 and images.shape[-2] != images.shape[-1]:
            raise DataError("rotations need square images; set the input's height to its width")
        # Turned copies behind one another: class t * base_classes + c is class c turned t times.
        self.images = torch.cat([turn(images, t) for t in range(turns)]) if turns > 1 else images
        starts = torch.as_tensor(store.offsets[:-1])
        self.starts = torch.cat([starts + t * len(images) for t in range(turns)]).to(device)
        self.counts = torch.as_tensor(store.offsets).diff().repeat(turns).to(device)
        self.class_count = len(self.counts)
        names = sorted(set(store.groups))
        groups = torch.tensor([names.index(group) for group in store.groups], device=device)
        #: Super-class (times turn) of each global class.
        self.group_of = torch.cat([groups + t * len(names) for t in range(turns)])
        self.group_count = len(names) * turns
        self.device = torch.device(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        #: How often each global class is drawn; None is all alike.
        self.weights: Tensor | None = None
        if turned is not None:
            if rotations not in ("classes", "mirrored"):
                raise DataError("turned needs rotations: classes or mirrored")
            weights = torch.full((turns, self.base_classes), turned / (turns - 1), device=device)
            weights[0] = 1 - turned
            self.weights = weights.flatten()

    def sample(
        self,
        tasks: int,
        way: int | list[int],
        shot: int | list[int],
        queries: int,
    ) -> Episode:
        """A batch of tasks; lists give one way or shot per task. `queries` are per class.

        Raises `DataError` when the store has too few classes or images.
        """
        ways = self._per_task(way, tasks)
        shots = self._per_task(shot, tasks)
        most_way, most_shot = int(ways.max()), int(shots.max())
        self.check(most_way, most_shot + queries)

        classes = self._draw_classes(tasks, most_way)
        items = self._draw_items(classes, most_shot + queries)
        used = torch.arange(most_way, device=self.device) < ways[:, None]  # [B, way]
        slot_count = self.slots or most_way
        if self.slots:
            if most_way > self.slots:
                raise DataError(f"{most_way} ways do not fit into {self.slots} slots")
            slots = self._rand(tasks, self.slots).argsort(1)[:, :most_way]
        else:
            slots = torch.arange(most_way, device=self.device).expand(tasks, -1)

        taken = torch.arange(most_shot, device=self.device) < shots[:, None]  # [B, shot]
        mask = used[:, :, None] & taken[:, None, :]  # [B, way, shot]
        order = self._shuffled(mask.flatten(1))
        s_items, s_slots, s_classes, s_mask = (
            t.flatten(1).gather(1, order)
            for t in (
                items[:, :, :most_shot],
                slots[:, :, None].expand(-1, -1, most_shot),
                classes[:, :, None].expand(-1, -1, most_shot),
                mask,
            )
        )
        q_used = used[:, :, None].expand(-1, -1, queries).flatten(1)
        q_slots = slots[:, :, None].expand(-1, -1, queries).flatten(1)
        q_classes = classes[:, :, None].expand(-1, -1, queries).flatten(1)
        labels = s_slots.masked_fill(~s_mask, 0)
        support = Support(
            self._pixels(s_items), labels, s_mask, present_classes(labels, s_mask, slot_count)
        )
        return Episode(
            support,
            self._pixels(items[:, :, most_shot:].flatten(1)),
            q_slots.masked_fill(~q_used, IGNORE),
            s_classes.masked_fill(~s_mask, IGNORE),
            q_classes.masked_fill(~q_used, IGNORE),
        )

    def some(self, episode: Episode, count: int) -> Episode:
        """The episode with `count` of each task's queries, drawn from all its classes, or with all
        of them where there are no more."""
        keys = self._rand(*episode.targets.shape).masked_fill(episode.targets == IGNORE, 2.0)
        kept = keys.argsort(1)[:, :count]
        images = kept[:, :, None, None, None].expand(-1, -1, *episode.query.shape[2:])
        return replace(
            episode,
            query=episode.query.gather(1, images),
            targets=episode.targets.gather(1, kept),
            query_classes=episode.query_classes.gather(1, kept),
        )

    def _per_task(self, value: int | list[int], tasks: int) -> Tensor:
        values = torch.as_tensor(value, device=self.device).expand(tasks)
        return values

    def check(self, way: int, per_class: int, of: str = "") -> None:
        """Raise `DataError` where the store, the classes `of` a part, has too few classes or images
        for such tasks."""
        if way > self.base_classes:
            raise DataError(
                f"{way}-way tasks need {way} classes, there are {self.base_classes} {of}".rstrip()
            )
        least = int(self.counts.argmin())
        if per_class > self.counts[least]:
            raise DataError(
                f"{per_class} images per class needed, the smallest class, "
                f"{self.names[least % self.base_classes]!r}, has {int(self.counts[least])}"
            )

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def _draw_classes(self, tasks: int, way: int) -> Tensor:
        """Distinct global classes `[B, way]`."""
        if self.rotations != "per_class":
            keys = self._rand(tasks, self.class_count)
            if self.weights is not None:  # Efraimidis and Spirakis 2006
                keys = keys.log() / self.weights
            return keys.topk(way, dim=1).indices
        base = self._rand(tasks, self.base_classes).topk(way, dim=1).indices
        turn = (self._rand(tasks, way) * 4).long()
        return base + turn * self.base_classes

    def _draw_items(self, classes: Tensor, per_class: int) -> Tensor:
        """Distinct rows of `images` for each class: `[B, way, per_class]`."""
        counts = self.counts[classes]
        most = int(self.counts.max())
        scores = self._rand(*classes.shape, most)
        beyond = torch.arange(most, device=self.device) >= counts[..., None]
        scores = scores.masked_fill(beyond, -1.0)
        return self.starts[classes][..., None] + scores.topk(per_class, dim=-1).indices

    def _shuffled(self, mask: Tensor) -> Tensor:
        """A random order `[B, N]` with the padding at the end."""
        return (self._rand(*mask.shape) + (~mask).float()).argsort(1)

    def _pixels(self, items: Tensor) -> Tensor:
        images = self.images[items.flatten()]
        if self.augment != "none":
            images = AUGMENTATIONS[self.augment](images, self.generator)
        return images.float().div_(255).unflatten(0, items.shape)
