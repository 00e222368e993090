"""ARPA: kenlm gives the scores of the tables, and what is written is proven by reading it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import kenlm
import numpy as np
import pytest

from conftest import TINY, Invoke, family_options, one_line, run_command, tree
from lm_export.command import main as lm_export
from lm_export.errors import ExportError
from lm_export.formats import arpa
from lm_export.formats.arpa import score_arpa, write_arpa
from lm_runtime.models.ngram import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.text_files import read_fragments
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.ngram.estimation import estimate
from small_runs import skewed

EOS = 0
KENLM = 1e-4
"""Base-10 units for a whole line; kenlm works in float32, and adds in it."""
READ_BACK = 1e-5
"""Base-10 units for a token: seven decimals, and float32's rounding of the tables."""


def tables_of(text: Sequence[int], vocab_size: int, order: int) -> NgramTables:
    return estimate(np.array(text, dtype=np.uint16), vocab_size, EOS, order)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of data/tiny, with every word of it and some that never occur: <unk> is one of them."""
    lines = [text for text, _ in read_fragments(TINY / "train.txt")]
    return make_tokenizer(TokenizerConfig("word", 1000), [*lines, "never seen"])


@pytest.fixture(scope="module")
def text(tokenizer: Tokenizer) -> list[int]:
    (ids,) = tokenizer.encode_fragments(read_fragments(TINY / "train.txt"))
    found: list[int] = ids.tolist()
    return found


def kenlm_of(tables: NgramTables, tokens: Sequence[str], path: Path) -> kenlm.Model:
    write_arpa(tables, tokens, path)
    return kenlm.Model(str(path))


@pytest.mark.parametrize("order", [2, 3, 5])  # kenlm reads none of order 1
def test_kenlm_gives_every_line_the_same_score(
    tokenizer: Tokenizer, text: list[int], tmp_path: Path, order: int
) -> None:
    tables = tables_of(text, tokenizer.vocab_size, order)
    other = kenlm_of(tables, tokenizer.tokens, tmp_path / "model.arpa")
    assert other.order == order
    lines = (TINY / "valid.txt").read_text(encoding="utf-8").splitlines()
    for line in [*lines, "", "xyzzy", "<unk> never", "seen </s> <s> the"]:
        tokens = tokenizer.encode(line + "\n")
        words = [tokenizer.tokens[token] for token in tokens[:-1]]
        ours = log_probabilities(tables, np.array(tokens)).astype(np.float64) / math.log(10)
        difference = abs(ours.sum() - other.score(" ".join(words), bos=True, eos=True))
        assert difference < KENLM, (line, difference)
        theirs = [value for value, _, _ in other.full_scores(" ".join(words))]
        assert np.abs(ours - theirs).max() < KENLM


def test_kenlm_reads_tokens_that_are_white_space_or_names_of_its_own(tmp_path: Path) -> None:
    tokens = ["<eos>", " ", "\u00a0", "<s>", "</s>", "<UNK>", "a"]
    tables = tables_of([token % 7 for token in skewed(600)], 7, 3)
    other = kenlm_of(tables, tokens, tmp_path / "model.arpa")
    names = ["</s>", "<0x20>", "<0xa0>", "<0x3c>s>", "<0x3c>/s>", "<0x3c>UNK>", "a"]
    assert all(name in other for name in names)
    line = [1, 3, 4, 2, 5, 6, 6, 1, EOS]
    ours = float(log_probabilities(tables, np.array(line)).sum()) / math.log(10)
    assert abs(ours - other.score(" ".join(names[token] for token in line[:-1]))) < KENLM


@pytest.mark.parametrize("tokens", [["<eos>", "<0x20>", " "], ["<eos>", "a", ""]])
def test_tokens_that_arpa_cannot_tell_apart_are_refused(tmp_path: Path, tokens: list[str]) -> None:
    with pytest.raises(ValueError, match="spelled alike in ARPA, or one is empty"):
        write_arpa(tables_of([1, 2], 3, 2), tokens, tmp_path / "model.arpa")
    assert list(tmp_path.iterdir()) == []


def test_arpa_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has 3 tokens, got 2"):
        write_arpa(tables_of([1, 2], 3, 2), ["<eos>", "a"], tmp_path / "model.arpa")


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_what_is_read_back_is_the_tables(tmp_path: Path, order: int) -> None:
    """Texts that were seen and that were not, with empty lines."""
    tables = tables_of(skewed(3000), 300, order)
    names = ["</s>", *(f"w{number}" for number in range(1, 300))]
    write_arpa(tables, ["<eos>", *names[1:]], tmp_path / "model.arpa")
    random = np.random.default_rng(1).integers(0, 300, 500).tolist()
    for ids in (skewed(3500), random, [EOS, EOS, 5, EOS]):
        found = score_arpa(tmp_path / "model.arpa", [names[token] for token in ids])
        expected = log_probabilities(tables, np.array(ids)) / math.log(10)
        assert np.abs(found - expected).max() < READ_BACK


@pytest.fixture(scope="module")
def ngram_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ngram") / "run"
    run_command("lm-train", TINY, "--out", run, *family_options("ngram"), cwd=run.parent)
    return run


def one_weight_less(lines: list[bytes]) -> None:
    """A back-off weight is 0 where it was not."""
    place = next(place for place, line in enumerate(lines) if line.count(b"\t") == 2 and b"\tthe\t" in line)
    lines[place] = lines[place].rpartition(b"\t")[0] + b"\n"


def one_ngram_less(lines: list[bytes]) -> None:
    del lines[lines.index(b"\\3-grams:\n") + 1]


def another_count(lines: list[bytes]) -> None:
    lines[2] = b"ngram 2=1\n"


def cut(lines: list[bytes]) -> None:
    del lines[-2:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_weight_less, "ARPA differs from the tables by"),
        (one_ngram_less, "not an ARPA file, or damaged: line"),
        (another_count, "not an ARPA file, or damaged: line"),
        (cut, "not an ARPA file, or damaged: line"),
    ],
)
def test_a_file_that_is_not_the_model_fails_the_proof_and_no_bundle_is_written(
    invoke: Invoke,
    tmp_path: Path,
    ngram_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[bytes]], None],
    message: str,
) -> None:
    def write_and_change(tables: NgramTables, tokens: Sequence[str], path: Path) -> None:
        write_arpa(tables, tokens, path)
        lines = path.read_bytes().splitlines(keepends=True)
        change(lines)
        path.write_bytes(b"".join(lines))

    monkeypatch.setattr(arpa, "write_arpa", write_and_change)
    code, out, err = invoke(lm_export, ngram_run, "--out", "bundle", "--arpa")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert one_line(err).endswith("no bundle was written")
    assert tree(tmp_path) == set()


def test_a_word_that_the_file_lacks_is_an_error(tmp_path: Path) -> None:
    write_arpa(tables_of([1, 2], 3, 2), ["<eos>", "a", "b"], tmp_path / "model.arpa")
    with pytest.raises(ExportError, match="the ARPA file has no 1-gram c"):
        score_arpa(tmp_path / "model.arpa", ["a", "c"])


@pytest.mark.parametrize("option", [("--arpa",), ("--format", "arpa"), ("--format", "arpa", "--arpa")])
def test_arpa_is_added_and_its_proof_is_shown(
    invoke: Invoke, tmp_path: Path, ngram_run: Path, option: tuple[str, ...]
) -> None:
    code, _, err = invoke(lm_export, ngram_run, "--out", "bundle", *option)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("arpa: 132 held-out tokens")]
    assert "bundle/ngram/model.arpa: n-grams as ARPA" in err
    assert kenlm.Model(str(tmp_path / "bundle/ngram/model.arpa")).order == 5
