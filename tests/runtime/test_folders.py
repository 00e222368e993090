"""A folder takes its place in one step, and nothing of anybody else's is followed, emptied or removed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from conftest import tree
from lm_runtime import folders
from lm_runtime.folders import folder_beside, remove, replace_folder, restore_folder, temporary_folder


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def test_what_stands_beside_a_folder_is_left_alone(tmp_path: Path) -> None:
    """Links and folders of the names that a version of the past had, and of those that are made now."""
    precious = make(tmp_path / "precious", "mine")
    for name in (".run.partial", ".run.replaced", ".run.0123456789abcdef.partial"):
        (tmp_path / name).symlink_to(precious)
    make(tmp_path / ".run.0000000000000000.partial", "theirs")
    before = tree(tmp_path)
    with folder_beside(tmp_path / "run") as partial:
        (partial / "file").write_text("new")
        replace_folder(partial, tmp_path / "run")
    assert tree(tmp_path) == before | {"run", "run/file"}
    assert (precious / "file").read_text() == "mine"


def test_two_processes_prepare_one_folder_under_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the second cannot see that there is a first."""
    monkeypatch.setattr(folders, "_require_alone", lambda folder: None)
    with folder_beside(tmp_path / "run") as one, folder_beside(tmp_path / "run") as two:
        assert one != two
        (one / "file").write_text("one")
        assert not list(two.iterdir())


def test_the_folders_above_are_removed_only_by_the_one_that_made_them(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with folder_beside(tmp_path / "theirs/ours/run"):
        pass
    assert tree(tmp_path) == {"theirs"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    make(tmp_path / "out", "old")
    with folder_beside(tmp_path / "out") as partial:
        (partial / "file").write_text("new")
        replace_folder(partial, tmp_path / "out")
    assert tree(tmp_path) == {"out", "out/file"}
    assert (tmp_path / "out/file").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_what_came_in_the_meantime_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)

    def check(replaced: Path) -> None:
        assert (replaced / "file").read_text() == "old"
        raise ValueError("not yours")

    make(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="not yours"), folder_beside(tmp_path / "out") as partial:
        (partial / "file").write_text("new")
        replace_folder(partial, tmp_path / "out", check)
    assert tree(tmp_path) == {"out", "out/file"}
    assert (tmp_path / "out/file").read_text() == "old"


def test_a_process_that_is_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    """Where two names cannot be exchanged."""
    make(tmp_path / "out", "old")
    code = (
        "import os, pathlib\n"
        "from lm_runtime import folders\n"
        "out = pathlib.Path('out')\n"
        "folders._exchange = lambda one, other: False\n"
        "with folders.folder_beside(out) as partial:\n"
        "    (partial / 'file').write_text('new')\n"
        "    folders.replace_folder(partial, out, check=lambda replaced: os._exit(9))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    restore_folder(tmp_path / "out")
    assert (tmp_path / "out/file").read_text() == "old"
    restore_folder(tmp_path / "out")


def test_no_reader_finds_a_folder_missing(tmp_path: Path) -> None:
    """Two renames in place of one exchange leave moments without one, which readers meet."""
    make(tmp_path / "out", "0")
    code = (
        "import pathlib, time\n"
        "until, reads = time.monotonic() + 1.5, 0\n"
        "while time.monotonic() < until:\n"
        "    assert pathlib.Path('out').is_dir()\n"
        "    reads += 1\n"
        "assert reads > 1000\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    number = 0
    while reader.poll() is None:
        number += 1
        with folder_beside(tmp_path / "out") as partial:
            (partial / "file").write_text(str(number))
            replace_folder(partial, tmp_path / "out")
    assert reader.returncode == 0
    assert number > 100
    assert tree(tmp_path) == {"out", "out/file"}


def test_links_are_removed_and_what_they_lead_to_is_not(tmp_path: Path) -> None:
    make(tmp_path / "precious", "mine")
    make(tmp_path / "out", "")
    (tmp_path / "out/link").symlink_to(tmp_path / "precious")
    remove(tmp_path / "out")
    assert tree(tmp_path) == {"precious", "precious/file"}


@pytest.mark.parametrize(
    "make_folder", [lambda: folder_beside(Path("a/run")), lambda: temporary_folder("x-")]
)
def test_nothing_is_left_where_no_more_files_can_be_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_folder: Callable[[], AbstractContextManager[Path]],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(OSError, match="Too many open files"), make_folder() as partial:
            for name in ("tokens", "tokens/deep"):
                make(partial / name, "")
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 256), hard))
            while True:
                taken.append(os.open(partial / "tokens/file", os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert len(taken) > 10
    assert not tree(tmp_path)


def test_an_exchange_that_fails_names_the_folder(tmp_path: Path) -> None:
    make(tmp_path / "one", "")
    with pytest.raises(OSError, match="nowhere") as error:
        folders._exchange(tmp_path / "one", tmp_path / "nowhere")
    assert error.value.errno == errno.ENOENT
