"""From a checkpoint to a bundle: trace, finish, quantize, prove parity (torch, onnx)."""

import lm_runtime  # noqa: F401  (turns off the telemetry of onnxruntime, which some modules here import first)
