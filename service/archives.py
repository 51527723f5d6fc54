"""Labelled examples from a zip or a folder on disk: one folder per class."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from service.problems import (
    ArchiveTooLarge,
    BadArchive,
    EmptyClass,
    EmptyFile,
    FileRef,
    NoSupport,
    Problem,
)
from service.text import is_plain

_ENTRY, _END, _ZIP64 = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _ENTRY_BYTES, _MAX_PATH, _MAX_DEPTH = 22, 46, 1024, 16
#: Of a zip or a folder: folders and the like come on top of the files.
_ENTRIES_PER_FILE = 4
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
#: What `zipfile` raises over bytes that are not as they should be.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,  # UnicodeDecodeError among them
    RuntimeError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """Files in all, and bytes in all once unpacked."""

    max_files: int
    max_bytes: int


@dataclass(frozen=True)
class Member:
    """One labelled file: its folder is the label. Or what is no such file, and why."""

    label: str
    path: str
    data: bytes
    problem: Problem | None = None


def archive_size(data: bytes, ref: FileRef, limits: ArchiveLimits) -> int:
    """What an archive counts for in the queue, before it is unpacked: its files, or the MiB that it
    says they have where those are more. Raises `BadArchive` or `ArchiveTooLarge`."""
    with _opened(data, ref, limits) as archive:
        entries, _ = _listing(archive, ref, limits)
        files = [info for path, info in entries.items() if _is_file(path, info)]
        return max(len(files), sum(info.file_size for info in files) >> 20)


def read_archive(
    data: bytes, ref: FileRef, limits: ArchiveLimits, *, whole: bool = True
) -> list[Member]:
    """Unpack a zip in memory, sorted by path. Nothing is written to disk.

    A file outside the class folders, a class folder without images, a path that is there twice and
    a file that cannot be unpacked are the problem of the `whole` archive, or only their own.

    The size of the directory, the number of files, the declared sizes and the bytes really
    unpacked are all bounded. Raises `BadArchive`, `ArchiveTooLarge`, `EmptyClass` or `NoSupport`.
    """
    with _opened(data, ref, limits) as archive:
        entries, repeated = _listing(archive, ref, limits)
        files = {path: info for path, info in entries.items() if _is_file(path, info)}
        folders = (path for path, info in entries.items() if info.is_dir())
        faults = _faults(files, folders, str(ref), ref)
        for path in repeated:
            detail = f"{ref}: {path} is there more than once; give each file a name of its own"
            faults[path] = BadArchive(detail, file=ref)
        if faults and (whole or not files.keys() - faults.keys()):
            raise next(iter(faults.values()))
        labels = _labels(files.keys() - faults.keys())
        left = limits.max_bytes
        members = []
        for path in sorted(labels.keys() | faults.keys()):
            if problem := faults.get(path):
                members.append(Member("", str(path), b"", problem))
                continue
            try:
                content = _unpack(archive, files[path], left, ref, limits)
            except _UNREADABLE as error:
                if whole:
                    raise
                problem = BadArchive(f"{ref}: {path} cannot be unpacked: {error}", file=ref)
                members.append(Member("", str(path), b"", problem))
                continue
            left -= len(content)
            members.append(Member(labels[path], str(path), content))
        return members


@contextmanager
def _opened(data: bytes, ref: FileRef, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    """Raises `BadArchive` for whatever is wrong while it is open."""
    _check_directory(data, ref, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive
    except _UNREADABLE as error:
        raise BadArchive(f"{ref} is not a readable zip: {error}", file=ref) from None


def _listing(
    archive: zipfile.ZipFile, ref: FileRef, limits: ArchiveLimits
) -> tuple[dict[PurePosixPath, zipfile.ZipInfo], set[PurePosixPath]]:
    """Files and folders by path; their number and the sizes that they declare are in order. And the
    paths of files that are there more than once, of which only the last is among them."""
    entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
    repeated = set()
    for info in archive.infolist():
        path = _safe_path(info, ref)
        if path in entries and (_is_file(path, info) or _is_file(path, entries[path])):
            repeated.add(path)
        entries[path] = info
    files = [info for path, info in entries.items() if _is_file(path, info)]
    if len(files) > limits.max_files:
        raise ArchiveTooLarge(f"{ref} holds more than {limits.max_files} files", file=ref)
    if sum(info.file_size for info in files) > limits.max_bytes:
        raise _too_large(ref, limits)
    return entries, repeated


def _is_file(path: PurePosixPath, info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and not _is_junk(path)


def read_folder(folder: Path, limits: ArchiveLimits) -> list[Member]:
    """The same from a folder on disk, sorted by path. Links are followed; it is the user's disk."""
    if not folder.is_dir():
        raise NoSupport(f"{folder} is not a folder")
    above = frozenset(map(str, Path(os.path.realpath(folder)).parents))
    most = _ENTRIES_PER_FILE * limits.max_files  # where folders link to one another there is no end
    found = (path for path in _walked(folder, above) if not _is_junk(_below(path, folder)))
    every = list(islice(found, most + 1))
    files = {_below(path, folder): path for path in every if path.is_file()}
    if len(files) > limits.max_files or len(every) > most:
        raise ArchiveTooLarge(f"{folder} holds more than {limits.max_files} files")
    folders = (_below(path, folder) for path in every if path.is_dir())
    for fault in _faults(files, folders, str(folder)).values():
        raise fault
    labels = _labels(files)
    if sum(path.stat().st_size for path in files.values()) > limits.max_bytes:
        raise ArchiveTooLarge(f"{folder} holds more than {limits.max_bytes} bytes")
    return [Member(labels[path], str(path), files[path].read_bytes()) for path in sorted(files)]


def _walked(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files and folders below. A link back to a folder `above` would have no end: it is none."""
    above |= {os.path.realpath(folder)}
    inside: list[Path] = []
    with suppress(OSError):  # it counts as empty
        inside = list(folder.iterdir())
    for path in inside:
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield path
            yield from _walked(path, above)


def _faults(
    files: Iterable[PurePosixPath],
    folders: Iterable[PurePosixPath],
    name: str,
    ref: FileRef | None = None,
) -> dict[PurePosixPath, Problem]:
    """What is no class's image, and what is a class without any. Raises `NoSupport`."""
    files = list(files)
    if not files:
        raise NoSupport(f"{name} holds no files", file=ref)
    found: dict[PurePosixPath, Problem] = {}
    depth = _wraps(files)
    for path in files:
        if len(path.parts) < depth + 2:
            detail = f"{name}: {path} lies outside a class folder; use one folder per class"
            found[path] = BadArchive(detail, file=ref)
    filled = {parent for path in files for parent in path.parents}
    for folder in folders:
        if folder not in filled and not _is_junk(folder):
            detail = f"{name}: the class folder {folder} has no images"
            found[folder] = EmptyClass(detail, file=ref)
    return found


def _wraps(files: Sequence[PurePosixPath]) -> int:
    """How many folders there are around those of the classes: as long as there is but one, with
    others inside. Files beside these, such as a README, make it no class; beside but one other they
    do."""
    depth = 0
    while inside := {path.parts[depth + 1] for path in files if len(path.parts) > depth + 2}:
        if len({path.parts[depth] for path in files if len(path.parts) > depth + 1}) > 1:
            break
        if len(inside) == 1 and any(len(path.parts) == depth + 2 for path in files):
            break
        depth += 1
    return depth


def _labels(files: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The label of each file: its folder's path below those around the classes."""
    files = list(files)
    depth = _wraps(files)
    return {path: "/".join(path.parts[depth:-1]) for path in files}


def _check_directory(data: bytes, ref: FileRef, limits: ArchiveLimits) -> None:
    """Bound the archive's directory before `zipfile` makes an object for each of its entries."""
    if not data:
        raise EmptyFile(f"{ref} has no bytes", file=ref)
    end = data.rfind(_END, max(0, len(data) - 65_535 - _END_BYTES))
    if end < 0 or len(data) < end + _END_BYTES:
        raise BadArchive(f"{ref} is not a zip archive", file=ref)
    count, size = struct.unpack_from("<HI", data, end + 10)
    most = min(_ENTRIES_PER_FILE * limits.max_files, 0xFFFE)
    if count > most or size > most * (_ENTRY_BYTES + _MAX_PATH):
        raise ArchiveTooLarge(f"{ref} holds more than {limits.max_files} files", file=ref)
    if data[max(0, end - 20) : end].startswith(_ZIP64):
        raise BadArchive(f"{ref} is a ZIP64 archive; only plain zips are read", file=ref)
    # `zipfile` does not mind the count, and reads entries for as long as the directory is.
    if data.count(_ENTRY, max(0, end - size), end) != count:
        detail = f"{ref} has not the {count} entries that it tells of; make the zip anew"
        raise BadArchive(detail, file=ref)


def _safe_path(info: zipfile.ZipInfo, ref: FileRef) -> PurePosixPath:
    """The entry's path, once it is sure to stay inside the archive. Raises `BadArchive`."""
    name = info.filename
    if not info.flag_bits & 0x800:  # many tools write UTF-8 without saying so
        with suppress(UnicodeDecodeError, UnicodeEncodeError):
            name = info.orig_filename.encode("cp437").decode("utf-8")
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts
    if not path.parts or outside or not is_plain(name) or len(name) > _MAX_PATH:
        raise BadArchive(f"{ref}: unsafe path {name[:100]!r}", file=ref)
    if len(path.parts) > _MAX_DEPTH:
        detail = f"{ref}: {name[:100]!r} lies more than {_MAX_DEPTH} folders deep"
        raise BadArchive(detail, file=ref)
    if info.flag_bits & 0x1:
        raise BadArchive(f"{ref}: {path} is encrypted", file=ref)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BadArchive(f"{ref}: {path} is a link", file=ref)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadArchive(f"{ref}: {path} uses an unusual compression; use deflate", file=ref)
    return path


def _unpack(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, left: int, ref: FileRef, limits: ArchiveLimits
) -> bytes:
    # No more than it declares: one that lies fails after that, and others may follow it.
    with archive.open(info) as stream:
        content = stream.read(min(left, info.file_size) + 1)
    if len(content) > left:
        raise _too_large(ref, limits)
    return content


def _too_large(ref: FileRef, limits: ArchiveLimits) -> ArchiveTooLarge:
    return ArchiveTooLarge(f"{ref} unpacks to more than {limits.max_bytes} bytes", file=ref)


def _below(path: Path, folder: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(folder).as_posix())


def _is_junk(path: PurePosixPath) -> bool:
    """Files that operating systems leave behind."""
    return any(part in _JUNK or part.startswith(".") for part in path.parts)
