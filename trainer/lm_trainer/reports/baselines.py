"""The unigram distribution over the vocabulary, which a model has to beat, and may begin from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm_trainer.corpora.token_file import Ids

_PART = 1 << 22


def unigram_perplexity(train: Ids, valid: Ids, vocab_size: int) -> float:
    """Perplexity on ``valid`` of the token frequencies of ``train``, one added to each count."""
    expected = _counts(valid, vocab_size)
    return float(np.exp(-(expected * unigram(train, vocab_size)).sum() / expected.sum()))


def unigram(train: Ids, vocab_size: int) -> NDArray[np.float64]:
    """The logarithms ``(vocab,)`` of the tokens' frequencies, one added to each count."""
    seen = _counts(train, vocab_size) + 1
    log_probabilities: NDArray[np.float64] = np.log(seen / seen.sum())
    return log_probabilities


def _counts(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, ids.size, _PART):
        counts += np.bincount(ids[start : start + _PART], minlength=vocab_size)
    return counts
