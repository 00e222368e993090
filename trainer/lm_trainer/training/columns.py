"""A text as contiguous columns, read window by window. Knows nothing about networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lm_trainer.config import TrainingConfig
from lm_trainer.corpora.token_file import Ids


def check_length(config: TrainingConfig, tokens: int) -> None:
    """Check that a training text of ``tokens`` has a window in each column.

    Raises:
        ValueError: it is too short.
    """
    column = tokens // config.batch_size
    if column <= config.seq_len:
        raise ValueError(
            f"the training text is too short: {tokens:,} tokens in {config.batch_size} columns are "
            f"{column} steps each, and a window takes {config.seq_len + 1}; "
            "give more text, or a smaller --batch-size or --seq-len"
        )


class Columns:
    """The training text in ``batch_size`` columns, of which a process reads its own.

    Args:
        ids: the text ``(tokens,)``.
        config: the number of columns and the length of a window.
        own: the columns to read.
        device: where they are needed.

    Raises:
        ValueError: the text is too short.
    """

    def __init__(self, ids: Ids, config: TrainingConfig, own: range, device: torch.device) -> None:
        check_length(config, ids.size)
        self.own = own
        self._ids = ids
        self._seq_len = config.seq_len
        self._length = ids.size // config.batch_size
        self._device = device

    def __len__(self) -> int:
        """The number of columns to read."""
        return len(self.own)

    @property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return (self._length - 1) // self._seq_len

    def window(self, number: int) -> tuple[Tensor, Tensor]:
        """Input and target ids ``(columns, time)``; the target is the input's next token."""
        start = number * self._seq_len
        rows = [self._ids[column * self._length + start :][: self._seq_len + 1] for column in self.own]
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))
        if self._device.type == "cuda":  # from pinned memory nothing waits for the steps before
            ids = ids.pin_memory().to(self._device, non_blocking=True)
        return ids[:, :-1], ids[:, 1:]
