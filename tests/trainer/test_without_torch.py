"""n-grams are estimated, resumed and exported where torch, and all that comes with it, is not installed."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import COUNTED, TINY, Invoke, tree
from lm_export.command import main as lm_export
from lm_trainer.command import main as lm_train
from lm_trainer.run.torch_file import read_torch_file, write_torch_file

BASE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript", "matplotlib", "tqdm", "pooch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from lm_{0}.command import main
main(sys.argv[1:])
"""
"""An install without the extra for training."""


def base(package: str, *arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BASE.replace("{0}", package), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result


def test_ngrams_need_no_torch_and_are_the_same(invoke: Invoke, tmp_path: Path) -> None:
    options = [TINY, "--model", "ngram", *COUNTED, "--sample-tokens", 20]
    told = base("trainer", *options, "--out", "base", cwd=tmp_path).stderr
    assert invoke(lm_train, *options, "--out", "whole")[0] == 0
    assert tree(tmp_path / "whole") - tree(tmp_path / "base") == {"loss.png"}
    assert "note: no picture base/loss.png: matplotlib is not installed" in told
    for name in ("sample.txt", "config.toml", "tokenizer.json"):
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = base("trainer", "--out", "whole", "--resume", cwd=tmp_path).stderr
    assert "whole is complete: nothing to do" in again
    base("export", "base", "--out", "base-bundle", "--arpa", cwd=tmp_path)
    assert invoke(lm_export, "base", "--out", "whole-bundle")[0] == 0  # with torch, what was written without
    tables = [tmp_path / f"{name}-bundle/ngram/model.ngram" for name in ("base", "whole")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_what_needs_torch_names_the_extra(tmp_path: Path, small_run: Path) -> None:
    for package, name, arguments in (
        ("trainer", "lm-train", [TINY, "--out", "run"]),
        ("trainer", "lm-train", ["--out", small_run, "--resume"]),
        ("export", "lm-export", [small_run, "--out", "bundle"]),
    ):
        error = base(package, *arguments, cwd=tmp_path, code=1).stderr
        assert error.startswith(f"{name}: ")
        assert error.endswith("install the training extra: pip install '.[train]' in steplm's folder\n")
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


CONTENT: dict[str, Any] = {
    "ids": np.arange(7),
    "bytes": np.frombuffer(b"tables", np.uint8),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "none": np.zeros(0, np.float64),
    "plain": {"a": [1, -5, 2**40, 2**70, 1e-300, True, None], "b": ("x" * 300, "é"), "c": {}},
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        other = np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def test_torch_reads_what_numpy_wrote_and_the_other_way_round(tmp_path: Path) -> None:
    with (tmp_path / "numpy.pt").open("wb") as file:
        write_torch_file(CONTENT, file)
    for mapped in (False, True):
        assert same(CONTENT, torch.load(tmp_path / "numpy.pt", weights_only=True, mmap=mapped))
    tensors = {
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for name, value in CONTENT.items()
    }
    torch.save(tensors | {"matrix": tensors["matrix"].t().contiguous().t()}, tmp_path / "torch.pt")
    for name in ("numpy.pt", "torch.pt"):
        assert same(CONTENT, read_torch_file(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "numpy.pt") as archive, (tmp_path / "numpy.pt").open("rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2").sum()
            assert (entry.header_offset + 30 + lengths) % 64 == 0


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


def test_a_file_that_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_torch_file(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_torch_file({"ids": np.arange(7)}, buffer)
    whole = buffer.getvalue()
    for changed in (b"K\x07\x85q", b"K\x08\x85q"), (b"K\x00K\x07", b"K\x02K\x07"):
        if changed[0] in whole:
            (tmp_path / "x.pt").write_bytes(whole)
            with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(tmp_path / "x.pt", "w") as other:
                for name in archive.namelist():
                    other.writestr(name, archive.read(name).replace(*changed))
            with pytest.raises(ValueError, match="larger than its memory"):
                read_torch_file(tmp_path / "x.pt")
            return
    pytest.fail("the pickle has another form")
