"""Where ONNX Runtime may run. The driver is asked first: the GPU package lists CUDA regardless."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
TENSORRT = "TensorrtExecutionProvider"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
#: Of each that has any. By default cuDNN times every algorithm for every new number of images.
OPTIONS = {CUDA: {"cudnn_conv_algo_search": "HEURISTIC"}}
_TENSORRT_LIBRARY = "nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10"


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


def has_tensorrt() -> bool:
    """Whether TensorRT's library can be loaded: ONNX Runtime brings none."""
    try:
        ctypes.CDLL(_TENSORRT_LIBRARY)
    except OSError:
        return False
    return True


def choose(device: Device, available: list[str]) -> list[str]:
    """The providers to ask for, best first.

    `available` is what the installed ONNX Runtime was built with. Raises `RuntimeError` when
    `cuda` or `tensorrt` is demanded and cannot be had.
    """
    if device == "cpu":
        return [CPU]
    usable = CUDA in available and cuda_devices() > 0
    if device in ("cuda", "tensorrt") and not usable:
        reason = "no CUDA driver answers" if CUDA in available else "ONNX Runtime has no CUDA here"
        raise RuntimeError(f"device is set to {device}, but {reason}")
    if device == "tensorrt":
        if TENSORRT not in available:
            raise RuntimeError("device is set to tensorrt, but ONNX Runtime has no TensorRT here")
        if not has_tensorrt():
            raise RuntimeError(
                f"device is set to tensorrt, but {_TENSORRT_LIBRARY} cannot be loaded"
            )
        return [TENSORRT, CUDA, CPU]
    return [CUDA, CPU] if usable else [CPU]
