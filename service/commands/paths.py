"""Paths that the user gave: what is wrong with one, under the name of its flag, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.errors import fail

if TYPE_CHECKING:  # it takes a while to import, and `train` has no settings
    from service.settings import Settings


@contextmanager
def named(flag: str, path: Path) -> Iterator[None]:
    """Tell faults of the system about `path` as those of `flag`. Raises `typer.Exit`."""
    try:
        yield
    except OSError as error:
        fail(f"{flag} {path}: {_reason(error, path)}")


def check_file(flag: str, path: Path) -> None:
    """Raises `typer.Exit`."""
    if path.is_dir():
        fail(f"{flag} {path}: a folder; name a file")
    if not path.exists():
        fail(f"{flag} {path}: no such file")


def check_folder(flag: str, path: Path) -> None:
    """Raises `typer.Exit`."""
    if not path.is_dir():
        fail(f"{flag} {path}: {'a file; name a folder' if path.exists() else 'no such folder'}")


def check_recipe(recipe: str) -> None:
    """Raises `typer.Exit` for a folder, such as one of images."""
    if Path(recipe).is_dir():
        fail(
            f"RECIPE {recipe}: a folder; name a YAML file or a shipped recipe, and the folder of "
            "the images by --data"
        )


def check_zoo(zoo: Path) -> None:
    """Raises `typer.Exit`."""
    if not zoo.is_dir():
        fail(f"{zoo} is not a folder; --zoo wants a folder of zoo entries")


def check_data_dir(settings: Settings, flag: bool, make: bool = False) -> None:
    """Raises `typer.Exit` where the folder cannot be one or, with `make`, cannot be made; and where
    it would go unused though it was named by the `flag`: images may set it beside a database."""
    url = settings.database_url.get_secret_value()
    if flag and url:
        fail(
            "--data-dir would go unused: DATABASE_URL or FEWSHOT_DATABASE_URL, in the environment "
            "or in .env, or --database-url names another database; leave one of them out"
        )
    folder = settings.data_dir
    if folder is None:
        return
    folder = folder.expanduser()
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        fail(f"--data-dir: {there} is a file; name a folder")
    if make and not url:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            fail(f"--data-dir: {folder} cannot be made ({error.strerror}); name another folder")


def _reason(error: OSError, path: Path) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "there is a file in the way; name a folder"
    if isinstance(error, IsADirectoryError):
        return "a folder; name a file"
    if isinstance(error, FileNotFoundError):
        if path.parent.is_dir():
            return "no such file"
        return f"there is no folder {path.parent}; make it first, or name another"
    return (error.strerror or str(error)).lower()
