"""Where ONNX Runtime may run. The driver is asked first: the GPU package lists CUDA regardless."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def cuda_devices() -> int:
    """How many CUDA devices the driver reports; 0 where there is no driver."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def choose(device: Device, available: list[str]) -> list[str]:
    """The providers to ask for, best first.

    `available` is what the installed ONNX Runtime was built with. Raises `RuntimeError` when
    `cuda` is demanded and cannot be had.
    """
    if device == "cpu":
        return [CPU]
    usable = CUDA in available and cuda_devices() > 0
    if device == "cuda" and not usable:
        reason = "no CUDA driver answers" if CUDA in available else "ONNX Runtime has no CUDA here"
        raise RuntimeError(f"device is set to cuda, but {reason}")
    return [CUDA, CPU] if usable else [CPU]
