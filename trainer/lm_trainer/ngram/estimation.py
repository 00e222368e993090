"""Estimating an n-gram model: interpolated modified Kneser-Ney (Chen and Goodman 1998).

Knows nothing about text: it sees token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import HIGHEST_ORDER
from lm_runtime.models.ngram_tables import LARGEST_VOCABULARY, NgramTables
from lm_trainer.ngram.pruning import pruning_thresholds

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""The discounts of counts 1, 2, and 3 or more, where they cannot be estimated."""

_PART = 1 << 18
"""N-grams per part, where not all are needed at once."""
_NO_NGRAM = np.iinfo(np.uint64).max
_LONGEST_TEXT = (1 << 32) - 2

_Numbers = NDArray[np.unsignedinteger]
"""Of n-grams or tokens."""


@dataclass
class _Level:
    """The distinct n-grams of one length, in the order of :class:`lm_runtime.models.ngram.NgramTables`."""

    words: NDArray[Any]
    """The last word of each."""
    offsets: NDArray[np.uint32]
    """Where those of each context begin: ``(contexts + 1,)``."""
    counts: NDArray[np.uint32]
    """The occurrences of each."""
    suffixes: NDArray[np.uint32]
    """The number of the n-gram without its first word."""
    line_starts: slice
    """Those that begin with the ``<eos>`` of the line before."""


def estimate(
    ids: NDArray[np.integer], vocab_size: int, eos_id: int, order: int = 5, prune: Sequence[int] = ()
) -> NgramTables:
    """Interpolated modified Kneser-Ney estimates, in back-off form.

    The probability of a word after a context is ``(a - D(a)) / A + g * lower``: ``a`` is the count of the
    n-gram, ``A`` the sum of the counts after the context, ``D`` a discount for counts of 1, 2, and 3 or more,
    ``g`` the share that the discounts leave, and ``lower`` the probability after the context without its
    first word; for a single word ``lower`` is ``1 / vocab_size``. The count of the longest n-grams, and of
    those that begin a line, is that of their occurrences; of the others, that of the different words before
    them. So every token has a probability above 0 after every context, and they add up to 1.

    N-grams are numbered by sorting, length by length, the number of the n-gram before each word together
    with the word: numpy alone, no loop over tokens.

    Memory: the tables (8 to 14 bytes an n-gram) and at most 70 bytes a token, which a text of random words
    needs, where almost every n-gram is new. Measured at order 5 on two shared cores: the Penn Treebank, 0.9
    million words and 2.3 million n-grams, 1 s and 77 MB; 100 MB of program text as 12.9 million words, 16 s
    and 0.6 GB; the same as 35.4 million tokens of byte-level BPE, 70 s and 1.3 GB.

    Args:
        ids: the text ``(tokens,)``, integers; a line's end is ``eos_id``, and the text begins after one.
            It may be memory-mapped.
        vocab_size: the number of tokens.
        eos_id: the id of a line's end.
        order: the length of the longest n-grams.
        prune: for each length the occurrences up to which n-grams are left out, as KenLM's ``--prune``: they
            count as others do, and what they would have had goes to the shorter ones. The last one holds for
            all longer lengths.

    Raises:
        ValueError: the order, an id or a number of ``prune`` is out of range, or there is no text.
    """
    thresholds = pruning_thresholds(prune, order)
    if not 1 <= order <= HIGHEST_ORDER:
        raise ValueError(f"order must be from 1 to {HIGHEST_ORDER}, got {order}")
    if not 0 < ids.size <= _LONGEST_TEXT:
        raise ValueError(f"a text must have from 1 to {_LONGEST_TEXT} tokens, got {ids.size}")
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size must be from 1 to {LARGEST_VOCABULARY}, got {vocab_size}")
    for token in (eos_id, int(ids.min()), int(ids.max())):
        if not 0 <= token < vocab_size:
            raise ValueError(f"a token must be from 0 to {vocab_size - 1}, got {token}")
    text = np.empty(ids.size + 1, dtype=_word_type(vocab_size))
    text[0] = eos_id
    text[1:] = ids
    nodes: _Numbers = text
    usable = np.ones(text.size, dtype=np.bool_)
    level = _Level(
        words=np.empty(0, dtype=text.dtype),
        offsets=np.array([0, vocab_size], dtype=np.uint32),
        counts=_occurrences(text[1:], vocab_size),
        suffixes=np.zeros(vocab_size, dtype=np.uint32),
        line_starts=slice(eos_id, eos_id + 1),
    )
    lower = np.array([1 / vocab_size], dtype=np.float32)
    words, log_probabilities, backoffs, offsets = [], [], [], []
    contexts_kept = None
    for length in range(1, order + 1):
        counts = level.counts
        if length < order:
            longer, nodes = _longer(level, nodes, text, usable, vocab_size, last=length + 1 == order)
            usable[1:] = usable[:-1]
            usable[0] = False
            usable &= text != eos_id
            counts = _occurrences(longer.suffixes, level.counts.size)
            if length > 1:  # nothing stands before a line's beginning
                counts[level.line_starts] = level.counts[level.line_starts]
        threshold = thresholds[length - 1]
        kept = level.counts > threshold if threshold else None
        lower, backoff = _smooth(counts, level, lower, kept)
        log_probabilities.append(np.log(_chosen(lower, kept)))
        if length > 1:
            words.append(_chosen(level.words, kept))
            offsets.append(_chosen_offsets(level.offsets, kept, contexts_kept))
            backoffs.append(np.log(_chosen(backoff, contexts_kept), dtype=np.float32))
        contexts_kept = kept
        if length < order:
            level = longer
    return NgramTables(
        order, vocab_size, eos_id, tuple(words), tuple(log_probabilities), tuple(backoffs), tuple(offsets)
    )


def _longer(
    level: _Level, nodes: _Numbers, text: _Numbers, usable: NDArray[np.bool_], vocab_size: int, *, last: bool
) -> tuple[_Level, _Numbers]:
    """The n-grams that are a word longer than those of ``level``.

    Args:
        level: the n-grams of one length.
        nodes: the number of the one that ends at each place, ``(tokens + 1,)``.
        text: the ids, ``(tokens + 1,)``.
        usable: whether one ends at each place that the next word goes on, ``(tokens + 1,)``.
        vocab_size: the number of tokens.
        last: whether the places of the longer ones need not be known.

    Returns:
        the longer n-grams, and the number of the one that ends at each place, ``(tokens + 1,)``.
    """
    keys = nodes[:-1].astype(np.uint64)
    keys *= np.uint64(vocab_size)
    keys += text[1:]
    keys[~usable[:-1]] = _NO_NGRAM
    places = np.argsort(keys)[: np.count_nonzero(usable[:-1])]
    is_new = np.ones(places.size, dtype=np.bool_)
    for start, end in _parts(places.size):
        sorted_keys = keys[places[max(start - 1, 0) : end]]
        np.not_equal(sorted_keys[1:], sorted_keys[:-1], out=is_new[max(start, 1) : end])
    first = np.flatnonzero(is_new)
    bounds = np.append(first, places.size).astype(np.uint32)
    counts = bounds[1:] - bounds[:-1]
    first = places[first]
    found = keys[first]
    del keys
    suffixes = nodes[1:][first].astype(np.uint32)
    del first
    words = np.empty(found.size, dtype=_word_type(vocab_size))
    for start, end in _parts(found.size):
        words[start:end] = found[start:end] % vocab_size
        found[start:end] //= np.uint64(vocab_size)
    # found is now the context of each, rising.
    offsets = np.searchsorted(found, np.arange(level.counts.size + 1, dtype=np.uint64)).astype(np.uint32)
    starts = slice(*offsets[[level.line_starts.start, level.line_starts.stop]].tolist())
    longer = _Level(words, offsets, counts, suffixes, starts)
    if last:
        return longer, np.empty(0, dtype=np.uint32)
    after = np.zeros(text.size, dtype=np.uint32)
    number = np.uint32(0)
    for start, end in _parts(places.size):
        numbers = np.cumsum(is_new[start:end], dtype=np.uint32) + number
        after[1:][places[start:end]] = numbers - np.uint32(1)
        number = numbers[-1]
    return longer, after


def _chosen(values: NDArray[Any], kept: NDArray[np.bool_] | None) -> NDArray[Any]:
    return values if kept is None else values[kept]


def _chosen_offsets(
    offsets: NDArray[np.uint32], kept: NDArray[np.bool_] | None, contexts: NDArray[np.bool_] | None
) -> NDArray[np.uint32]:
    """The offsets of the n-grams that are kept, for the contexts that are; the others' n-grams are not."""
    if kept is not None:
        before = np.zeros(kept.size + 1, dtype=np.uint32)
        np.cumsum(kept, out=before[1:])
        offsets = before[offsets]
    return offsets if contexts is None else np.append(offsets[:-1][contexts], offsets[-1])


def _smooth(
    counts: NDArray[np.uint32],
    level: _Level,
    lower: NDArray[np.float32],
    kept: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The probability of each n-gram, and the weight of ``lower`` after each context.

    Args:
        counts: the ``a`` of :func:`estimate` for each n-gram, ``(n-grams,)``.
        level: the n-grams.
        lower: the probability of each n-gram without its first word.
        kept: those that are not left out; None for all.
    """
    discounts = np.array([0.0, *discounts_of(counts)])
    total = _sums(counts, level.offsets)  # (contexts,)
    left = np.zeros(total.size)
    for number in (1, 2, 3):
        of_number = counts == number if number < 3 else counts >= number
        if kept is not None:
            of_number &= kept
        left += discounts[number] * _sums(of_number, level.offsets)
    if kept is not None:
        left += _sums(np.where(kept, 0, counts), level.offsets)
    # A context without a successor leaves all to the lower order.
    backoff = np.divide(left, total, out=np.ones(total.size), where=total > 0)
    probabilities = np.empty(counts.size, dtype=np.float32)
    for start, end in _parts(counts.size):
        contexts = np.searchsorted(level.offsets, np.arange(start, end, dtype=np.uint32), side="right") - 1
        seen = counts[start:end]
        kept = (seen - discounts[np.minimum(seen, 3)]) / total[contexts]
        probabilities[start:end] = kept + backoff[contexts] * lower[level.suffixes[start:end]]
    return probabilities, backoff


def discounts_of(counts: NDArray[np.uint32]) -> tuple[float, float, float]:
    """The discounts of counts of 1, 2, and 3 or more (Chen and Goodman 1998, equation 26).

    :data:`FALLBACK_DISCOUNTS` where the formula does not hold: no count is 1, 2, 3 or 4, as in a tiny text
    and for the characters of a large one, or a discount is not above 0 and below its count.
    """
    seen = [int(np.count_nonzero(counts == number)) for number in range(1, 5)]
    if not all(seen):
        return FALLBACK_DISCOUNTS
    share = seen[0] / (seen[0] + 2 * seen[1])
    found = [number - (number + 1) * share * seen[number] / seen[number - 1] for number in (1, 2, 3)]
    if not all(0 < discount < number for number, discount in enumerate(found, 1)):
        return FALLBACK_DISCOUNTS
    return found[0], found[1], found[2]


def _sums(values: NDArray[Any], offsets: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The sum of ``values`` between each two offsets, exact."""
    sums = np.zeros(values.size + 1, dtype=np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return np.diff(sums[offsets]).astype(np.float64)


def _occurrences(numbers: _Numbers, size: int) -> NDArray[np.uint32]:
    """The occurrences of each number from 0 to ``size - 1``."""
    counts = np.zeros(size, dtype=np.uint32)
    for start in range(0, numbers.size, max(_PART, size)):
        part = numbers[start : start + max(_PART, size)]
        counts += np.bincount(part, minlength=size).astype(np.uint32)
    return counts


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """The bounds of parts of an array of ``size``."""
    for start in range(0, size, _PART):
        yield start, min(start + _PART, size)


def _word_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
