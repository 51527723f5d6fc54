"""Settings: every knob of the service, read from the environment as `FEWSHOT_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from models_zoo.cards import ENTRIES

MB = 1 << 20


class Settings(BaseSettings):
    """Each field says when to change it. Values outside the bounds are refused at start."""

    model_config = SettingsConfigDict(env_prefix="FEWSHOT_", frozen=True, extra="ignore")

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Set 0.0.0.0 in a container or to serve other machines; "
        "anyone who reaches the port can then use it, so put it behind a proxy or a firewall.",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port to listen on. Change it where 8000 is taken; 0 picks a free one, which "
        "is printed.",
    )
    zoo: Path = Field(
        ENTRIES,
        description="Folder of the zoo, one sub-folder per entry. Change it to serve entries that "
        "you trained yourself instead of the shipped ones.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where models run. `auto` takes a GPU whose driver answers and the CPU "
        "otherwise. Set `cuda` where falling back to the CPU would be a fault you want to see at "
        "once, `cpu` to leave a GPU to others.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of one model run; 0 lets ONNX Runtime take every core. Lower it "
        "where the machine has other work, or where several services share it.",
    )
    encode_batch: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most images that go through an encoder at once. It bounds the memory of a "
        "run: lower it for large images on a small machine, raise it on a GPU.",
    )
    decode_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="Threads that decode images and draw overlays. Raise it to the number of "
        "cores where clients send photos; small drawings gain nothing. Each may hold one decoded "
        "image of `max_image_megapixels`, about 4 bytes a pixel.",
    )
    queue_images: int = Field(
        1024,
        ge=1,
        description="Images of all requests that may wait or run at once; what exceeds it is "
        "answered 429 with Retry-After. Raise it to ride out bursts at the price of longer waits "
        "and more memory; lower it to have overload refused sooner.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Longest that a request may take from decoding to its answer; then 504. Raise "
        "it for long adaptations on a slow machine; keep it below the proxy's own limit.",
    )
    shutdown_s: int = Field(
        20,
        ge=0,
        le=3600,
        description="Grace period for running requests when the process is told to stop. Keep it "
        "below the orchestrator's own, usually 30 s.",
    )
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
        description="Largest text field in KiB. There is little reason to change it.",
    )
    max_label_length: int = Field(
        200,
        ge=1,
        le=10_000,
        description="Longest label, in characters. Labels come back in every answer, once per "
        "class and query, so long ones cost bandwidth.",
    )
    max_image_megapixels: float = Field(
        40.0,
        gt=0,
        le=1000,
        description="Largest image in millions of pixels, read from its header before anything is "
        "decoded. Raise it for camera originals beyond 40 MP; each costs about 4 bytes a pixel.",
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
        "Each costs a few milliseconds and, for photos, up to a hundred kilobytes.",
    )
    max_map_values: int = Field(
        1_000_000,
        ge=1,
        le=100_000_000,
        description="Most numbers that `attention=maps` may put into one answer, at about ten "
        "bytes each. Raise it for offline analysis, where answers of many megabytes are welcome.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged. `warning` drops the line per request."
    )

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
