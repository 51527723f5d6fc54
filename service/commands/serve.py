"""`fewshot serve`: run the service and say where it is."""

from __future__ import annotations

import logging
import logging.config
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from models_zoo.cards import CARD_NAME
from service import logs, tracing
from service.app import create_app
from service.classifier import Classifier
from service.commands.cores import threads_each
from service.commands.errors import fail, quiet_log, user_errors
from service.commands.paths import check_data_dir, check_zoo
from service.commands.shared_metrics import hold_shared_metrics, shared_metrics
from service.commands.supervisor import Supervisor, heed_the_supervisor
from service.file_limit import backlog, raise_file_limit
from service.http import Connection
from service.lifecycle import TAIL_S, stop_when_hung_up
from service.memory import share_arenas
from service.problems import StoreUnavailable
from service.settings import Settings, from_arguments
from service.store.database import CLOSE_S, Database
from service.store.keys import Keys
from service.store.store import Store

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).parents[2] / "samples"
#: Asked in the example where the zoo has it, else the first model.
SHOWN = "stanet-omniglot"
#: Longer than load balancers keep a connection without requests, 60 s as a rule: they would send
#: the next request on one that is just being closed.
_KEEP_ALIVE_S = 75
#: For a worker on a loaded machine to end, beyond what its stages may take.
_SLACK_S = 5
_OTEL = ("opentelemetry.sdk", "opentelemetry.exporter")
#: A worker may be busy importing and loading on a loaded machine; killing it would not help.
_HUNG_SECONDS = 60


@dataclass(frozen=True)
class Application:
    """Makes the application; workers, which are started as fresh processes, are sent this."""

    settings: Settings

    def __call__(self) -> FastAPI:
        share_arenas()
        return create_app(self.settings)

    def in_worker(self) -> FastAPI:
        """Raises `SystemExit` where it cannot be made, for it would not be the next time."""
        heed_the_supervisor()
        try:
            hold_shared_metrics()
            return self()
        except Exception:
            log.critical("a worker cannot start", exc_info=True)
            raise SystemExit(STARTUP_FAILURE) from None


def run(arguments: Sequence[str]) -> None:
    """Serve until told to stop. What the flags leave out is as `Settings` says."""
    with user_errors():
        settings = from_arguments(arguments)
        check_zoo(settings.zoo)
        flag = any(each.partition("=")[0] == "--data-dir" for each in arguments)
        check_data_dir(settings, flag, make=True)
        _require(settings)
        logging.config.dictConfig(logs.configuration(settings))
        raise_file_limit()
        listener = _listen(settings)
        host, port = listener.getsockname()[:2]
        # The examples in the OpenAPI document name the port, also where any free one was asked for.
        known = {"port": port}
        if settings.pin_workers and settings.workers > 1 and settings.threads == 0:
            known["threads"] = threads_each(settings.workers)  # ONNX Runtime would take every core
        application = Application(settings.model_copy(update=known))
        app = application() if settings.workers == 1 else None
        if app is None:
            _check(settings)
    config = uvicorn.Config(
        app or application.in_worker,
        factory=app is None,
        http=Connection,
        log_config=logs.configuration(settings),
        log_level=settings.log_level,
        access_log=False,  # `observe` writes the lines
        server_header=False,
        backlog=backlog(),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=TAIL_S,  # `draining` has waited for `shutdown_s` by then
        timeout_worker_healthcheck=_HUNG_SECONDS,
        workers=settings.workers,
    )
    models = sorted(path.parent.name for path in settings.zoo.glob(f"*/{CARD_NAME}"))
    with closing(Database(settings.database, threads=1)) as database:
        if settings.log_format == "json":  # read by machines, line by line
            facts = {"address": _base(host, port), "models": models, "database": database.name}
            log.info("serving", extra={"fields": facts})
        else:
            closed = _closed(settings, database)
            sys.stdout.write(welcome(host, port, models, database.name, closed=closed))
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):  # uvicorn has shut down by now and passes the signal on
        if app is not None:
            stop_when_hung_up()
            uvicorn.Server(config).run(sockets=[listener])
        else:
            grace_s = settings.shutdown_s + TAIL_S + CLOSE_S + _SLACK_S
            supervise(config, listener, grace_s, settings.pin_workers)
    _leave()


def supervise(
    config: uvicorn.Config, listener: socket.socket, grace_s: float, pinned: bool = False
) -> None:
    """Run `config.workers` workers, `pinned` each to its cores, until told to stop, and then for at
    most `grace_s`. Raises `SystemExit` where one cannot start, as uvicorn itself does where it runs
    in this process."""
    with shared_metrics():
        supervisor = Supervisor(config, [listener], grace_s, pinned)
        supervisor.run()
    if supervisor.failed:
        raise SystemExit(STARTUP_FAILURE)


def _leave() -> NoReturn:
    """End this process now. The application has closed what it keeps; Python would go on to wait
    for threads that nothing can stop, such as one that loads a model."""
    logging.shutdown()
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(0)


def _closed(settings: Settings, database: Database) -> bool:
    """Whether requests need an API key; a database that does not answer leaves it open here."""
    if settings.auth != "auto":
        return settings.auth == "required"
    with quiet_log():  # the application says what is wrong with the database
        try:
            return not database.missing and Keys(database).any()
        except StoreUnavailable:
            return False


def welcome(
    host: str,
    port: int,
    models: list[str],
    database: str,
    samples: Path = SAMPLES,
    closed: bool = False,
) -> str:
    """The addresses, the models, the `database`'s name, and an example that works when pasted into
    a shell; where the service is `closed`, with an API key in place of KEY."""
    base = _base(host, port)
    lines = [
        f"Page        {base}/",
        f"Swagger UI  {base}/docs",
        f"Models      {', '.join(models) or 'none: the zoo is empty'}",
        f"Database    {database}",
    ]
    if models and samples.is_dir():
        files = [(path.parent.name, path) for path in sorted(samples.glob("support/*/1.png"))]
        model = SHOWN if SHOWN in models else models[0]
        parts = [f"curl {base}/v1/predictions"]
        if closed:
            parts.append("-H 'Authorization: Bearer KEY'")
        parts.append(f"-F model={model}")
        for label, path in files:
            image = shlex.quote(f"support_images=@{path}")
            parts.append(f"-F {image} -F {shlex.quote(f'support_labels={label}')}")
        query = sorted(samples.glob("queries/*.png"))[0]
        parts.append(f"-F {shlex.quote(f'query_images=@{query}')}")
        advice = ", with your API key for KEY" if closed else ""
        lines += [f"Try it{advice}:", "  " + " \\\n    ".join(parts)]
    return "\n".join(lines) + "\n\n"


def _base(host: str, port: int) -> str:
    """Where the service is reached from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _require(settings: Settings) -> None:
    """Fail now, not at the first request, where what was demanded is not there."""
    if tracing.wanted(settings) and not all(map(find_spec, _OTEL)):
        fail("traces are asked for, but the otel extra is not installed: pip install '.[otel]'")
    try:
        if settings.runtime == "torch":
            if find_spec("torch") is None or find_spec("safetensors") is None:
                fail("runtime is set to torch, but PyTorch or safetensors is not installed")
            from service.engine.torch import choose_torch

            choose_torch(settings.device)
        elif settings.device in ("cuda", "tensorrt"):
            import onnxruntime

            from service.engine.providers import choose

            choose(settings.device, onnxruntime.get_available_providers())
    except RuntimeError as error:
        fail(str(error))


def _check(settings: Settings) -> None:
    """Raise once what the application would raise in every worker, which would be started again
    and again. Neither starts a thread or opens a connection before its `start`."""
    with quiet_log():  # the workers say the rest
        Classifier(settings)
        Store(settings)


def _listen(settings: Settings) -> socket.socket:
    """Bind first, so that a taken port is one clear line. Raises `OSError`."""
    host = settings.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        bound = socket.create_server(
            (host, settings.port), family=family, backlog=backlog(), dualstack_ipv6=both
        )
    except (OSError, UnicodeError) as error:
        where = f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while attempting")[0]  # Python tells the address again
        raise OSError(f"cannot listen on {where}: {reason}") from None
    # asyncio sets TCP_NODELAY where a socket says that it is TCP, which `create_server` leaves
    # open: an answer's body would wait 40 ms for the client to acknowledge its headers.
    return socket.socket(bound.family, bound.type, socket.IPPROTO_TCP, fileno=bound.detach())
