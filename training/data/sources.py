"""`load_dataset`: from a data set's name to its packed store.

Data are looked for under `root`, else `FEWSHOT_DATA`, else `./data`, else `../shared/data`; packs
are kept in the user's cache folder (`FEWSHOT_CACHE`) and made again when the files change.
"""

from __future__ import annotations

import os
from pathlib import Path

from models_zoo.cards import InputSpec
from training.data import cifar100, folder, miniimagenet, omniglot, tieredimagenet
from training.data.packing import cache_folder, load_pack, pack, pack_name, remove_outdated
from training.data.reading import Source
from training.data.store import DataError, PackedStore

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (omniglot, cifar100, miniimagenet, tieredimagenet, folder)
}


def load_dataset(
    name: str,
    root: Path | None = None,
    spec: InputSpec | None = None,
    cache: Path | None = None,
    download: bool = False,
) -> PackedStore:
    """All classes of data set `name` as `spec`'s pixels, memory-mapped from the cache.

    `spec` is the data set's usual input when None. With `download`, absent data are fetched first.
    Raises `DataError` saying where the data were looked for and what to do.
    """
    source = find_source(name)
    spec = spec or source.spec
    files = locate(source, root, download)
    packed = (cache or cache_folder()) / "packed" / pack_name(name, spec, files)
    store = load_pack(packed)
    if store is None:
        with source.open(files) as reader:
            pack(reader, spec, packed, name)
        remove_outdated(packed)
        store = PackedStore.load(packed)
    return store


def find_source(name: str) -> Source:
    """Raises `DataError` naming the known data sets."""
    try:
        return SOURCES[name]
    except KeyError:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}") from None


def data_roots(root: Path | None = None) -> tuple[Path, ...]:
    """The folders to look in, in order."""
    if root is not None:
        return (Path(root),)
    if os.environ.get("FEWSHOT_DATA"):
        return (Path(os.environ["FEWSHOT_DATA"]).expanduser(),)
    return (Path("data"), Path("../shared/data"))


def locate(source: Source, root: Path | None = None, download: bool = False) -> tuple[Path, ...]:
    """The files of a data set. Raises `DataError` when they are in none of the folders."""
    if source.explicit and root is None:
        raise DataError(f"{source.name}: say where the data are by --data: {source.wanted}")
    roots = data_roots(root)
    for place in roots:
        if files := source.find(place):
            return files
    looked = ", ".join(str(place.absolute()) for place in roots)
    if source.explicit:
        raise DataError(f"{looked}: not {source.wanted}; name one by --data")
    if download and source.download:
        try:
            roots[0].mkdir(parents=True, exist_ok=True)
            source.download(roots[0])
        except Exception as error:  # torchvision lets through whatever the network raises
            raise DataError(f"{source.name}: the download failed ({error})") from None
        if files := source.find(roots[0]):
            return files
        raise DataError(f"{source.name}: the download left no {source.wanted} in {roots[0]}")
    named = "--data or FEWSHOT_DATA" if root is None else "--data"
    advice = ", or let --download fetch it" if source.download else " (not free to download)"
    raise DataError(
        f"{source.name}: no data in {looked}; put {source.wanted} there, "
        f"or name their folder by {named}{advice}"
    )
