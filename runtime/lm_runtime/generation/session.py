"""The session: everything that a text's continuation depends on, as one value of a few kilobytes.

A recurrent model's memory has a fixed size, so a session can be saved, forked and resumed: the text goes on
bit for bit, in another process too.
"""

from __future__ import annotations

import codecs
import copy
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm_runtime.files import UnusableFileError, open_regular, reading, write_whole
from lm_runtime.generation.archive import read_arrays
from lm_runtime.models.protocol import State, StepModel
from lm_runtime.models.state import check_state, initial_state, read
from lm_runtime.sampling.history import WINDOW, History
from lm_runtime.tokenizer import StreamDecoder

_FORMAT = "steplm session"
_FORMAT_VERSION = 3
_OLDEST_VERSION = 2
"""It had the generator's numbers as JSON numbers, and the state's tensors by their bare names."""
_STATE = "state_"
_LONG_NUMBERS = ("state", "inc")
"""Of the generator, with 128 bits: as texts, since most readers of JSON keep 53 bits of a number."""
_FACTS = "facts"
_HISTORY = "history"
_LARGEST_FACTS = 1 << 20
_MOST_DIGITS = 40


@dataclass
class StopScanner:
    """Passes text on up to the first stop string, which may come in parts."""

    held: str = ""
    """Text that may be the beginning of a stop string."""

    def push(self, text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
        """Take ``text``; return what can be shown now, and whether a stop string was found.

        What follows the stop string is dropped.
        """
        text, self.held = self.held + text, ""
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        if ends:
            return text[: min(ends)], True
        keep = max((_overlap(text, stop) for stop in stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop`` that ends ``text``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass
class Session:
    """Where a text is: the state, what is read next, the generator, and what is not yet shown."""

    state: State
    """The model's state after all tokens but the last, a batch of 1."""
    token: int
    """The last token, which the next step reads."""
    generator: np.random.Generator
    """What the next token is drawn by."""
    decoder: StreamDecoder
    """Holds the bytes of a character that is not complete."""
    stops: StopScanner = field(default_factory=StopScanner)
    """Holds what may be the beginning of a stop string."""
    history: History = field(default_factory=History)
    """The last tokens of prompt and text, for the penalties."""
    position: int = 0
    """The number of tokens read and generated, without the first ``<eos>``."""
    running: bool = False
    """Whether an engine has it: then ``state`` is that of an earlier token, until it leaves the engine."""

    def __repr__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.state)
        return f"Session(position={self.position}, token={self.token}, state of {size:,} bytes)"

    @classmethod
    def start(cls, model: StepModel, prompt: str = "", *, seed: int = 0, index: int = 0) -> Session:
        """Read ``prompt`` from a zero state that has read one ``<eos>``.

        Args:
            model: from :func:`lm_runtime.load`.
            prompt: the text to continue.
            seed: of the generator, at least 0.
            index: which of the samples of that seed.
        """
        ids = [model.tokenizer.eos_id, *model.tokenizer.encode(prompt)]
        return cls(
            state=read(model, ids[:-1], initial_state(model, 1)),
            token=ids[-1],
            generator=np.random.default_rng([seed, index]),
            decoder=model.tokenizer.decoder(ids[1:]),
            history=History(ids[1:]),
            position=len(ids) - 1,
        )

    def read(self, model: StepModel, text: str | Sequence[int]) -> None:
        """Read more text, or ids, as if it had been generated; what is held back is dropped."""
        self.require_rest()
        ids = model.tokenizer.encode(text) if isinstance(text, str) else text
        if len(ids):
            self.place(model, ids, read(model, [self.token, *ids[:-1]], self.state))

    def place(self, model: StepModel, ids: Sequence[int], state: State) -> None:
        """Be after ``ids``, at least one, which were read elsewhere.

        Args:
            model: that read them.
            ids: what follows the session's last token.
            state: the model's after all of them but the last.
        """
        self.state = state
        self.token = ids[-1]
        self.decoder = model.tokenizer.decoder(ids)
        self.stops = StopScanner()
        self.history.extend(ids)
        self.position += len(ids)

    def copy(self) -> Session:
        """A second session from here, which goes on bit for bit as this one does; neither changes the other.

        A text is rewound by going on with a copy that was made before.
        """
        generator = copy.deepcopy(self.generator)
        return self._with(generator)

    def fork(self, *, seed: int, index: int = 0) -> Session:
        """A second session from here, with another generator; neither changes the other."""
        return self._with(np.random.default_rng([seed, index]))

    def require_rest(self) -> None:
        """Check that the session is whole.

        Raises:
            ValueError: an engine has it.
        """
        if self.running:
            raise ValueError("the session is in an engine; let its text end, or break it off, first")

    def _with(self, generator: np.random.Generator) -> Session:
        self.require_rest()
        return dataclasses.replace(
            self,
            generator=generator,
            decoder=self.decoder.copy(),
            stops=StopScanner(self.stops.held),
            history=self.history.copy(),
        )

    def last_words(self, finish: str | None) -> str:
        """What is still to be shown where a text ends for the reason ``finish``."""
        return self.flush() if finish not in (None, "stop") else ""

    def flush(self) -> str:
        """What is held back, when no more text comes."""
        text = self.stops.held + self.decoder.flush()
        self.stops.held = ""
        return text

    def save(self, path: str | Path, model: StepModel) -> None:
        """Write the session to ``path``, atomically.

        Args:
            path: an ``.npz`` file of the state's tensors and one JSON text (FORMAT.md). Nothing in it is ever
                executed.
            model: the one that made it.
        """
        content = self.to_bytes(model)
        with write_whole(Path(path)) as file:
            file.write(content)

    def to_bytes(self, model: StepModel) -> bytes:
        """The content of the file that :meth:`save` writes."""
        self.require_rest()
        facts: dict[str, Any] = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "model": model.identity,
            "token": self.token,
            "generator": _to_json(self.generator),
            "decoder": self.decoder.to_dict(),
            "held": self.stops.held,
            "position": self.position,
        }
        text = json.dumps(facts).encode()
        if len(text) > _LARGEST_FACTS:
            raise ValueError(
                f"a session holds at most {_LARGEST_FACTS:,} bytes of text back, got {len(text):,}"
            )
        arrays: dict[str, Any] = {_FACTS: np.frombuffer(text, dtype=np.uint8)}
        arrays[_HISTORY] = np.array(self.history.tokens, dtype=np.int32)
        for tensor, array in zip(model.states, self.state, strict=True):
            arrays[_STATE + tensor.name] = array
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, path: str | Path, model: StepModel) -> Session:
        """Read a session that :meth:`save` wrote.

        Raises:
            UnusableFileError: it is missing, damaged, or of another model.
        """
        path = Path(path)
        try:
            file = open_regular(path, "session")
        except FileNotFoundError:
            raise UnusableFileError(path, "no such session") from None
        with file:
            return cls._read(file, path, model)

    @classmethod
    def from_bytes(cls, content: bytes, model: StepModel) -> Session:
        """The session that :meth:`to_bytes` wrote.

        Raises:
            UnusableFileError: the content is damaged, or of another model; the file is called ``state``.
        """
        return cls._read(io.BytesIO(content), Path("state"), model)

    @classmethod
    def _read(cls, file: IO[bytes], path: Path, model: StepModel) -> Session:
        with reading(path, "not a session, or damaged"):
            facts = json.loads(read_arrays(file, {_FACTS: _LARGEST_FACTS})[_FACTS].tobytes())
            _check(path, facts, model)
            zeros = initial_state(model, 1)
            prefix = _STATE if facts["format_version"] > _OLDEST_VERSION else ""
            names = [prefix + tensor.name for tensor in model.states]
            sizes = {name: array.nbytes for name, array in zip(names, zeros, strict=True)}
            arrays = read_arrays(file, {_HISTORY: WINDOW * np.int32().nbytes, **sizes})
            state = tuple(arrays[name] for name in names)
            check_state(model, state)
            history = arrays[_HISTORY]
            if history.ndim != 1 or history.dtype != np.int32:
                raise ValueError(f"the history is {history.dtype} {history.shape}")
            tokens = history.tolist()
            _check_values(facts, state, tokens, model.tokenizer.vocab_size)
            model.advance(np.array([[facts["token"]]], dtype=np.int64), state)  # which must not fail later
            return cls(
                state=state,
                token=facts["token"],
                generator=_generator(facts["generator"], facts["format_version"]),
                decoder=StreamDecoder.from_dict(model.tokenizer, facts["decoder"]),
                stops=StopScanner(facts["held"]),
                history=History(tokens),
                position=facts["position"],
            )


def _check_values(facts: dict[str, Any], state: State, history: list[int], vocab_size: int) -> None:
    """Raise for values that no session has, so that nothing fails only as its text goes on."""
    for array in state:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("a number of the state is not finite")
        if array.dtype.kind == "i" and (array < 0).any():
            raise ValueError("a number of the state is below 0")
    decoder = facts["decoder"]
    ids = [facts["token"], *history, *decoder["recent"]]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise ValueError("a token is not in the vocabulary")
    if type(facts["position"]) is not int or not 0 <= facts["position"] < 1 << 63:
        raise ValueError(f"position {facts['position']}")
    if type(decoder["shown"]) is not int or not 0 <= decoder["shown"] <= len(decoder["recent"]):
        raise ValueError("more was shown than there is")
    undecoded = bytes.fromhex(decoder["undecoded"])
    if type(decoder["line_start"]) is not bool or codecs.utf_8_decode(undecoded, "strict", False)[1]:
        raise ValueError("what is not decoded is no beginning of a character")
    if not isinstance(facts["held"], str):
        raise ValueError("what is held back is no text")


def _to_json(generator: np.random.Generator) -> dict[str, Any]:
    """What a session's file says of its generator."""
    state = dict(generator.bit_generator.state)
    return {**state, "state": {name: str(state["state"][name]) for name in _LONG_NUMBERS}}


def _generator(saved: dict[str, Any], version: int) -> np.random.Generator:
    """The generator that was saved, whose numbers numpy takes as they are."""
    generator = np.random.default_rng()
    kind, numbers = generator.bit_generator.state["bit_generator"], saved["state"]
    if version > _OLDEST_VERSION:
        numbers = {name: _parse_digits(numbers[name]) for name in _LONG_NUMBERS}
    state = {**saved, "state": numbers}
    within = (
        all(type(numbers[name]) is int and 0 <= numbers[name] < 1 << 128 for name in _LONG_NUMBERS)
        and type(state["has_uint32"]) is int
        and type(state["uinteger"]) is int
        and 0 <= state["has_uint32"] <= 1
        and 0 <= state["uinteger"] < 1 << 32
    )
    if state["bit_generator"] != kind or not within:
        raise ValueError("no state of the generator")
    generator.bit_generator.state = state
    return generator


def _parse_digits(text: object) -> int:
    if not (isinstance(text, str) and len(text) < _MOST_DIGITS and text.isascii() and text.isdigit()):
        raise ValueError("a number of the generator is no text of digits")
    return int(text)


def _check(path: Path, facts: dict[str, Any], model: StepModel) -> None:
    if facts["format"] != _FORMAT:
        raise ValueError("of another format")
    version = facts["format_version"]
    if type(version) is not int or not _OLDEST_VERSION <= version <= _FORMAT_VERSION:
        raise UnusableFileError(
            path,
            f"session format {version}, and this version reads {_OLDEST_VERSION} and {_FORMAT_VERSION}",
        )
    if facts["model"] != model.identity:
        raise UnusableFileError(path, "saved with another model's bundle, or another precision of this one")
