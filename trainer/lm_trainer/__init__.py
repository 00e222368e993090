"""Corpora, tokenizer training, models, the training loop and its checkpoints (torch)."""

import lm_runtime  # noqa: F401  (before onnxruntime, whose telemetry it turns off)
