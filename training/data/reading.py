"""What every data set gives the packer: its classes, their images' keys, how to open one."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from models_zoo.cards import InputSpec
from training.data.store import DataError

MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_SIDE = 16_384  # what the service takes unless it is told otherwise
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


@dataclass(frozen=True)
class Listing:
    """One class: its name, its group (alphabet, super-class) and a key per image, in order."""

    name: str
    group: str
    keys: Sequence[Hashable]


@dataclass(frozen=True)
class Reader:
    """An opened data set. `image(key)` decodes one image; it raises `DataError` naming the file."""

    listings: Sequence[Listing]
    image: Callable[[Hashable], Image.Image]


@dataclass(frozen=True)
class Source:
    """A data set this project can read.

    `find` gives the files it needs inside one folder, or None when they are not there; `open` reads
    them; `download` fetches them into a folder; `wanted` names them for the user. An `explicit` one
    is looked for only where the caller says.
    """

    name: str
    spec: InputSpec
    wanted: str
    find: Callable[[Path], tuple[Path, ...] | None]
    open: Callable[[tuple[Path, ...]], AbstractContextManager[Reader]]
    download: Callable[[Path], None] | None = None
    explicit: bool = False


def first_with(folders: Sequence[Path], names: Sequence[str]) -> tuple[Path, ...] | None:
    """These files in the first folder that has them all."""
    for folder in folders:
        paths = tuple(folder / name for name in names)
        if all(path.is_file() for path in paths):
            return paths
    return None


def decode(data: bytes, where: str) -> Image.Image:
    """Image bytes -> a loaded Pillow image. Raises `DataError` naming `where`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise DataError(f"{where}: {image.width}x{image.height} is more than 64 megapixels")
        if max(image.size) > MAX_IMAGE_SIDE:
            size = f"{image.width}x{image.height}"
            raise DataError(f"{where}: {size} is more than {MAX_IMAGE_SIDE} pixels on a side")
        image.load()
    except DataError:
        raise
    except UnidentifiedImageError:  # its words name an object in memory
        raise DataError(f"{where}: not a readable image; mend or remove it") from None
    except (Exception, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a readable image ({error})") from None
    return image


def hidden(name: str) -> bool:
    """Whether a path is what an operating system leaves behind: dotfiles, __MACOSX, Thumbs.db."""
    return any(
        part.startswith(".") or part in ("__MACOSX", "Thumbs.db")
        for part in PurePosixPath(name).parts
    )


def read_image(path: Path) -> Image.Image:
    """One image file. Raises `DataError` naming it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{path}: larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return decode(data, str(path))


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read members from, never to unpack. Raises `DataError`."""
    try:
        archive = zipfile.ZipFile(path)
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        OSError,
        NotImplementedError,  # made for a later version of the format
        ValueError,  # UnicodeDecodeError among them: a name that is not UTF-8 but says so
        RuntimeError,
    ) as error:
        raise DataError(f"{path}: not a readable zip ({error}); fetch it again") from None
    with archive:
        yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One member's bytes, at most `MAX_IMAGE_BYTES` whatever its header says."""
    where = f"{archive.filename}: {name}"
    try:
        with archive.open(name) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({error})") from None
    except Exception as error:  # zlib, lzma and zipfile each raise errors of their own
        raise DataError(f"{where}: damaged ({error}); fetch the archive again") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return data


def fetch(url: str, folder: Path, name: str, md5: str) -> None:
    """Download one archive whole or not at all, through torchvision, checked by its MD5."""
    from torchvision.datasets.utils import check_integrity, download_url

    folder.mkdir(parents=True, exist_ok=True)
    if not check_integrity(str(folder / name), md5):
        download_url(url, str(folder), f"{name}.part", md5)
        (folder / f"{name}.part").replace(folder / name)


def read_tar_member(path: Path, name: str, limit: int) -> bytes:
    """One file of a tar archive, by its exact name. Raises `DataError`."""
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile(name)
            data = member.read(limit + 1) if member else b""
    except KeyError:
        raise DataError(f"{path}: no {name} inside") from None
    except Exception as error:  # zlib and lzma raise errors of their own
        raise DataError(f"{path}: not a readable archive ({error}); fetch it again") from None
    if not 0 < len(data) <= limit:
        raise DataError(f"{path}: {name} is empty or larger than {limit >> 20} MiB")
    return data
