"""Many texts scored together, each as if it were alone.

A beginning that several texts have in common is read once; where they part, they are read as one batch. Knows
nothing about what is printed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_runtime.models.protocol import DirectModel, StepModel
from lm_runtime.models.state import initial_state, join_states, take_states
from lm_runtime.scoring.score import Score, TextCount, add_up, unknown_tokens
from lm_runtime.softmax import log_normalizers
from lm_runtime.text_files import split_fragments
from lm_runtime.tokenizer import Tokenizer

_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 1 << 20
_CALL_TOKENS = 128
"""The most tokens in one call: more were not seen to be faster, and fewer were slower."""


def score_texts(model: StepModel, texts: Iterable[str]) -> Iterator[Score]:
    """Score many texts, each by itself: none knows what came before it.

    Every text starts from a zero state that has read one ``<eos>``, and ends with ``<eos>``, which is
    predicted too: an empty text is that one token. A line break within a text is ``<eos>``, as in a file; one
    at its end is that last ``<eos>``.

    In fp32 a text's score is, bit for bit, that of :func:`lm_runtime.score_file` for a file of that text,
    whatever texts are scored with it. The int8 graph has one scale for the activations of a whole call, so a
    score depends a little on the texts that are read together.

    Args:
        model: from :func:`lm_runtime.load`.
        texts: may be endless; about a thousand texts, or a million characters, are held at a time.

    Yields:
        the score of each text, in their order.

    Raises:
        UnicodeEncodeError: a text has a lone surrogate.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a sequence of texts, got the text {texts!r}")
    for chunk in _chunks(texts):
        counts = [TextCount() for _ in chunk]
        ids = _encode(model.tokenizer, chunk, counts)
        for tokens, count, values in zip(ids, counts, _log_probabilities(model, ids), strict=True):
            unknown = unknown_tokens(model, tokens)
            yield count.score(add_up(values), tokens.size, unknown)


def score_ids(
    model: StepModel, texts: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Score texts that are given as ids, each by itself, as :func:`score_texts` does.

    Args:
        model: from :func:`lm_runtime.load`.
        texts: the ids, ``(tokens,)`` of each; no ``<eos>`` is added, and one may be empty.

    Yields:
        for each text the log-probability of each token, ``(tokens,)``, and whether it is the most probable.
    """
    for start in range(0, len(texts), _CHUNK_TEXTS):
        chunk = texts[start : start + _CHUNK_TEXTS]
        found = _scores(model, [ids for ids in chunk if ids.size], greedy=True)
        for ids in chunk:
            yield next(found) if ids.size else (np.zeros(0, np.float32), np.zeros(0, np.bool_))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _encode(
    tokenizer: Tokenizer, texts: Sequence[str], counts: Sequence[TextCount]
) -> list[NDArray[np.int64]]:
    """The ids of each text's lines, each ended by ``<eos>``; an empty text is an empty line."""
    fragments: list[tuple[str, bool]] = []
    last = []
    for text, count in zip(texts, counts, strict=True):
        fragments += count.count(split_fragments(text))
        last.append(len(fragments))
    encoded = tokenizer.encode_each(fragments)
    ids = np.array([id_ for fragment in encoded for id_ in fragment], dtype=np.int64)
    sizes = np.cumsum([len(fragment) for fragment in encoded])
    return np.split(ids, sizes[np.array(last[:-1], dtype=np.int64) - 1])


def _log_probabilities(model: StepModel, texts: Sequence[NDArray[np.int64]]) -> Iterable[NDArray[np.float32]]:
    """The log-probability of each token of each text, all of which end with ``<eos>``."""
    if not (isinstance(model, DirectModel) and model.restarts_at_eos):
        return (values for values, _ in _scores(model, texts))
    read = np.concatenate([[model.tokenizer.eos_id], *texts])
    values, _ = model.score(read[None], initial_state(model, 1))
    return np.split(values[0], np.cumsum([ids.size for ids in texts])[:-1])


def _scores(
    model: StepModel, texts: Sequence[NDArray[np.int64]], *, greedy: bool = False
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """The log-probability of each token of each text, and, if ``greedy``, whether it is the most probable."""
    # As bytes with the highest first, ids sort and compare as lists of numbers do, and much faster.
    keys = [np.append(model.tokenizer.eos_id, ids).astype(">u4").tobytes() for ids in texts]
    different = sorted(set(keys))
    rows = [np.frombuffer(key, dtype=">u4").astype(np.int64) for key in different]
    if not rows:
        return iter(())
    values = dict(zip(different, _read_together(model, rows, greedy=greedy), strict=True))
    return (values[key] for key in keys)


def _read_together(
    model: StepModel, rows: Sequence[NDArray[np.int64]], *, greedy: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """The scores of each row's ids after its first; the rows are sorted, and no two are equal.

    Every distinct beginning is read once, and a row leaves the batch where it ends: nothing is padded.
    """
    ids = np.concatenate(rows)
    ends = np.cumsum([row.size for row in rows])
    results, most_probable = np.zeros(ids.size, dtype=np.float32), np.zeros(ids.size, dtype=np.bool_)
    # For each row that goes on: the places of the next id to be read and of the last, which is only
    # predicted, how many ids from the next one on are those of the row above, and whose state it has.
    at, last = ends - [row.size for row in rows], ends - 1
    alike = np.array([0, *map(_common, rows, rows[1:])])
    sequence = np.zeros_like(at)
    state = initial_state(model, 1)
    while at.size:
        leads = alike <= 0  # the first row of every distinct beginning reads it
        time = _time(int(leads.sum()), last - at, alike[~leads])
        parents, sequence = sequence[leads], np.cumsum(leads) - 1
        tokens = ids[at[leads, None] + np.arange(time)]
        states = []
        for part in _parts(parents.size):
            logits, after = model.step(tokens[part], take_states(model, state, parents[part]))
            states.append(after)
            readers = (sequence >= part[0]) & (sequence <= part[-1])
            where = at[readers, None] + 1 + np.arange(time)
            own = sequence[readers] - part[0]
            results[where] = _log_softmax(logits, own, ids[where])
            if greedy:
                most_probable[where] = logits.argmax(axis=-1)[own] == ids[where]
        state = join_states(model, states)
        go_on = np.flatnonzero(at + time < last)
        alike = _between(alike - time, go_on)
        at, last, sequence = at[go_on] + time, last[go_on], sequence[go_on]
    parts = (np.split(scores, ends[:-1]) for scores in (results, most_probable))
    return ((values[1:], flags[1:]) for values, flags in zip(*parts, strict=True))


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many ids two rows have in common before they differ, or one ends."""
    size = min(one.size, other.size)
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size


def _time(sequences: int, remaining: NDArray[np.int64], alike: NDArray[np.int64]) -> int:
    """How many ids are read in the next call: no row ends among them, and no two rows part."""
    most = max(1, _CALL_TOKENS // sequences)
    return int(min(most, remaining.min(), alike.min(initial=most)))


def _parts(sequences: int) -> list[NDArray[np.int64]]:
    """The sequences of each call, spread evenly."""
    return np.array_split(np.arange(sequences), math.ceil(sequences / _CALL_TOKENS))


def _between(alike: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many ids each of ``rows`` has in common with the one of them above: with all rows between, too."""
    if rows.size in (0, alike.size):
        return alike[rows]
    starts = np.append(0, rows[:-1] + 1)
    result: NDArray[np.int64] = np.minimum.reduceat(alike[: rows[-1] + 1], starts)
    return result


def _log_softmax(
    logits: NDArray[np.float32], sequences: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Log-probabilities of ``targets`` ``(readers, time)``, each reader at its sequence of the logits."""
    chosen = logits[sequences[:, None], np.arange(logits.shape[1]), targets]
    result: NDArray[np.float32] = chosen - log_normalizers(logits)[sequences]
    return result
