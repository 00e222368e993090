"""What CORPUS means: a folder, a file, a name; and its text as token files."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY
from lm_runtime.files import UnusableFileError
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora import datasets, pydocs
from lm_trainer.corpora.corpus import encode_corpus, find_corpus, texts, token_path
from lm_trainer.corpora.datasets import DATASETS, Download, fetch
from lm_trainer.corpora.pydocs import write_pydocs
from lm_trainer.corpora.token_file import write_token_file
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.reports.baselines import unigram_perplexity

SPLITS = ("train", "valid", "test")


@given(st.lists(st.text("abé ", min_size=10, max_size=14), min_size=60, max_size=90))
def test_one_file_is_split_by_position_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"{line}x\n" for line in lines), encoding="utf-8")
    corpus = find_corpus(str(path))
    found = [text for name in SPLITS for text, _ in corpus.splits[name].fragments()]
    assert found == [f"{line}x" for line in lines]
    assert corpus.splits["train"].size >= 0.85 * path.stat().st_size
    assert "split by position: train bytes 0 to" in corpus.remark


def test_a_line_without_words_is_split_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("春眠不覚暁" * 2001, encoding="utf-8")
    splits = find_corpus(str(path)).splits
    assert "".join(text for split in splits.values() for text, _ in split.fragments()) == "春眠不覚暁" * 2001


def test_one_long_line_is_split_between_words(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{number}" for number in range(2000)))
    splits = find_corpus(str(path)).splits
    words = [word for split in splits.values() for text, _ in split.fragments() for word in text.split()]
    assert words == [f"w{number}" for number in range(2000)]


def test_token_files_hold_the_text(tmp_path: Path) -> None:
    corpus = find_corpus(str(TINY))
    tokenizer = make_tokenizer(TokenizerConfig("word", 100), texts(corpus.splits["train"].fragments()))
    files = encode_corpus(corpus, tokenizer, tmp_path)
    for name, file in files.items():
        text = (TINY / f"{name}.txt").read_text()
        ids = file.open(token_path(tmp_path, name))
        assert ids.tolist() == tokenizer.encode(text)
        assert (file.bytes, file.words) == (len(text.encode()), len(text.split()) + text.count("\n"))
        assert file.unknown == ids.tolist().count(tokenizer.unk_id) > 0
    token_path(tmp_path, "valid").write_bytes(b"\1\0")
    with pytest.raises(UnusableFileError, match="changed since the run began"):
        files["valid"].open(token_path(tmp_path, "valid"))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_token_files_are_as_narrow_as_possible(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids = np.array([0, vocab_size - 1])
    file = write_token_file(tmp_path / "x.bin", [ids], vocab_size=vocab_size, unk_id=None)
    assert file.dtype == dtype
    assert file.open(tmp_path / "x.bin").tolist() == ids.tolist()


def test_pydocs_is_python_s_documentation_and_its_splits_share_no_line(tmp_path: Path) -> None:
    folder = write_pydocs(tmp_path)
    splits = {name: (folder / f"{name}.txt").read_text("utf-8").splitlines() for name in SPLITS}
    lines = [line for split in splits.values() for line in split]
    assert len(lines) == len(set(lines)) > 30_000
    assert 0.02 < len(splits["valid"]) / len(lines) < 0.15
    assert any('The "if" statement is used for conditional execution' in line for line in lines)
    assert "Return a list of (size: int, traceback: tuple) tuples." in lines
    assert write_pydocs(tmp_path) == folder


def test_two_first_readers_of_pydocs_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two calls of lm-train that begin in a fresh folder at the same time."""
    code = (
        "from pathlib import Path; from lm_trainer.corpora.pydocs import write_pydocs as w; w(Path('data'))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    (folder,) = (tmp_path / "data").iterdir()
    assert {path.name for path in folder.iterdir()} == {f"{split}.txt" for split in SPLITS}


def test_a_source_that_cannot_be_read_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in {
        "abc.py": b'"""A docstring that is there."""',
        "ast.py": b"def f(:\n",
        "bdb.py": b"if 1:\n  x\n y\n",
        "cmd.py": b"'''never ends",
        "csv.py": b"x = " + b"(" * 100_000,
        "dis.py": b"\0",
        "enum.py": b"# coding: nothing\n",
        "glob.py": b"\xff",
    }.items():
        (tmp_path / name).write_bytes(source)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    found = {name: text for name, text in pydocs._docstrings() if text and (tmp_path / f"{name}.py").exists()}
    assert found == {"abc": "A docstring that is there."}


def test_unigram_perplexity_by_hand() -> None:
    train, valid = np.array([0, 0, 0, 1], dtype=np.uint16), np.array([0, 2], dtype=np.uint16)
    # Counts with one added: 4, 2, 1 of 7.
    assert unigram_perplexity(train, valid, 3) == pytest.approx((4 / 7 * 1 / 7) ** -0.5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server on this machine that has data/tiny and an archive of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        for split in SPLITS:
            archive.write(TINY / f"{split}.txt", f"inner/wiki.{split}.tokens")
            (folder / f"{split}.txt").write_bytes((TINY / f"{split}.txt").read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def sha256_of(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def served(server: str, digest: str, archive: bool) -> tuple[Download, ...]:
    """data/tiny as a download: three files, or an archive with that digest."""
    if archive:
        members = tuple((f"inner/wiki.{split}.tokens", f"{split}.txt") for split in SPLITS)
        return (Download("tiny.zip", f"{server}/tiny.zip", digest, members),)
    return tuple(
        Download(f"{split}.txt", f"{server}/{split}.txt", sha256_of(TINY / f"{split}.txt"))
        for split in SPLITS
    )


@pytest.mark.parametrize("archive", [False, True])
def test_a_known_corpus_is_fetched_once_and_checked_and_a_download_is_told(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: bool,
) -> None:
    digest = sha256_of(tmp_path / "served/tiny.zip")
    monkeypatch.setitem(datasets.DATASETS, "ptb", served(server, digest, archive))
    folder = fetch("ptb", tmp_path / "data")
    for split in SPLITS:
        assert (folder / f"{split}.txt").read_bytes() == (TINY / f"{split}.txt").read_bytes()
    assert capsys.readouterr().err.startswith(f"downloading {server}")
    monkeypatch.setitem(datasets.DATASETS, "ptb", served("http://127.0.0.1:9", digest, archive))
    assert fetch("ptb", tmp_path / "data") == folder
    assert capsys.readouterr().err == ""


def test_a_text_that_was_not_unpacked_whole_is_unpacked_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256_of(tmp_path / "served/tiny.zip")
    monkeypatch.setitem(datasets.DATASETS, "ptb", served(server, digest, True))

    def fill_disk(source: zipfile.ZipExtFile, length: int = -1) -> bytes:
        if source.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(source, 100)

    read = zipfile.ZipExtFile.read
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", fill_disk)
        with pytest.raises(OSError, match="No space left"):
            fetch("ptb", tmp_path / "data")
    folder = fetch("ptb", tmp_path / "data")
    for split in SPLITS:
        assert (folder / f"{split}.txt").read_bytes() == (TINY / f"{split}.txt").read_bytes()


def test_a_download_with_another_checksum_is_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tuple(replace(download, digest="sha256:" + "0" * 64) for download in served(server, "", False))
    monkeypatch.setitem(datasets.DATASETS, "ptb", wrong)
    with pytest.raises(UnusableFileError, match="ptb could not be fetched"):
        fetch("ptb", tmp_path / "data")
    assert not (tmp_path / "data/ptb/train.txt").exists()


def test_without_a_network_the_message_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "ptb", served("http://127.0.0.1:9", "", False))
    with pytest.raises(UnusableFileError, match=r"put train.txt into .*ptb and run the command again"):
        fetch("ptb", tmp_path)


def test_files_that_a_person_has_put_there_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "ptb"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text("mine\n")
    assert fetch("ptb", tmp_path) == folder


def test_every_known_corpus_has_a_checksum() -> None:
    for downloads in DATASETS.values():
        for download in downloads:
            algorithm, digest = download.digest.split(":")
            assert len(digest) == {"md5": 32, "sha256": 64}[algorithm]
