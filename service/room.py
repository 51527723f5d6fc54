"""Bytes held for clients, bounded: in all, and for each of them."""

from __future__ import annotations

from collections import Counter


class Room:
    """Room for `most` bytes. One address may hold half of them, so that it cannot shut out the
    others, but always one piece of `largest`; a piece alone is never too much."""

    def __init__(self, most: int, largest: int) -> None:
        self._most, self._share = most, max(most // 2, largest)
        self._held = 0
        self._by: Counter[str] = Counter()

    @property
    def crowded(self) -> bool:
        """Whether it is more than half full."""
        return self._held > self._most // 2

    def take(self, address: str, size: int) -> None:
        self._held += size
        self._by[address] += size

    def give(self, address: str, size: int) -> None:
        self.take(address, -size)
        if not self._by[address]:
            del self._by[address]

    def over(self, address: str, piece: int) -> bool:
        """Whether it is too much since something of `piece` bytes, of this address, is held."""
        return self._held > max(self._most, piece) or self._by[address] > max(self._share, piece)
