"""What the commands without a server share: a classifier, and tasks from files on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

from models_zoo.cards import find_card
from service.archives import ArchiveLimits, Member, read_archive, read_folder
from service.classifier import Classifier
from service.commands.paths import check_zoo, named
from service.images import Upload, clean_name
from service.problems import BadArchive, FileRef, NoQuery, NoSupport
from service.settings import Settings
from service.tasks import Example, clean_label


@contextmanager
def local_classifier(model: str, zoo: Path | None, device: str | None) -> Iterator[Classifier]:
    """A classifier under the user's settings, but for what is given here; closed afterwards.

    Raises `ZooError` where it has no such `model`."""
    chosen = {"zoo": zoo, "device": device}
    settings = Settings(**{k: v for k, v in chosen.items() if v is not None})  # type: ignore[arg-type]
    check_zoo(settings.zoo)
    find_card(model, settings.zoo)
    classifier = Classifier(settings)
    classifier.start()
    try:
        yield classifier
    finally:
        classifier.close()


def members(path: Path, limits: ArchiveLimits, field: str = "support") -> list[Member]:
    """The labelled images of the folder or zip that `--field` names. Raises the `Problem`s of
    `archives`."""
    if not path.exists():
        raise NoSupport(f"--{field} {path}: no such folder or zip")
    if path.is_file():
        if not is_zipfile(path):
            raise BadArchive(
                f"--{field} {path}: not a zip; name a folder or a zip with one sub-folder of "
                "images per class"
            )
        return read_archive(path.read_bytes(), FileRef(field, 0, path.name), limits)
    return read_folder(path, limits)


def examples(classifier: Classifier, path: Path) -> list[Example]:
    """A support set from a folder or zip. Raises as `members`, and `InvalidLabel`."""
    longest = classifier.settings.max_label_length
    return [
        Example(
            clean_label(member.label, index, longest),
            Upload(FileRef("support", index, clean_name(member.path)), member.data),
        )
        for index, member in enumerate(members(path, classifier.archive_limits))
    ]


def query_files(paths: Sequence[Path]) -> list[Path]:
    """Files, and the files directly inside folders. Raises `NoQuery`."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise NoQuery(f"--query {path}: no such file or folder")
        inside = sorted(p for p in path.glob("*") if p.is_file()) if path.is_dir() else [path]
        if not inside:
            raise NoQuery(f"--query {path}: the folder holds no images")
        files += inside
    if not files:
        raise NoQuery("name at least one query: --query IMAGE, or a folder of images")
    return files


def queries(files: Sequence[Path]) -> list[Upload]:
    """By their names, or by their paths where several bear one name. Raises `typer.Exit` where one
    cannot be read."""
    found, names = [], Counter(file.name for file in files)
    for index, file in enumerate(files):
        with named("--query", file):
            name = file.name if names[file.name] == 1 else str(file)
            ref = FileRef("query", index, clean_name(name))
            found.append(Upload(ref, file.read_bytes()))
    return found
