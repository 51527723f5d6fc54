"""Images and labelled images, in whatever form they are at hand, as parts of a form."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
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


Bytes = bytes | bytearray | memoryview
#: One image: its bytes, a path, an open binary file, or a PIL image.
Image = Bytes | str | os.PathLike[str] | Readable | Savable
#: Labelled images: label -> images, or the path of a folder with a folder per class, every file of
#: which is sent but for hidden ones: the service tells what is no image, and of a support set also
#: what lies in no class and which class is empty; or a zip of such a folder, as a path, its bytes
#: or an open binary file.
Support = Mapping[str, Image | Iterable[Image]] | Bytes | str | os.PathLike[str] | Readable
Part = tuple[str, tuple[str, bytes]]

#: What operating systems leave behind, beside what begins with a dot; as the service has it.
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
#: EXIF's tag of how a picture is to be turned, and what turns it.
_ORIENTATION, _TURNED = 0x0112, range(2, 9)


def part(field: str, index: int, image: Image) -> Part:
    """A file of a form. Raises `NotSent`, or `TypeError` for what is no image."""
    if isinstance(image, Bytes):
        return field, (f"{index}.bin", bytes(image))
    if isinstance(image, str | os.PathLike):
        path = _path(image)
        return field, (path.name, _read(path, "file"))
    if isinstance(image, Readable) and not isinstance(image, Savable):
        name = getattr(image, "name", None)
        shown = Path(name).name if isinstance(name, str) else f"{index}.bin"
        with _reading(shown):
            return field, (shown, image.read())
    if isinstance(image, Savable):
        kind, data = _encoded(image)
        return field, (f"{index}.{kind}", data)
    raise TypeError(
        f"{type(image).__name__} is no image: send bytes, a path, a file or a PIL image"
    )


def parts(field: str, images: Image | Iterable[Image]) -> list[Part]:
    """Files of a form, from one image or several; a folder stands for the files in it.

    Raises `NotSent`, or `TypeError` for what is no image.
    """
    if isinstance(images, str | os.PathLike) and _is_folder(folder := _path(images)):
        images = _files_in(folder)
        if not images:
            raise NotSent(f"{folder} holds no images; those in its sub-folders are not looked for")
    if isinstance(images, Bytes | str | os.PathLike | Readable | Savable):
        return [part(field, 0, images)]
    return [part(field, index, image) for index, image in enumerate(images)]


def labelled(
    support: Support, images: str, labels: str, archive: str, whole: bool = True
) -> tuple[list[Part], dict[str, list[str]]]:
    """Files and fields of a form that hold labelled images, under these field names.

    A folder with an empty class or a file outside of the classes is refused as a `whole`; else it
    is sent as a zip, of which the service takes the rest and tells of these. Raises as `parts`, and
    `NotSent` for a class without images.
    """
    if isinstance(support, Mapping):
        files: list[Part] = []
        texts: list[str] = []
        for label, mine in support.items():
            found = parts(images, mine)
            if not found:
                raise NotSent(f"the class {label} has no images")
            files += found
            texts += [label] * len(found)
        if not files:
            raise NotSent("there are no classes")
        return files, {labels: texts}
    if isinstance(support, Bytes | Readable):
        return [part(archive, 0, support)], {}
    if not isinstance(support, str | os.PathLike):
        raise TypeError(
            f"{type(support).__name__} is no support set: send a mapping of labels to images, or a "
            "folder or zip with one folder per class"
        )
    path = _path(support)
    if not _is_folder(path):
        return [(archive, (path.name, _read(path, "folder or zip")))], {}
    if not whole:
        return [(archive, ("folder.zip", _zipped(path)))], {}
    by_file = _labels(path)
    files = [(images, (str(file), _read(path / file, "file"))) for file in by_file]
    return files, {labels: list(by_file.values())}


def _zipped(folder: Path) -> bytes:
    """Every file and folder below. Raises `NotSent`."""
    files, folders = _walked(folder)
    entries = [f"{below}/" for below in folders] + [str(file) for file in files]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in entries:
            data = b"" if name.endswith("/") else _read(folder / name, "file")
            try:
                archive.writestr(zipfile.ZipInfo(name), data)
            except UnicodeEncodeError:
                raise NotSent(f"{name[:200]!a} cannot be sent: it has no UTF-8") from None
    return buffer.getvalue()


def _walked(folder: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """The files and the folders below, but for junk. Raises `NotSent` where there is no file."""
    files: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []

    def walk(place: Path, above: frozenset[str]) -> None:
        above |= {os.path.realpath(place)}
        for path in place.iterdir():
            below = PurePosixPath(path.relative_to(folder).as_posix())
            if _is_junk(path.name):
                continue
            if not path.is_dir():
                files.append(below)
            elif os.path.realpath(path) not in above:  # a link back up would have no end
                folders.append(below)
                walk(path, above)

    with _reading(str(folder)):
        walk(folder, frozenset(map(str, Path(os.path.realpath(folder)).parents)))
    if not files:
        raise NotSent(f"{folder} has no folders of images, one per class")
    return sorted(files), sorted(folders)


def _labels(folder: Path) -> dict[PurePosixPath, str]:
    """The files below a folder and their labels, as the service finds them in a zip of it: a label
    is a file's folder, below those around the classes. Raises `NotSent`."""
    files, folders = _walked(folder)
    depth = 0
    while inside := {file.parts[depth + 1] for file in files if len(file.parts) > depth + 2}:
        if len({file.parts[depth] for file in files if len(file.parts) > depth + 1}) > 1:
            break
        if len(inside) == 1 and any(len(file.parts) == depth + 2 for file in files):
            break
        depth += 1
    if outside := [file for file in files if len(file.parts) < depth + 2]:
        detail = f"{folder}: {outside[0]} lies outside a class folder; use one folder per class"
        raise NotSent(detail)
    filled = {parent for file in files for parent in file.parents}
    if empty := [each for each in folders if each not in filled]:
        raise NotSent(f"{folder}: the class folder {empty[0]} has no images")
    return {file: "/".join(file.parts[depth:-1]) for file in files}


def _files_in(folder: Path) -> list[Path]:
    with _reading(str(folder)):
        return sorted(p for p in folder.iterdir() if not _is_junk(p.name) and p.is_file())


def _is_junk(name: str) -> bool:
    return name in _JUNK or name.startswith(".")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as too long a name; reading it says so
        return False


def _path(given: str | os.PathLike[str]) -> Path:
    if not os.fspath(given):  # `Path` takes it for the folder that the program is in
        raise NotSent("an empty path names no file")
    return Path(given)


def _read(path: Path, kind: str) -> bytes:
    shown = str(path)[:200]  # it may be no path, but an image as text
    with _reading(shown):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
    raise NotSent(f"no such {kind}: {shown}")


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
