"""A text that follows a constraint matches; a token is allowed exactly where some text matches after it."""

from __future__ import annotations

import random
import re
import sys
import time
import warnings
from collections import defaultdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from conftest import TINY
from lm_runtime.sampling.constraint import Matcher, Pattern, _alike
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.corpus import texts
from lm_trainer.corpora.vocabulary import make_tokenizer

LONGEST = 5
"""The most characters of a text that is enumerated."""
SOON = 10
"""Seconds of a processor: the work allowed takes a tenth of it, the work refused a minute."""
VOCABULARIES = {"word": ["a ab ba bc c cd . 1"], "char": ["ab é1 "], "bpe": ["aab aab éé éb"] * 3}


@cache
def small(kind: str) -> Tokenizer:
    return make_tokenizer(TokenizerConfig(kind, 260), VOCABULARIES[kind])


@cache
def tiny(kind: str) -> Tokenizer:
    return make_tokenizer(TokenizerConfig(kind, 400), texts(read_fragments(TINY / "train.txt")))


def text_of(tokenizer: Tokenizer, tokens: tuple[int, ...], line_start: bool) -> str:
    """What ``tokens`` add to a text."""
    known = next(token for token in range(tokenizer.vocab_size) if token != tokenizer.eos_id)
    decoder = tokenizer.decoder(() if line_start else (known,))
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()


def names(tokenizer: Tokenizer, matcher: Matcher) -> list[str]:
    return [tokenizer.tokens[token] for token in np.flatnonzero(matcher.allowed())]


@cache
def spelled(kind: str, line_start: bool) -> list[tuple[tuple[int, ...], str]]:
    """Every sequence of tokens whose text is short, and that text."""
    tokenizer = small(kind)
    ids = [token for token in range(tokenizer.vocab_size) if token != tokenizer.unk_id]
    found, ends = [], [()]
    while ends:
        tokens = ends.pop()
        text = text_of(tokenizer, tokens, line_start)
        if len(text) <= LONGEST:
            found.append((tokens, text))
            ends += [(*tokens, token) for token in ids]
    return found


def finite(leaves: list[str]) -> st.SearchStrategy[tuple[str, int]]:
    """Expressions that only short texts match, with the length of the longest."""

    def larger(parts: st.SearchStrategy[tuple[str, int]]) -> st.SearchStrategy[tuple[str, int]]:
        pairs = st.tuples(parts, parts)
        return st.one_of(
            pairs.map(lambda pair: (pair[0][0] + pair[1][0], pair[0][1] + pair[1][1])),
            pairs.map(lambda pair: (f"(?:{pair[0][0]}|{pair[1][0]})", max(pair[0][1], pair[1][1]))),
            parts.map(lambda part: (f"(?:{part[0]})?", part[1])),
            st.tuples(parts, st.integers(0, 2), st.integers(2, 3)).map(
                lambda part: (f"(?:{part[0][0]}){{{part[1]},{part[2]}}}", part[0][1] * part[2])
            ),
        )

    leaf = st.sampled_from(leaves).map(lambda text: (text, 1))
    return st.recursive(leaf, larger, max_leaves=8).filter(lambda part: part[1] <= LONGEST)


SHORT = ["".join(letters) for length in range(LONGEST + 1) for letters in product("abéè \n🙂", repeat=length)]
LITERALS = ["a", "b", "c", "é", "1", " ", r"\n", r"\."]
CLASSES = [
    ".",
    "[a-z]",
    "[^a]",
    r"\w",
    r"\s",
    "[ab]",
    "[b-d]",
    r"[a-z0-9é]",
    "[^a-z]",
    r"[\d.]",
    "[ -b]",
    "a-z",
]


@given(
    finite(LITERALS + [part for part in CLASSES if part != "a-z"]),
    st.sampled_from(["word", "char"]),
    st.booleans(),
)
@example(("(?:ac|b)", 2), "char", True)
@example((r"(?: ax| b)\n(?:a x|bc?)?", 5), "word", False)
@settings(max_examples=200, deadline=None)
def test_a_token_is_allowed_exactly_where_a_text_matches_after_it(
    expression: tuple[str, int], kind: str, line_start: bool
) -> None:
    pattern, tokenizer = expression[0], small(kind)
    following: dict[tuple[int, ...], set[int]] = defaultdict(set)
    matching = set()
    for tokens, text in spelled(kind, line_start):
        if re.fullmatch(pattern, text):
            matching.add(tokens)
            for length, token in enumerate(tokens):
                following[tokens[:length]].add(token)
    if not matching:
        with pytest.raises(ValueError, match="no text of this vocabulary matches"):
            Pattern(pattern, tokenizer).matcher(line_start)
        return
    matchers = [((), Pattern(pattern, tokenizer).matcher(line_start))]
    while matchers:
        tokens, matcher = matchers.pop()
        allowed = set(np.flatnonzero(matcher.allowed()).tolist())
        assert allowed == following[tokens], (pattern, text_of(tokenizer, tokens, line_start))
        assert matcher.complete == (tokens in matching)
        assert matcher.finished == (tokens in matching and not allowed)
        for token in sorted(allowed)[:4]:
            longer = matcher.copy()
            longer.push(token)
            matchers.append(((*tokens, token), longer))


@given(finite(["a", "b", "é", "è", " ", r"\n", "[ab]", "[é🙂]"]))
@settings(max_examples=100, deadline=None)
def test_with_bpe_every_spelling_of_a_text_is_allowed(expression: tuple[str, int]) -> None:
    pattern, tokenizer = expression[0], small("bpe")
    matching = {text.encode() for text in SHORT if re.fullmatch(pattern, text)}
    beginnings = {text[:length] for text in matching for length in range(len(text) + 1)}
    spellings, seen = [(b"", Pattern(pattern, tokenizer).matcher(False))], set()
    while spellings:
        begun, matcher = spellings.pop()
        allowed = set(np.flatnonzero(matcher.allowed()).tolist())
        pieces = enumerate(tokenizer.token_bytes)
        assert allowed == {token for token, piece in pieces if begun + piece in beginnings}
        assert matcher.complete == (begun in matching)
        seen.add(begun)
        for token in allowed:
            if (text := begun + tokenizer.token_bytes[token]) not in seen:
                longer = matcher.copy()
                longer.push(token)
                spellings.append((text, longer))
                seen.add(text)


WALKS = [
    ("word", r"the [a-z]+( [a-z]+){2,6}\n", True),
    ("word", r"( [a-z]+)+[,.]?", False),
    ("word", r"(?:\s?[^\s]{2,7}){3}", False),
    ("word", r"(?i)\s?THE.{0,60}\n", False),
    ("char", r"[A-Z][a-z]{2,8}( [a-z]{1,8}){0,5}\.\n?", True),
    ("char", r"(?s).{5,20}end|the", False),
    ("bpe", r"[0-9]{4}-[0-9]{2}-[0-9]{2}", True),
    ("bpe", r"(yes|no|é+|小さな🙂)(, (yes|no))*[.!]\n", False),
    ("bpe", r"[^\n]{1,30}\n", False),
]


@pytest.mark.parametrize(("kind", "pattern", "line_start"), WALKS)
def test_what_is_allowed_leads_to_a_match(kind: str, pattern: str, line_start: bool) -> None:
    tokenizer = tiny(kind)
    compiled = Pattern(pattern, tokenizer)
    ended = 0
    for seed in range(20):
        generator, matcher, tokens = random.Random(seed), compiled.matcher(line_start), ()
        while len(tokens) < 100 and not matcher.finished:
            allowed = np.flatnonzero(matcher.allowed()).tolist()
            assert allowed, "neither complete nor able to go on"
            assert tokenizer.unk_id not in allowed
            assert matcher.complete == bool(re.fullmatch(pattern, text_of(tokenizer, tokens, line_start)))
            if matcher.complete and generator.random() < 0.3:
                break
            token = generator.choice(allowed)
            matcher.push(token)
            tokens = (*tokens, token)
        if matcher.complete:
            ended += 1
            assert re.fullmatch(pattern, text_of(tokenizer, tokens, line_start))
    assert ended > 5


def test_a_word_is_not_taken_for_the_beginning_of_another() -> None:
    tokenizer = make_tokenizer(TokenizerConfig("word", 100), ["cat caterpillar caterpillars dog"])
    assert names(tokenizer, Pattern("(cat|caterpillar)s", tokenizer).matcher(True)) == ["caterpillars"]
    assert names(tokenizer, Pattern("(cat|dog|bird) bird|dog", tokenizer).matcher(True)) == ["dog"]


def test_a_word_within_a_line_brings_its_space() -> None:
    tokenizer = small("word")
    assert names(tokenizer, Pattern(" a|c", tokenizer).matcher(False)) == ["a"]
    assert names(tokenizer, Pattern(" a|c", tokenizer).matcher(True)) == ["c"]
    matcher = Pattern(r" a\nab c", tokenizer).matcher(False)
    for word in ("a", "<eos>", "ab", "c"):
        assert names(tokenizer, matcher) == [word]
        assert not matcher.complete
        matcher.push(tokenizer.tokens.index(word))
    assert matcher.finished
    with pytest.raises(ValueError, match=r"regex 'a': no text .* matches; here a word follows a space"):
        Pattern("a", tokenizer).matcher(False)


def test_a_text_can_end_or_go_on() -> None:
    matcher = Pattern("1{1,2}", small("char")).matcher(True)
    one = small("char").tokens.index("1")
    states = []
    for _ in range(2):
        matcher.push(one)
        states.append((matcher.complete, matcher.finished))
    assert states == [(True, False), (True, True)]
    empty = Pattern("", small("char")).matcher(True)
    assert empty.finished


def test_a_copy_goes_its_own_way_and_a_pattern_stays_as_it_is() -> None:
    tokenizer = small("char")
    a, b = (tokenizer.tokens.index(letter) for letter in "ab")
    pattern = Pattern("ab|ba", tokenizer)
    first = pattern.matcher(True)
    second = first.copy()
    first.push(a)
    second.push(b)
    assert (names(tokenizer, first), names(tokenizer, second)) == (["b"], ["a"])
    assert names(tokenizer, pattern.matcher(True)) == ["a", "b"]


def test_a_token_that_is_not_allowed_is_refused() -> None:
    tokenizer = small("char")
    matcher = Pattern("a", tokenizer).matcher(True)
    with pytest.raises(ValueError, match=r"token \d+ \('b'\) is not allowed here"):
        matcher.push(tokenizer.tokens.index("b"))
    assert names(tokenizer, matcher) == ["a"]


def test_ten_thousand_words_do_not_make_a_counted_expression_too_complex() -> None:
    words = ["".join(letters) for letters in product("abcdefghijklmnopqrstuv", repeat=3)][:10_000]
    tokenizer = make_tokenizer(TokenizerConfig("word", 20_000), [" ".join(words)])
    matcher, generator = Pattern(".{0,300}", tokenizer).matcher(True), random.Random(0)
    length = 0
    while not matcher.finished:
        matcher.push(generator.choice(np.flatnonzero(matcher.allowed()).tolist()))
        length += 1
    assert length == 75


def test_a_pattern_that_many_texts_have_used_allows_what_a_new_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, expression = tiny("word"), r"(?s).{0,40}(the|and)"
    new = Pattern(expression, tokenizer)
    starts = {id(new.start(True))}
    monkeypatch.setattr("lm_runtime.sampling.constraint._STATES", 2500)
    used = Pattern(expression, tokenizer)
    for seed in range(30):
        generator, matchers = random.Random(seed), [pattern.matcher(True) for pattern in (new, used)]
        while not matchers[0].finished:
            allowed = [matcher.allowed() for matcher in matchers]
            assert np.array_equal(*allowed)
            assert matchers[0].complete == matchers[1].complete
            token = generator.choice(np.flatnonzero(allowed[0]).tolist())
            for matcher in matchers:
                matcher.push(token)
        assert matchers[1].finished
        starts.add(id(used.start(True)))
    assert len(starts) > 3, "the states were never used up"
    monkeypatch.setattr("lm_runtime.sampling.constraint._STATES", 100)
    with pytest.raises(ValueError, match=r"too complex for this vocabulary \(.*too many states"):
        Pattern(expression, tokenizer).matcher(True)


@given(
    st.text("abyzAZ09-[]^.+|?*(){},\\ds", max_size=10),
    st.lists(st.text("abcxyzAMZ059-.", min_size=1, max_size=3)),
    st.sampled_from(["", "(?i)"]),
)
@settings(max_examples=500, deadline=None)
def test_letters_are_alike_only_where_the_expression_cannot_tell_them_apart(
    pattern: str, samples: list[str], flag: str
) -> None:
    pattern = flag + pattern
    alike = _alike(pattern)
    assume(alike is not None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns of classes that it will read in another way
            compiled = re.compile(pattern)
    except (re.error, FutureWarning):
        assume(False)
    for text in [*samples, *"abcmyzABMZ0159", "a-z", "b-z"]:
        same = text.encode().translate(alike).decode()
        assert bool(compiled.fullmatch(text)) == bool(compiled.fullmatch(same)), (pattern, text, same)


@pytest.mark.parametrize(
    "pattern",
    [
        "a-z",
        "[b-x]",
        "[M-~]",
        "[+-a-z]",
        r"[a\.-z]",
        r"\x61",
        "(?i)ſ",
        "(?s)a",
        "[[:xdigit:]]",
        r"\p{L}",
        r"\\d",
        "[a-z-9]",
    ],
)
def test_expressions_that_may_name_letters_in_other_ways_leave_all_as_they_are(pattern: str) -> None:
    assert _alike(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", "unclosed group"),
        ("a)", "unopened group"),
        ("[b-a]", "invalid character class range"),
        (r"a\b", "lookarounds not supported"),
        ("(?=a)a", "look-ahead .* is not supported"),
        (r"(a)\1", "backreferences are not supported"),
        ("a{3,1}", "invalid repetition count range"),
    ],
)
def test_an_expression_that_cannot_be_used_is_named_in_one_line(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Pattern(pattern, small("char"))
    assert str(caught.value).startswith(f"regex {pattern!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["(.*a){500}", ".{100000}", "(a|b)*" * 20_000])
def test_an_expression_that_costs_too_much_is_refused_soon(pattern: str) -> None:
    begun = time.process_time()
    with pytest.raises(
        ValueError, match=r"too complex for this vocabulary|characters, more than 20000"
    ) as caught:
        Pattern(pattern, tiny("word")).matcher(True)
    assert time.process_time() - begun < SOON
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("pattern", ["xyz", "a(xyz)", "[^\\s\\S]"])
@pytest.mark.parametrize("kind", ["char", "word"])
def test_an_expression_that_the_vocabulary_cannot_spell_is_refused(kind: str, pattern: str) -> None:
    compiled = Pattern(pattern, small(kind))
    with pytest.raises(ValueError, match="no text of this vocabulary matches"):
        compiled.matcher(True)


@pytest.mark.parametrize("pattern", ["a/b", "/", r"a\/b", "a#b", "a//b", '"', "a\nb", "^ab$", "(?x)a b # c"])
def test_an_expression_says_nothing_but_what_to_match(pattern: str) -> None:
    tokenizer = make_tokenizer(TokenizerConfig("char", 50), ['ab/#" cx'])
    matching = {"^ab$": "ab", "(?x)a b # c": "ab", r"a\/b": "a/b"}.get(pattern, pattern)
    matcher = Pattern(pattern, tokenizer).matcher(True)
    for token in tokenizer.encode(matching):
        assert names(tokenizer, matcher) == [tokenizer.tokens[token]]
        matcher.push(token)
    assert matcher.finished


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    engine = tokenizers.Tokenizer(models.BPE({"</s>": 0, "a": 1}, []))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(ValueError, match="needs a tokenizer of kind word, char or bpe"):
        Pattern("a", Tokenizer(engine.to_str()))


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '.\[regex\]' in steplm's folder") as caught:
        Pattern("a", small("char"))
    assert caught.value.name == "llguidance"
