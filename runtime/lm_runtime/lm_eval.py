"""A bundle as a model of lm-evaluation-harness, named ``steplm``; neither needs torch.

Importing this module registers the model; the command ``lm-eval-steplm`` does that and hands over to
lm-eval's own command line. A line break is ``<eos>``, as in every text of this project. Knows nothing about
tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from numpy.typing import NDArray

from lm_runtime.bundle import MODELS
from lm_runtime.generation.complete import Request, complete
from lm_runtime.models.load import load
from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import initial_state, join_states, state_of, take_states
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.softmax import log_softmax_at

_ROWS = 32
"""The most texts side by side."""
_CALL_TOKENS = 128
"""The most tokens in one call of the model."""
_MAX_TOKENS = 256
"""Of a generated text, where the task does not say: lm-eval's own default."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""Parameters of generation that mean the same here."""

Ids = list[int]
See = Callable[[int, NDArray[np.float32]], None]


@register_model("steplm")
class StepLM(LM):  # type: ignore[misc]
    """``--model steplm --model_args pretrained=BUNDLE``.

    Args:
        pretrained: the bundle's folder.
        precision: fp32 or int8.
        threads: CPU threads; onnxruntime's choice if not given.
        device: cpu, or anything else for the best that onnxruntime has: lm-eval says cuda:0 of itself.
        batch_size: taken, as lm-eval always gives one, and not used: no result depends on it.
        max_batch_size: the same.

    Raises:
        ValueError: an argument is missing, not known, or out of its range.
        UnusableFileError: the bundle cannot be used.
    """

    def __init__(
        self,
        pretrained: str = "",
        precision: Any = "fp32",
        threads: int | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown or not pretrained:
            raise ValueError(
                "--model_args of steplm are pretrained=BUNDLE, precision and threads; "
                + (f"not {', '.join(sorted(unknown))}" if unknown else "pretrained is missing")
            )
        if precision not in MODELS:
            raise ValueError(f"precision must be one of {', '.join(MODELS)}, got {precision}")
        self._model = load(
            str(pretrained),
            precision=precision,
            provider="cpu" if device == "cpu" else "auto",
            threads=threads,
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each ``(context, continuation)``: its log-probability, and whether it is the greedy one.

        An empty context is a text's beginning. Where the tokenizer joins the end of the context and the
        beginning of the continuation, the token that they share counts to the continuation.
        """
        encode = self._model.tokenizer.encode
        pairs = []
        for context, continuation in (request.args for request in requests):
            known, whole = encode(context), encode(context + continuation)
            shared = _common(known, whole)
            pairs.append((whole[:shared], whole[shared:]))
        results = score_pairs(self._model, pairs)
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-probability of each text, of any length: of its tokens, ``<eos>`` for a line break."""
        texts = [request.args[0] for request in requests]
        pairs: list[tuple[Ids, Ids]] = [([], self._model.tokenizer.encode(text)) for text in texts]
        results = [value for value, _ in score_pairs(self._model, pairs)]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """For each ``(context, parameters)`` a text that ends before the first stop string.

        Each is drawn from a generator of its own, by its place among the requests.

        Raises:
            ValueError: a parameter is not known here, or is out of its range.
        """
        asked = (
            Request(context, sampling(given), index=number)
            for number, (context, given) in enumerate(request.args for request in requests)
        )
        texts = []
        for request, completion in zip(requests, complete(self._model, asked, max_batch=_ROWS), strict=True):
            texts.append(completion.text)
            self.cache_hook.add_partial("generate_until", request.args, completion.text)
        return texts


def sampling(given: dict[str, Any]) -> SamplingParams:
    """The parameters of a task's ``generation_kwargs``; greedy unless they ask for sampling.

    Raises:
        ValueError: one is not known, or is out of its range.
    """
    values = normalize_gen_kwargs(given, _MAX_TOKENS)
    samples, stop, most = values.pop("do_sample"), values.pop("until"), values.pop("max_gen_toks")
    if (beams := values.pop("num_beams", 1)) != 1:
        raise ValueError(f"num_beams must be 1, got {beams}")
    if unknown := sorted(set(values) - {*_SAMPLING, "temperature"}):
        raise ValueError(f"generate_until knows {', '.join(_SAMPLING)}, not {', '.join(unknown)}")
    if not samples:
        values["temperature"] = 0.0
    return SamplingParams(**values, max_tokens=most, stop=tuple(text for text in stop if text))


def score_pairs(model: StepModel, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
    """Score continuations, each after its context; a context that several share is read once.

    Args:
        model: from :func:`lm_runtime.load`.
        pairs: the ids of context and continuation; a text begins after one ``<eos>``.

    Returns:
        for each pair the natural-log probability of the continuation, and whether each of its tokens is the
        most probable one.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        by_context.setdefault((model.tokenizer.eos_id, *context), []).append(number)
    contexts = sorted(by_context, key=lambda context: -len(context))
    results: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(contexts), _ROWS):
        read = contexts[start : start + _ROWS]
        # The last token of a context is read with the continuation, whose first token it predicts.
        states = _read(model, [context[:-1] for context in read], initial_state(model, len(read)))
        waiting = [
            (number, [context[-1], *pairs[number][1]], state)
            for context, state in zip(read, states, strict=True)
            for number in by_context[context]
        ]
        waiting.sort(key=lambda entry: -len(entry[1]))
        for first in range(0, len(waiting), _ROWS):
            numbers, rows, own = zip(*waiting[first : first + _ROWS], strict=True)
            results |= zip(numbers, _continue(model, rows, join_states(model, own)), strict=True)
    return [results[number] for number in range(len(pairs))]


def _continue(model: StepModel, rows: Sequence[Ids], state: State) -> Iterable[tuple[float, bool]]:
    """What :func:`score_pairs` returns, of each row's ids after its first; the longest rows come first."""
    sums, greedy = [0.0] * len(rows), [True] * len(rows)

    def see(start: int, logits: NDArray[np.float32]) -> None:
        for number, own in enumerate(logits):
            targets = np.array(rows[number][start + 1 : start + 1 + len(own)], dtype=np.int64)
            sums[number] += float(log_softmax_at(own, targets).sum(dtype=np.float64))
            greedy[number] &= bool((own.argmax(axis=-1) == targets).all())

    _read(model, [row[:-1] for row in rows], state, see)
    return zip(sums, greedy, strict=True)


def _read(
    model: StepModel, rows: Sequence[Sequence[int]], state: State, see: See | None = None
) -> list[State]:
    """Read rows of ids side by side, the longest first; each leaves the batch where it ends.

    Args:
        model: the model.
        rows: the ids that each sequence of ``state`` reads.
        state: where they begin.
        see: called with the place of the ids that were read and their logits ``(rows, time, vocab)``.

    Returns:
        the state of each row after its last id, a batch of 1.
    """
    states: list[State] = []
    size = len(rows)
    for count, start, stop in _calls([len(row) for row in rows]):
        states[:0] = [state_of(model, state, number) for number in range(count, size)]
        if count < size:
            state, size = take_states(model, state, range(count)), count
        token = np.array([row[start:stop] for row in rows[:count]], dtype=np.int64)
        if see is None:
            state = model.advance(token, state)
        else:
            logits, state = model.step(token, state)
            see(start, logits)
    return [*(state_of(model, state, number) for number in range(size)), *states]


def _calls(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """How rows of descending ``lengths`` are read: how many rows, from where, to where; none ends within."""
    at = 0
    for end in sorted(set(lengths)):
        count = sum(length >= end for length in lengths)
        while at < end:
            stop = min(end, at + max(1, _CALL_TOKENS // count))
            yield count, at, stop
            at = stop


def _common(one: Ids, other: Ids) -> int:
    """How many ids two texts have in common at their beginning."""
    differ = (number for number, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(one), len(other)))
