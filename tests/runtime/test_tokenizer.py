"""Text becomes ids and comes back; every kind keeps the rule that a line's end is <eos>."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from conftest import ROOT, TINY
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import EOS, UNK, Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.corpus import texts
from lm_trainer.corpora.vocabulary import make_tokenizer

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SAMPLE = [
    "the cat sat on the mat",
    "小さな港 の 時計 は いつも 遅い",
    "🙂 a family 👩‍👩‍👧 e\u0301",
    "العربية",
    "<unk> <eos>",
]


def trained(kind: str, lines: list[str], vocab_size: int = 600) -> Tokenizer:
    return make_tokenizer(TokenizerConfig(kind, vocab_size), lines)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return trained("bpe", SAMPLE)


@given(TEXT)
def test_bpe_spells_every_text(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text.replace("\r\n", "\n")


@given(TEXT)
@settings(max_examples=50)
def test_char_brings_back_a_text_of_known_characters(text: str) -> None:
    tokenizer = trained("char", [*text.split("\n"), "a"], vocab_size=5000)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\r\n", "\n")


@given(st.lists(st.lists(st.sampled_from(" ".join(SAMPLE).split()), max_size=6), min_size=1, max_size=5))
def test_word_brings_back_lines_of_known_words(lines: list[list[str]]) -> None:
    tokenizer = trained("word", SAMPLE)
    # A word that spells <eos> is the token <eos>: there is one way to write it.
    text = "\n".join(" ".join(word for word in line if word != EOS) for line in lines)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(TEXT, max_size=8), st.sampled_from(["char", "bpe"]))
@settings(max_examples=30)
def test_a_file_is_encoded_as_its_lines_are(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], kind: str
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    text = "".join(line + "\n" for line in lines).replace("\r", "")
    path.write_text(text, encoding="utf-8", newline="")
    tokenizer = trained(kind, SAMPLE)
    ids = [token for part in tokenizer.encode_fragments(read_fragments(path)) for token in part.tolist()]
    assert ids == tokenizer.encode(text.removeprefix("\ufeff"))


def test_crlf_and_a_missing_last_line_break_change_nothing(tmp_path: Path) -> None:
    tokenizer = trained("char", ["ab", "c"])
    encoded = []
    for number, content in enumerate([b"ab\nc\n", b"ab\r\nc\r\n", b"ab\nc", b"\xef\xbb\xbfab\nc\n"]):
        (tmp_path / str(number)).write_bytes(content)
        encoded.append(
            np.concatenate(list(tokenizer.encode_fragments(read_fragments(tmp_path / str(number)))))
        )
    assert all(np.array_equal(encoded[0], other) for other in encoded)
    assert encoded[0].tolist()[-1] == tokenizer.eos_id == encoded[0].tolist()[2]


@given(st.binary(max_size=12), st.integers(0, 3))
def test_streamed_text_is_never_half_a_character(bpe: Tokenizer, tail: bytes, skip: int) -> None:
    text = "naïve 🙂 " + tail.decode("utf-8", "replace")
    ids = bpe.encode(text)[skip:]
    decoder = bpe.decoder()
    pieces = [decoder.push(token) for token in ids] + [decoder.flush()]
    whole = b"".join(bpe.token_bytes[token] for token in ids)
    assert "".join(pieces) == whole.decode("utf-8", "replace")


def test_a_cut_character_comes_out_at_the_end(bpe: Tokenizer) -> None:
    ids = [token for token in bpe.encode("€") if True][:1]
    decoder = bpe.decoder()
    assert decoder.push(ids[0]) + decoder.flush() in ("\ufffd", "€")


def test_text_that_spells_a_special_token_is_text(bpe: Tokenizer) -> None:
    assert bpe.eos_id not in bpe.encode("a <eos> b")
    assert bpe.decode(bpe.encode("a <eos> b")) == "a <eos> b"


def test_a_word_vocabulary_has_no_holes_where_the_text_spells_unk() -> None:
    tokenizer = trained("word", ["a <unk> a <unk> <unk> b", "<eos> c"])
    assert tokenizer.tokens == [EOS, UNK, "a", "b", "c"]
    assert tokenizer.encode("a <unk> zzz") == [2, 1, 1]


def test_limits_leave_out_the_rarest() -> None:
    lines = ["a a a b b c"]
    assert make_tokenizer(TokenizerConfig("word", 4), lines).tokens == [EOS, UNK, "a", "b"]
    assert make_tokenizer(TokenizerConfig("word", 100, 2), lines).tokens == [EOS, UNK, "a", "b"]


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_training_is_the_same_each_time(kind: str) -> None:
    lines = list(texts(read_fragments(TINY / "train.txt")))
    assert trained(kind, lines).json_text == trained(kind, lines).json_text


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_a_saved_tokenizer_is_the_same_and_of_the_same_kind(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind, SAMPLE)
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text, encoding="utf-8")
    again = make_tokenizer(TokenizerConfig(str(tmp_path / "tokenizer.json")), [])
    assert again.kind == kind
    assert again.encode("\n".join(SAMPLE)) == tokenizer.encode("\n".join(SAMPLE))


def test_a_tokenizer_of_another_maker_streams_as_it_decodes() -> None:
    words = {"</s>": 0, "<unk>": 1, "▁the": 2, "▁cat": 3, "s": 4, "▁": 5}
    engine = tokenizers.Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(engine.to_str())
    assert (tokenizer.kind, tokenizer.eos_id, tokenizer.unk_id) == ("other", 0, 1)
    assert tokenizer.decode([2, 3, 4, 0, 2, 3]) == "the cats\nthe cat"


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not a tokenizer.json"), ("", "not a tokenizer.json"), ("[1]", "not a tokenizer.json")],
)
def test_a_file_that_is_no_tokenizer_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Tokenizer(text)


def test_ids_that_are_not_0_to_n_are_refused() -> None:
    for ids in ({"<eos>": 0, "a": 2}, {"<eos>": 0, "<unk>": 2, "a": 2}):
        text = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="a")).to_str()
        with pytest.raises(ValueError, match="token ids are not 0 to"):
            Tokenizer(text)


def test_a_tokenizer_without_an_end_of_line_is_refused() -> None:
    with pytest.raises(ValueError, match="no end-of-line token"):
        Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str())


def word_corpora() -> list[tuple[Path, int, int, int]]:
    """Folder, types, and tokens of train and valid; the Penn Treebank where it lies beside the project."""
    corpora = [(TINY, 335, 997, 132)]
    treebank = ROOT.parent / "shared" / "data" / "ptb"
    return [*corpora, (treebank, 10_000, 929_589, 73_760)] if treebank.exists() else corpora


@pytest.mark.parametrize(("folder", "types", "train", "valid"), word_corpora())
def test_word_mode_counts_types_and_tokens(folder: Path, types: int, train: int, valid: int) -> None:
    tokenizer = make_tokenizer(TokenizerConfig("word", 10_000), texts(read_fragments(folder / "train.txt")))
    counts = [
        sum(ids.size for ids in tokenizer.encode_fragments(read_fragments(folder / f"{split}.txt")))
        for split in ("train", "valid")
    ]
    assert (tokenizer.vocab_size, *counts) == (types, train, valid)


def byte_pairs(**changes: Any) -> str:
    data = json.loads(trained("bpe", SAMPLE).json_text)
    data["model"] |= changes.pop("model", {})
    return json.dumps(data | changes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (byte_pairs(model={"merges": [["a", "<eos>"]]}), r"the merge \['a', '<eos>'\] makes no token"),
        (byte_pairs(model={"continuing_subword_prefix": "##"}), "makes no token"),
        (byte_pairs(model={"merges": [["a"]]}), r"the merge \['a'\] is no pair"),
        (byte_pairs(normalizer={"type": "Precompiled"}), "a table of characters of no usable form"),
        (
            byte_pairs(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "a table of characters of no usable form",
        ),
        ("[" * 100_000, "not a tokenizer.json"),
    ],
)
def test_what_the_library_would_panic_over_is_refused(
    capfd: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Tokenizer(text)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_fails_on_a_text_says_so() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="nowhere"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(words.to_str())
    assert tokenizer.encode("a a") == [1, 1]
    with pytest.raises(ValueError, match="the tokenizer cannot encode the text: WordLevel error"):
        tokenizer.encode("a b")


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_a_pickled_tokenizer_encodes_as_it_did(kind: str) -> None:
    tokenizer = trained(kind, SAMPLE)
    again = pickle.loads(pickle.dumps(tokenizer))
    for text in SAMPLE:
        assert again.encode(text) == tokenizer.encode(text)
