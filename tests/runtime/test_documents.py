"""Documents with their scores: the same through every door, whatever breaks off in between."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.commands.score import main as lm_score
from lm_runtime.scoring.documents import FIGURES, DocumentScorer
from lm_runtime.scoring.texts import score_texts

LINES = (TINY / "train.txt").read_text().splitlines()
TEXTS = [" ".join(LINES[number % 40 : number % 40 + 1 + number % 3]) for number in range(700)]
ROWS = [{"id": number, "text": text, "of": {"a": [number]}} for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    scores = score_texts(lm_runtime.load(FIXTURE, provider="cpu"), TEXTS)
    return [{name: getattr(score, name) for name in FIGURES} for score in scores]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(records: Path, out: str, *more: object) -> list[object]:
    return [FIXTURE, records, "--documents", "--output", out, "--workers", 1, *more]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_every_record_keeps_its_fields_and_place_and_gets_the_score_it_has_alone(
    invoke: Invoke, tmp_path: Path, records: Path, expected: list[dict[str, Any]], ending: str
) -> None:
    code, out, err = invoke(lm_score, *call(records, f"out.{ending}"))
    assert (code, out) == (0, f"out.{ending}\n")
    assert read(tmp_path / f"out.{ending}") == [
        row | score for row, score in zip(ROWS, expected, strict=True)
    ]
    assert err.startswith("700 documents; perplexity ")
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", f"out.{ending}"}


def test_parquet_keeps_its_columns_and_text_files_are_documents(invoke: Invoke, tmp_path: Path) -> None:
    table = pa.table({"n": pa.array([1, 2], pa.int32()), "text": pa.array(LINES[:2]).dictionary_encode()})
    pq.write_table(table, tmp_path / "in.parquet")
    assert invoke(lm_score, *call(tmp_path / "in.parquet", "out.parquet"))[0] == 0
    assert [str(kind) for kind in pq.read_schema(tmp_path / "out.parquet").types[:3]] == [
        "int32",
        "string",
        "double",
    ]
    (tmp_path / "texts").mkdir()
    for number, line in enumerate(LINES[:3]):
        (tmp_path / f"texts/{number}.txt").write_text(line)
    assert invoke(lm_score, *call(tmp_path / "texts", "files.jsonl"))[0] == 0
    rows = read(tmp_path / "files.jsonl")
    assert [row.get("file") for row in rows[:3]] == [
        str(tmp_path / f"texts/{number}.txt") for number in range(3)
    ]


def test_filters_buckets_and_prefix(
    invoke: Invoke, tmp_path: Path, records: Path, expected: list[dict[str, Any]]
) -> None:
    found = sorted(score["perplexity"] for score in expected)
    low, middle, high = found[100], found[350], found[600]
    options = ["--min-perplexity", low, "--max-perplexity", high, "--buckets", f"{low},{middle}"]
    code, _, err = invoke(lm_score, *call(records, "out.jsonl", *options, "--score-prefix", "lm_"))
    assert code == 0
    rows = read(tmp_path / "out.jsonl")
    kept = [number for number, score in enumerate(expected) if low <= score["perplexity"] <= high]
    assert [row["id"] for row in rows] == kept
    assert f"700 documents, {len(kept)} of them written" in err
    assert {row["lm_bucket"] for row in rows if row["lm_perplexity"] < middle} == {"middle"}
    assert {row["lm_bucket"] for row in rows if row["lm_perplexity"] >= middle} == {"tail"}
    assert "perplexity" not in rows[0]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_call_that_was_killed_goes_on_and_gives_the_same_bytes(
    invoke: Invoke, tmp_path: Path, records: Path, ending: str
) -> None:
    """Killed with SIGKILL while two processes score; a part of a record at the end does not count."""
    records.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 6))
    script = (
        "import lm_runtime.texts.scored as scored\n"
        "from lm_runtime.start import score\n"
        "scored._NOTED_SECONDS = 0\n"
        "if __name__ == '__main__': score()\n"
    )
    (tmp_path / "script.py").write_text(script)
    options = [*call(records, f"out.{ending}", "--score-prefix", "x"), "--workers", 2]
    with (tmp_path / "errors").open("wb") as errors:
        command = [sys.executable, "script.py", *map(str, options)]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=errors)
    notes, partial = tmp_path / f".out.{ending}.progress", tmp_path / f".out.{ending}.partial"
    while process.poll() is None and not (notes.exists() and notes.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()
    with partial.open("ab") as file:
        file.write(b'{"id": 3, "te')
    other = invoke(lm_score, *call(records, f"out.{ending}"))
    assert (other[0], "an unfinished call with another prefix left it" in one_line(other[2])) == (1, True)
    code, _, err = invoke(lm_score, *call(records, f"out.{ending}", "--score-prefix", "x"))
    assert code == 0
    assert "documents that are scored already" in err.splitlines()[0]
    assert invoke(lm_score, *call(records, f"whole.{ending}", "--score-prefix", "x"))[0] == 0
    assert (tmp_path / f"out.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--documents"], 2, "--documents needs --output, a .jsonl or a .parquet"),
        (
            ["--documents", "--output", "x.csv"],
            2,
            "--output takes a name that ends in .jsonl or .parquet, got x.csv",
        ),
        (
            ["--documents", "--output", "in.jsonl"],
            1,
            "in.jsonl: is there already; remove it, or name another file",
        ),
        (["--documents", "--output", "no/x.jsonl"], 1, "no/x.jsonl: there is no such folder to write it to"),
        (["--documents", "--output", "x.jsonl", "--buckets", "60,30"], 2, "buckets must be two perplexities"),
        (
            ["--documents", "--output", "x.jsonl", "--buckets", "low"],
            2,
            "buckets takes two numbers, such as 30,60",
        ),
        (
            ["--documents", "--output", "x.jsonl", "--min-perplexity", "9", "--max-perplexity", "3"],
            2,
            "min-perplexity must be at most max-perplexity, got 9 and 3",
        ),
        (
            ["--documents", "--output", "x.jsonl", "--workers", "0"],
            2,
            "workers must be from 1 to 1024, got 0",
        ),
        (["--documents", "--output", "x.jsonl", "--lines"], 2, "give --lines or --documents, not both"),
        (["--documents", "--output", "x.jsonl", "--json"], 2, "give --json or --documents, not both"),
        (["--min-perplexity", "3"], 2, "--min-perplexity is for --documents"),
        (
            ["--documents", "--output", "x.jsonl", "--text-field", "id"],
            1,
            "the field id is a number, not a text",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(
    invoke: Invoke, tmp_path: Path, records: Path, options: list[str], code: int, message: str
) -> None:
    status, out, err = invoke(lm_score, FIXTURE, records, *options)
    assert (status, out) == (code, "")
    assert message in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_records_that_do_not_fit_are_named(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "perplexity": 1}\n')
    code, _, err = invoke(lm_score, *call(tmp_path / "in.jsonl", "out.jsonl"))
    assert (code, one_line(err)) == (
        2,
        f"lm-score: {tmp_path}/in.jsonl: line 1: the field perplexity is there already; "
        "a prefix (--score-prefix) gives the score's another name",
    )
    (tmp_path / "in.jsonl").write_text('{"text": "a", "n": 1}\n' * 300 + '{"text": "a", "n": "x"}\n')
    code, _, err = invoke(lm_score, *call(tmp_path / "in.jsonl", "out.parquet"))
    assert (code, "a .jsonl takes records of any kind" in one_line(err)) == (2, True)


def test_the_scorer_takes_columns_of_lists_and_arrays_and_leaves_its_model_behind(
    expected: list[dict[str, Any]],
) -> None:
    scorer = DocumentScorer(FIXTURE, prefix="lm_", buckets=(5, 10))
    columns = scorer({"text": TEXTS[:9], "id": list(range(9))})
    assert list(columns) == ["text", "id", *(f"lm_{name}" for name in (*FIGURES, "bucket"))]
    assert columns["lm_perplexity"] == [score["perplexity"] for score in expected[:9]]
    wanted = [score["bits_per_byte"] or np.nan for score in expected[:9]]
    assert np.array_equal(columns["lm_bits_per_byte"], wanted, equal_nan=True)
    travelled = pickle.loads(pickle.dumps(scorer))
    assert len(pickle.dumps(scorer)) < 1000
    arrays = travelled({"text": np.array(TEXTS[:9], dtype=object)})
    assert arrays["lm_perplexity"].tolist() == columns["lm_perplexity"]
    assert arrays["lm_bucket"].tolist() == columns["lm_bucket"]
    with pytest.raises(ValueError, match="no column text; there are: body"):
        scorer({"body": []})
    with pytest.raises(ValueError, match="document 2 of the batch is no text, but None"):
        scorer({"text": ["a", None]})
    with pytest.raises(ValueError, match="the field lm_tokens is there already"):
        scorer({"text": [], "lm_tokens": []})


def test_datasets_map_takes_the_scorer_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="an extra of others")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": TEXTS[:50]})
    scored = rows.map(DocumentScorer(FIXTURE), batched=True, batch_size=16)
    assert scored["perplexity"][:] == [score["perplexity"] for score in expected[:50]]


PIPELINE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from lm_runtime.scoring.datatrove import PerplexityAnnotator, PerplexityFilter

if __name__ == "__main__":
    bundle, limit = sys.argv[1], float(sys.argv[2])
    LocalPipelineExecutor(
        [
            JsonlReader("in"),
            PerplexityAnnotator(bundle, prefix="all_"),
            PerplexityFilter(bundle, max_perplexity=limit, exclusion_writer=JsonlWriter("out/dropped")),
            JsonlWriter("out/kept"),
        ],
        tasks=2,
        workers=1,
        logging_dir="logs",
    ).run()
"""


def test_a_pipeline_of_datatrove_that_was_killed_loses_and_doubles_nothing(
    tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    """Two tasks, one after the other; killed within the second, and run again."""
    import gzip

    (tmp_path / "in").mkdir()
    half = len(ROWS) // 2
    for number, (part, times) in enumerate(((ROWS[:half], 1), (ROWS[half:], 20))):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"in/{number}.jsonl").write_text(lines * times)
    limit = sorted(score["perplexity"] for score in expected)[500]
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    command = [sys.executable, "pipeline.py", str(FIXTURE), str(limit)]
    with (tmp_path / "errors").open("wb") as errors:  # not a pipe, which its helpers would hold open
        process = subprocess.Popen(command, cwd=tmp_path, stderr=errors, start_new_session=True)
    begun = tmp_path / "out/kept/00001.jsonl.gz"
    while process.poll() is None and not begun.exists():
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()
    assert [path.name for path in (tmp_path / "logs/completions").iterdir()] == ["00000"]
    (tmp_path / "in/1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[half:]))
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = {}
    for name in ("kept", "dropped"):
        rows = [
            json.loads(line)
            for path in sorted((tmp_path / "out" / name).iterdir())
            for line in gzip.decompress(path.read_bytes()).splitlines()
        ]
        found[name] = {row["text"]: row["metadata"] for row in rows}
        assert len(rows) == sum((score["perplexity"] <= limit) == (name == "kept") for score in expected)
    for text, score in zip(TEXTS, expected, strict=True):
        metadata = found["kept" if score["perplexity"] <= limit else "dropped"][text]
        for name in ("perplexity", "log_probability", "tokens", "unknown"):
            assert metadata[name] == metadata[f"all_{name}"] == score[name]


def test_a_filter_without_bounds_is_refused() -> None:
    from lm_runtime.scoring.datatrove import PerplexityFilter

    with pytest.raises(ValueError, match="a filter needs min_perplexity or max_perplexity"):
        PerplexityFilter(FIXTURE)
    with pytest.raises(ValueError, match="min_perplexity must be at most max_perplexity, got 9 and 3"):
        PerplexityFilter(FIXTURE, 9, 3)
