"""Texts as people have them: files, folders, globs; records; packed; dirty; damaged; one rule for each."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.commands.score import main as lm_score
from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.score import score_file
from lm_runtime.scoring.texts import score_texts
from lm_runtime.text_files import read_fragments, split_fragments, whole_lines
from lm_runtime.texts import records
from lm_runtime.texts.reading import ReadingOptions, Texts, open_texts
from lm_runtime.texts.sources import find_sources

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
TEXT = "the sea\nthe clock \u2028 is\x0b old\n\nend"
RECORDS = [
    {"id": 1, "text": "the sea\nof é"},
    {"id": 2, "text": "", "more": [1.5, None]},
    {"text": "a\r\nb\n"},
]


def texts_of(*arguments: Path | str, **options: Any) -> Texts:
    return open_texts(map(str, arguments), ReadingOptions(**options))


def found(*arguments: Path | str, **options: Any) -> list[str]:
    return [document.text for document in texts_of(*arguments, **options).documents()]


def write_records(path: Path, rows: list[Any] = RECORDS, pack: Callable[[bytes], bytes] = bytes) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


@pytest.mark.parametrize("ending", PACK)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, ending: str) -> None:
    pack = PACK[ending]
    (tmp_path / f"a.txt{ending}").write_bytes(pack(TEXT.encode()))
    write_records(tmp_path / f"b.jsonl{ending}", pack=pack)
    write_records(tmp_path / "c.parquet")
    wanted = [row["text"] for row in RECORDS]
    assert found(tmp_path) == [f"{TEXT}\n", *wanted, *wanted]
    documents = list(texts_of(tmp_path / f"b.jsonl{ending}").documents())
    assert [document.fields for document in documents] == RECORDS
    assert documents[1].place == f"{tmp_path}/b.jsonl{ending}: line 2"


def test_a_folder_is_read_sorted_and_each_file_once(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.TXT", ".hidden.txt", ".git/x.txt", "c/README.md", "c/z.ndjson"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "record"}' if name.endswith("ndjson") else name)
    names = [source.path.relative_to(tmp_path).as_posix() for source in find_sources([str(tmp_path)])]
    assert names == ["a.TXT", "b/10.txt", "b/2.txt", "c/z.ndjson"]
    assert found(tmp_path / "b/2.txt", f"{tmp_path}/**/*.txt", tmp_path / "c/README.md") == [
        "b/2.txt\n",
        "b/10.txt\n",
        "c/README.md\n",
    ]
    strange = tmp_path / "a[1].txt"  # a file's name comes before its meaning as a glob
    strange.write_text("brackets")
    assert found(strange) == ["brackets\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": \n',
            "line 2: not JSON (Expecting value: line 1 column 10 (char 9))",
        ),
        (
            "x.jsonl",
            b'\n{"id": 1, "body": "a"}\n',
            "line 2: no field text; --text-field takes one of: id, body",
        ),
        ("x.jsonl", b'{"text": null}\n', "line 1: the field text is null, not a text"),
        ("x.jsonl", b'{"text": ["a"]}\n', "line 1: the field text is a list, not a text"),
        ("x.jsonl", b"[1]\n", "line 1: a list, where an object is needed"),
        ("x.jsonl", b'{"text": "\xff"}\n', "line 1: not UTF-8: byte 10 is 0xff"),
        ("x.jsonl", b'{"text": "ab\\u0000"}', "line 1: not a text: character 3 of the field text is NUL"),
        (
            "x.jsonl",
            b'{"text": "\\ud800"}',
            "line 1: not a text: the field text has half a character (U+D800)",
        ),
        ("x.jsonl", b"[" * 99_999, "line 1: not JSON ("),
        ("x.jsonl", gzip.compress(b"{}"), "compressed by gzip; unpack it first"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "damaged: the gzip data are cut off"),
        ("x.txt.gz", b"no gzip", "damaged: no gzip data (Not a gzipped file (b'no'))"),
        ("x.txt.xz", lzma.compress(b"a" * 9999)[:-20], "damaged: the xz data are cut off"),
        ("x.txt.bz2", b"BZh91AY&SYnothing of it", "damaged: no bzip2 data (Invalid data stream)"),
        ("x.txt.zst", b"nothing", "damaged: no zstd data ("),
        ("x.txt.zst", zstd.compress(b"a" * 99_999)[:-3], "damaged: the zstd data are cut off"),
        ("x.txt.gz", gzip.compress(b"a\0b"), "not a text file: byte 1 is NUL"),
        ("x.txt.gz", gzip.compress(b"ab\xff"), "not UTF-8: byte 2 is 0xff"),
        ("x.parquet", b"PAR1 and no more", "damaged, or no Parquet file ("),
        ("x.parquet.gz", gzip.compress(b"PAR1"), "Parquet files are packed inside: unpack it first"),
    ],
)
def test_damage_is_named_by_file_and_line(
    invoke: Invoke, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, err = invoke(lm_score, FIXTURE, name)
    assert (code, out) == (1, "")
    assert one_line(err).startswith(f"lm-score: {name}: {message}")


def test_a_parquet_file_without_the_text_says_what_it_has(tmp_path: Path) -> None:
    path = write_records(tmp_path / "x.parquet", [{"id": 1, "body": "a"}])
    assert found(path, text_field="body") == ["a"]
    with pytest.raises(UnusableFileError, match=r"no field text; --text-field takes one of: id, body"):
        found(path)
    with pytest.raises(UnusableFileError, match="the column id is int64, not a text"):
        found(path, text_field="id")
    rows = write_records(tmp_path / "y.parquet", [{"text": "a"}, {"text": None}, {"text": "b"}])
    with pytest.raises(UnusableFileError, match="row 2: the field text is null, not a text"):
        found(rows)
    assert found(rows, on_error="skip") == ["a", "b"]


def test_what_is_damaged_is_skipped_listed_and_counted(invoke: Invoke, tmp_path: Path) -> None:
    good = '{"text": "the sea"}\n'
    (tmp_path / "a.jsonl").write_text(good + "{\n" * 30 + good)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(good.encode() * 3)[:-9])
    (tmp_path / "c.txt").write_text("the sea\n")
    code, out, err = invoke(lm_score, FIXTURE, ".", "--lines", "--on-error", "skip")
    assert code == 0
    assert [line.split("\t")[3] for line in out.splitlines()] == ["the sea"] * 3  # nothing of the cut block
    lines = err.splitlines()
    assert lines[0] == (
        "skipped: a.jsonl: line 2: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1))"
    )
    assert lines[-2] == "skipped 31 damaged records or files in all, 11 more than are listed"
    assert invoke(lm_score, FIXTURE, ".", "--lines")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["*.txt"], "*.txt: no file has such a name"),
        (
            ["empty"],
            "empty: has no text: no file below it ends in .txt, .jsonl or .parquet, also packed as .gz",
        ),
        (["empty.txt"], "empty.txt: empty: there is nothing to score"),
        (["empty.txt", "empty.txt", "none.jsonl"], "empty.txt and 1 more: empty: there is nothing to score"),
    ],
)
def test_texts_that_are_not_there(invoke: Invoke, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.md").write_text("no text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "none.jsonl").write_text("\n\n")
    if arguments == ["*.txt"]:
        (tmp_path / "empty.txt").unlink()
    code, out, err = invoke(lm_score, FIXTURE, *arguments)
    assert (code, out) == (1, "")
    assert one_line(err).startswith(f"lm-score: {message}")


def test_a_missing_extra_is_named(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = invoke(lm_score, FIXTURE, "x.parquet")
    assert code == 1
    assert "pyarrow is not installed; install the parquet extra: pip install" in one_line(err)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, zstd.compress], ids=["bz2", "xz", "zst"])
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ending = {bz2.compress: "bz2", lzma.compress: "xz", zstd.compress: "zst"}[pack]
    path = tmp_path / f"bomb.txt.{ending}"
    path.write_bytes(pack(b"a" * (1 << 26)) * 5)
    tracemalloc.start()
    with pytest.raises(UnusableFileError, match="unpacks to more than 1,100 times its size"):
        for _ in read_fragments(path):
            pass
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


def test_a_record_beyond_the_limit_is_skipped_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD", 1 << 20)
    path = tmp_path / "x.jsonl"
    long = '{"text": "' + "a" * (1 << 25) + '"}\n'
    path.write_text('{"text": "a"}\n' + long + '{"text": "b"}\n' + long[:-1])
    with pytest.raises(UnusableFileError, match="line 2: longer than 1,048,576 bytes"):
        found(path)
    tracemalloc.start()
    assert found(path, on_error="skip") == ["a", "b"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


DIRTY = st.text(st.sampled_from("ab \n\u2028\u2029\x85\x0b\x0c\ufeff\té"), max_size=20).map(
    lambda text: text.replace("\n", "\r\n") if len(text) % 2 else text
)


@given(DIRTY)
def test_one_rule_for_dirty_text_whatever_it_stands_in(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """A file, a record, and a text in memory have the same lines and the same score."""
    path = tmp_path_factory.mktemp("dirty") / "x.txt"
    path.write_bytes(text.encode() if text.strip("\ufeff") else b"\n")  # an empty file is no text
    lines = list(whole_lines(read_fragments(path)))
    assert list(whole_lines(split_fragments(text))) == lines
    assert lines == text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    model = MODEL
    [score] = score_texts(model, [text])
    assert score == score_file(model, path)
    body = "\n".join(lines)
    assert model.tokenizer.encode(text.removeprefix("\ufeff"))[: len(model.tokenizer.encode(body))] == (
        model.tokenizer.encode(body)
    )


MODEL = lm_runtime.load(FIXTURE, provider="cpu")


def test_records_and_files_are_read_as_one_text(invoke: Invoke, tmp_path: Path) -> None:
    """The perplexity of a collection is that of its documents one after the other, state carried."""
    lines = (TINY / "valid.txt").read_text().splitlines()
    write_records(tmp_path / "x.jsonl", [{"text": line} for line in lines[:3]])
    (tmp_path / "y.txt").write_text("\n".join(lines[3:]))
    code, out, _ = invoke(lm_score, FIXTURE, "x.jsonl", "y.txt", "--json")
    assert code == 0
    assert out == invoke(lm_score, FIXTURE, TINY / "valid.txt", "--json")[1]
