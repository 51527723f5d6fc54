"""One browser and one service for all tests of the page; a page of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.browser import Service, chromium, running
from tests.service.page.visiting import opened


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("data")) as service:
        yield service


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    page = opened(browser, service)
    yield page
    assert page.watch.complaints == []
    page.context.close()
