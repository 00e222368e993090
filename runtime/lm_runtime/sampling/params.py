"""The parameters of sampling: how tokens are chosen and when a text ends.

Each field says once what all doors need of it: command line, Python and JSON. Knows nothing about models or
text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from lm_runtime.settings import check, check_number, setting, short

_LARGEST_BIAS = 10_000
_SAMPLING, _BANS, _OUTPUT = "Sampling", "Penalties and bans", "Output"


@dataclass(frozen=True, repr=False)
class SamplingParams:
    """How the next token is chosen and when a text ends.

    Penalties and bans look back at prompt and text, over :data:`lm_runtime.sampling.history.WINDOW` tokens.
    A field's default is the value that does nothing, but for ``max_tokens``.

    Raises:
        ValueError: a value is out of its range; the message names it, the value and the bounds.
    """

    temperature: float = setting(
        1.0, help="Divides the logits; 0 is greedy.", low=0, high=1000, group=_SAMPLING
    )
    top_k: int = setting(
        0, help="Keep the K most probable tokens, 0 for all.", metavar="K", low=0, group=_SAMPLING
    )
    top_p: float = setting(
        1.0,
        help="Keep the most probable tokens that reach probability P together.",
        metavar="P",
        above=0,
        high=1,
        group=_SAMPLING,
    )
    """Holtzman et al. 2020."""
    min_p: float = setting(
        0.0,
        help="Keep tokens at least P times as probable as the best.",
        metavar="P",
        low=0,
        high=1,
        group=_SAMPLING,
    )
    """Nguyen et al. 2024."""
    typical_p: float = setting(
        1.0,
        help="Keep the most typical tokens that reach probability P together.",
        metavar="P",
        above=0,
        high=1,
        group=_SAMPLING,
    )
    """Meister et al. 2022."""
    repetition_penalty: float = setting(
        1.0,
        help="Divides positive and multiplies negative logits of tokens that came before.",
        low=0.01,
        high=100,
        group=_BANS,
    )
    """Keskar et al. 2019."""
    frequency_penalty: float = setting(
        0.0,
        help="Taken from a token's logit for every time it came before.",
        low=-100,
        high=100,
        group=_BANS,
    )
    presence_penalty: float = setting(
        0.0, help="Taken from a token's logit if it came before.", low=-100, high=100, group=_BANS
    )
    no_repeat_ngram_size: int = setting(
        0,
        help="No sequence of N tokens comes twice; 0 allows all.",
        metavar="N",
        low=0,
        high=1000,
        group=_BANS,
    )
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = setting(
        (),
        help="Add B to the logit of a token, by its text; -inf bans it.",
        metavar="TOKEN=B",
        repeatable=True,
        escapes=True,
        group=_BANS,
    )
    """By ids; kept as pairs in the order of ids."""
    banned: tuple[str, ...] = setting(
        (),
        help="Never generate this word or string, as the tokenizer spells it.",
        option="ban",
        metavar="TEXT",
        escapes=True,
        group=_BANS,
    )
    regex: str | None = setting(
        None,
        help="The whole text matches this regular expression; after a prompt, words begin with a space.",
        metavar="PATTERN",
        group=_OUTPUT,
    )
    max_tokens: int = setting(200, help="Most tokens to generate.", metavar="N", low=0, group=_OUTPUT)
    stop: tuple[str, ...] = setting(
        (), help="End before this text; \\n is a line break.", metavar="TEXT", escapes=True, group=_OUTPUT
    )
    allow_unk: bool = setting(False, help="Let <unk> be generated.", group=_BANS)
    logprobs: int | None = setting(
        None,
        help="With --json: each token's log-probability, and those of the K most probable.",
        metavar="K",
        low=0,
        group=_OUTPUT,
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))

    def __repr__(self) -> str:
        """The fields that are not at their defaults, on a line."""
        fields = [
            (field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)
        ]
        given = (f"{name}={short(value)}" for name, value, default in fields if value != default)
        return f"SamplingParams({', '.join(given)})"

    def check_ids(self, vocab_size: int) -> None:
        """Check what is bounded by the vocabulary.

        Raises:
            ValueError: logprobs or an id of logit_bias is out of its range.
        """
        if self.logprobs is not None:
            check_number("logprobs", self.logprobs, int, low=0, high=vocab_size)
        for token, _ in _pairs(self.logit_bias):
            if not 0 <= token < vocab_size:
                raise ValueError(f"logit_bias must name ids from 0 to {vocab_size - 1}, got {token}")


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    try:
        pairs: list[Any] = sorted(bias.items() if isinstance(bias, Mapping) else bias)
        whole = all(_is_number(value) and _is_number(token, Integral) for token, value in pairs)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"logit_bias must map ids to numbers, got {short(bias)}")
    for token, value in pairs:
        if not (abs(value) <= _LARGEST_BIAS or value == -math.inf):  # NaN is not
            raise ValueError(
                f"logit_bias must be within {_LARGEST_BIAS} of 0, or -inf, got {short(value)} for {token}"
            )
    return tuple((int(token), float(value)) for token, value in pairs)


def _is_number(value: object, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
