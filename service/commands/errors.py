"""User errors on the command line: one clear line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from models_zoo.cards import ZooError
from service.problems import ModelUnavailable, Problem

USER_ERROR = 2


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn faults that a user can mend into one line."""
    try:
        yield
    except ModelUnavailable as error:
        fail(str(error.__cause__ or error.detail))
    except Problem as error:
        fail(error.detail)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        fail(f"{where}: {message}" if where else message)
    except SettingsError as error:
        fail(str(error).removeprefix("error parsing CLI: "))
    except UnicodeDecodeError:
        fail(".env is not written in UTF-8")
    except (ZooError, OSError) as error:
        fail(str(error))


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep the service's log lines off stderr: what goes wrong is told once, as the error."""
    log = logging.getLogger("service")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def fail(message: str) -> None:
    """Raises `typer.Exit`."""
    sys.stderr.write(f"fewshot: {' '.join(message.split())}\n")
    raise typer.Exit(USER_ERROR)
