"""What is no corpus is refused by name; what may not be meant is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL, TINY, Invoke, one_line, tree
from lm_runtime.files import UnusableFileError
from lm_trainer.command import main as lm_train
from lm_trainer.corpora import inspection
from lm_trainer.corpora.inspection import inspect

TEXT = (TINY / "train.txt").read_text()
CARRIAGE_RETURNS = "its lines end in carriage returns alone, where line feeds are needed; convert it first"
FORMS: list[tuple[bytes, str]] = [
    (gzip.compress(TEXT.encode()), "compressed by gzip; unpack it first"),
    (bz2.compress(TEXT.encode()), "compressed by bzip2; unpack it first"),
    (lzma.compress(TEXT.encode()), "compressed by xz; unpack it first"),
    (TEXT.encode("utf-16"), "UTF-16, where UTF-8 is needed; convert it first"),
    (TEXT.encode("utf-16-le"), "UTF-16, where UTF-8 is needed; convert it first"),
    (TEXT.encode("utf-16-be"), "UTF-16, where UTF-8 is needed; convert it first"),
    (TEXT.replace("\n", "\r").encode(), CARRIAGE_RETURNS),
]


@pytest.mark.parametrize(("content", "message"), FORMS)
@pytest.mark.parametrize("where", ["text.txt", "folder/train.txt", "folder/valid.txt"])
def test_a_corpus_in_another_form_is_refused_by_name(
    invoke: Invoke, tmp_path: Path, content: bytes, message: str, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("train", "valid"):
        (tmp_path / f"folder/{name}.txt").write_text(TEXT)
    (tmp_path / where).write_bytes(content)
    before = tree(tmp_path)
    code, out, err = invoke(lm_train, where.partition("/")[0], *SMALL)
    assert (code, out, err) == (1, "", f"lm-train: {where}: {message}\n")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
    ],
)
@pytest.mark.parametrize("where", ["corpus", "folder/valid.txt", "folder/test.txt"])
def test_a_corpus_that_is_no_file_is_refused_by_name(
    invoke: Invoke, tmp_path: Path, make: Callable[[Path], None], kind: str, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("train", "valid"):
        if where != f"folder/{name}.txt":
            (tmp_path / f"folder/{name}.txt").write_text(TEXT)
    make(tmp_path / where)
    code, out, err = invoke(lm_train, where.partition("/")[0], *SMALL)
    assert (code, out, err) == (1, "", f"lm-train: {where}: not a regular file ({kind})\n")


def test_a_corpus_that_may_not_be_read_is_not_called_damaged(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the system's refusal is made here."""

    def refuse(path: Path, wanted: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(inspection, "open_regular", refuse)
    code, _, err = invoke(lm_train, "text.txt", *SMALL)
    assert (code, one_line(err)) == (1, "lm-train: text.txt: Permission denied")


def test_ends_that_stand_there_already_and_json_lines_are_said(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "ends.txt").write_text(TEXT.replace("\n", " <eos>\n"))
    lines = (json.dumps({"text": line}) for line in TEXT.splitlines())
    (tmp_path / "records.txt").write_text("".join(f"{line}\n" for line in lines))
    for name, note in (
        (
            "ends.txt",
            "note: the lines of ends.txt end in <eos>, which is text: each line's end is a token already",
        ),
        ("records.txt", "note: records.txt looks like JSON Lines: its keys and quotes are learned as text"),
    ):
        code, _, err = invoke(lm_train, name, *SMALL, "--epochs", 1, "--out", name.partition(".")[0])
        assert code == 0
        assert err.splitlines()[1] == note


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT,
        TEXT.replace("\n", "\r\n"),
        "one line with a \r in it",
        "[1, 2]\n[3]\n",
        '{"a": 1}\nand a sentence\n',
        '{"only": "one"}\n',
        "a <eos> b\nc <eos>\n",
        "[" * 5000 + "\n" + "[" * 5000 + "\n",
    ],
)
def test_nothing_is_said_of_a_text_as_it_should_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text, newline="")
    assert inspect(tmp_path / "text.txt") == ()


def test_a_text_of_zeros_is_not_taken_for_utf16(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"abcd\0\0\0\0" * 99)
    with pytest.raises(UnusableFileError, match="not a text file: byte 4 is NUL"):
        inspect(tmp_path / "text.txt")
