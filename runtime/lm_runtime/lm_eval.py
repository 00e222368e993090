"""A bundle as a model of lm-evaluation-harness, named ``steplm``; neither needs torch.

Importing this module registers the model; the command ``lm-eval-steplm`` does that and hands over to
lm-eval's own command line. A line break is ``<eos>``, as in every text of this project. Knows nothing about
tasks.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from lm_runtime.bundle import MODELS
from lm_runtime.commands.messages import note
from lm_runtime.generation.complete import Request, complete
from lm_runtime.models.load import load
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import not_comparable, unknown_tokens
from lm_runtime.scoring.texts import score_ids

# Else lm-eval forks for its standard errors, and a fork of a process with threads may wait for ever.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

_ROWS = 32
"""The most texts that are generated side by side."""
_MAX_TOKENS = 256
"""Of a generated text, where the task does not say: lm-eval's own default."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""Parameters of generation that mean the same here."""

Ids = list[int]


@register_model("steplm")
class StepLM(LM):  # type: ignore[misc]  # lm_eval publishes no types
    """``--model steplm --model_args pretrained=BUNDLE``.

    Args:
        pretrained: the bundle's folder.
        precision: fp32 or int8; fp32, or that of the only graph, if not given.
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
        precision: Any = None,
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
        if precision not in (None, *MODELS):
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
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(known, whole, strict=False))
            shared = sum(1 for _ in alike)
            pairs.append((whole[:shared], whole[shared:]))
        results = score_pairs(self._model, pairs)
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-probability of each text, of any length: of its tokens, ``<eos>`` for a line break.

        Says so where the texts have unknown words, whose spelling costs the model nothing.
        """
        texts = [request.args[0] for request in requests]
        pairs: list[tuple[Ids, Ids]] = [([], self._model.tokenizer.encode(text)) for text in texts]
        ids = np.array([token for _, text in pairs for token in text], dtype=np.int64)
        if why := not_comparable(unknown_tokens(self._model, ids), ids.size):
            note(f"steplm: bits_per_byte and perplexities are {why}")
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
    if unknown := sorted(set(values) - set(_SAMPLING)):
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
    texts = [np.array([*context, *continuation], dtype=np.int64) for context, continuation in pairs]
    results = []
    for (context, _), (values, greedy) in zip(pairs, score_ids(model, texts), strict=True):
        own = values[len(context) :]
        results.append((float(own.sum(dtype=np.float64)), bool(greedy[len(context) :].all())))
    return results
