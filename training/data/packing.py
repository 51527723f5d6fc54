"""From a reader to a packed store in the user's cache folder, image by image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models_zoo.cards import InputSpec
from models_zoo.preprocess import to_pixels
from training.data.reading import Reader
from training.data.store import DataError, PackedStore

PACKING = 1  # raise when the pixels or the order of a pack change


def cache_folder(environment: Mapping[str, str] | None = None, platform: str | None = None) -> Path:
    """Where packs live: `FEWSHOT_CACHE`, else the platform's cache folder for this user."""
    env = os.environ if environment is None else environment
    platform = sys.platform if platform is None else platform
    if env.get("FEWSHOT_CACHE"):
        return Path(env["FEWSHOT_CACHE"]).expanduser()
    home = Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())
    if platform == "darwin":
        return home / "Library" / "Caches" / "fewshot"
    if platform == "win32":
        return Path(env.get("LOCALAPPDATA") or home / "AppData" / "Local") / "fewshot" / "Cache"
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "fewshot"


def pack_name(dataset: str, spec: InputSpec, files: Sequence[Path]) -> str:
    """`dataset-<what>-<state>`: which data under which spec, and their files' sizes and times."""
    stats = [(str(path.resolve()), path.stat()) for path in files]
    what = [PACKING, spec.model_dump(mode="json"), stats[0][0]]
    state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return f"{dataset}-{_digest(what)}-{_digest(state)}"


def pack(reader: Reader, spec: InputSpec, folder: Path, title: str) -> None:
    """Write every image of `reader` as `spec`'s pixels into a store at `folder`.

    One image is held at a time, so a data set larger than memory packs too. Readers of `folder` see
    a whole store or none. Raises `DataError`.
    """
    listings = [listing for listing in reader.listings if len(listing.keys)]
    if not listings:
        raise DataError(f"{title}: no images found")
    if len({listing.name for listing in listings}) != len(listings):
        raise DataError(f"{title}: two classes share one name")
    total = sum(len(listing.keys) for listing in listings)
    with _draft(folder) as draft, _progress() as progress:
        bar = progress.add_task(f"packing {title}", total=total)
        with (draft / "images.npy").open("wb") as file:  # not a memmap: a full disk must raise
            shape = (total, spec.channels, spec.height, spec.width)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for listing in listings:
                for key in listing.keys:
                    file.write(to_pixels(reader.image(key), spec).tobytes())
                progress.advance(bar, len(listing.keys))
        index = {
            "classes": [listing.name for listing in listings],
            "groups": [listing.group for listing in listings],
            "counts": [len(listing.keys) for listing in listings],
        }
        (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")


def load_pack(folder: Path) -> PackedStore | None:
    """The store at `folder`; None when there is none. A damaged one is removed."""
    if not folder.is_dir():
        return None
    try:
        return PackedStore.load(folder)
    except (DataError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def remove_outdated(folder: Path) -> None:
    """Remove packs of the same files and spec whose files have changed since."""
    for other in folder.parent.glob(folder.name.rpartition("-")[0] + "-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder to write in; it becomes `folder` when all went well and goes away otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise DataError(
            f"{folder.parent}: cannot write the cache ({error.strerror}); set FEWSHOT_CACHE"
        ) from None
    try:
        yield draft
        try:
            draft.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process packed the same files meanwhile
                raise
    except OSError as error:
        raise DataError(f"{folder}: cannot write the packed store ({error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
