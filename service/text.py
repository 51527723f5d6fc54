"""What a user's text may hold: what can be seen, in any language."""

from __future__ import annotations

import unicodedata

#: Joiners and marks of direction: ordinary spelling in Persian, Hindi or Hebrew, and in emoji.
#: Those that turn all that follows are not among them.
_SILENT = "\u200c\u200d\u200e\u200f\u061c"


def is_plain(text: str) -> bool:
    """Whether there are no control characters in it, nor others that would mislead a reader."""
    return all(map(_is_plain, text))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in it."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def without_controls(text: str) -> str:
    """With U+FFFD for each character that `is_plain` refuses."""
    return "".join(char if _is_plain(char) else "\ufffd" for char in text)


def _is_plain(char: str) -> bool:
    # Python calls no space printable but the usual one.
    return char.isprintable() or char in _SILENT or unicodedata.category(char) == "Zs"
