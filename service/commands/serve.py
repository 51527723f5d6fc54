"""`fewshot serve`: run the service and say where it is."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn

from service.app import create_app
from service.classifier import Classifier
from service.commands.errors import fail, user_errors
from service.settings import Settings

SAMPLES = Path(__file__).parents[2] / "samples"
_BACKLOG = 512
_LOG_FORMAT = "%(levelname)s:     %(name)s: %(message)s"


def run(**chosen: object) -> None:
    """Serve until told to stop. Options left at None come from the environment or the defaults."""
    with user_errors():
        settings = Settings(**{k: v for k, v in chosen.items() if v is not None})  # type: ignore[arg-type]
        if not settings.zoo.is_dir():
            fail(f"{settings.zoo} is not a folder; --zoo wants a folder of zoo entries")
        if settings.device == "cuda":
            _require_cuda()
        logging.basicConfig(level=settings.log_level.upper(), format=_LOG_FORMAT)
        listener = _listen(settings)
        classifier = Classifier(settings)
    app = create_app(settings, classifier)
    config = uvicorn.Config(
        app,
        log_level=settings.log_level,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    host, port = listener.getsockname()[:2]
    sys.stdout.write(welcome(host, port, list(classifier.models.cards)))
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):  # uvicorn has shut down by now and passes the signal on
        uvicorn.Server(config).run(sockets=[listener])


def welcome(host: str, port: int, models: list[str], samples: Path = SAMPLES) -> str:
    """The addresses, and an example that works when pasted into a shell."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    base = f"http://{name}:{port}"
    lines = [
        f"Page        {base}/",
        f"Swagger UI  {base}/docs",
        f"Models      {', '.join(models) or 'none: the zoo is empty'}",
    ]
    if models and samples.is_dir():
        files = [(path.parent.name, path) for path in sorted(samples.glob("support/*/1.png"))]
        parts = [f"curl {base}/v1/predictions -F model={models[0]}"]
        for label, path in files:
            image = shlex.quote(f"support_images=@{path}")
            parts.append(f"-F {image} -F {shlex.quote(f'support_labels={label}')}")
        query = sorted(samples.glob("queries/*.png"))[0]
        parts.append(f"-F {shlex.quote(f'query_images=@{query}')}")
        lines += ["Try it:", "  " + " \\\n    ".join(parts)]
    return "\n".join(lines) + "\n\n"


def _require_cuda() -> None:
    """Fail now, not at the first request."""
    import onnxruntime

    from service.engine.providers import choose

    try:
        choose("cuda", onnxruntime.get_available_providers())
    except RuntimeError as error:
        fail(str(error))


def _listen(settings: Settings) -> socket.socket:
    """Bind first, so that a taken port is one clear line. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot listen on {where}: {reason}") from None
