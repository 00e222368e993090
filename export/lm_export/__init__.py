"""From a checkpoint to a bundle: trace, finish, quantize, prove parity (torch, onnx)."""

import lm_runtime  # noqa: F401  (before onnxruntime, whose telemetry it turns off)
