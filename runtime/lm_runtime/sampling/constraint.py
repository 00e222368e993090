"""Constraints: which tokens may come next so that the whole text can still match a regular expression.

The expressions are those of ``llguidance``: Python's ``re`` without look-around, word boundaries and
back-references. Knows nothing about models or sampling.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.settings import short
from lm_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Where the next bytes are certain, the library would leave one spelling; here every spelling is allowed.
_START = '%llguidance {"no_forcing": true}\nstart: TEXT\n'
# What a tokenizer of each kind can spell, within a line and from a line's start; without it, a text could
# lead to where no token goes on. Byte-level BPE spells everything. For words, the line break after the text
# shows where a word may end (see Matcher._find).
_LINES = '("\\n" LINE)*) "\\n"\nLINE: (UNIT (" " UNIT)*)?\n'
_TEXTS = {
    "bpe": ("TEXT: PATTERN\n",) * 2,
    "char": ("TEXT: PATTERN & UNIT*\n",) * 2,
    "word": ('TEXT: (PATTERN & (" " UNIT)* ' + _LINES, "TEXT: (PATTERN & LINE " + _LINES),
}
# The library's limits: of work in one step, a fraction of a second (its default is too little for ten
# thousand words), and of the states that all texts of a pattern may reach, about a kilobyte each.
_FUEL = 5 * 10**6
_STATES = 250_000
_LONGEST = 20_000  # characters of an expression; compiling is quadratic in some
# What the library calls it where no text matches.
_NOTHING = "NoExtensionBias"
# The ranges of a class that have all of an alphabet.
_WHOLE_RANGE = r"(?<!-)(a-z|A-Z|0-9)(?!-)"


@lru_cache(maxsize=8)
def compiled(regex: str, tokenizer: Tokenizer) -> Pattern:
    """The regular expression, compiled for the tokenizer; the last few are kept.

    Raises:
        ValueError: it cannot be used.
        ModuleNotFoundError: the extra ``regex`` is not installed.
    """
    return Pattern(regex, tokenizer)


class Pattern:
    """A regular expression, compiled for one tokenizer; it never changes and can be shared.

    Args:
        pattern: what the whole text has to match.
        tokenizer: of kind word, char or bpe.

    Raises:
        ValueError: the expression is not valid or too long, or the tokenizer is of another kind.
        ModuleNotFoundError: the extra ``regex`` is not installed.
    """

    def __init__(self, pattern: str, tokenizer: Tokenizer) -> None:
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, regex_to_lark
        except ModuleNotFoundError as error:
            message = (
                "llguidance is not installed; install the regex extra: "
                "pip install '.[regex]' in steplm's folder"
            )
            raise ModuleNotFoundError(message, name=error.name) from None
        self.name = f"regex {short(pattern)}"
        """What messages call it."""
        if tokenizer.kind == "other":
            raise ValueError(f"{self.name} needs a tokenizer of kind word, char or bpe, got another")
        if len(pattern) > _LONGEST:
            raise ValueError(f"{self.name} has {len(pattern)} characters, more than {_LONGEST}")
        if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern)):
            raise ValueError(f"{self.name}: {_reason(problem)}")
        self.tokenizer = tokenizer
        self.table = _Table(pattern, tokenizer)
        self._tokens = LLTokenizer(TokenizerWrapper(self.table), slices=[])
        grammar = f"{_START}PATTERN: /{regex_to_lark(pattern, '') or '(?:)'}/\n"
        if tokenizer.kind != "bpe":
            units = "|".join(re.escape(unit.decode()) for unit in self.table.units)
            grammar += f"UNIT: /{regex_to_lark(units, '')}/\n"
        self._grammars = [grammar + text for text in _TEXTS[tokenizer.kind]]
        self._starts: dict[str, LLMatcher] = {}

    def matcher(self, line_start: bool) -> Matcher:
        """A matcher for a new text.

        Args:
            line_start: whether the text begins a line. Within one, a word tokenizer puts a space before the
                first word too, which the expression has to match.

        Raises:
            ValueError: no text that the tokenizer can spell matches.
        """
        matcher = Matcher(self, line_start)
        if not matcher.complete and not matcher.allowed().any():
            hint = "" if line_start or self.tokenizer.kind != "word" else "; here a word follows a space"
            raise ValueError(f"{self.name}: no text of this vocabulary matches{hint}")
        return matcher

    def start(self, line_start: bool, full: LLMatcher | None = None) -> LLMatcher:
        """Where a text begins, to be copied; made anew if it is the one that is ``full``.

        All copies share the states that any of them has reached: a second text is followed faster, until
        there are too many.
        """
        from llguidance import LLMatcher, LLParserLimits

        grammar = self._grammars[line_start]
        if self._starts.get(grammar) is full:
            limits = LLParserLimits(initial_lexer_fuel=_FUEL, step_lexer_fuel=_FUEL, max_lexer_states=_STATES)
            self._starts[grammar] = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        return self._starts[grammar]


class Matcher:
    """Follows one text, token by token; made by :meth:`Pattern.matcher`."""

    def __init__(self, pattern: Pattern, line_start: bool) -> None:
        self._pattern = pattern
        self._table = pattern.table
        self._began_line = self._line_start = line_start
        self._start = pattern.start(line_start)
        self._engine = self._start.deep_copy()
        self._entries: tuple[int, ...] = ()
        self._seen: tuple[NDArray[np.bool_], bool] | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens can come next ``(vocab,)``, read-only: those after which some text matches.

        Raises:
            ValueError: the expression is too complex for this vocabulary.
        """
        return self._look()[0]

    @property
    def complete(self) -> bool:
        """Whether the text so far matches."""
        return self._look()[1]

    @property
    def finished(self) -> bool:
        """Whether the text so far matches, and no longer text does."""
        return self.complete and not self.allowed().any()

    def push(self, token: int) -> None:
        """Add a token to the text.

        Raises:
            ValueError: it is not allowed.
        """
        tokenizer = self._pattern.tokenizer
        if not self.allowed()[token]:
            raise ValueError(f"token {token} ({tokenizer.tokens[token]!r}) is not allowed here")
        is_eos = token == tokenizer.eos_id
        entries = [int(self._table.entry[token])]
        if tokenizer.kind == "word" and not self._line_start and not is_eos:
            entries.insert(0, self._table.space)
        self._engine.consume_tokens(entries)
        self._entries += tuple(entries)
        self._line_start = is_eos
        self._seen = None

    def copy(self) -> Matcher:
        """A second matcher from here; neither changes the other."""
        other = copy.copy(self)
        other._engine = self._engine.deep_copy()
        return other

    def _look(self) -> tuple[NDArray[np.bool_], bool]:
        """What :meth:`allowed` and :attr:`complete` say, found once for each position."""
        if self._seen is None:
            try:
                self._seen = self._find()
            except ValueError:
                # Perhaps other texts have used up the states: once more, with this one's alone.
                self._start = self._pattern.start(self._began_line, full=self._start)
                self._engine = self._start.deep_copy()
                self._engine.consume_tokens(list(self._entries))
                self._seen = self._find()
        return self._seen

    def _find(self) -> tuple[NDArray[np.bool_], bool]:
        """Ask the library.

        A word is allowed where a space or a line break can follow it: only then is it a word, and not the
        beginning of a longer one. The grammar has a line break after every text, so one can also follow
        where the text ends, and then nothing follows the line break.
        """
        table, eos_id = self._table, self._pattern.tokenizer.eos_id
        here = self._possible(self._engine)
        if self._pattern.tokenizer.kind == "word":
            words = here if self._line_start else self._after(table.space, here)[0]
            after, complete = self._after(int(table.entry[eos_id]), here)
            allowed = (words[table.with_space] | words[table.with_break])[table.entry]
            allowed[eos_id] = after.any()
        else:
            allowed, complete = here[table.entry], self._engine.is_accepting()
        allowed.flags.writeable = False
        return allowed, complete

    def _after(self, entry: int, here: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], bool]:
        """The entries possible after ``entry``, and whether the grammar can end there."""
        if not here[entry]:
            return np.zeros_like(here), False
        engine = self._engine.deep_copy()
        engine.consume_token(entry)
        return self._possible(engine), engine.is_accepting()

    def _possible(self, engine: LLMatcher) -> NDArray[np.bool_]:
        """Which entries of the table can come next ``(entries,)``."""
        mask = np.frombuffer(engine.compute_bitmask(), dtype=np.uint8)
        problem = _reason(engine.get_error())
        if problem and problem != _NOTHING:
            raise ValueError(f"{self._pattern.name}: too complex for this vocabulary ({problem})")
        return np.unpackbits(mask, count=self._table.eos_token_id, bitorder="little").view(np.bool_)


class _Table:
    """What the grammar is asked about, under the names that ``llguidance`` wants.

    Each spelling has one entry, however many tokens have it. For words there are three of each: plain, with
    a space after it, and with a line break; then comes the space alone.
    """

    bos_token_id = None

    def __init__(self, pattern: str, tokenizer: Tokenizer) -> None:
        words = tokenizer.kind == "word"
        spellings = list(tokenizer.token_bytes)
        if words and (alike := _alike(pattern)):
            spellings = [spelling.translate(alike) for spelling in spellings]
        if tokenizer.unk_id is not None:
            spellings[tokenizer.unk_id] = b""  # matched by nothing
        plain = {spelling: entry for entry, spelling in enumerate(dict.fromkeys(spellings))}
        self.entry = np.array([plain[spelling] for spelling in spellings])
        """The entry of each token, ``(vocab,)``."""
        self.tokens = list(plain)
        self.units = [unit for unit in plain if unit and (not words or unit.split() == [unit])]
        """What texts are made of."""
        size = len(plain)
        self.with_space, self.with_break = slice(size, 2 * size), slice(2 * size, 3 * size)
        self.space = 3 * size
        if words:
            possible = set(self.units)
            for end in (b" ", b"\n"):
                self.tokens += [unit + end if unit in possible else b"" for unit in plain]
            self.tokens.append(b" ")
        # The library wants a token that ends the text; 0xff says that it is no text.
        self.eos_token_id = len(self.tokens)
        self.special_token_ids = [self.eos_token_id]
        self.tokens.append(b"\xff<end>")

    def __call__(self, text: bytes) -> list[int]:
        """The library encodes what it forces, and here it forces nothing."""
        return []


def _alike(pattern: str) -> bytes | None:
    """A translation of bytes that maps letters and digits which the expression cannot tell apart to one.

    ``.{0,80}`` treats all words of a length alike, ``[a-z ]+`` all words of small letters: ten thousand words
    become a few, and a step takes a millisecond instead of a hundred. Letters that the expression names stay
    as they are; all do where it has a form that could name letters in another way.
    """
    any_case = pattern.startswith("(?i)")
    rest = re.sub(r"\\[dDsSwWnrt.?*+|(){}\[\]^$/-]|\(\?:", ".", pattern.removeprefix("(?i)"))
    rest = re.sub(r"\[[^\[\]]*\]", lambda class_: re.sub(_WHOLE_RANGE, ".", class_[0]), rest)
    if re.search(r"\\|\(\?|\[:|[0-9A-Za-z]-|-[0-9A-Za-z]", rest) or (any_case and not rest.isascii()):
        return None
    if any_case:
        rest += rest.swapcase()
    target = bytearray(range(256))
    for alphabet in (ascii_lowercase, ascii_uppercase, digits):
        unnamed = [ord(character) for character in alphabet if character not in rest]
        for character in unnamed:
            target[character] = unnamed[0]
    return bytes(target)


def _reason(problem: str) -> str:
    """The one line of the library's message that says what is wrong."""
    for form in (r"^error: (.+)$", r"\(in regex\): (.+?)(?: in regex .*)?$", r"^(.+)$"):
        if found := re.search(form, problem, re.MULTILINE):
            return found[1]
    return problem
