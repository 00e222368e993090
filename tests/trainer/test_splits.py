"""One file is divided into stretches that are spread over it, and a run says where they differ much."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from conftest import COUNTED, Invoke
from lm_trainer.command import main as lm_train
from lm_trainer.corpora.corpus import find_corpus
from lm_trainer.corpora.splits import Split

SPLITS = ("train", "valid", "test")


def numbered(folder: Path, lines: int) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"line {number} of the text\n" for number in range(lines)))
    return path


def read(split: Split) -> list[str]:
    return [text for text, _ in split.fragments()]


def test_valid_and_test_text_are_spread_over_the_file_and_nothing_is_lost(tmp_path: Path) -> None:
    path = numbered(tmp_path, 6000)
    corpus = find_corpus(str(path))
    texts = {name: read(corpus.splits[name]) for name in SPLITS}
    assert sorted(line for text in texts.values() for line in text) == sorted(path.read_text().splitlines())
    for name in ("valid", "test"):
        numbers = [int(line.split()[1]) for line in texts[name]]
        assert 0.045 < len(numbers) / 6000 < 0.055
        assert {number // 1200 for number in numbers} == {0, 1, 2, 3, 4}  # a stretch in each fifth
        assert sum(second != first + 1 for first, second in itertools.pairwise(numbers)) == 4
    assert "split in stretches spread over it (seed 1): valid bytes " in corpus.remark
    assert find_corpus(str(path)).splits == corpus.splits


def test_a_short_text_is_split_by_position(tmp_path: Path) -> None:
    assert "split by position" in find_corpus(str(numbered(tmp_path, 500))).remark


def test_a_run_says_that_the_stretches_of_its_text_differ(invoke: Invoke, tmp_path: Path) -> None:
    """A book that ends with something else: the last fifth is its licence."""
    book = ["the keeper of the light wrote a letter to the sea"] * 2000
    licence = [f"section {number % 97} clause {number % 89} of these terms" for number in range(500)]
    (tmp_path / "book.txt").write_text("\n".join([*book, *licence]) + "\n")
    code, _, err = invoke(lm_train, "book.txt", "--model", "ngram", *COUNTED, "--out", "run")
    assert code == 0
    assert "note: the 5 stretches of the valid text differ: perplexity " in err
    stretches = json.loads(Path("run/summary.json").read_text())["valid"]["stretches"]
    assert len(stretches) == 5
    assert stretches[4] > 2 * stretches[0]


def test_nothing_is_said_where_they_do_not_differ(invoke: Invoke, tmp_path: Path) -> None:
    numbered(tmp_path, 6000)
    code, _, err = invoke(lm_train, "text.txt", "--model", "ngram", "--tokenizer", "char", "--out", "run")
    assert (code, "stretches of the" in err) == (0, False)
