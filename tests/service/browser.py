"""A real headless Chromium, and a service for it to visit. No network is used."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from models_zoo.cards import ENTRIES
from service.app import create_app
from service.settings import Settings

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
#: Set to a folder to keep the screenshots.
SHOTS = os.environ.get("FEWSHOT_TEST_SCREENSHOTS")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    # A made-up camera that nobody has to allow.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PATIENCE_MS = 120_000


@dataclass
class Service:
    """The service over the shipped entries; it can be stopped and started at the same port."""

    data: Path
    port: int = field(default_factory=lambda: _free_port())
    auth: str = "off"
    zoo: Path = ENTRIES

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        app = create_app(
            Settings(zoo=self.zoo, device="cpu", threads=1, data_dir=self.data, auth=self.auth)
        )
        config = uvicorn.Config(
            app, port=self.port, log_level="warning", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        give_up = time.monotonic() + PATIENCE_MS / 1000
        while not self._server.started and time.monotonic() < give_up:
            time.sleep(0.05)
        assert self._server.started

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def running(data: Path, **options: Any) -> Iterator[Service]:
    service = Service(data, **options)
    service.start()
    yield service
    service.stop()


@dataclass
class Watch:
    """What a page complained of: faults of its own, and requests to elsewhere."""

    base: str
    complaints: list[str] = field(default_factory=list)

    def over(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._console)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        # The browser itself logs each answer of 400 and more, and each refused connection.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.complaints.append(request.url)


@contextmanager
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        yield browser
        browser.close()


def shot(page: Any, name: str, full: bool = False) -> None:
    """Keep a picture of what is seen."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=full)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
