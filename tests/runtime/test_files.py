"""Text is read exactly and in bounded memory; files are written whole or not at all."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_runtime import files
from lm_runtime.files import UnusableFileError, read_pieces, write_whole

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT, st.integers(1, 40), st.integers(2, 30))
def test_pieces_make_up_the_text_whatever_the_block_and_piece_size(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, longest: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_BYTES", block)
        patch.setattr(files, "_LONGEST_PIECE", longest)
        pieces = list(read_pieces(path))
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n")
    expected = expected.removesuffix("\r") + "\n" if expected and not expected.endswith("\n") else expected
    assert "".join(piece + "\n" * ends for piece, ends in pieces) == expected


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "  ", "\t", "é"]), max_size=40), st.integers(2, 12))
def test_a_long_line_is_cut_only_where_no_word_suffers(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], longest: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_LONGEST_PIECE", longest)
        pieces = [piece for piece, _ in read_pieces(path)]
    for left, right in itertools.pairwise(pieces):
        forced = len(left) == longest
        assert forced or (right[0] == " " and not left[-1].isspace() and not right[1].isspace())


def test_a_character_across_two_blocks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a" * (files._READ_BYTES - 1) + "é\nb".encode())
    assert [piece[-1:] for piece, _ in read_pieces(path)][-2:] == ["é", "b"]


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
        list(read_pieces(path))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_whole(path) as file:
        file.write(b"new, but half")
        raise RuntimeError
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]
