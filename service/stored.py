"""The seam between stored support sets and the classifier: neither knows the other's insides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.images import Upload


@dataclass(frozen=True)
class StoredSupport:
    """A registered support set at one revision, as the classifier sees it.

    key      "set_id@revision": what is stored under a key never changes
    labels   one per example, in stored order
    digests  sha256 (hex) of each example's original bytes, in the same order
    load     the original bytes of the examples at these positions, in their order; it blocks, so
             it is called off the event loop; raises `SetChanged` where one was deleted meanwhile
    owner    whose images they are: features that were computed for another owner are not used, or
             the time that an answer takes would tell whether somebody else keeps an image
    """

    key: str
    labels: tuple[str, ...]
    digests: tuple[str, ...]
    load: Callable[[Sequence[int]], list[Upload]]
    owner: str
