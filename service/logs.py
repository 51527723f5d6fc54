"""Log lines as text for people or JSON for machines, each with the id of its request."""

from __future__ import annotations

import json
import logging
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.settings import Settings

#: The id of the request that is being answered; None outside of requests.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a call hands over as `extra={"fields": {...}}` joins it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """`LEVEL: logger: message [request id]`; a message cannot forge a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{record.levelname + ':':9} {record.name}: {message}"
        if (current := request_id.get()) is not None:
            line += f" [{current}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def stderr() -> logging.Handler:
    """Made in each process that logs: from then on Python's warnings are lines of the log too, but
    for those of Pillow, which a hostile image brings about by the thousand."""
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return logging.StreamHandler()


def configuration(settings: Settings) -> dict[str, Any]:
    """For `logging.config.dictConfig`; uvicorn's own lines take the same form."""
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"()": f"{__name__}.stderr", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        # Its "error" logger is its general one; only the name is misleading.
        "loggers": {
            "uvicorn": {"level": level},
            "uvicorn.access": {"level": "WARNING"},
            "alembic.runtime.plugins": {"level": "WARNING"},  # six lines at each start
        },
    }
