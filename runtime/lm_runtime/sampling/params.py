"""The parameters of sampling: what a text is asked for with. Knows nothing about models or text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

_LARGEST_BIAS = 10_000


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when a text ends.

    Penalties and bans look back at prompt and text, over :data:`lm_runtime.sampling.history.WINDOW` tokens.

    Raises:
        ValueError: a value is out of its range; the message names it, the value and the bounds.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (greedy)."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep tokens at least this probable relative to the most probable one (Nguyen et al. 2024)."""
    typical_p: float = 1.0
    """Keep the most typical tokens that together reach this probability (Meister et al. 2022)."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen before (Keskar et al. 2019)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for every time it came before."""
    presence_penalty: float = 0.0
    """Taken from a token's logit if it came before."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size comes twice; 0 allows all."""
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Added to the logits of these ids; minus infinity rules a token out."""
    banned: tuple[str, ...] = ()
    """Words and strings that are not generated, as far as they are spelled as the tokenizer spells each."""
    regex: str | None = None
    """A regular expression that the text has to match as a whole."""
    max_tokens: int = 200
    """The most tokens to generate."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    allow_unk: bool = False
    """Whether ``<unk>`` may be generated."""
    logprobs: int | None = None
    """Report each token's log-probability, and of this many alternatives; None reports nothing."""

    def __post_init__(self) -> None:
        for name in ("stop", "banned"):
            texts = getattr(self, name)
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{name} must be a sequence of strings, got {texts!r}")
            if "" in texts:
                raise ValueError(f"a {name} string must not be empty")
            object.__setattr__(self, name, tuple(texts))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if type(self.allow_unk) is not bool:
            raise ValueError(f"allow_unk must be true or false, got {self.allow_unk!r}")
        if not isinstance(self.regex, str | None):
            raise ValueError(f"regex must be a string, got {self.regex!r}")
        for name in ("top_k", "max_tokens", "no_repeat_ngram_size", "logprobs"):
            value = getattr(self, name)
            if not _is_number(value, Integral) and not (name == "logprobs" and value is None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        _within("temperature", self.temperature, 0, 1000)
        _within("top_k", self.top_k, 0, math.inf)
        _within("top_p", self.top_p, 0, 1, open_low=True)
        _within("min_p", self.min_p, 0, 1)
        _within("typical_p", self.typical_p, 0, 1, open_low=True)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("frequency_penalty", self.frequency_penalty, -100, 100)
        _within("presence_penalty", self.presence_penalty, -100, 100)
        _within("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, 1000)
        _within("max_tokens", self.max_tokens, 0, math.inf)
        _within("logprobs", self.logprobs or 0, 0, math.inf)

    def check_ids(self, vocab_size: int) -> None:
        """Check what is bounded by the vocabulary.

        Raises:
            ValueError: top_k, logprobs or an id of logit_bias is out of its range.
        """
        for name in ("top_k", "logprobs"):
            value = getattr(self, name) or 0
            if value > vocab_size:
                raise ValueError(f"{name} must be at least 0 and at most {vocab_size}, got {value}")
        for token, _ in _pairs(self.logit_bias):
            if not 0 <= token < vocab_size:
                raise ValueError(f"logit_bias must name ids from 0 to {vocab_size - 1}, got {token}")

    @property
    def looks_back(self) -> bool:
        """Whether the logits are changed before the temperature: :func:`look_back` has work to do."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.no_repeat_ngram_size
            or self.banned
            or self.regex is not None
        )


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    try:
        pairs: list[Any] = sorted(bias.items() if isinstance(bias, Mapping) else bias)
        whole = all(_is_number(value) and _is_number(token, Integral) for token, value in pairs)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"logit_bias must map ids to numbers, got {bias!r}")
    for token, value in pairs:
        if not (abs(value) <= _LARGEST_BIAS or value == -math.inf):  # NaN is not
            raise ValueError(
                f"logit_bias must be within {_LARGEST_BIAS} of 0, or -inf, got {value} for {token}"
            )
    return tuple((int(token), float(value)) for token, value in pairs)


def _is_number(value: object, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not _is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    # Written so that NaN is out of every range, and infinity too.
    if (low < value if open_low else low <= value) and value <= high and value != math.inf:
        return
    bound = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" * (high != math.inf))
    raise ValueError(f"{name} must be {bound}, got {value}")
