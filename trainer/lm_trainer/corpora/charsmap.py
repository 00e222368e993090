"""SentencePiece's table of character rules as a normalizer of the ``tokenizers`` library.

SentencePiece replaces, from left to right, the longest text for which its table has a rule. The library's own
reader of the table is right for one character at a time only: it does not see sequences of six bytes or more,
and loses what follows the first character of a shorter one. So here it reads single characters, composition
does what the rules of sequences do, and the few rules that are left become replacements of their own. Every
rule of the table is tried before the normalizer is returned. Knows nothing about vocabularies' pieces.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer, Precompiled, Replace, Sequence

_GAP, _WALL, _FIRST_MARKER = "\ufff0", "\ufff1", 0x10FE00
"""Characters that no text has: the first two are unassigned controls, the others private ones."""
_BETWEEN = "\ue000"
"""A private character, which no rule has."""
_LONGEST_SOURCE = 64
_MOST_NODES = 1 << 22  # endings are shared: there may be more of them than units
_MOST_REPLACEMENTS = 256
_EXTENDS = "[\\p{M}\u200c\u200d\uff9e\uff9f]"
"""What may stand in one grapheme with a character before it."""


class CharsmapError(ValueError):
    """The table is damaged, or holds rules that the library cannot carry out."""


def character_normalizer(
    charsmap: bytes, known: Iterable[str] | None = None, symbols: Iterable[str] = ()
) -> Normalizer:
    """The normalizer that carries out the rules of a table.

    Args:
        charsmap: ``precompiled_charsmap`` of a SentencePiece model, not empty.
        known: the characters of the vocabulary, where a rule that touches none of them makes no difference to
            the ids; None where each does.
        symbols: texts that no rule reaches into.

    Raises:
        CharsmapError: the table is damaged, or has more than 256 other rules for sequences.
    """
    rules = read_rules(charsmap)
    kept = None if known is None else frozenset(known)
    steps = _by_character(charsmap)
    if sum(len(source) > 1 for source in rules) > _MOST_REPLACEMENTS:
        steps = [*_walls(rules, symbols), *steps, *_compose(rules), Replace(_WALL, "")]
    failing = _failing(steps, rules, kept)
    if not failing:
        return Sequence(steps)
    outputs: dict[str, list[str]] = {}
    for source in sorted(failing, key=lambda source: (-len(source), source)):
        outputs.setdefault(rules[source], []).append(source)
    if len(outputs) > _MOST_REPLACEMENTS:
        raise CharsmapError(f"its normalization has {len(failing):,} rules for sequences of its own")
    before, after = [], []
    for number, (output, sources) in enumerate(outputs.items()):
        marker = chr(_FIRST_MARKER + number)
        before.append(Replace(Regex("|".join(map(literal, sources))), marker))
        after.append(Replace(marker, output))
    steps = [*before, *steps, *after]
    if failing := _failing(steps, rules, kept):
        source = failing[0]
        raise CharsmapError(f"its rule {source!r} -> {rules[source]!r} cannot be carried out")
    return Sequence(steps)


def read_rules(charsmap: bytes) -> dict[str, str]:
    """The rules of a table: each text, and what takes its place.

    The table is the size of a double array of 32-bit units in bytes, the array (darts-clone's form of a trie
    over UTF-8), and the texts that its values point at, each ended by a zero byte.

    Raises:
        CharsmapError: it is damaged.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 + size or size % 1024 or not size:
        raise CharsmapError("its table of character rules is cut off")
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    texts = charsmap[4 + size :]
    nodes, keys = np.zeros(1, dtype=np.int64), np.zeros((1, 0), dtype=np.uint8)
    rules: dict[str, str] = {}
    seen = 0
    try:
        for _ in range(_LONGEST_SOURCE):
            base = nodes ^ _offset(units[nodes])
            leaf = (units[nodes] >> 8 & 1).astype(bool)
            for key, value in zip(keys[leaf], units[base[leaf]] & 0x7FFFFFFF, strict=True):
                rules[key.tobytes().decode()] = texts[value : texts.index(0, value)].decode()
            nodes, parents, labels = _children(units, base)
            keys = np.concatenate([keys[parents], labels[:, None]], axis=1)
            seen += nodes.size
            if not nodes.size:
                return rules
            if seen > _MOST_NODES:
                break
    except (ValueError, IndexError):
        pass
    raise CharsmapError("its table of character rules is damaged")


def _offset(units: NDArray[np.int64]) -> NDArray[np.int64]:
    return (units >> 10) << ((units & 1 << 9) >> 6)


def _children(
    units: NDArray[np.int64], base: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """The nodes whose parents' children begin at ``base``, the places of their parents, and their labels."""
    if (base | 255).max(initial=0) >= units.size:
        raise IndexError
    found = []
    for start in range(0, base.size, 1 << 12):
        places = base[start : start + (1 << 12), None] ^ np.arange(1, 256)
        parent, label = np.nonzero((units[places] & (1 << 31 | 255)) == np.arange(1, 256))
        found.append((places[parent, label], parent + start, (label + 1).astype(np.uint8)))
    nodes, parents, labels = zip(*found, strict=True) if found else ((), (), ())
    return (
        np.concatenate([*nodes, np.zeros(0, np.int64)]),
        np.concatenate([*parents, np.zeros(0, np.int64)]),
        np.concatenate([*labels, np.zeros(0, np.uint8)]),
    )


def _by_character(charsmap: bytes) -> list[Normalizer]:
    """The rules of single characters: none shares its grapheme with the one before it."""
    return [
        Replace(Regex(f"(?<=[\\s\\S])(?={_EXTENDS})"), _GAP),  # at the very beginning the library panics
        Precompiled(charsmap),
        Replace(_GAP, ""),
    ]


def _walls(rules: dict[str, str], symbols: Iterable[str]) -> list[Normalizer]:
    """Walls where NFC would compose what no rule does: symbols, pairs, results not of one character."""
    single = {source: output for source, output in rules.items() if len(source) == 1}
    vanish = _class(source for source, output in single.items() if not output)
    spread = _class(source for source, output in single.items() if len(output) > 1)
    places = [f"(?<={spread})(?=[\\s\\S])", f"(?<=[\\s\\S])(?={spread})"] if spread else []
    alike: dict[str, list[str]] = {}  # the characters that become one
    for source, output in single.items():
        alike.setdefault(output, []).append(source)
    before: dict[str, set[str]] = {}  # for a second character the first ones that it must not compose with
    for one, two in _composing_pairs():
        for second in (two, *alike.get(two, ())):
            apart = {first for first in (one, *alike.get(one, ())) if first + second not in rules}
            before.setdefault(second, set()).update(apart)
    seconds: dict[frozenset[str], list[str]] = {}
    for second, firsts in before.items():
        seconds.setdefault(frozenset(firsts), []).append(second)
    pairs = {firsts: after for firsts, after in seconds.items() if firsts}
    if pairs:
        any_second = _class(itertools.chain.from_iterable(pairs.values()))
        either = "|".join(f"(?<={_class(firsts)})(?={_class(after)})" for firsts, after in pairs.items())
        places.append(f"(?={any_second})(?:{either})")  # one look at most characters is enough
    if symbols:
        places.append(f"(?<={'|'.join(map(literal, symbols))})(?=[\\s\\S])")
    steps: list[Normalizer] = [Replace(Regex(vanish), _WALL)] if vanish else []
    return [*steps, Replace(Regex("|".join(places)), _WALL)] if places else steps


@functools.cache
def _composing_pairs() -> list[tuple[str, str]]:
    """The pairs of characters that NFC makes one of."""
    parts = [unicodedata.decomposition(chr(code)).split(" ") for code in range(0x20000)]
    pairs = [
        (chr(int(pair[0], 16)), chr(int(pair[1], 16)))
        for pair in parts
        if len(pair) == 2 and "<" not in pair[0]
    ]
    # Of Hangul, a syllable and a last consonant.
    return pairs + [
        (chr(one), chr(two)) for one in range(0xAC00, 0xD7A4, 28) for two in range(0x11A8, 0x11C3)
    ]


def _compose(rules: dict[str, str]) -> list[Normalizer]:
    """Compose a character with the marks right after it, one after the other, where there is a rule for it.

    NFC alone would order the marks, reach over one that does not compose, and take composed characters apart.
    """
    marks = _class(chr(code) for code in range(0x110000) if unicodedata.combining(chr(code)))
    bases: dict[str, list[str]] = {}
    nfd = functools.partial(unicodedata.normalize, "NFD")
    for one, two in _composing_pairs():
        if unicodedata.combining(two) and (one + two in rules or nfd(one) + two in rules):
            bases.setdefault(two, []).append(one)
    pairs = [f"(?<={_class(known)}{_GAP})(?={_code(ord(mark))})" for mark, known in sorted(bases.items())]
    close = [Replace(Regex(f"{_GAP}(?:{'|'.join(pairs)})"), ""), NFC()] if pairs else [NFC()]
    apart = Replace(Regex(f"(?<=[\\s\\S])(?={marks})"), _GAP)
    return [apart, *close * (max(map(len, rules)) - 1), Replace(_GAP, "")]


def _failing(steps: list[Normalizer], rules: dict[str, str], known: frozenset[str] | None) -> list[str]:
    """The texts of rules that ``steps`` do not carry out, where that shows in the ids."""
    normalize = Sequence(steps).normalize_str
    failing, sources = [], list(rules)
    for start in range(0, len(sources), 1 << 9):
        part = sources[start : start + (1 << 9)]
        for source, result in zip(part, normalize(_BETWEEN.join(part)).split(_BETWEEN), strict=True):
            output = rules[source]
            shows = known is None or not (output and result) or known.intersection(output + result)
            if result != output and shows:
                failing.append(source)
    return failing


def _class(characters: Iterable[str]) -> str:
    """A regular expression's class of characters; empty where there are none."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    inner = "".join(
        f"{_code(first)}-{_code(last)}" if first < last else _code(first) for first, last in ranges
    )
    return f"[{inner}]" if inner else ""


def literal(text: str) -> str:
    """A regular expression for ``text`` itself."""
    return "".join(_code(ord(character)) for character in text)


def _code(code: int) -> str:
    return f"\\x{{{code:X}}}"
