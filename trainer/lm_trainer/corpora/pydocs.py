"""The corpus ``pydocs``: Python's own manual and docstrings, read from the running interpreter.

The sources are parsed, not imported, so reading them runs nothing. Knows nothing about tokens.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from lm_runtime.files import write_text

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
_VALID_PERCENT = 6
_TEST_PERCENT = 6


def write_pydocs(data: Path) -> Path:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt`` into a folder of ``data`` and return it.

    A hash of its name decides in which split a topic or module is; a line that stood earlier, in any split,
    is dropped. The folder's name has the interpreter's version, on which the text depends.

    Raises:
        OSError: ``data`` cannot be written.
    """
    folder = data / f"pydocs-{platform.python_version()}"
    if (folder / "valid.txt").exists():
        return folder
    splits: dict[str, list[str]] = {"train": [], "test": [], "valid": []}
    seen: set[str] = set()
    for name, text in sorted({**dict(_topics()), **dict(_docstrings())}.items()):
        lines = splits[_split_of(name)]
        for line in text.expandtabs().splitlines():
            line = line.rstrip()
            if line and line.isprintable() and line not in seen:
                seen.add(line)
                lines.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():  # valid.txt is last: it says that the folder is complete
        write_text(folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    return folder


def _split_of(name: str) -> str:
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 100
    if percent < _VALID_PERCENT:
        return "valid"
    return "test" if percent < _VALID_PERCENT + _TEST_PERCENT else "train"


def _topics() -> Iterator[tuple[str, str]]:
    """The manual's topics, as ``help('topics')`` lists them."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except Exception:  # some distributions package it apart; the docstrings remain
        return
    for name, text in topics.items():
        yield f"topic {name}", text


def _docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of each module of the standard library, joined."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = parts[0].removesuffix(".py")
        if _LEFT_OUT.isdisjoint(parts) and module in sys.stdlib_module_names and module != "pydoc_data":
            yield ".".join(parts).removesuffix(".py"), "\n".join(_docstrings_of_source(path))
    for module in sys.builtin_module_names:
        yield module, "\n".join(_docstrings_of_builtin(module))


def _docstrings_of_source(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer parsers warn of escapes in old sources
            tree = ast.parse(path.read_bytes())
    except Exception:  # a source that this interpreter cannot read; the others remain
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _docstrings_of_builtin(name: str) -> Iterator[str]:
    """The docstrings of a module that is part of the interpreter itself."""
    module = importlib.import_module(name)
    for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        for value in (owner, *vars(owner).values()):
            docstring = getattr(value, "__doc__", None)
            if isinstance(docstring, str):
                yield inspect.cleandoc(docstring)
