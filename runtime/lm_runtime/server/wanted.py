"""What a request of ``/v1/completions`` asks for, checked against the vocabulary and the limits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lm_runtime.sampling.params import SamplingParams
from lm_runtime.server.errors import invalid, refusing
from lm_runtime.server.limits import Limits
from lm_runtime.settings import check, check_number, setting, settings_of, short
from lm_runtime.tokenizer import Tokenizer
from lm_runtime.wire import Record, check_text, params_of

Prompt = str | tuple[int, ...]

_DEFAULT_TOKENS = 16
"""Of a text, where a request does not say: OpenAI's default."""
_LONGEST_REGEX = 4000
_MOST_STRINGS = 64
_LONGEST_STRING = 256
_MOST_BIASES = 1024
MOST_LOGPROBS = 200_000
"""The most log-probabilities in one answer."""
_ALIASES = {"bad_words": "banned"}


@dataclass(frozen=True)
class Wanted:
    """What a request asks for beside the sampling parameters.

    Raises:
        ValueError: a value is wrong; the message names it.
    """

    prompts: tuple[Prompt, ...]
    """Texts, or ids."""
    params: SamplingParams
    """How each text is generated."""
    state: object
    """The state to go on from, if any."""
    n: int = setting(1, help="Texts for each prompt.", low=1, high=1 << 16)
    seed: int | None = setting(None, help="Of the generators.", low=0)
    echo: bool = setting(False, help="The prompt before its text.")
    stream: bool = setting(False, help="The text as it comes.")
    include_usage: bool = setting(False, help="The usage at the end of a stream.")
    return_state: bool = setting(False, help="Where each text ends, to go on from there.")
    return_token_ids: bool = setting(False, help="The ids of each text.")

    def __post_init__(self) -> None:
        check(self)

    @property
    def texts(self) -> int:
        """How many texts it asks for."""
        return len(self.prompts) * self.n


_OWN = tuple(name for name in settings_of(Wanted) if name != "include_usage")
_OTHERS = ("model", "prompt", "state", "suffix", "best_of", "stream_options", "structured_outputs", "user")
FIELDS = (*_OWN, *_OTHERS, *_ALIASES, *settings_of(SamplingParams))
"""The fields of a request that mean something."""


def wanted_of(record: Record, tokenizer: Tokenizer, defaults: SamplingParams, limits: Limits) -> Wanted:
    """What the JSON object of a request asks for.

    Raises:
        ApiError: a value is wrong, or above a limit.
    """
    given = {name: value for name, value in record.items() if value is not None}
    if given.get("suffix"):
        raise invalid("suffix is not supported: the model reads from left to right", "suffix")
    for alias, name in _ALIASES.items():
        if alias in given:
            given[name] = given.pop(alias)
    given |= _nested(given, "structured_outputs", {"regex": "regex"})
    given |= _nested(given, "stream_options", {"include_usage": "include_usage"})
    with refusing(FIELDS):
        params = params_of(given, tokenizer, dataclasses.replace(defaults, max_tokens=_DEFAULT_TOKENS))
        params.check_ids(tokenizer.vocab_size)
        own = {name: given[name] for name in settings_of(Wanted) if name in given}
        wanted = Wanted(_prompts(given, tokenizer), params, given.get("state"), **own)
        _check_limits(wanted, limits)
    if given.get("best_of", wanted.n) != wanted.n:
        raise invalid(f"best_of must be n, which is {wanted.n}, got {short(given['best_of'])}", "best_of")
    if params.regex is not None and (wanted.state is not None or wanted.return_state):
        raise invalid("regex matches a whole text; leave out state and return_state", "regex")
    if wanted.state is not None and wanted.n > 1 and wanted.seed is None:
        raise invalid("seed is missing: without it there is one text that goes on from a state", "seed")
    return wanted


def _nested(given: Record, outer: str, names: dict[str, str]) -> Record:
    """The fields of an object within a request, by the names they have here."""
    inner = given.get(outer, {})
    if not isinstance(inner, dict):
        raise invalid(f"{outer} must be an object, got {short(inner)}", outer)
    return {names[key]: value for key, value in inner.items() if key in names and value is not None}


def _prompts(given: Record, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """The prompts of a request: a text, texts, ids, or lists of ids."""
    prompt = given.get("prompt", "" if "state" in given else None)
    if prompt is None:
        raise ValueError("prompt is missing")
    several = isinstance(prompt, list) and not (prompt and all(type(token) is int for token in prompt))
    prompts = tuple(_prompt(one, tokenizer.vocab_size) for one in (prompt if several else [prompt]))
    if not prompts:
        raise ValueError("prompt must not be an empty list")
    return prompts


def _prompt(prompt: object, vocab_size: int) -> Prompt:
    if isinstance(prompt, str):
        check_text(prompt)
        return prompt
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise ValueError(f"prompt must be a text, texts, ids or lists of ids, got {short(prompt)}")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise ValueError(f"prompt must have ids from 0 to {vocab_size - 1}, got {short(token)}")
    return tuple(prompt)


def _check_limits(wanted: Wanted, limits: Limits) -> None:
    params = wanted.params
    check_number("max_tokens", params.max_tokens, int, low=0, high=limits.max_tokens)
    if wanted.texts > limits.max_texts:
        raise ValueError(f"n and prompt ask for {wanted.texts} texts, more than {limits.max_texts}")
    for name in ("stop", "banned"):
        strings = getattr(params, name)
        if len(strings) > _MOST_STRINGS or any(len(string) > _LONGEST_STRING for string in strings):
            raise ValueError(
                f"{name} must be at most {_MOST_STRINGS} strings of {_LONGEST_STRING} characters"
            )
        check_text(*strings)
    if params.regex is not None and len(params.regex) > _LONGEST_REGEX:
        raise ValueError(f"regex must have at most {_LONGEST_REGEX} characters, got {len(params.regex)}")
    if len(params.logit_bias) > _MOST_BIASES:
        raise ValueError(f"logit_bias must have at most {_MOST_BIASES} entries, got {len(params.logit_bias)}")
    if params.logprobs is not None:
        count = wanted.texts * params.max_tokens * (params.logprobs + 1)
        if count > MOST_LOGPROBS:
            raise ValueError(f"logprobs ask for {count} numbers, more than {MOST_LOGPROBS}")
