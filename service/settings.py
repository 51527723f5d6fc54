"""Settings: every knob of the service.

Read from the flags of `fewshot serve`, else from the environment as `FEWSHOT_<NAME>`, else from a
file `.env` in the working directory, else the default. The flags and docs/settings.md are made
from this class, so a setting is written once.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from models_zoo.cards import ENTRIES
from models_zoo.names import closest

logging.getLogger("dotenv.main").setLevel(logging.ERROR)  # it warns of lines that are refused here

MB = 1 << 20
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?")

_PREFIX = "FEWSHOT_"
#: Names behind the prefix that are not ours to judge: other parts of the project read them, and
#: Kubernetes makes them of a service whose name begins with ours, as in FEWSHOT_WEB_SERVICE_HOST.
_NO_SETTINGS = re.compile(
    r"data|cache|api_key|test_\w+|(\w+_)?(service_host|service_port\w*)|\w+_port"
    r"|(\w+_)?port_\d+_(tcp|udp|sctp)\w*"
)
_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9a-fA-F:]+")


def _split(value: object) -> object:
    """`a, b` -> (a, b): lists in the environment and on the command line."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "*" and not _ORIGIN.fullmatch(value):
            raise ValueError(f"{value!r} is no origin; one looks like https://shop.example:8443")
    return values


def _hosts(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no host's name; one looks like shop.example")
    return tuple(value.lower() for value in values)


def _folder(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("empty; name a folder, or leave it unset")
    return value


def _address(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("empty; name an address, 0.0.0.0 for all of this machine's")
    return value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else value


def _endpoint(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^\s@]+", value):
        raise ValueError("an http:// or https:// address without user and password is wanted")
    return value.rstrip("/")


class Usual(BaseSettings):
    """What other programs call a setting of ours, where it has not been set under our name."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    database_url: SecretStr = SecretStr("")


class Settings(BaseSettings):
    """Each flag says when to change it. Values outside the bounds are refused at start."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=".env",
        frozen=True,
        extra="ignore",
        validate_default=True,
    )

    # Address and processes

    host: Annotated[str, BeforeValidator(_address)] = Field(
        "127.0.0.1",
        description="Address to listen on. Set 0.0.0.0 (or `::`, which takes IPv6 too) in a "
        "container or to serve other machines; "
        "anyone who reaches the port can then use it, so put it behind a proxy or a firewall.",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port to listen on. Change it where 8000 is taken; 0 picks a free one, which "
        "is printed.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="What a proxy in front takes from the beginning of each path, such as "
        "`/fewshot`. Set it there, so that Swagger UI asks, and `Location` headers name, what can "
        "be reached from outside; requests come without it.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the port; one that dies is started again. One for each "
        "core answers the most requests: on two cores, with `threads` at 1, two workers answered "
        "1.4 to 1.9 times as many as one, whose threads wait for each other. Each loads its own "
        "models and has its own queue of `queue_images`, so memory and the longest queue multiply; "
        "set `threads` to the cores divided by the workers. On a GPU leave it at 1: batches across "
        "requests form within a process.",
    )
    pin_workers: bool = Field(
        False,
        description="Whether each of several workers keeps to an equal share of the cores, and "
        "takes no more `threads` unless told to. Its threads then pass Python's lock on without "
        "waking another core: two workers on two cores answered questions to registered sets up to "
        "a third faster. Set it where many clients ask at once; a lone request cannot "
        "use the cores of other workers, and one that is long holds up what came to the same "
        "worker. Linux only.",
    )

    # Models

    zoo: Annotated[Path, BeforeValidator(_folder)] = Field(
        ENTRIES,
        description="Folder of the zoo, one sub-folder per entry. Change it to serve entries that "
        "you trained yourself instead of the shipped ones.",
    )
    runtime: Literal["onnx", "torch"] = Field(
        "onnx",
        description="What runs the models. `torch` needs PyTorch and safetensors installed; on a "
        "CPU it is several times slower and there to compare with, on a GPU it is worth a try for "
        "entries with large backbones.",
    )
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto",
        description="Where models run. `auto` takes a GPU whose driver answers and the CPU "
        "otherwise. Set `cuda` where falling back to the CPU would be a fault you want to see at "
        "once, `cpu` to leave a GPU to others. `tensorrt` wants TensorRT 10 installed beside the "
        "driver; it builds an engine for each new shape, so it suits few, steady shapes.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of one model run; 0 lets ONNX Runtime take every core. Lower it "
        "where the machine has other work, or where several services share it.",
    )
    torch_compile: bool = Field(
        False,
        description="With `runtime=torch` on a GPU: compile the encoders. The first request of "
        "each model then waits for the compiler, up to a minute; later ones are faster.",
    )
    pinned_models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="Ids of models, with commas between them, that are loaded at start and never "
        "let go. Name those whose first request must not wait for loading.",
    )
    model_memory_mb: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description="Memory, in MiB, that loaded models may take, estimated from their files; "
        "beyond it the one asked longest ago is let go, and loaded again when asked. What a run "
        "needs on top, some hundred MiB for the largest tasks, is given back after it, which "
        "makes the largest take up to 1.6 times as long. 0 sets no bound, and every model keeps "
        "the memory of its largest run. Set it where memory is short.",
    )

    # Batches and caches

    batching: bool = Field(
        True,
        description="Whether requests that wait are run together. Nobody waits for company, so "
        "there is little reason to switch it off but to measure what it gains.",
    )
    batch_images: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Most images of a batch of several requests; 0 means 64 on a CPU and 4096 on "
        "a GPU. A request that comes while a batch runs waits for its end, so keep it small on a "
        "CPU, where larger ones gain nothing; lower it on a GPU that has little memory.",
    )
    encode_batch: int = Field(
        0,
        ge=0,
        le=4096,
        description="Most images that go through an encoder at once; 0 means 32 on a CPU and 256 "
        "on a GPU. It bounds the memory of a run: lower it for large images on a small machine, "
        "raise it on a large GPU.",
    )
    decode_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Threads that decode images and draw overlays. Raise it to the number of "
        "cores where clients send photos; small drawings gain nothing. Each may hold one decoded "
        "image of `max_image_megapixels`, up to 24 bytes a pixel.",
    )
    feature_cache_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="Memory, in MiB, for the features of stored examples, so that asking an "
        "edited set encodes only what is new. Raise it where the misses in "
        "`fewshot_cache_lookups_total` grow while the sets in use stay the same; 0 switches it "
        "off.",
    )
    state_cache_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="Memory, in MiB, for what models learned from stored support sets, so that "
        "asking a set again costs its queries alone. Raise it where many sets are asked in turn; "
        "0 switches it off.",
    )

    # Queue and time

    queue_images: int = Field(
        1024,
        ge=1,
        description="Images of all requests that may wait or run at once; what exceeds it is "
        "answered 429 with Retry-After. Requests to models that adapt by gradient steps, which "
        "wait for longer, get half of it at most, so that the others always find room. Raise it to "
        "ride out bursts at the price of longer waits and more memory; lower it to have overload "
        "refused sooner.",
    )
    queue_mb: int = Field(
        512,
        ge=1,
        le=65_536,
        description="Most MiB of request bodies in a process at a time, and as much again of "
        "large answers that wait for their clients to take them, half of each for one address; "
        "what would exceed it is answered 429, but for a body that is alone. Lower it on "
        "small machines, raise it for many clients that send photos by the hundred. Behind a proxy "
        "on another machine all clients are one address unless `FORWARDED_ALLOW_IPS` names it.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Longest that a request may take from decoding to its answer, unless its "
        "`X-Request-Timeout` says otherwise; then 504. Raise it for long adaptations on a slow "
        "machine; keep it below the proxy's own limit, and within `max_request_timeout_s`.",
    )
    max_request_timeout_s: float = Field(
        300.0,
        gt=0,
        le=3600,
        description="Most seconds that a client may ask for with `X-Request-Timeout`; more is cut "
        "to this. Keep it below the proxy's own limit.",
    )
    body_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Longest that a request's body may take to arrive; then 408. Raise it for "
        "large uploads over slow lines; lower it where no proxy in front buffers bodies, since "
        "each slow one holds a connection. While bodies fill half of `queue_mb`, one that brings "
        "less than 10 KiB in 10 s is cut.",
    )
    shutdown_s: int = Field(
        20,
        ge=0,
        le=3600,
        description="Grace period for running requests when the process is told to stop; closing "
        "takes up to 3 s more, and up to 13 s where the database does not answer. Keep it so far "
        "below the orchestrator's own, usually 30 s.",
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Least seconds between the signal to stop and the end. Meanwhile `/readyz` "
        "says no and new requests get 503. Set it to the interval at which a load balancer "
        "asks `/readyz`, and below `shutdown_s`.",
    )

    # Limits of a request

    max_body_mb: int = Field(
        64,
        ge=1,
        le=4096,
        description="Largest request body in MiB; more is answered 413. Raise it for big photos "
        "by the hundred; lower it on small machines, since bodies are held while they are read.",
    )
    max_files: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Most files, and most fields, in one request or archive. The models' own "
        "limits are usually lower; raise it only for entries that take more examples.",
    )
    max_field_kb: int = Field(
        64,
        ge=1,
        le=1024,
        description="Largest text field in KiB. All that the API takes fits into the default; "
        "lower it on small machines, since fields are held while a request is read.",
    )
    max_label_length: int = Field(
        200,
        ge=1,
        le=10_000,
        description="Longest label, in characters. Labels come back in every answer, once per "
        "class and query, so long ones cost bandwidth. Raise it for labels that are sentences.",
    )
    max_image_megapixels: float = Field(
        40.0,
        gt=0,
        le=178,  # what Pillow decodes at most
        description="Largest image in millions of pixels, read from its header before anything is "
        "decoded. Raise it for camera originals beyond 40 MP; each costs up to 24 bytes a pixel.",
    )
    max_image_side: int = Field(
        16_384,
        ge=16,
        le=65_535,
        description="Longest side of an image in pixels. Raise it for panoramas or long scans.",
    )
    max_archive_mb: int = Field(
        128,
        ge=1,
        le=4096,
        description="Most bytes, in MiB, that an archive may unpack to, counted both from what it "
        "declares and while unpacking. Raise it with `max_body_mb` for large support archives.",
    )

    # Limits of an answer

    overlay_side: int = Field(
        224,
        ge=32,
        le=1024,
        description="Long side of a query's overlay picture in pixels; support examples get half. "
        "Raise it for large screens: answers grow with its square.",
    )
    max_overlays: int = Field(
        600,
        ge=1,
        le=100_000,
        description="Most overlay pictures in one answer: queries x layers x (1 + examples). "
        "Each costs a few milliseconds and, for photos, up to a hundred kilobytes. Lower it where "
        "answers must stay small; raise it to see many queries explained at once.",
    )
    max_map_values: int = Field(
        1_000_000,
        ge=1,
        le=100_000_000,
        description="Most numbers that attention may put into one answer, at about ten bytes each: "
        "those of `attention=maps` and, as five each, the examples' weights with their labels. "
        "Raise it for offline analysis, where answers of many megabytes are welcome.",
    )
    max_tensor_values: int = Field(
        4_000_000,
        ge=1000,
        le=1_000_000_000,
        description="Most numbers in one answer of the inference protocol (`/v2`), and most "
        "values in its inputs. Raise it for large batches over the binary extension, where a "
        "number is four bytes; as JSON it is about ten, and several times that in memory.",
    )

    # Support sets and keys

    data_dir: Annotated[Path | None, BeforeValidator(_folder)] = Field(
        None,
        description="Folder of the embedded database, made where it is missing; by default the "
        "user's data folder. Set it to a volume in a container, and to a disk that is backed up. "
        "SQLite needs a local disk: no network share. It goes unused beside a `database_url`, and "
        "is refused there as a flag.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="Database instead of the embedded one, such as "
        "`postgresql://user:password@host/name` (needs the `postgres` extra); DATABASE_URL, in "
        "the environment or in `.env`, is read too. Set it where several machines serve the same "
        "support sets.",
    )
    store_threads: int = Field(
        4,
        ge=1,
        le=64,
        description="Threads, and connections, to the database of each worker process; SQLite "
        "has one more, for its writes. Raise it with a PostgreSQL that has cores to spare.",
    )
    auth: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether requests need an API key. `auto`: from the first `fewshot keys "
        "create` on, so that trying it out is easy and an installation with keys is closed. Set "
        "`required` where the service must never be open, not even before the first key; `off` "
        "where a proxy in front authenticates, or where everybody may share everything.",
    )
    max_sets: int = Field(
        1000,
        ge=1,
        le=10_000_000,
        description="Most support sets of one API key, or of everybody where there are no keys. "
        "Raise it where sets are made per customer; times `max_set_mb` and the number "
        "of keys it bounds the disk, beside 128 MiB for the answers to Idempotency-Keys.",
    )
    max_set_examples: int = Field(
        2000,
        ge=1,
        le=1_000_000,
        description="Most examples in one support set. Models take far fewer at a time; raise it "
        "only for entries whose cards allow it.",
    )
    max_set_mb: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Most bytes, in MiB, of the images in one support set. Lower it on a small "
        "disk; original bytes are kept, so photos cost what their files do.",
    )
    sweep_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds between two sweeps that delete what has expired. Lower it where "
        "support sets are many and short-lived.",
    )

    # Browsers

    cors_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)
    ] = Field(
        (),
        description="Origins, separated by commas, whose web pages may call the service from a "
        "browser; none by default. Name each (`https://shop.example`); `*` allows every page, "
        "which is for public demonstrations only.",
    )
    cors_credentials: bool = Field(
        False,
        description="Let pages of `cors_origins` send cookies and stored HTTP credentials. Set it "
        "only where a proxy in front signs users in by cookie; refused together with `*`.",
    )

    allowed_hosts: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_hosts)
    ] = Field(
        (),
        description="Names, separated by commas and without ports, under which the service may be "
        "asked without an API key, besides `localhost` and loopback addresses; others are answered "
        "403, so that no web page can get at it under a name of its own. Checked where `host` is a "
        "loopback address, and elsewhere once a name stands here. Set it behind a proxy on the "
        "same machine that passes its own name on, to that name.",
    )

    # Logs and traces

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="How much is logged. Set `warning` where a proxy in front logs requests "
        "already: it drops the line for each. `debug` is for looking into a fault.",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="How a log line looks. Set `json`, one object a line with time, level, "
        "message and request id, where a log collector reads it; `text` is for people.",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        description="Address of an OpenTelemetry collector that takes OTLP over HTTP, such as "
        "`http://localhost:4318`; traces of requests and their stages go there. Empty, and with "
        "OTEL_EXPORTER_OTLP_ENDPOINT unset too, there is no tracing and none of it is imported. "
        "Needs the `otel` extra.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A misspelt name would leave its setting at the default without a word, as would a line of
        `.env` that cannot be read."""
        with suppress(OSError), open(".env", encoding="utf-8") as lines:
            for binding in parse_stream(lines):
                key = (binding.key or "").lower()
                ours = key.startswith(_PREFIX.lower()) or key in Usual.model_fields
                if binding.error or (ours and binding.value is None):
                    text = binding.original.string  # empty lines before it are in it
                    line = binding.original.line + text[: -len(text.lstrip())].count("\n")
                    raise ValueError(f".env, line {line}: not NAME=value")
        environment, file = EnvSettingsSource(cls), DotEnvSettingsSource(cls)
        name = f"{_PREFIX.lower()}port"
        port = str(environment.env_vars.get(name))
        if port.startswith("tcp://") and given.get("port") == port:
            # Not ours: Kubernetes makes it of a service that is called fewshot.
            given = {key: value for key, value in given.items() if key != "port"}
            given |= {"port": file.env_vars[name]} if file.env_vars.get(name) else {}
        for source in (environment, file):
            for name in source.env_vars:  # in small letters, as they are compared
                bare = name.removeprefix(_PREFIX.lower())
                if bare in (name, *cls.model_fields) or _NO_SETTINGS.fullmatch(bare):
                    continue
                near = [_PREFIX + each.upper() for each in closest(bare, cls.model_fields)]
                hint = f"did you mean {' or '.join(near)}? " if near else ""
                raise ValueError(
                    f"no setting {name.upper()}; {hint}`fewshot serve --help` names all"
                )
        return given

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"database_url": Usual().database_url} | given

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.cors_credentials and "*" in self.cors_origins:
            raise ValueError("cors_origins '*' together with cors_credentials is unsafe")
        if self.request_timeout_s > self.max_request_timeout_s:
            raise ValueError("request_timeout_s must not exceed max_request_timeout_s")
        if self.pin_workers and not hasattr(os, "sched_setaffinity"):
            raise ValueError("pin_workers needs Linux")
        if self.drain_s > self.shutdown_s:
            raise ValueError("drain_s must not exceed shutdown_s, which ends the draining")
        return self

    @property
    def database(self) -> str | Path:
        """URL of the database, or the embedded one's file."""
        if url := self.database_url.get_secret_value():
            return url
        folder = self.data_dir or platformdirs.user_data_path("fewshot", appauthor=False)
        return folder.expanduser().absolute() / "fewshot.sqlite3"

    @property
    def max_set_bytes(self) -> int:
        return self.max_set_mb * MB

    @property
    def max_body(self) -> int:
        """Bytes."""
        return self.max_body_mb * MB

    @property
    def max_archive(self) -> int:
        """Bytes."""
        return self.max_archive_mb * MB

    @property
    def max_pixels(self) -> int:
        return int(self.max_image_megapixels * 1_000_000)


def from_arguments(arguments: Sequence[str]) -> Settings:
    """The settings under flags such as `--max-body-mb 8`; `--help` prints them all and exits.

    Raises `ValidationError`, or `SettingsError` for a flag that there is not.
    """
    return Settings(
        _cli_parse_args=list(arguments),
        _cli_prog_name="fewshot serve",
        _cli_kebab_case=True,
        _cli_implicit_flags=True,
        _cli_exit_on_error=False,
    )
