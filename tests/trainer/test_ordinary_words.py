"""Ordinary words: marks are parted from words and joined again; lower case; books with broken lines."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm_runtime
from conftest import Invoke, one_line
from lm_export.command import main as lm_export
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.command import main as lm_train
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.unwrapping import unwrap
from lm_trainer.corpora.vocabulary import make_tokenizer

LINES = [
    'He said: "Don’t go, it\'s late (very late)."',
    "The co-op’s 3.5 % — “nothing”, they said…",
    "मैं हिन्दी बोलता हूँ, e\u0301tat civil.",
    "... and so on; x_1!",
]
SMALL = (
    "--embedding-dim 16 --hidden-size 16 --batch-size 2 --seq-len 10 --epochs 2 --sample-tokens 5 "
    "--tokenizer words --vocab-size 400"
).split()
BOOK = """
The keeper of the lamp
lived on the rock, and the
boat came once a week.

  "The lamp is out," said Mara,
and she went to the keeper.

The boat
came.
"""
PARAGRAPHS = [
    "The keeper of the lamp lived on the rock, and the boat came once a week.",
    '  "The lamp is out," said Mara, and she went to the keeper.',
    "The boat came.",
]


def words(*texts: str, lowercase: bool = False) -> Tokenizer:
    return make_tokenizer(TokenizerConfig("words", 400, lowercase=lowercase), texts)


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[token].lstrip("\u2581") for token in tokenizer.encode(text)]


def test_marks_are_parted_from_words_and_joined_again() -> None:
    tokenizer = words(*LINES)
    assert spelled(tokenizer, LINES[0]) == [
        *["He", "said", ":", '"', "Don’t", "go", ",", "it's", "late", "(", "very", "late", ")", ".", '"']
    ]
    for line in LINES:
        assert tokenizer.decode(tokenizer.encode(line)) == line
    text = "\n".join(LINES)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_other_software_reads_and_writes_the_same() -> None:
    tokenizer = words(*LINES)
    engine = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    for line in LINES:
        ids = engine.encode(line, add_special_tokens=False).ids
        assert ids == tokenizer.encode(line)
        assert engine.decode(ids) == line


def test_white_space_is_one_space_and_an_unknown_word_has_one_before_it() -> None:
    tokenizer = words("a b , c")
    assert tokenizer.decode(tokenizer.encode("  a \t b  ")) == "a b"
    assert tokenizer.decode(tokenizer.encode("a zzz b")) == "a <unk> b"
    assert tokenizer.encode("a <unk> b") == tokenizer.encode("a zzz b")  # as the Penn Treebank has them
    assert tokenizer.encode("") == []


def test_a_mark_that_closes_goes_on_where_a_prompt_ended() -> None:
    tokenizer = words("the lamp, the lamp. the lamp")
    whole = tokenizer.encode("the lamp, the lamp.")
    assert tokenizer.encode("the lamp") + tokenizer.encode(", the lamp") + tokenizer.encode(".") == whole


@given(st.text(alphabet=st.characters(exclude_characters="\u2581\r", exclude_categories=["Cs", "Cc"])))
def test_every_text_comes_back_but_for_its_white_space(text: str) -> None:
    tokenizer = words(*text.split("\n"), "x") if text.strip() else words("x")
    if tokenizer.unk_id in tokenizer.encode(text):  # a text that spells <unk>, or more than 400 words
        return
    line = " ".join(text.split())
    assert " ".join(tokenizer.decode(tokenizer.encode(text)).split()) == line


@pytest.mark.parametrize("kind", ["word", "words", "char", "bpe"])
def test_lower_case_is_part_of_the_vocabulary(kind: str) -> None:
    tokenizer = make_tokenizer(TokenizerConfig(kind, 400, lowercase=True), ["The Keeper of The LAMP"])
    assert tokenizer.kind == (kind if kind != "words" else "other")
    assert tokenizer.encode("THE keeper") == tokenizer.encode("the KEEPER")
    assert tokenizer.decode(tokenizer.encode("THE keeper of the Lamp")) == "the keeper of the lamp"
    assert not any(token != token.lower() for token in tokenizer.tokens if kind != "bpe")


def test_lines_are_joined_to_paragraphs() -> None:
    fragments = [(line, True) for line in BOOK.splitlines()]
    text = "".join(part + "\n" * ends for part, ends in unwrap(fragments))
    assert text.splitlines() == PARAGRAPHS
    verses = [("a verse", True), ("  and another", True), ("its end", True)]
    text = "".join(part + "\n" * ends for part, ends in unwrap(verses))
    assert text == "a verse\n  and another its end\n"


def test_a_long_line_that_comes_in_parts_is_joined_likewise() -> None:
    parts = [("the lamp", False), (" of the", False), (" rock ", True), ("is out", True), ("", True)]
    assert "".join(text + "\n" * ends for text, ends in unwrap(parts)) == "the lamp of the rock is out\n"
    assert list(unwrap([("", True), ("  ", True)])) == []


def test_a_book_is_trained_on_its_paragraphs(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    for split in ("train", "valid"):
        (tmp_path / f"book/{split}.txt").write_text(BOOK * 10)
    code, _, err = invoke(lm_train, "book", "--out", "run", "--unwrap", "--lowercase", *SMALL)
    assert code == 0, err
    assert "the lines of each paragraph are joined" in err.splitlines()
    tokenizer = Tokenizer.from_file(tmp_path / "run/tokenizer.json")
    ids = np.fromfile(tmp_path / "run/tokens/train.bin", dtype=np.uint16)
    assert tokenizer.decode(ids.tolist()) == "".join(f"{p.strip().lower()}\n" for p in PARAGRAPHS) * 10
    settings = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (settings["unwrap"], settings["lowercase"], settings["tokenizer"]) == (True, True, "words")
    assert invoke(lm_train, "--config", "run/config.toml", "--out", "again")[0] == 0
    first, second = (torch.load(tmp_path / f"{run}/best.pt", weights_only=True) for run in ("run", "again"))
    assert first["tokenizer_config"] == second["tokenizer_config"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])

    assert invoke(lm_export, "run", "--out", "bundle")[0] == 0
    assert json.loads((tmp_path / "bundle/config.json").read_text())["training"]["unwrapped"] is True
    code, out, _ = invoke(lm_generate, "bundle", "--prompt", "The LA", "--complete", 3)
    assert code == 0
    assert json.loads(out.partition("\n")[0].partition("\t")[2]) == "lamp"
    code, out, _ = invoke(lm_generate, "bundle", "--prompt", "Mara", "--temperature", 0, "--max-tokens", 8)
    assert " ," not in out
    assert invoke(lm_score, "bundle", "book/valid.txt")[0] == 0

    small = ["--epochs", 1, "--sample-tokens", 5, "--batch-size", 2, "--seq-len", 10]
    arguments = ["book", "--init", "run", "--out", "tuned", *small]
    assert invoke(lm_train, *arguments, "--unwrap")[0] == 0  # how the new text is read
    code, _, err = invoke(lm_train, *arguments, "--force", "--lowercase")
    assert code == 2
    assert "leave out --lowercase" in one_line(err)


def test_completion_in_a_session_begins_lines_as_the_vocabulary_does(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "book").mkdir()
    for split in ("train", "valid"):
        (tmp_path / f"book/{split}.txt").write_text("the lamp, the boat\nthe rock. the lamp\n" * 20)
    assert invoke(lm_train, "book", "--out", "run", "--model", "ngram", "--tokenizer", "words")[0] == 0
    assert invoke(lm_export, "run", "--out", "bundle")[0] == 0
    model = lm_runtime.load(tmp_path / "bundle")
    found = lm_runtime.complete_word(model, "the lamp\nt", k=1)
    assert found[0][0] == "the"
    assert found == lm_runtime.complete_word(model, lm_runtime.Session.start(model, "the lamp\n"), "t", k=1)
    session = lm_runtime.Session.start(model, "the lamp")
    session.read(model, ",")
    assert lm_runtime.complete_word(model, session, "b", k=1)[0][0] == "boat"
