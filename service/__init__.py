"""The service: few-shot image classification over HTTP. Imports no training code and no PyTorch."""

import os

# ONNX Runtime's official builds report their use to their maker unless told not to before import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
