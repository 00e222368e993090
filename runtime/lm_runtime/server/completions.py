"""Texts as OpenAI's protocol has them: choices, usage, failures. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from lm_runtime.generation.rows import Piece
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.sampler import NotFiniteError
from lm_runtime.server.errors import ApiError, invalid
from lm_runtime.server.lane import Text
from lm_runtime.server.prompts import ReadPrompt, Scores
from lm_runtime.server.states import States
from lm_runtime.server.wanted import FIELDS, Wanted
from lm_runtime.wire import Record

_REASONS = {"length": "length", "stop": "stop", "regex": "stop", "stuck": "length"}
"""What OpenAI's protocol calls the end of a text."""
_TOLD = ("regex", "stuck")
"""The ends that it has no name for."""


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
            record["logprobs"] = self._logprobs(prompt, scores, pieces)
        if finish in _TOLD:
            record["stop_reason"] = finish
        if self._wanted.return_token_ids:
            record["token_ids"] = [token for token, _ in pieces]
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
        self, prompt: ReadPrompt | None, scores: Scores, pieces: Sequence[tuple[int, Piece]]
    ) -> Record:
        names, offsets = self._names, []
        if prompt is not None:
            offsets = self._prompt_offsets(prompt, scores)
            self._offset += len(prompt.text)
        for token, piece in pieces:
            scores.tokens.append(token)
            scores.values.append(piece.log_probability)
            scores.tops.append(list(piece.alternatives))
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(token))
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
