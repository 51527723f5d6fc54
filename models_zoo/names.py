"""What to say of a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the `known`: those that begin so, else those that are spelt alike; in
    whatever case."""
    folded = {each.casefold(): each for each in sorted(known)}
    name = name.casefold()
    begun = [each for each in folded if name and each.startswith(name)]
    return [folded[each] for each in begun[:3] or difflib.get_close_matches(name, folded)]


def unknown(kind: str, name: str, known: Iterable[str], listed: str) -> str:
    """What comes closest, and where all are `listed`."""
    near = closest(name, known)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}{listed} names all"
