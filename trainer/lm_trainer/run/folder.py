"""A run's folder: the names of its files and folders, once. Knows nothing about what is in them."""

from __future__ import annotations

from lm_runtime.bundle import TOKENIZER

LAST = "last.pt"
"""The newest checkpoint, for resuming. Every run has one from its beginning on."""
BEST = "best.pt"
"""The checkpoint of the lowest validation loss, once an epoch is complete."""
SETTINGS = "config.toml"
"""The settings that repeat the run."""
TOKEN_FILES = "tokens"
"""The folder of the corpus as token ids, one file a split."""
SHUFFLED = "train.shuffled.bin"
"""Within it, the training text in the order of the epoch, where lines or documents are shuffled."""
FIRST = "first"
"""Among the token files, the validation text of the run that a fine-tuned one began from."""
METRICS = "metrics.jsonl"
"""The records of the training."""
EVENTS = "tensorboard"
"""The folder of TensorBoard's event files, if they were asked for."""
CURVE = "loss.png"
"""The picture of the perplexity over the steps."""
SAMPLE = "sample.txt"
"""A text of the best model, once the run is complete."""
REPORT = "report.html"
"""The page of the complete run."""
SUMMARY = "summary.json"
"""The figures of the complete run, written last."""

FILES = (SETTINGS, LAST, BEST, TOKENIZER, METRICS, CURVE, SAMPLE, REPORT, SUMMARY)
"""All files; the vocabulary has the name that it has in a bundle."""
FOLDERS = (TOKEN_FILES, EVENTS)
"""All folders."""
