"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., 2015).

Read from the two official archives as they are. Background characters come first, then evaluation,
each sorted by name; a class is `Alphabet/characterNN`, its group the alphabet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from models_zoo.cards import InputSpec
from training.data.reading import (
    Listing,
    Reader,
    Source,
    decode,
    fetch,
    first_with,
    hidden,
    opened_zip,
    read_member,
)
from training.data.store import DataError

ARCHIVES = ("images_background.zip", "images_evaluation.zip")
SPEC = InputSpec(channels=1, height=28, width=28, fit="pad", invert=True)


def find(root: Path) -> tuple[Path, ...] | None:
    """Both archives, in a folder of the official layout or of torchvision's."""
    return first_with((root / "omniglot", root / "omniglot-py", root), ARCHIVES)


@contextmanager
def open_archives(files: tuple[Path, ...]) -> Iterator[Reader]:
    """Opens background and evaluation. Raises `DataError`."""
    with ExitStack() as stack:
        archives = [stack.enter_context(opened_zip(path)) for path in files]
        listings: list[Listing] = []
        for which, archive in enumerate(archives):
            drawings: dict[str, list[str]] = defaultdict(list)
            for name in archive.namelist():
                parts = PurePosixPath(name).parts
                if len(parts) == 4 and parts[3].endswith(".png") and not hidden(name):
                    drawings[f"{parts[1]}/{parts[2]}"].append(name)
            if not drawings:
                raise DataError(f"{files[which]}: no Alphabet/characterNN/*.png inside")
            listings += (
                Listing(name, name.split("/")[0], [(which, key) for key in sorted(drawings[name])])
                for name in sorted(drawings)
            )

        def image(key: Hashable) -> Image.Image:
            assert isinstance(key, tuple)
            which, name = key
            return decode(read_member(archives[which], name), f"{files[which]}: {name}")

        yield Reader(listings, image)


def download(root: Path) -> None:
    """The official archives, from where torchvision has them."""
    from torchvision.datasets import Omniglot

    for name in ARCHIVES:
        md5 = Omniglot.zips_md5[name.removesuffix(".zip")]
        fetch(f"{Omniglot.download_url_prefix}/{name}", root / "omniglot", name, md5)


SOURCE = Source(
    name="omniglot",
    spec=SPEC,
    wanted="omniglot/images_background.zip and omniglot/images_evaluation.zip",
    find=find,
    open=open_archives,
    download=download,
)
