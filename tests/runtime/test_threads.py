"""How onnxruntime's threads wait: asleep, unless the user says otherwise as users of OpenMP do."""

from __future__ import annotations

from typing import Any

import pytest

import lm_runtime
from conftest import FIXTURE
from lm_runtime.models import onnx


@pytest.mark.parametrize(
    ("own", "spins"), [(None, "0"), ("passive", "0"), ("ACTIVE", "1"), ("active", "1")], ids=str
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None, spins: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    seen = []
    make_session = onnx._make_session

    def noticed(path: Any, content: Any, options: Any, providers: Any) -> Any:
        seen.append(options.get_session_config_entry("session.intra_op.allow_spinning"))
        return make_session(path, content, options, providers)

    monkeypatch.setattr(onnx, "_make_session", noticed)
    lm_runtime.load(FIXTURE, provider="cpu")
    assert seen == [spins]
