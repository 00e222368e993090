"""Text is read exactly and in bounded memory, of regular files; files are written atomically."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_runtime import files, text_files
from lm_runtime.files import UnusableFileError, write_text, write_whole
from lm_runtime.text_files import read_fragments

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT, st.integers(1, 40), st.integers(2, 30))
def test_fragments_make_up_the_text_whatever_the_sizes_of_blocks_and_fragments(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, longest: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_READ_BYTES", block)
        patch.setattr(text_files, "_LONGEST_FRAGMENT", longest)
        fragments = list(read_fragments(path))
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n")
    expected = expected.removesuffix("\r") + "\n" if expected and not expected.endswith("\n") else expected
    assert "".join(fragment + "\n" * ends for fragment, ends in fragments) == expected


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "  ", "\t", "é"]), max_size=40), st.integers(2, 12))
def test_a_long_line_is_cut_only_where_no_word_suffers(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], longest: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_LONGEST_FRAGMENT", longest)
        fragments = [fragment for fragment, _ in read_fragments(path)]
    for left, right in itertools.pairwise(fragments):
        forced = len(left) == longest
        assert forced or (right[0] == " " and not left[-1].isspace() and not right[1].isspace())


def test_a_character_across_two_blocks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a" * (text_files._READ_BYTES - 1) + "é\nb".encode())
    assert [fragment[-1:] for fragment, _ in read_fragments(path)][-2:] == ["é", "b"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"fine\n\xff\xfe", "not UTF-8: byte 5 is 0xff"),
        (b"cut \xe2\x82", "not UTF-8: byte 4 is 0xe2"),
        (b"x" * (1 << 20) + b"\x80", f"not UTF-8: byte {1 << 20} is 0x80"),
        (b"text\0more", "not a text file: byte 4 is NUL"),
    ],
)
def test_what_is_not_text_is_named_by_its_offset(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UnusableFileError, match=problem):
        list(read_fragments(path))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_whole(path) as file:
        file.write(b"new, but half")
        raise RuntimeError
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


@pytest.fixture(params=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to write a file, of which the file system allows the first or not."""
    if request.param == "named":
        monkeypatch.setattr(files, "_UNNAMED", 0)
    return str(request.param)


def test_a_file_is_written_with_the_rights_of_any_other(tmp_path: Path, way: str) -> None:
    (tmp_path / "other").write_text("")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_links_beside_a_file_and_in_its_place_are_not_followed(tmp_path: Path, way: str) -> None:
    (tmp_path / "precious").write_text("mine")
    for name in (".file.partial", "file"):
        (tmp_path / name).symlink_to("precious")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / ".file.partial").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_two_writers_have_two_files_and_the_last_one_stays(tmp_path: Path, way: str) -> None:
    with write_whole(tmp_path / "file") as one:
        with write_whole(tmp_path / "file") as two:
            one.write(b"one")
            two.write(b"two two")
        assert (tmp_path / "file").read_bytes() == b"two two"
    assert (tmp_path / "file").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_as_long_as_a_system_takes_is_written(tmp_path: Path, way: str) -> None:
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


def test_a_process_that_is_killed_as_it_writes_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from lm_runtime.files import write_whole\n"
        "with write_whole(pathlib.Path('file')) as file:\n"
        "    file.write(bytes(1 << 20))\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    if files._UNNAMED:  # Linux
        assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
        assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_no_more_files_can_be_opened(tmp_path: Path, way: str) -> None:
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"), write_whole(tmp_path / "file") as file:
            file.write(b"new")
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        taken.append(os.open(os.devnull, os.O_RDONLY))  # in place of the file that was given up
        with pytest.raises(OSError, match="Too many open files") as error, write_whole(tmp_path / "file"):
            pass
        assert error.value.filename == str(tmp_path / "file")
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What is in a folder, but is no regular file: opening one may wait for ever, or never end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "terminal").symlink_to("/dev/tty")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(tmp_path)  # the address of a socket is short
        listening.bind("socket")
        os.chdir(here)
        yield {name: tmp_path / name for name in ("fifo", "zeros", "terminal", "socket")}


@pytest.mark.parametrize("name", ["fifo", "zeros", "terminal", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(strange: dict[str, Path], name: str) -> None:
    path = strange[name]
    kind = {"fifo": "a pipe", "socket": "a socket"}.get(name, "a device")
    for read in (
        lambda: list(read_fragments(path)),
        lambda: text_files.read_text_file(path),
        lambda: files.read_regular(path, 10),
        lambda: files.open_regular(path),
        lambda: files.open_own(path),
    ):
        with pytest.raises(UnusableFileError, match=f"{name}: not a regular file") as error:
            read()
        assert kind in str(error.value) or "a link, or a pipe" in str(error.value)


def test_a_file_of_this_project_is_followed_nowhere(tmp_path: Path) -> None:
    """Where its name is known beforehand, others may have put something there."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").symlink_to("precious")
    (tmp_path / "second").hardlink_to(tmp_path / "precious")
    for name, problem in (("link", "a link"), ("second", "a second name")):
        with pytest.raises(UnusableFileError, match=problem):
            files.open_own(tmp_path / name)
    with files.open_own(tmp_path / "new") as file:
        file.write(b"one")
    with files.open_own(tmp_path / "new") as file:
        file.write(b"two")
        file.seek(0)
        assert file.read() == b"onetwo"
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.chown(tmp_path / "file", 12345, -1)
    with pytest.raises(UnusableFileError, match="another user's"):
        files.open_own(tmp_path / "file")
    os.chown(tmp_path, 12345, -1)  # a disk that has one owner for all
    files.open_own(tmp_path / "file").close()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(b"text"), "compressed by gzip; unpack it first"),
        (bz2.compress(b"text"), "compressed by bzip2; unpack it first"),
        (lzma.compress(b"text"), "compressed by xz; unpack it first"),
        ("text".encode("utf-16"), "UTF-16, where UTF-8 is needed; convert it first"),
        ("\ufefftext".encode("utf-16-be"), "UTF-16, where UTF-8 is needed; convert it first"),
        (b"PK\x03\x04\0\0", "a zip archive; unpack it first"),
    ],
)
def test_what_is_taken_for_a_text_by_mistake_is_called_what_it_is(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UnusableFileError, match=problem):
        list(read_fragments(tmp_path / "text"))


def test_an_open_descriptor_is_read_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one\ntwo\n")
    with (tmp_path / "text").open("rb", buffering=0) as file:
        file.read(4)
        path = Path(f"/dev/fd/{file.fileno()}")
        assert list(read_fragments(path)) == [("two", True)]
        assert list(read_fragments(path)) == []
        assert file.tell() == 8
        assert text_files.is_read_once(path)
    with pytest.raises(UnusableFileError, match="closed"):
        list(read_fragments(path))
    assert not text_files.is_read_once(tmp_path / "text")


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    source, sink = os.pipe()
    os.set_blocking(source, False)
    code = f"import os, time; time.sleep(0.3); os.write({sink}, b'late\\n')"
    writer = subprocess.Popen([sys.executable, "-c", code], pass_fds=[sink])
    os.close(sink)
    assert list(read_fragments(Path(f"/dev/fd/{source}"))) == [("late", True)]
    assert writer.wait() == 0
    os.close(source)
