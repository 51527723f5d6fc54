"""The memory of the machine's NVIDIA GPUs, asked of the driver through NVML."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)


class GpuMemory(Collector):
    """Read at each scrape; empty without the `gpu` extra or without a driver that answers."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
        except ImportError:
            log.debug("no GPU metrics: the gpu extra is not installed")
        except Exception as error:  # one class per fault of the driver
            log.debug("no GPU metrics: %s", error)

    def describe(self) -> list[GaugeMetricFamily]:
        return list(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._nvml is None:
            return
        used, total = self._families()
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:  # the driver was updated, or a GPU fell off its bus
            log.debug("no GPU metrics: %s", error)
            return
        for index in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                log.debug("GPU %d tells no memory: %s", index, error)
                continue
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        yield used
        yield total

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily(
                "fewshot_gpu_memory_used_bytes", "Used by all processes.", labels=["gpu"]
            ),
            GaugeMetricFamily("fewshot_gpu_memory_total_bytes", "Of the GPU.", labels=["gpu"]),
        )
