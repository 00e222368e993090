"""ARPA files of other tools become bundles that score as KenLM does, pruned ones too."""

from __future__ import annotations

import math
import random
from pathlib import Path

import kenlm
import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line, run_command, tree
from lm_export.arpa_reader import read_arpa
from lm_export.command import main as lm_export
from lm_export.formats.arpa import write_arpa
from lm_runtime.files import UnusableFileError
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables
from lm_trainer.ngram.estimation import estimate
from small_runs import skewed

KENLM = 1e-4
"""Base-10 units for a whole line; kenlm works in float32, and adds in it."""
WORDS = [f"w{number}" for number in range(60)]


@pytest.fixture(scope="module")
def tables() -> NgramTables:
    ids = np.array([token % 62 for token in skewed(4000)])
    return estimate(ids, 62, 0, 4)


def pruned(path: Path, seed: int) -> None:
    """Leave out n-grams of all lengths from 2 on, whether or not longer ones end with them."""
    choose = random.Random(seed)
    sections: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("\\") and line.endswith("-grams:"):
            sections[int(line[1])] = []
        elif sections and "\t" in line:
            sections[max(sections)].append(line)
    needed: set[str] = set()  # what longer ones begin with
    for length in sorted(sections, reverse=True):
        if length > 1:
            sections[length] = [
                line for line in sections[length] if line.split("\t")[1] in needed or choose.random() < 0.4
            ]
        needed = {line.split("\t")[1].rpartition(" ")[0] for line in sections[length]}
    counts = "".join(f"ngram {length}={len(lines)}\n" for length, lines in sections.items())
    text = "".join(
        f"\n\\{length}-grams:\n" + "".join(f"{line}\n" for line in lines)
        for length, lines in sections.items()
    )
    path.write_text(f"\\data\\\n{counts}{text}\n\\end\\\n")


def lines_of(seed: int) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(0, 12))) for _ in range(200)]


@pytest.mark.parametrize("seed", range(4))
def test_a_pruned_model_scores_every_line_as_kenlm_does(
    tables: NgramTables, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "model.arpa"
    write_arpa(tables, ["<eos>", "<unk>", *WORDS], path)
    pruned(path, seed)
    theirs = kenlm.Model(str(path))
    names, found = read_arpa(path)
    ids = {name: id_ for id_, name in enumerate(names)}
    for line in lines_of(seed):
        tokens = [*(ids[word] for word in line.split()), 0]
        ours = log_probabilities(found, np.array(tokens)).sum(dtype=np.float64) / math.log(10)
        assert ours == pytest.approx(theirs.score(line), abs=KENLM), line


def test_the_tables_of_a_file_that_was_written_are_those_it_was_written_from(
    tables: NgramTables, tmp_path: Path
) -> None:
    write_arpa(tables, ["<eos>", "<unk>", *WORDS], tmp_path / "model.arpa")
    names, found = read_arpa(tmp_path / "model.arpa")
    assert names == ["</s>", "<unk>", *WORDS]
    assert found.counts == tables.counts
    for name in ("words", "offsets"):
        for one, other in zip(getattr(found, name), getattr(tables, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_command_makes_a_bundle_that_scores_as_kenlm_does(tables: NgramTables, tmp_path: Path) -> None:
    path = tmp_path / "others.arpa"
    write_arpa(tables, ["<eos>", "<unk>", *WORDS], path)
    pruned(path, 9)
    run_command("lm-export", path, "--out", "bundle", cwd=tmp_path)
    model = lm_runtime.load(tmp_path / "bundle")
    theirs = kenlm.Model(str(path))
    lines = [*lines_of(1), "w1 neverseen w2"]
    for line, score in zip(lines, lm_runtime.score_texts(model, lines), strict=True):
        assert score.log_probability / math.log(10) == pytest.approx(theirs.score(line), abs=KENLM), line
    assert "Read from `others.arpa`" in (tmp_path / "bundle/README.md").read_text()


def test_tokens_of_a_tokenizer_are_found_by_their_spelling(tmp_path: Path) -> None:
    """The way out and in again of a model of subwords, whose tokens hold spaces."""
    small = ["--model", "ngram", "--order", "3", "--tokenizer", "bpe", "--vocab-size", "300"]
    run_command("lm-train", TINY, *small, "--out", "run", cwd=tmp_path)
    run_command("lm-export", "run", "--out", "one", "--arpa", cwd=tmp_path)
    given = ["--tokenizer", "one/tokenizer.json"]
    run_command("lm-export", "one/ngram/model.arpa", *given, "--out", "other", cwd=tmp_path)
    models = [lm_runtime.load(tmp_path / name) for name in ("one", "other")]
    texts = ["the keeper of the light", "Größe\nline", ""]
    first, second = (list(lm_runtime.score_texts(model, texts)) for model in models)
    for one, other in zip(first, second, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert one.tokens == other.tokens


HEAD = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n"
UNIGRAMS = "-99\t<s>\t-0.5\n-1\t</s>\n-2\t<unk>\n-0.5\ta\t-0.1\n\n\\2-grams:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file ends before"),
        ("nothing here\n", "line 1: the file ends before \\data\\"),
        (HEAD, "line 5"),
        (HEAD + UNIGRAMS.replace("-0.5\ta", "x\ta"), "line 9: a probability or a weight is no number"),
        (HEAD + UNIGRAMS.replace("-0.5\ta", "nan\ta"), "line 9: a probability of nan"),
        (HEAD + UNIGRAMS.replace("-0.5\ta", "0.5\ta"), "line 9: a probability of 0.5"),
        (HEAD + UNIGRAMS.replace("</s>", "b"), "there is no </s>"),
        (HEAD + UNIGRAMS.replace("a\t-0.1", "<unk>\t0"), "line 9: '<unk>' comes twice"),
        (HEAD + UNIGRAMS + "-1\ta b\n-1\ta a\n\\end\\\n", "line 12: 'b' is not among the words"),
        (HEAD + UNIGRAMS + "-1\t</s> a\n-1\ta a\n\\end\\\n", "line 12: </s> stands before other words"),
        (HEAD + UNIGRAMS + "-1\ta a\n-1\ta a\n\\end\\\n", "1 2-grams come twice"),
        (HEAD + UNIGRAMS + "-1\ta a\n-1\ta </s>\n", "the file ends before"),
        (HEAD.replace("1=4", "1=99999999"), "n-grams"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_number(
    invoke: Invoke, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.arpa").write_text(text)
    with pytest.raises(UnusableFileError):
        read_arpa(tmp_path / "bad.arpa")
    code, out, err = invoke(lm_export, "bad.arpa", "--out", "bundle")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert tree(tmp_path) == {"bad.arpa"}


def test_a_tokenizer_is_for_an_arpa_file(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    code, _, err = invoke(lm_export, small_run, "--tokenizer", FIXTURE / "tokenizer.json", "--out", "b")
    assert code == 2
    assert "--tokenizer is for an ARPA file" in one_line(err)
