"""Every example of every --help, and every command and Python block of a page, runs as it stands.

Examples are found, not listed. In a page, a fence with no word, ``sh``, ``bash`` or ``console`` has commands,
``python`` has Python; any other word, such as ``text``, says that the block is not to be run. In a transcript
(lines that begin with ``$``) ``cat FILE`` shows what the file holds, and the output of a command that reads
this repository's fixture is compared to the byte. Lines with placeholders in capitals are synopses.

What makes them short: the names that they use (``ptb``, ``my-text.txt``, ``my-run``, ``my-bundle`` ...) stand
for tiny texts and models in the folder where each one runs, and :data:`_SHORT` is put before what an example
says itself.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pyarrow.parquet
import pytest
import sentencepiece

from conftest import ROOT, TINY, exit_status

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SHORT = {"lm-train": ["--sample-tokens", "5", "--epochs", "1"], "lm-bench": ["--tokens", "10"]}
"""Options with which commands take seconds; the example's own come later and stand."""
_BINARIES = Path(sys.executable).parent
_COMMANDS = {
    "lm-train": "lm_trainer.command",
    "lm-compare": "lm_trainer.commands.compare",
    "lm-reach": "lm_trainer.commands.reach",
    "lm-export": "lm_export.command",
    "lm-generate": "lm_runtime.commands.generate",
    "lm-score": "lm_runtime.commands.score",
    "lm-bench": "lm_runtime.commands.bench",
    "lm-serve": "lm_runtime.commands.serve",
}
"""The module of each command."""
_PAGES = [
    *[path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()],
    *sorted(path for path in ROOT.glob("*/README.md") if path.parent.name != "tests"),
    ROOT / "runtime/SERVER.md",
    ROOT / "tests/fixtures/tiny_bundle/README.md",
]
_RUN = ("", "sh", "bash", "console")
_EVERY_STATUS = 'for s in "${PIPESTATUS[@]}"; do case $s in 0|141) ;; *) exit $s ;; esac; done'
"""Every command of a pipe has to end well; 141 is a `sort` whose reader, `head`, has seen enough."""
_SYNOPSIS = re.compile(r"(^|\s)\[|\b(BUNDLE|FILE|CORPUS|CHECKPOINT|RUN|NAME)\b")
_SHELL = re.compile(r"[|<>`]|\$\(|&&")
_OUT = {"lm-train": "artifacts/run", "lm-export": "artifacts/bundle"}
"""Where commands write if the call does not say."""


@dataclass(frozen=True)
class Example:
    """What a reader would copy."""

    source: str
    """Where it stands."""
    text: str
    """A command's line, or a block of Python."""
    is_python: bool = False
    """Which of the two."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that the page shows before it."""
    shown: str | None = None
    """What the page shows as its output."""

    def __str__(self) -> str:
        return f"{self.source}: {self.text.strip().splitlines()[0][:70]}"


def command_of(name: str) -> click.Command:
    found: click.Command = importlib.import_module(_COMMANDS[name]).main
    return found


def in_help(name: str) -> Iterator[Example]:
    """The examples below a command's options; what is said of each stands apart by two spaces."""
    block = (command_of(name).epilog or "").partition("Examples:\n")[2].partition("\n\n")[0]
    for line in block.splitlines():
        yield Example(f"{name} --help", re.split(r"\s{2,}", line.strip())[0])


def in_page(path: Path) -> Iterator[Example]:
    """The examples of a page."""
    page = path.relative_to(ROOT).as_posix()
    files: dict[str, str] = {}
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
        kind, block = match.groups()
        if kind == "python":
            yield Example(page, block, is_python=True, files=dict(files))
        elif kind in _RUN and block.startswith("$ "):
            for entry in block.removeprefix("$ ").split("\n$ "):
                text, _, shown = entry.partition("\n")
                if text.startswith("cat "):
                    files[text.split()[1]] = shown if shown.endswith("\n") else f"{shown}\n"
                elif is_ours(text):
                    yield Example(page, text, files=dict(files), shown=shown)
        elif kind in _RUN:
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if is_ours(line) and not _SYNOPSIS.search(line):
                    yield Example(page, line, files=dict(files))


def is_ours(line: str) -> bool:
    """Whether a line is a command with one of the project's in it."""
    words = re.split(r"[\s|]+", line.partition(" #")[0])
    first = next((word for word in words if "=" not in word), "")
    return first in (*_COMMANDS, "torchrun", "echo") and not _COMMANDS.keys().isdisjoint(words)


def distinct() -> list[Example]:
    """All examples; what stands in several places is run once."""
    found = [example for name in _COMMANDS for example in in_help(name)]
    found += [example for page in _PAGES for example in in_page(page)]
    return list({(e.text.partition(" #")[0].strip(), e.shown): e for e in reversed(found)}.values())[::-1]


EXAMPLES = distinct()


def test_no_command_is_forgotten() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert _COMMANDS.keys() == scripts.keys() - {"lm-eval-steplm"}  # whose help is lm-eval's own


def call(name: str, *arguments: str, cwd: Path) -> int:
    """Run a command within this process."""
    with contextlib.chdir(cwd):
        return exit_status(command_of(name), *arguments)


def serve(arguments: list[str], cwd: Path) -> None:
    """Run lm-serve until its page is there."""
    command = [str(_BINARIES / "lm-serve"), *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files, runs and bundles by the names that the examples use."""
    folder = tmp_path_factory.mktemp("stage")
    text = (TINY / "train.txt").read_text()
    lines = (TINY / "valid.txt").read_text().splitlines()
    for name in ("my-folder", "data/ptb", f"data/pydocs-{platform.python_version()}"):
        shutil.copytree(TINY, folder / name)
    for name in ("valid.txt", "test.txt"):
        shutil.copy(TINY / name, folder)
    (folder / "my-text.txt").write_text(text)
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "sentences.txt").write_text("\n".join(lines[:4]) + "\n")
    (folder / "lists.txt").write_text(f"u1 -3.5 {lines[0]}\nu1 -3.25 {lines[1]}\n")
    shutil.copy(folder / "lists.txt", folder / "dev.txt")
    (folder / "dev.ref").write_text(f"u1 {lines[0]}\n")
    (folder / "nbest.out").write_text(f"0 ||| {lines[0]} ||| LM0= -1 ||| -3.5\n0 ||| a ||| LM0= -1 ||| -3\n")
    (folder / "hyps.jsonl").write_text('{"utt": "u1", "am": -3.5, "hyp": "the keeper"}\n')
    (folder / "weights.json").write_text('{"lm_weight": 0.5}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "the", "max_tokens": 3}\n{"prompt": "a", "seed": 2}\n')

    def run(name: str, *arguments: str) -> None:
        assert call(name, *arguments, cwd=folder) == 0

    sizes = ["--vocab-size", "300", "--embedding-dim", "16", "--hidden-size", "32"]
    run("lm-train", "my-text.txt", "--out", "my-run", *sizes, *_SHORT["lm-train"])
    run("lm-export", "my-run", "--out", "my-bundle", "--quantize", "int8")
    counted = ["--model", "ngram", "--tokenizer", "my-run/tokenizer.json", "--sample-tokens", "5"]
    run("lm-train", "my-text.txt", "--out", "my-ngrams", *counted)
    run("lm-export", "my-ngrams", "--out", "my-ngram")
    run("lm-generate", "my-bundle", "--prompt", "Once", "--max-tokens", "5", "--save-state", "tale.npz")
    write_collections(folder, [*lines, *text.splitlines()])
    units = folder / "my-recognizer"
    units.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(TINY / "train.txt"), model_prefix=str(units / "bpe"), vocab_size=150, minloglevel=2
    )
    run("lm-train", "my-text.txt", "--out", "my-asr-run", "--tokenizer", str(units / "bpe.model"), *sizes[2:])
    run("lm-export", "my-asr-run", "--out", "my-asr-bundle")
    shutil.copy(folder / "my-asr-bundle/tokens.txt", units / "tokens.txt")
    for name in ("artifacts/run", "ptb-run"):
        shutil.copytree(folder / "my-run", folder / name)
    for name in ("artifacts/bundle", "ptb-bundle"):
        shutil.copytree(folder / "my-bundle", folder / name)
    (folder / "tests").mkdir()
    (folder / "tests/fixtures").symlink_to(ROOT / "tests/fixtures")
    (folder / "tiny_bundle").symlink_to(ROOT / "tests/fixtures/tiny_bundle")
    wrapper = folder / "bin/lm-train"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nexec {shlex.quote(str(_BINARIES / "lm-train"))} {shlex.join(_SHORT["lm-train"])} "$@"\n'
    )
    wrapper.chmod(0o755)
    return folder


def write_collections(folder: Path, lines: list[str]) -> None:
    """Documents as people have them: ``news``, ``books`` and ``crawl``."""
    records = [{"text": line, "body": line} for line in lines]
    spelled = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    for name in ("news", "books", "crawl", "more"):
        (folder / name).mkdir()
    (folder / "names.jsonl").write_bytes(spelled)
    (folder / "more/names.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "held-out.txt").write_text("\n".join(lines) + "\n")
    (folder / "news/today.jsonl").write_bytes(spelled)
    (folder / "news.jsonl.zst").write_bytes(zstd.compress(spelled))
    (folder / "news.jsonl.gz").write_bytes(gzip.compress(spelled))
    (folder / "books/one.txt").write_text("\n".join(lines) + "\n")
    (folder / "books/two.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    for name in ("crawl.parquet", "crawl/part.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / name)


def set_up(example: Example, stage: Path, folder: Path) -> None:
    """The stage as the example finds it: where it writes there is nothing yet, unless it says so."""
    words = [] if example.is_python else shlex.split(example.text, comments=True)
    default = next((_OUT[word] for word in words if word in _OUT), "")
    out = words[words.index("--out") + 1] if "--out" in words else default
    for path in [*stage.iterdir(), *(stage / "artifacts").iterdir()]:
        name = path.relative_to(stage).as_posix()
        if name == "artifacts":
            (folder / name).mkdir()
        elif name != out:
            (folder / name).symlink_to(path)
        elif {"--resume", "--force"} & set(words):
            shutil.copytree(path, folder / name)
    for name, content in example.files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_it_runs(example: Example, stage: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    set_up(example, stage, tmp_path)
    if example.is_python and "__main__" in example.text:  # it starts processes: a script of its own
        (tmp_path / "example.py").write_text(example.text)
        script = [sys.executable, "example.py"]
        result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return
    if example.is_python:
        with contextlib.chdir(tmp_path):
            exec(compile(example.text, example.source, "exec"), {"__name__": "__main__"})
        return
    words = shlex.split(example.text, comments=True)
    if _SHELL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", example.text)) or words[0] not in _COMMANDS:
        path = os.pathsep.join([str(stage / "bin"), str(_BINARIES), os.environ["PATH"]])
        result = subprocess.run(
            ["bash", "-c", f"{example.text}\n{_EVERY_STATUS}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PET_STANDALONE": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return
    if words[0] == "lm-serve":
        serve(words[1:], tmp_path)
        return
    words[1:1] = _SHORT.get(words[0], [])[: 2 if "ngram" in words else None]  # which has no epochs
    capfd.readouterr()
    code = call(*words, cwd=tmp_path)
    out, err = capfd.readouterr()
    if "cuda" in words and "not available" in err:
        return  # it says so where there is no GPU
    assert code == 0, err[-3000:]
    if example.shown is not None and "tests/fixtures/tiny_bundle" in words:
        assert out.rstrip("\n") == example.shown.rstrip("\n")


def test_every_command_has_examples_and_the_front_page_has_python() -> None:
    for name in _COMMANDS:
        assert len(list(in_help(name))) >= 2, name
    assert any(example.is_python for example in in_page(ROOT / "README.md"))
    assert any("lm-train" in example.text for example in in_page(ROOT / "README.md"))
