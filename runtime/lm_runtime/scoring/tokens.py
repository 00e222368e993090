"""What a model expects at each place of a text: every token's probability beside the most probable ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.score import predictions
from lm_runtime.settings import check_number, short
from lm_runtime.softmax import log_normalizers
from lm_runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """A token of a text, and what was expected in its place."""

    token: int
    """Its id."""
    text: str
    """What it adds to the text, a line break for ``<eos>``; empty within a character of several tokens."""
    log_probability: float
    """Natural logarithm."""
    best: tuple[tuple[str, float], ...]
    """The most probable tokens in its place, each as it is spelled, with its probability."""

    @property
    def surprisal(self) -> float:
        """In bits."""
        return -self.log_probability / math.log(2)

    def __repr__(self) -> str:
        return f"TokenScore({short(self.text)}, {self.log_probability:.3f})"


def score_tokens(model: StepModel, text: str, k: int = 5) -> list[TokenScore]:
    """Score each token of a text, as :func:`lm_runtime.score_texts` scores the whole.

    Args:
        model: from :func:`lm_runtime.load`.
        text: lines, each ended by ``<eos>``, the last one too.
        k: how many of the most probable tokens to tell, from 0 to the vocabulary's size.

    Raises:
        ValueError: k is out of its range.
    """
    lines = text.removesuffix("\n").split("\n")
    return list(token_scores(model, ((line.removesuffix("\r"), True) for line in lines), k))


def token_scores(model: StepModel, fragments: Iterable[tuple[str, bool]], k: int = 5) -> Iterator[TokenScore]:
    """:func:`score_tokens` of a text that comes in fragments, in bounded memory.

    Args:
        model: the model.
        fragments: the text, as :func:`lm_runtime.text_files.read_fragments` gives it.
        k: as there.
    """
    tokenizer = model.tokenizer
    check_number("k", k, int, low=0, high=tokenizer.vocab_size)
    names, decoder = spellings(tokenizer), tokenizer.decoder()
    for ids, logits in predictions(model, tokenizer.encode_fragments(fragments)):
        # As score_file has them, to the bit.
        normalizers = log_normalizers(logits)
        values = logits[np.arange(ids.size), ids] - normalizers
        places = _highest(logits, k)
        shares = np.exp(np.take_along_axis(logits, places, axis=1) - normalizers[:, None])
        for row, token in enumerate(ids.tolist()):
            best = zip(places[row].tolist(), shares[row].tolist(), strict=True)
            named = tuple((names[one], share) for one, share in best)
            yield TokenScore(token, decoder.push(token), float(values[row]), named)


def spellings(tokenizer: Tokenizer) -> list[str]:
    """How each token is spelled within a line: words after a space, half characters as U+FFFD."""
    if tokenizer.kind == "other":  # SentencePiece and its like write a space so
        names = [token.replace("\u2581", " ") for token in tokenizer.tokens]
    else:
        space = " " if tokenizer.kind == "word" else ""
        names = [space + spelled.decode("utf-8", "replace") for spelled in tokenizer.token_bytes]
    names[tokenizer.eos_id] = "\n"
    return names


def _highest(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The ids of the k highest logits of each row, the highest first: ``(time, vocab)`` -> ``(time, k)``."""
    if k == 0:
        return np.zeros((len(logits), 0), dtype=np.int64)
    ids = np.sort(np.argpartition(logits, -k, axis=1)[:, -k:], axis=1)
    order = np.argsort(-np.take_along_axis(logits, ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)
