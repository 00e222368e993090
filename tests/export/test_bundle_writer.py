"""What a bundle holds beside its models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import lm_runtime
from lm_export.bundle_writer import _write_config
from lm_runtime.bundle import read_bundle_config


def test_the_default_number_of_tokens_has_the_name_that_other_readers_look_for(family_bundle: Path) -> None:
    defaults = json.loads((family_bundle / "generation_config.json").read_text())
    assert defaults == {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "max_new_tokens": 200}
    assert lm_runtime.load(family_bundle).defaults.max_tokens == 200


def test_every_file_is_hashed_in_bounded_memory(small_bundle: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(read_bundle_config(small_bundle), files={})
    (tmp_path / "onnx").mkdir()
    with (tmp_path / "onnx/large").open("wb") as file:
        os.truncate(file.fileno(), 64 << 20)
    tracemalloc.start()
    written = _write_config(tmp_path, config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written.files == {"onnx/large": hashlib.sha256(bytes(64 << 20)).hexdigest()}
    assert read_bundle_config(tmp_path) == written
    assert peak < 4 << 20
