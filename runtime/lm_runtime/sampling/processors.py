"""Processors: what changes the logits of a text's next token by the text so far.

A chain of them is made once from the parameters. The functions beneath are pure: they take logits
``(vocab,)`` and return new ones, in which a token that is ruled out is minus infinity. Order and meaning are
those of Hugging Face ``transformers``, and of OpenAI's interface for the frequency and presence penalties.
Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.sampling.filters import Logits
from lm_runtime.sampling.history import History
from lm_runtime.sampling.params import SamplingParams

if TYPE_CHECKING:
    from lm_runtime.sampling.constraint import Matcher
    from lm_runtime.tokenizer import Tokenizer

Processor = Callable[[Logits, History], Logits]
"""From logits ``(vocab,)`` and the tokens of prompt and text to new logits."""

_NEVER = np.float32(-np.inf)


def processors_of(params: SamplingParams, tokenizer: Tokenizer) -> list[Processor]:
    """The chain of processors that ``params`` ask for; empty where only the sampler has work to do.

    The regular expression is not among them, which follows one text alone: see :class:`Constraint`.
    """
    chain: list[Processor] = []
    if params.logit_bias:
        pairs = np.array(params.logit_bias, dtype=np.float64)
        ids, bias = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.float32)
        chain.append(lambda logits, _: add_bias(logits, ids, bias))
    if (penalty := params.repetition_penalty) != 1:
        chain.append(lambda logits, history: penalize_repetition(logits, history.counts, penalty))
    frequency, presence = params.frequency_penalty, params.presence_penalty
    if frequency or presence:
        chain.append(lambda logits, history: penalize_counts(logits, history.counts, frequency, presence))
    if size := params.no_repeat_ngram_size:
        chain.append(lambda logits, history: ban_repeated_ngrams(logits, history.tokens, size))
    sequences = spellings(params.banned, tokenizer)
    if longer := [sequence for sequence in sequences if len(sequence) > 1]:
        chain.append(lambda logits, history: ban_sequences(logits, history.tokens, longer))
    banned = [sequence[0] for sequence in sequences if len(sequence) == 1]
    if (chain or banned) and tokenizer.unk_id is not None and not params.allow_unk:
        banned.append(tokenizer.unk_id)  # the sampler never draws it; here it must not seem to be left
    if banned:
        alone = np.array(banned)
        chain.append(lambda logits, _: ban_tokens(logits, alone))
    return chain


class Constraint:
    """A processor that holds one text to a regular expression.

    Args:
        matcher: at the text's beginning.
        eos_id: the id of ``<eos>``. A line's end is the model's own sign that a text ends, so it is allowed
            where the text matches, and ends it.
    """

    def __init__(self, matcher: Matcher, eos_id: int) -> None:
        self._matcher = matcher
        self._eos_id = eos_id
        self._ends_at_eos = False

    def __call__(self, logits: Logits, _: History) -> Logits:
        """Rule out the tokens after which no text matches: all of them where it cannot be told any more."""
        try:
            allowed = self._matcher.allowed()
        except ValueError:  # too complex by now
            return np.full_like(logits, _NEVER)
        self._ends_at_eos = self._matcher.complete and not allowed[self._eos_id]
        result: Logits = np.where(allowed, logits, _NEVER)
        if self._ends_at_eos:
            result[self._eos_id] = logits[self._eos_id]
        return result

    def ends_before(self, token: int) -> bool:
        """Whether the text ends without ``token``, which was allowed only as its end."""
        return self._ends_at_eos and token == self._eos_id

    def take(self, token: int) -> bool:
        """Follow the text by ``token``; return whether it matches, and no longer text does.

        Raises:
            ValueError: it is too complex by now.
        """
        self._matcher.push(token)
        return self._matcher.finished


def spellings(texts: Iterable[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The sequences of ids that spell ``texts``, within a line and after a space.

    A text that the vocabulary cannot spell is never generated anyway.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for text in texts:
        for spelled in (text, f" {text}") if tokenizer.kind in ("bpe", "other") else (text,):
            ids = tuple(tokenizer.encode(spelled))
            if ids and (tokenizer.unk_id not in ids or text == tokenizer.tokens[tokenizer.unk_id or 0]):
                sequences[ids] = None
    return list(sequences)


def ban_tokens(logits: Logits, ids: NDArray[np.int64]) -> Logits:
    """Rule out the tokens ``ids``."""
    result = logits.copy()
    result[ids] = _NEVER
    return result


def add_bias(logits: Logits, ids: NDArray[np.int64], bias: NDArray[np.float32]) -> Logits:
    """Add ``bias`` ``(ids,)`` to the logits of ``ids``; of an id that is there twice, both."""
    result = logits.copy()
    np.add.at(result, ids, bias)
    return result


def penalize_repetition(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Make the tokens ``seen`` less probable by the factor ``penalty`` (more probable below 1).

    Args:
        logits: ``(vocab,)``.
        seen: ids, each counted once however often it comes.
        penalty: positive logits are divided by it, negative ones multiplied (Keskar et al. 2019).
    """
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    chosen = logits[ids]
    result = logits.copy()
    result[ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def penalize_counts(logits: Logits, counts: Mapping[int, int], frequency: float, presence: float) -> Logits:
    """Lower each token that came before by ``presence``, and by ``frequency`` for every time it came."""
    result = logits.copy()
    if counts:
        ids = np.fromiter(counts.keys(), dtype=np.int64)
        times = np.fromiter(counts.values(), dtype=np.float32)
        result[ids] -= np.float32(frequency) * times + np.float32(presence)
    return result


def ban_repeated_ngrams(logits: Logits, tokens: Sequence[int], size: int) -> Logits:
    """Rule out every token that would complete an n-gram of ``size`` that stands in ``tokens``."""
    history = np.array(tokens, dtype=np.int64)
    result = logits.copy()
    if history.size >= size:
        # Where the last size - 1 tokens have stood before, what followed them there is ruled out.
        windows = np.lib.stride_tricks.sliding_window_view(history, size)  # (places, size)
        same = (windows[:, :-1] == history[history.size - size + 1 :]).all(axis=1)
        result[windows[same, -1]] = _NEVER
    return result


def ban_sequences(logits: Logits, tokens: Sequence[int], sequences: Iterable[tuple[int, ...]]) -> Logits:
    """Rule out the last token of each of ``sequences`` where ``tokens`` end with all before it."""
    result = logits.copy()
    for *before, last in sequences:
        if not before or list(tokens[-len(before) :]) == before:
            result[last] = _NEVER
    return result
