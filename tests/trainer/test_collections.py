"""Several texts as a corpus: how they are divided, read in another order each epoch, and resumed."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tomllib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL, TINY, Invoke, one_line
from lm_export.command import main as lm_export
from lm_runtime.commands.score import main as lm_score
from lm_runtime.files import UnusableFileError
from lm_runtime.texts.reading import open_texts
from lm_trainer.command import main as lm_train
from lm_trainer.corpora.collection import Reading
from lm_trainer.corpora.corpus import documents_path, find_corpus, token_path
from lm_trainer.corpora.documents import DocumentSplit, divide
from lm_trainer.corpora.shuffling import document_ends, line_ends, write_shuffled
from lm_trainer.run.checkpoint import load_checkpoint

LINES = (TINY / "train.txt").read_text().splitlines()
FEW = [*SMALL, "--epochs", "2"]


def write_documents(folder: Path, count: int, seed: int = 0) -> list[str]:
    """A folder of JSON Lines and texts, some documents twice."""
    draw = random.Random(seed)
    texts = ["\n".join(draw.sample(LINES, 2)) for _ in range(count)]
    texts += texts[: count // 4]
    folder.mkdir()
    half = len(texts) // 2
    records = "".join(json.dumps({"text": text}) + "\n" for text in texts[:half])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    for number, text in enumerate(texts[half:]):
        (folder / f"{number:03}.txt").write_text(text)
    return texts


@pytest.mark.parametrize("count", [3, 4, 20, 300])
def test_documents_are_divided_by_their_text_and_copies_stay_together(tmp_path: Path, count: int) -> None:
    texts = write_documents(tmp_path / "texts", count, seed=count)
    corpus = find_corpus(str(tmp_path / "texts"))
    parts: dict[str, list[str]] = {}
    for name, split in corpus.splits.items():
        assert isinstance(split, DocumentSplit)
        parts[name] = ["\n".join(text for text, _ in document) for document in split.documents()]
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert all(parts.values())
    names = list(parts)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not set(parts[names[one]]) & set(parts[names[other]])
    counts = ", ".join(f"{len(parts[name])} {name}" for name in ("train",))
    assert f"{len(texts)} documents, divided by a hash of their text: {counts}" in corpus.remark
    if count == 300:
        assert all(0.02 < len(parts[name]) / len(texts) < 0.09 for name in ("valid", "test"))


def test_too_few_different_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' * 50)
    with pytest.raises(UnusableFileError, match="100 documents, too few different ones to split off"):
        divide(open_texts([str(tmp_path / "x.jsonl")]))
    corpus = find_corpus(str(tmp_path / "x.jsonl"), reading=Reading(valid=(str(TINY / "valid.txt"),)))
    assert set(corpus.splits) == {"train", "valid"}


def test_a_folder_of_texts_trains_and_says_how_it_is_read(invoke: Invoke, tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", 60)
    code, _, err = invoke(lm_train, "texts/a.jsonl.gz", "texts/0*.txt", *FEW, "--out", "run")
    assert code == 0
    assert err.splitlines()[0].startswith(
        "corpus a and 38 more: texts/a.jsonl.gz and 38 more: 75 documents, divided by a hash of their text: "
    )
    settings = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert settings["corpus"] == str(tmp_path / "texts/a.jsonl.gz")
    assert settings["also"] == [str(tmp_path / "texts/0*.txt")]
    assert settings["shuffle"] == "document"
    assert "each document at another place in each epoch" in (tmp_path / "run/report.html").read_text()
    assert invoke(lm_train, "--config", "run/config.toml", "--out", "again")[0] == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "again"))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert one.facts.corpus.splits["train"].documents == 67
    assert (
        "complete: nothing to do"
        in invoke(lm_train, *("texts/a.jsonl.gz", "texts/0*.txt"), "--out", "run", "--resume")[2]
    )
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--shuffle", "line")
    assert (code, "shuffle is document, not line" in one_line(err)) == (2, True)


def test_standard_input_and_one_packed_text_are_split_by_position(invoke: Invoke, tmp_path: Path) -> None:
    text = (TINY / "train.txt").read_bytes()
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(text))
    command = [str(Path(sys.executable).parent / "lm-train"), "-", "--out", "piped", *FEW]
    result = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, check=True)
    assert result.stderr.splitlines()[0].startswith(
        b"corpus stdin: standard input split by position: train b"
    )
    code, _, err = invoke(lm_train, "one.txt.gz", "--out", "packed", *FEW)
    assert code == 0
    assert err.startswith("corpus one: one.txt.gz split by position: train bytes 0 to ")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("piped", "packed"))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert {path.name for path in (tmp_path / "packed/tokens").iterdir()} == {
        "train.bin",
        "valid.bin",
        "test.bin",
    }
    assert not (tmp_path / "packed/copies").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["ptb", "--valid", "x.jsonl"],
            2,
            "the corpus ptb has its own validation text, and nothing is added",
        ),
        (["x.txt", "--shuffle", "document"], 2, "--shuffle document is for several documents"),
        (
            ["x.jsonl", "--text-field", "body"],
            1,
            "x.jsonl: line 1: no field body; --text-field takes one of: text",
        ),
        (["x.jsonl", "--valid", "none"], 1, "none: no such file"),
        (["x.txt", "none"], 1, "none: no such file"),
        (["y*.txt"], 1, "y*.txt: no file has such a name"),
        (["x.jsonl", "--shuffle", "sentence"], 2, "'sentence' is not one of 'none', 'line', 'document'"),
        (["x.jsonl", "--model", "ngram", "--shuffle", "line"], 2, "shuffle does not apply to ngram"),
    ],
)
def test_a_collection_that_cannot_be_used(
    invoke: Invoke, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    (tmp_path / "x.txt").write_text("\n".join(LINES))
    status, out, err = invoke(lm_train, *arguments)
    assert (status, out) == (code, "")
    assert message in one_line(err)


def test_damaged_records_are_listed_once(invoke: Invoke, tmp_path: Path) -> None:
    lines = [json.dumps({"text": line}) for line in LINES]
    lines[3] = "{"
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    code, _, err = invoke(lm_train, "x.jsonl", *FEW, "--on-error", "skip")
    assert code == 0
    assert [line for line in err.splitlines() if "skipped" in line] == [
        "skipped: x.jsonl: line 4: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1))",
        "skipped 1 damaged records or files in all",
    ]


def shuffled(folder: Path, ids: np.ndarray, ends: object, seed: int, **options: int) -> list[int]:
    generator = np.random.default_rng(seed)
    write_shuffled(folder / "out.bin", ids, iter(ends), generator, **options)  # type: ignore[call-overload]
    return np.fromfile(folder / "out.bin", dtype=ids.dtype).tolist()


def units(ids: list[int]) -> list[tuple[int, ...]]:
    found, unit = [], []
    for token in ids:
        unit.append(token)
        if token == 0:
            found.append(tuple(unit))
            unit = []
    return [*found, tuple(unit)] if unit else found


@pytest.mark.parametrize("pile", [1 << 22, 40])
def test_shuffled_lines_are_the_same_lines_in_every_order_alike(tmp_path: Path, pile: int) -> None:
    draw = np.random.default_rng(1)
    ids = draw.integers(0, 9, 5000).astype(np.uint16)
    ids[-1] = 3  # a last line without its end
    found = shuffled(tmp_path, ids, line_ends(ids, 0), 5, pile_tokens=pile)
    assert sorted(units(found)) != units(found)
    whole = units(ids.tolist())
    # The line without an end may stand before another one, and joins it.
    assert sum(map(len, units(found))) == ids.size
    assert abs(len(units(found)) - len(whole)) <= 1
    few = np.array([1, 0, 2, 0, 3, 0], dtype=np.uint16)
    orders = [tuple(shuffled(tmp_path, few, line_ends(few, 0), seed, pile_tokens=2)) for seed in range(240)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 17  # 40 expected, with a standard deviation of 6


def test_shuffling_takes_bounded_memory(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 20, 8_000_000).astype(np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    tracemalloc.start()
    found = tmp_path / "out.bin"
    write_shuffled(found, mapped, line_ends(mapped, 0), np.random.default_rng(1), pile_tokens=1 << 18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    out = np.fromfile(found, dtype=np.uint16)
    assert (np.bincount(out) == np.bincount(ids)).all()
    assert peak < 50 << 20  # whatever the text's length: blocks of a million tokens


def test_documents_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ends.bin"
    path.write_bytes(np.array([4, 4, 6, 9], dtype="<i8").tobytes())  # the second one is empty
    ids = np.arange(9, dtype=np.uint16)
    parts = {(0, 1, 2, 3), (4, 5), (6, 7, 8)}
    for seed in range(5):
        found = shuffled(tmp_path, ids, document_ends(path), seed)
        assert any(found == [token for part in order for token in part] for order in _orders(parts))


def _orders(parts: set[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    if not parts:
        return [[]]
    return [[first, *rest] for first in parts for rest in _orders(parts - {first})]


@pytest.mark.parametrize("order", ["line", "document"])
def test_a_shuffled_run_that_is_broken_off_goes_on_to_the_bit(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order in each epoch, the same one after a kill in the middle of the second."""
    from lm_trainer.training import loop

    write_documents(tmp_path / "texts", 40)
    options = ["texts", *SMALL, "--epochs", "3", "--shuffle", order, "--checkpoint-seconds", "0"]
    monkeypatch.chdir(tmp_path)
    orders: list[bytes] = []
    arrange = loop.Trainer._arrange

    def noted(trainer: loop.Trainer) -> None:
        arrange(trainer)
        orders.append((tmp_path / "whole/tokens/train.shuffled.bin").read_bytes())

    def call(*arguments: str) -> None:
        with pytest.raises(SystemExit) as exit_:
            lm_train.main(list(arguments), prog_name="lm-train")
        assert exit_.value.code == 0

    monkeypatch.setattr(loop.Trainer, "_arrange", noted)
    call(*options, "--out", "whole")
    monkeypatch.setattr(loop.Trainer, "_arrange", arrange)
    assert len(set(orders)) == 3
    assert not (tmp_path / "whole/tokens/train.shuffled.bin").exists()

    class KilledError(BaseException):
        pass

    step = loop.Trainer.step
    count = 0

    def killed(trainer: loop.Trainer, lr: float | None = None) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == trainer.windows + 5:
            raise KilledError
        return step(trainer, lr)

    monkeypatch.setattr(loop.Trainer, "step", killed)
    with pytest.raises(KilledError):
        lm_train.main([*options, "--out", "broken"], prog_name="lm-train")
    monkeypatch.setattr(loop.Trainer, "step", step)
    call("--out", "broken", "--resume")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_changed_ends_of_documents_are_found_when_a_run_goes_on(invoke: Invoke, tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", 30)
    assert invoke(lm_train, "texts", *SMALL, "--epochs", "1", "--out", "run")[0] == 0
    documents_path(tmp_path / "run/tokens", "train").write_bytes(b"\0" * 8)
    code, _, err = invoke(lm_train, "--resume", "--epochs", "2", "--out", "run")
    assert (code, one_line(err).endswith("train.documents.bin: changed since the run began")) == (1, True)
    assert token_path(tmp_path / "run/tokens", "train").exists()


def test_scores_say_when_the_model_was_trained_otherwise(invoke: Invoke, tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", 30)
    (tmp_path / "lines.txt").write_text("the sea\n")
    said = {
        "document": "note: the model was trained on whole documents in random order, and scores each line by "
        "itself here; lm-train --shuffle line trains for that",
        "none": "note: the model was trained on a text in its order, and scores each line by itself here; "
        "lm-train --shuffle line trains for that",
    }
    for order in ("none", "line", "document"):
        options = [*SMALL, "--epochs", "1", "--shuffle", order, "--out", order]
        assert invoke(lm_train, "texts", *options)[0] == 0
        assert invoke(lm_export, order, "--out", f"b-{order}")[0] == 0
        card = (tmp_path / f"b-{order}/README.md").read_text()
        assert (f"Each {order} stood at another place in each epoch." in card) == (order != "none")
        notes = invoke(lm_score, f"b-{order}", "lines.txt", "--lines")[2].splitlines()
        assert (notes[0] == said[order]) if order in said else (len(notes) == 1)
        documents = ["--documents", "--output", f"{order}.jsonl", "--workers", "1"]
        notes = invoke(lm_score, f"b-{order}", "lines.txt", *documents)[2].splitlines()
        assert (len(notes) == 1) == (order == "document")
