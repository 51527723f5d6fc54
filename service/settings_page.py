"""docs/settings.md, made from `Settings`: `python -m service.settings_page > docs/settings.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from models_zoo.cards import ENTRIES
from service.settings import Settings

HEAD = """\
# Settings

<!-- Made by `python -m service.settings_page`; the text stands in service/settings.py. -->

Each setting is a flag of `fewshot serve`, an environment variable, and a line of a file `.env` in
the working directory, in this order of precedence. A value outside its bounds, an unsafe
combination, or a name beginning with `FEWSHOT_` that is no setting, is refused at start in one line
with exit code 2.
"""


def page() -> str:
    return "\n".join([HEAD, *(_section(n, f) for n, f in Settings.model_fields.items())])


def _section(name: str, field: FieldInfo) -> str:
    flag = name.replace("_", "-")
    flags = f"`--{flag}`, `--no-{flag}`" if field.annotation is bool else f"`--{flag}`"
    facts = "; ".join([f"default {_default(field)}", *_bounds(field)])
    head = f"## `{name}`\n\n{flags}, `FEWSHOT_{name.upper()}`: {facts}."
    return f"{head}\n\n{field.description}\n"


def _default(field: FieldInfo) -> str:
    default: Any = field.default
    if default == ENTRIES:
        return "the shipped zoo"
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in ((), "", None, SecretStr("")):
        return "none"
    return f"`{default}`"


def _bounds(field: FieldInfo) -> Iterator[str]:
    if get_origin(field.annotation) is Literal:
        yield "one of " + ", ".join(f"`{value}`" for value in get_args(field.annotation))
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for bound in field.metadata:
        for name, word in words.items():
            if (limit := getattr(bound, name, None)) is not None:
                yield f"{word} {limit}"


if __name__ == "__main__":
    sys.stdout.write(page())
