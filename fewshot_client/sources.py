"""Images and labelled images, in whatever form they are at hand, as parts of a form."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from fewshot_client.errors import NotSent


@runtime_checkable
class Savable(Protocol):
    """A PIL image, known by its method, so that Pillow need not be installed."""

    def save(self, fp: io.BytesIO, format: str) -> object: ...


@runtime_checkable
class Readable(Protocol):
    """A file opened for reading bytes."""

    def read(self) -> bytes: ...


#: One image: its bytes, a path, an open binary file, or a PIL image.
Image = bytes | str | os.PathLike[str] | Readable | Savable
#: Labelled images: label -> images, or a path of a folder or zip with a folder per class.
Support = Mapping[str, Image | Iterable[Image]] | str | os.PathLike[str]
Part = tuple[str, tuple[str, bytes]]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def part(field: str, index: int, image: Image) -> Part:
    """A file of a form. Raises `NotSent`, or `TypeError` for what is no image."""
    if isinstance(image, bytes):
        return field, (f"{index}.bin", image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return field, (path.name, _read(path, "file"))
    if isinstance(image, Readable) and not isinstance(image, Savable):
        name = getattr(image, "name", None)
        shown = Path(name).name if isinstance(name, str) else f"{index}.bin"
        return field, (shown, image.read())
    if isinstance(image, Savable):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return field, (f"{index}.png", buffer.getvalue())
    raise TypeError(
        f"{type(image).__name__} is no image: send bytes, a path, a file or a PIL image"
    )


def parts(field: str, images: Image | Iterable[Image]) -> list[Part]:
    """Files of a form, from one image or several; a folder stands for the images in it.

    Raises `NotSent`, or `TypeError` for what is no image.
    """
    if isinstance(images, str | os.PathLike) and (folder := Path(images)).is_dir():
        images = _images_in(folder)
        if not images:
            raise NotSent(f"{folder} holds no images; those in its sub-folders are not looked for")
    if isinstance(images, bytes | str | os.PathLike | Readable | Savable):
        return [part(field, 0, images)]
    return [part(field, index, image) for index, image in enumerate(images)]


def labelled(
    support: Support, images: str, labels: str, archive: str
) -> tuple[list[Part], dict[str, list[str]]]:
    """Files and fields of a form that hold labelled images, under these field names.

    Raises as `parts`.
    """
    if isinstance(support, Mapping):
        files: list[Part] = []
        texts: list[str] = []
        for label, mine in support.items():
            found = parts(images, mine)
            files += found
            texts += [label] * len(found)
        return files, {labels: texts}
    path = Path(support)
    if not path.is_dir():
        return [(archive, (path.name, _read(path, "folder or zip")))], {}
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    by_class = {folder.name: _images_in(folder) for folder in folders if folder.name[0] != "."}
    if not any(by_class.values()):
        raise NotSent(f"{path} has no folders of images, one per class")
    return labelled(by_class, images, labels, archive)


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotSent(f"no such {kind}: {path}") from None
    except OSError as error:
        raise NotSent(f"{path} cannot be read: {error.strerror or error}") from None
