"""The libraries that others read a tokenizer.json with give our ids for a whole text, and our text back."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FIXTURE
from lm_export.bundle_writer import write_texts
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer

KINDS = ("word", "words", "char", "bpe")
LINES = [
    "the cat sat on the mat, a cat; I said: <eos> and <unk> <s>",
    "小さな港 の 時計 は いつも 遅い",
    "🙂 a family 👩‍👩‍👧 e\u0301 naïve",
    "العربية",
]
PARTS = st.one_of(
    st.sampled_from(
        [*"\n\r\t \u0085\u00a0\u2028\ufeff\x1c\x1f\u3000", "\r\n", "<eos>", "<unk>", "<|endoftext|>"]
    ),
    st.sampled_from(" ".join(LINES).split()),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cn", "Co"]), max_size=6),
)
TEXTS = st.lists(PARTS, max_size=12).map("".join)
FIXED = ["", "\n", "\r\n\r", "\r\r\n", "the cat\n\n\nsat \n on\n", "x<unk>y <unk>\n<eos><eos>", "  a  \n  b "]
PACKAGE = "@huggingface/tokenizers@0.2.0"
_SCRIPT = """
import { Tokenizer } from "@huggingface/tokenizers";
import { readFileSync } from "fs";
const read = (name) => JSON.parse(readFileSync(process.argv[2] + "/" + name));
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const both = JSON.parse(readFileSync(0)).map((text) => {
  const { ids } = tokenizer.encode(text);
  return [ids, tokenizer.decode(ids)];
});
console.log(JSON.stringify(both));
"""

Read = Callable[[str], tuple[list[int], str]]
"""A text to the ids that a library gives, its special tokens included, and what it makes of them."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The texts of a bundle of each kind."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        write_texts(made[kind], make_tokenizer(TokenizerConfig(kind, 500), LINES))
    return made


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds tokenizers.js."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return folder


def in_node(folder: Path, tokenizer: Path, texts: list[str]) -> list[tuple[list[int], str]]:
    """What tokenizers.js makes of texts, in one process of Node."""
    (folder / "read.mjs").write_text(_SCRIPT)
    done = subprocess.run(
        ["node", "read.mjs", str(tokenizer)],
        cwd=folder,
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    return [(ids, text) for ids, text in json.loads(done.stdout)]


def library(folder: Path) -> Read:
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def read(text: str) -> tuple[list[int], str]:
        ids = engine.encode(text).ids
        return ids, engine.decode(ids, skip_special_tokens=False)

    return read


def transformers_library(folder: Path) -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)

    def read(text: str) -> tuple[list[int], str]:
        ids = tokenizer(text)["input_ids"]
        return ids, tokenizer.decode(ids)

    return read


def expected(tokenizer: Tokenizer, text: str) -> tuple[list[int], str]:
    """A text begins after the end of the line before it."""
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    return ids, tokenizer.decode(ids)


@pytest.mark.parametrize("make", [library, transformers_library])
@pytest.mark.parametrize("kind", KINDS)
def test_python_libraries_give_our_ids_and_texts(
    folders: dict[str, Path], kind: str, make: Callable[[Path], Read]
) -> None:
    tokenizer, read = Tokenizer.from_file(folders[kind] / "tokenizer.json"), make(folders[kind])

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        assert read(text) == expected(tokenizer, text)

    check()
    for text in FIXED:
        assert read(text) == expected(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_javascript_library_gives_our_ids_and_texts(
    folders: dict[str, Path], node: Path, kind: str
) -> None:
    tokenizer = Tokenizer.from_file(folders[kind] / "tokenizer.json")
    texts = list(FIXED)

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def gather(text: str) -> None:
        texts.append(text)

    gather()
    for text, found in zip(texts, in_node(node, folders[kind], texts), strict=True):
        assert (text, found) == (text, expected(tokenizer, text))


@pytest.mark.parametrize("kind", KINDS)
def test_known_text_comes_back_whole(folders: dict[str, Path], kind: str) -> None:
    engine = tokenizers.Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    text = "\n".join(LINES if kind in ("char", "bpe") else [LINES[1], LINES[3], "", "the cat"])
    ids = engine.encode(text, add_special_tokens=False).ids
    assert engine.decode(ids, skip_special_tokens=False) == text


def test_the_fixture_is_read_alike() -> None:
    """By its own tokens, those of texts that spell <eos> and <unk> among them."""
    cases = json.loads((FIXTURE.parent / "cases.json").read_text())["encoded"]
    read = library(FIXTURE)
    for case in cases:
        ids, text = read(case["text"])
        assert (ids[1:], text) == (case["ids"], "\n" + case["decoded"])


def test_a_tokenizer_without_an_unknown_token_names_none(folders: dict[str, Path]) -> None:
    names = {kind: json.loads((folders[kind] / "tokenizer_config.json").read_text()) for kind in KINDS}
    assert names["bpe"]["unk_token"] is None
    assert {entry["eos_token"] for entry in names.values()} == {"\n"}
