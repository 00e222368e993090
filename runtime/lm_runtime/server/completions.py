"""``/v1/completions``: what a request asks for, its prompts read, its texts as OpenAI's protocol has them."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_runtime.generation.complete import Request
from lm_runtime.generation.rows import most_probable
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.models.state import READ_TOKENS
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.server.errors import ApiError, invalid, refusing
from lm_runtime.server.lane import Text
from lm_runtime.server.limits import Limits
from lm_runtime.server.states import States
from lm_runtime.settings import check, check_number, setting, settings_of, short
from lm_runtime.softmax import log_softmax
from lm_runtime.tokenizer import Tokenizer
from lm_runtime.wire import Record, check_fits, check_text, params_of

Prompt = str | tuple[int, ...]

_DEFAULT_TOKENS = 16
"""Of a text, where a request does not say: OpenAI's default."""
_LONGEST_REGEX = 4000
_MOST_STRINGS = 64
_LONGEST_STRING = 256
_MOST_BIASES = 1024
_MOST_LOGPROBS = 200_000
"""The most log-probabilities in one answer."""
_SCORED_LOGITS = 1 << 21
"""The most logits of a prompt that are held at a time, where they are asked for."""
_ALIASES = {"bad_words": "banned"}
_REASONS = {"length": "length", "stop": "stop", "regex": "stop", "stuck": "length"}
"""What OpenAI's protocol calls the end of a text."""
_TOLD = ("regex", "stuck")
"""The ends that it has no name for."""


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
        if count > _MOST_LOGPROBS:
            raise ValueError(f"logprobs ask for {count} numbers, more than {_MOST_LOGPROBS}")


@dataclass
class Scores:
    """Tokens with their log-probabilities, as they come."""

    tokens: list[int] = field(default_factory=list)
    """The ids."""
    values: list[float | None] = field(default_factory=list)
    """Of each its log-probability; None for the one that every text begins after."""
    tops: list[list[tuple[int, float]] | None] = field(default_factory=list)
    """Of each the most probable ones in its place."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that has been read."""

    session: Session
    """After it."""
    ids: Sequence[int]
    """Its tokens, as they were given."""
    text: str
    """Its text."""
    scores: Scores | None
    """Its log-probabilities, if they were asked for."""


def read_prompts(model: StepModel, wanted: Wanted, states: States, limits: Limits) -> list[ReadPrompt]:
    """Read the prompts of a request; takes as long as that takes.

    Raises:
        ApiError: a prompt or the state cannot be used.
    """
    tokenizer = model.tokenizer
    start = Session.start(model) if wanted.state is None else states.read(wanted.state, model)
    with refusing(FIELDS):
        ids = [
            tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
            for prompt in wanted.prompts
        ]
        total = sum(map(len, ids))
        if total > limits.max_prompt:
            raise ApiError(
                400,
                f"prompt must have at most {limits.max_prompt} tokens, got {total}",
                param="prompt",
                code="context_length_exceeded",
            )
        if wanted.params.regex is not None:
            for prompt in wanted.prompts:
                text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
                check_fits(Request(text, wanted.params), tokenizer)
    scored = sum(map(len, ids)) * ((wanted.params.logprobs or 0) + 1)
    if wanted.echo and wanted.params.logprobs is not None and scored > _MOST_LOGPROBS:
        raise invalid(f"logprobs ask for {scored} numbers, more than {_MOST_LOGPROBS}", "logprobs")
    return [
        _read(model, start.copy(), prompt, own, wanted)
        for prompt, own in zip(wanted.prompts, ids, strict=True)
    ]


def _read(
    model: StepModel, session: Session, prompt: Prompt, ids: Sequence[int], wanted: Wanted
) -> ReadPrompt:
    fresh = session.position == 0 and wanted.state is None
    # A session has read one <eos>; ids may begin with it, as other programs expect of a first token.
    begins = fresh and not isinstance(prompt, str) and ids[:1] == (model.tokenizer.eos_id,)
    rest = ids[1:] if begins else ids
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(rest) if wanted.echo else ""
    scores = None
    if wanted.echo and wanted.params.logprobs is not None:
        scores = Scores([ids[0]], [None], [None]) if begins else Scores()
        if rest:
            session.place(model, rest, _score(model, session, rest, wanted.params.logprobs, scores))
    else:
        session.read(model, rest)
    return ReadPrompt(session, ids, text, scores)


def _score(model: StepModel, session: Session, ids: Sequence[int], k: int, scores: Scores) -> Any:
    """Add the log-probabilities of ``ids`` to ``scores``; return the state after all but the last."""
    state, previous = session.state, session.token
    size = max(1, min(READ_TOKENS, _SCORED_LOGITS // model.tokenizer.vocab_size))
    for start in range(0, len(ids), size):
        targets = ids[start : start + size]
        logits, state = model.step(np.array([[previous, *targets[:-1]]], dtype=np.int64), state)
        previous = targets[-1]
        for token, values in zip(targets, log_softmax(logits[0]), strict=True):
            if not np.isfinite(values[token]):
                raise NotFiniteError(0)
            scores.tokens.append(token)
            scores.values.append(float(values[token]))
            scores.tops.append(_top(values, k))
    return state


def _top(values: NDArray[np.float64], k: int) -> list[tuple[int, float]]:
    return [(token, float(values[token])) for token in most_probable(values, k)]


def texts_of(prompts: Sequence[ReadPrompt], wanted: Wanted) -> Iterator[Text]:
    """The texts of a request, in the order of its choices: prompt by prompt."""
    seed = secrets.randbelow(1 << 32) if wanted.seed is None and wanted.state is None else wanted.seed
    for prompt in prompts:
        for index in range(wanted.n):
            # A state without a seed brings its own generator.
            session = prompt.session.copy() if seed is None else prompt.session.fork(seed=seed, index=index)
            yield Text(session, wanted.params, keeps=wanted.return_state)


class Choice:
    """One text as the protocol has it, in one record or in several.

    Args:
        index: its number.
        text: what is being generated.
        prompt: what it continues.
        wanted: what the request asks for.
        model: the bundle.
        names: of its tokens.
        states: writes where the text ends.
    """

    def __init__(
        self,
        index: int,
        text: Text,
        prompt: ReadPrompt,
        wanted: Wanted,
        model: StepModel,
        names: Sequence[str],
        states: States,
    ) -> None:
        self.text = text
        self._index = index
        self._wanted = wanted
        self._model = model
        self._names = names
        self._states = states
        self._prompt: ReadPrompt | None = prompt
        self._told = (0, 0)  # parts of the text, and tokens
        self._finished = False
        self._decoder = prompt.session.decoder.copy()
        self._offset = len(prompt.session.stops.held)

    def record(self) -> Record | None:
        """What is new since the last call; None if nothing is."""
        finish = self.text.finish  # before the rest, which is complete if this is set
        parts, tokens = self._told
        new_parts, pieces = self.text.shown[parts:], self.text.pieces[tokens:]
        if self._finished or not (new_parts or pieces or finish or self._echoed):
            return None
        self._told = (parts + len(new_parts), tokens + len(pieces))
        self._finished = finish is not None
        scores = Scores()
        before = ""
        if (prompt := self._echoed) is not None:
            before, scores = prompt.text, prompt.scores or scores
        record: Record = {"index": self._index, "text": before + "".join(new_parts), "logprobs": None}
        record["finish_reason"] = None if finish is None else _REASONS[finish]
        if self._wanted.params.logprobs is not None:
            record["logprobs"] = self._logprobs(prompt, scores, pieces, finish)
        if finish in _TOLD:
            record["stop_reason"] = finish
        if self._wanted.return_token_ids:
            record["token_ids"] = [piece.token for piece in pieces]
            if self._prompt is not None:
                record["prompt_token_ids"] = list(self._prompt.ids)
        if finish is not None and self._wanted.return_state:
            record["state"] = self._states.write(self.text.session, self._model)
        self._prompt = None
        return record

    @property
    def _echoed(self) -> ReadPrompt | None:
        return self._prompt if self._wanted.echo else None

    def _logprobs(
        self, prompt: ReadPrompt | None, scores: Scores, pieces: Sequence[Any], finish: str | None
    ) -> Record:
        names, offsets = self._names, []
        if prompt is not None:
            offsets = self._prompt_offsets(prompt, scores)
            self._offset += len(prompt.text)
        for piece in pieces:
            scores.tokens.append(piece.token)
            scores.values.append(piece.log_probability)
            scores.tops.append(list(piece.alternatives))
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(piece.token))
        tops: list[dict[str, float] | None] = []
        for token, value, top in zip(scores.tokens, scores.values, scores.tops, strict=True):
            if top is None or value is None:
                tops.append(None)
                continue
            best: dict[str, float] = {}
            for other, number in [*top, (token, value)]:  # of tokens that are shown alike, the best
                best.setdefault(names[other], number)
            tops.append(best)
        return {
            "tokens": [names[token] for token in scores.tokens],
            "token_logprobs": scores.values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _prompt_offsets(self, prompt: ReadPrompt, scores: Scores) -> list[int]:
        decoder, offset, offsets = self._model.tokenizer.decoder(), 0, []
        for token, value in zip(scores.tokens, scores.values, strict=True):
            offsets.append(min(offset, len(prompt.text)))
            if value is not None:
                offset += len(decoder.push(token))
        return offsets


def usage_of(prompts: Sequence[ReadPrompt], texts: Sequence[Text]) -> Record:
    """How many tokens were read and generated."""
    read, generated = sum(len(prompt.ids) for prompt in prompts), sum(len(text.pieces) for text in texts)
    return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def failure_of(texts: Sequence[Text], wanted: Wanted) -> ApiError | None:
    """Why a request failed, if one of its texts did."""
    error = next((text.error for text in texts if text.error is not None), None)
    if error is None:
        return None
    if isinstance(error, ValueError):
        return invalid(error, next((name for name in FIELDS if str(error).startswith(name)), None))
    if isinstance(error, NotFiniteError) and wanted.state is not None:
        return invalid("state leads to numbers that are not finite", "state")
    return ApiError(500, f"the text could not be generated: {type(error).__name__}", code="failed")
