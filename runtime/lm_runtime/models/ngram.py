"""The n-gram model: a step model over tables. Knows nothing about how they are estimated."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import CONFIG_FILE, TABLES, Precision, StateTensor
from lm_runtime.files import UnusableFileError
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.models.opened import open_bundle, open_same
from lm_runtime.models.protocol import State
from lm_runtime.models.state import batch_of, check_input, wrong_ids
from lm_runtime.tokenizer import Tokenizer

CONTEXT = "context"
"""The state's name."""

Nodes = list[int]
"""The contexts at a place in the text that were seen, by their numbers: the last word, the last two ..."""


class _Trie:
    """Looks n-grams up; single elements by memoryviews, which take a third of the time of arrays."""

    def __init__(self, tables: NgramTables) -> None:
        self.tables = tables
        self._words = [words.data for words in tables.words]
        self._offsets = [offsets.data for offsets in tables.offsets]
        self._backoffs = [backoffs.data for backoffs in tables.backoffs]

    def read(self, nodes: Nodes, token: int) -> Nodes:
        """The contexts after ``token``, by a bisection for each of the contexts before it."""
        if not 0 <= token < self.tables.vocab_size:
            raise ValueError(f"a token must be from 0 to {self.tables.vocab_size - 1}, got {token}")
        after = [token] if self._offsets else []
        for level, node in enumerate(nodes[: len(self._offsets) - 1]):
            if (child := self._child(level, node, token)) < 0:
                break  # longer ones were not seen either
            after.append(child)
        return after

    def _child(self, level: int, node: int, token: int) -> int:
        words, offsets = self._words[level], self._offsets[level]
        end = offsets[node + 1]
        at = bisect_left(words, token, offsets[node], end)
        return at if at < end and words[at] == token else -1

    def fill(self, row: NDArray[np.float32], nodes: Nodes) -> None:
        """Write the log-probability of every token after ``nodes`` into ``row``, ``(vocab,)``."""
        tables = self.tables
        weights = [0.0]  # of the contexts longer than each, and at last of all
        for level in range(len(nodes) - 1, -1, -1):
            weights.append(weights[-1] + self._backoffs[level][nodes[level]])
        np.add(tables.log_probabilities[0], np.float32(weights.pop()), out=row)
        for level, node in enumerate(nodes):
            start, end = self._offsets[level][node], self._offsets[level][node + 1]
            if start < end:
                seen = tables.log_probabilities[level + 1][start:end]
                row[tables.words[level][start:end]] = seen + np.float32(weights.pop())
            else:
                weights.pop()


class NgramModel:
    """Tables and their tokenizer, ready to step.

    The state is ``context``, int64 ``(batch, order - 1)``: the last ids, each plus 1; 0 is none. What is
    returned as logits are log-probabilities.

    Args:
        tables: the model.
        tokenizer: text to ids and back.

    Raises:
        ValueError: the two have vocabularies of different sizes.
    """

    def __init__(self, tables: NgramTables, tokenizer: Tokenizer) -> None:
        if (tables.vocab_size, tables.eos_id) != (tokenizer.vocab_size, tokenizer.eos_id):
            raise ValueError(
                f"the n-grams are of {tables.vocab_size} tokens with <eos> {tables.eos_id}, "
                f"the tokenizer has {tokenizer.vocab_size} with {tokenizer.eos_id}"
            )
        self.tables = tables
        self.tokenizer = tokenizer
        self.restarts_at_eos = True
        self.states = ngram_states(tables.order)
        self._trie = _Trie(tables)

    def step(self, token: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.StepModel.step`."""
        self._check(token, state)
        (context,) = state
        logits = np.empty((*token.shape, self.tables.vocab_size), dtype=np.float32)
        for row, ids, before in zip(logits, token.tolist(), context.tolist(), strict=True):
            nodes = _contexts(self._trie, before)
            for values, id_ in zip(row, ids, strict=True):
                nodes = self._trie.read(nodes, id_)
                self._trie.fill(values, nodes)
        return logits, _shift(token, state)

    def advance(self, token: NDArray[np.int64], state: State) -> State:
        """As :meth:`lm_runtime.models.protocol.StepModel.advance`."""
        self._check(token, state)
        return _shift(token, state)

    def score(self, ids: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """As :meth:`lm_runtime.models.protocol.DirectModel.score`."""
        token = ids[:, :-1]
        self._check(token, state)
        values = np.empty(token.shape, dtype=np.float32)
        for row, tokens, context in zip(values, ids, state[0], strict=True):
            before = np.append(context[context > 0] - 1, tokens[0])
            row[:] = log_probabilities(self.tables, tokens[1:], before)
        return values, _shift(token, state)

    def stepper(self, state: State) -> NgramStepper:
        """As :meth:`lm_runtime.models.protocol.StepModel.stepper`."""
        batch_of(self.states, state)
        self._check_context(state)
        return NgramStepper(self._trie, state)

    def _check(self, token: NDArray[np.int64], state: State) -> None:
        check_input(self, token, state)
        self._check_context(state)

    def _check_context(self, state: State) -> None:
        """Check the numbers of a state.

        Raises:
            ValueError: one is none of the vocabulary.
        """
        if state[0].size and state[0].view(np.uint64).max() > self.tables.vocab_size:
            raise ValueError(f"a number of the context is not from 0 to {self.tables.vocab_size}")

    @property
    def identity(self) -> str:
        """The sha256 of the tables' file."""
        return self.tables.sha256

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return NgramModel, (self.tables, self.tokenizer)

    def __repr__(self) -> str:
        return f"NgramModel({self.tables}, {self.tokenizer})"


class NgramBundle(NgramModel):
    """An n-gram model from its bundle. A pickle names the folder, and opens it anew.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, of another format, or contradicts itself.
        ValueError: it has no tables.
    """

    precision: Precision = "fp32"
    provider = "cpu"
    step_bytes: int | None = None
    """A step looks up what it needs."""

    def __init__(self, folder: str | Path) -> None:
        bundle = open_bundle(Path(folder), TABLES)
        path = bundle.folder / TABLES
        self.folder = bundle.folder
        self.config = bundle.config
        self.defaults = bundle.defaults
        self.adaptation = bundle.adaptation
        tables = NgramTables.from_file_content(path, bundle.weights)
        found = tables.vocab_size, tables.eos_id, ngram_states(tables.order)
        if found != (self.config.vocab_size, self.config.eos_token_id, self.config.states):
            raise UnusableFileError(path, f"does not fit {CONFIG_FILE}")
        super().__init__(tables, bundle.tokenizer)

    @property
    def identity(self) -> str:
        """As :attr:`NgramModel.identity`, which was checked as the bundle was opened."""
        return self.config.files[TABLES]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open_same, (functools.partial(NgramBundle, self.folder.absolute()), self.identity)

    def __repr__(self) -> str:
        return f"NgramBundle({str(self.folder)!r})"


class NgramStepper:
    """Steps one batch; the contexts of each row are kept, so that each step looks up only the longer ones."""

    def __init__(self, trie: _Trie, state: State) -> None:
        self._trie = trie
        rows = state[0].tolist()
        self._recent = [deque([0, *row], maxlen=len(row) + 1) for row in rows]  # one more, for undo
        self._nodes = self._before = [_contexts(trie, row) for row in rows]
        self._logits = np.empty((len(rows), trie.tables.vocab_size), dtype=np.float32)

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As :meth:`lm_runtime.models.protocol.Stepper.step`."""
        if len(tokens) != len(self._nodes):
            raise wrong_ids(tokens, len(self._nodes), self._trie.tables.vocab_size)
        after = [self._trie.read(nodes, token) for nodes, token in zip(self._nodes, tokens, strict=True)]
        self._before, self._nodes = self._nodes, after
        for row, token in enumerate(tokens):
            self._recent[row].append(token + 1)
            self._trie.fill(self._logits[row], self._nodes[row])
        return self._logits

    def state(self) -> State:
        """As :meth:`lm_runtime.models.protocol.Stepper.state`."""
        width = self._trie.tables.order - 1
        recent = [list(row)[len(row) - width :] for row in self._recent]
        return (np.array(recent, dtype=np.int64).reshape(len(recent), width),)

    def undo(self) -> None:
        """As :meth:`lm_runtime.models.protocol.Stepper.undo`."""
        self._nodes = self._before
        for row in self._recent:
            row.pop()


def _shift(token: NDArray[np.int64], state: State) -> State:
    """The state after ``token`` ``(batch, time)``."""
    after = np.concatenate([state[0], token + 1], axis=1)  # (batch, order - 1 + time)
    return (after[:, token.shape[1] :],)


def ngram_states(order: int) -> tuple[StateTensor, ...]:
    """The state of a model of ``order``: the last ``order - 1`` ids."""
    return (StateTensor(CONTEXT, f"{CONTEXT}_out", "int64", (None, order - 1)),)


def _contexts(trie: _Trie, ids: list[int]) -> Nodes:
    """The contexts after the ids of a state."""
    nodes: Nodes = []
    for id_ in ids:
        if id_:
            nodes = trie.read(nodes, id_ - 1)
    return nodes
