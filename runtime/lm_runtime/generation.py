"""Generation: the loop that steps a model and chooses tokens.

Every sequence draws from a generator of its own, made from (seed, index), and no choice looks at
another sequence: sample 3 of a batch of 8 is, token for token, what it would be alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_runtime.model import StepModel, initial_state, read, repeat_state
from lm_runtime.sampling import SamplingParams, choose


@dataclass(frozen=True)
class Piece:
    """What one step added to one sequence."""

    index: int
    """Which sample."""
    text: str
    """The text that became certain; may be empty."""
    token: int
    """The token's id."""
    finish: str | None = None
    """Why the sequence ended, on its last piece: ``length`` or ``stop``."""


def generate(
    model: StepModel, prompt: str = "", params: SamplingParams | None = None, *, seed: int = 0, index: int = 0
) -> Iterator[str]:
    """Generate one text, piece by piece.

    Args:
        model: from :func:`lm_runtime.load`.
        prompt: what the text continues; the pieces do not repeat it.
        params: how to choose; by default as :class:`SamplingParams`.
        seed: of the generator, at least 0.
        index: which of the samples of that seed.
    """
    for piece in generate_samples(model, prompt, params, seed=seed, indices=(index,)):
        if piece.text:
            yield piece.text


def generate_samples(
    model: StepModel,
    prompt: str = "",
    params: SamplingParams | None = None,
    *,
    seed: int = 0,
    indices: tuple[int, ...] = (0,),
) -> Iterator[Piece]:
    """Generate several texts from one prompt, as one batch; the prompt is read once.

    Yields:
        a piece for each sample and step, in the order of ``indices``.
    """
    params = params or SamplingParams()
    tokenizer = model.tokenizer
    prompt_ids = tokenizer.encode(prompt)
    logits, state = read(model, [tokenizer.eos_id, *prompt_ids], initial_state(model, 1))
    rows = np.broadcast_to(logits, (len(indices), logits.size))
    state = repeat_state(model, state, len(indices))
    sequences = [_Sequence(model, index, prompt_ids, params, seed) for index in indices]
    for step in range(params.max_tokens):
        # A finished sequence stays in its row until all have ended; what it reads there is not used.
        token = np.full((len(indices), 1), tokenizer.eos_id, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            if not sequence.finished:
                piece = sequence.take(rows[row], last=step + 1 == params.max_tokens)
                token[row, 0] = piece.token
                yield piece
        if all(sequence.finished for sequence in sequences):
            return
        batch_logits, state = model.step(token, state)
        rows = batch_logits[:, -1]  # (batch, vocab)


class _Sequence:
    """One sample: its generator, its history, and what of its text may be shown."""

    def __init__(
        self, model: StepModel, index: int, prompt_ids: list[int], params: SamplingParams, seed: int
    ) -> None:
        self.finished = False
        self._index = index
        self._params = params
        self._generator = np.random.default_rng([seed, index])
        self._decoder = model.tokenizer.decoder(prompt_ids)
        self._banned = None if params.allow_unk else model.tokenizer.unk_id
        self._seen = Counter(prompt_ids) if params.repetition_penalty != 1 else Counter[int]()
        self._stops = StopScanner(params.stop)

    def take(self, logits: NDArray[np.float32], *, last: bool) -> Piece:
        token = choose(logits, self._params, self._generator, seen=self._seen, banned=self._banned)
        if self._params.repetition_penalty != 1:
            self._seen[token] += 1
        text = self._stops.push(self._decoder.push(token))
        if not self._stops.found and last:
            text += self._stops.push(self._decoder.flush())
            text += self._stops.flush()
        self.finished = last or self._stops.found
        finish = ("stop" if self._stops.found else "length") if self.finished else None
        return Piece(self._index, text, token, finish)


class StopScanner:
    """Passes text on up to the first stop string, which may come in pieces.

    Text that may yet turn out to be the beginning of a stop string is held back.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False
        """Whether a stop string has come; what follows it is dropped."""

    def push(self, text: str) -> str:
        """Take ``text`` and return what can be shown by now."""
        if self.found:
            return ""
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """The length of the longest beginning of ``stop`` that ends the held text."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
