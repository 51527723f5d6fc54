"""The memory of GPUs in /metrics, with a driver that may be lost at any time."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from service.metrics import Metrics
from tests.service.test_operations import value

USED, TOTAL = "fewshot_gpu_memory_used_bytes", "fewshot_gpu_memory_total_bytes"


class NVMLError(Exception):
    """As pynvml's: the base of its errors."""


class Driver(ModuleType):
    """`pynvml` of a machine with two GPUs, of which the second tells nothing."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.lost = False

    def nvmlInit(self) -> None:
        self._answer()

    def nvmlDeviceGetCount(self) -> int:
        self._answer()
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if handle == 1:
            raise NVMLError("not supported")
        return SimpleNamespace(used=3, total=7)

    def _answer(self) -> None:
        if self.lost:
            raise NVMLError("driver not loaded")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def test_memory_is_told_of_each_gpu_that_answers(driver: Driver) -> None:
    text = Metrics(gpu=True).exposition().decode()
    assert (value(text, USED, gpu="0"), value(text, TOTAL, gpu="0")) == (3, 7)
    assert 'gpu="1"' not in text


def test_a_driver_lost_while_running_costs_only_its_own_numbers(driver: Driver) -> None:
    metrics = Metrics(gpu=True)
    driver.lost = True
    text = metrics.exposition().decode()
    assert "fewshot_gpu" not in text
    assert value(text, "fewshot_build_info") == 1
    driver.lost = False
    assert value(metrics.exposition().decode(), USED, gpu="0") == 3


def test_a_driver_that_never_answered_is_no_error(driver: Driver) -> None:
    driver.lost = True
    assert "fewshot_gpu" not in Metrics(gpu=True).exposition().decode()
