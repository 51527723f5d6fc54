"""How the learners learn: data, objectives, trainer, evaluation, export."""

import os

# ONNX Runtime's official builds report their use to their maker unless told not to before import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
