"""Images and labelled images, in whatever form they are at hand, as parts of a form."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fewshot_client.errors import NotSent


@runtime_checkable
class Savable(Protocol):
    """A PIL image, known by its methods, so that Pillow need not be installed."""

    @property
    def mode(self) -> str: ...

    def load(self) -> object: ...

    def getexif(self) -> MutableMapping[int, Any]: ...

    def save(self, fp: io.BytesIO, format: str, *, exif: object, compression: str) -> object: ...


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
#: EXIF's tag of how a picture is to be turned, and what turns it.
_ORIENTATION, _TURNED = 0x0112, range(2, 9)


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
        kind, data = _encoded(image)
        return field, (f"{index}.{kind}", data)
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


def _encoded(image: Savable) -> tuple[str, bytes]:
    """A PIL image as a file, "png" or "tiff". Raises `NotSent`."""
    with _reading("a PIL image"):
        image.load()  # first, for a TIFF turns itself upright as it loads
    exif = _exif(image)
    for kind in ("png", "tiff"):  # the second holds CMYK and floats, too
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, exif=exif, compression="raw")
        except (OSError, ValueError) as error:
            reason = str(error)
        else:
            return kind, buffer.getvalue()
    raise NotSent(f"a PIL image of mode {image.mode} cannot be sent: {reason}; convert it to RGB")


def _exif(image: Savable) -> object:
    """How the image is to be turned, and nothing else of what its EXIF tells: some of that may be
    broken, and a TIFF's tells how its own pixels were stored."""
    with suppress(Exception):  # as the service does, which reads such images all the same
        exif = image.getexif()
        if (turned := exif.get(_ORIENTATION)) in _TURNED:
            kept = type(exif)()
            kept[_ORIENTATION] = turned
            return kept
    return b""


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raises `NotSent` for whatever goes wrong meanwhile: the decoders of images raise nearly
    anything, and so do files that are none of the disk's."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NotSent(f"{what} cannot be read: {reason}") from None
