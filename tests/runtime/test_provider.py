"""Which provider is asked for and which is taken, without a GPU: onnxruntime is told what to say it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import lm_runtime
from conftest import FIXTURE
from lm_runtime.models import onnx as model_module
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.stepper import BoundStepper

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeRuntime:
    """onnxruntime's CUDA build on a machine where CUDA starts, or does not."""

    def __init__(self, starts: bool) -> None:
        self.asked: list[str] = []
        self._starts = starts
        self.InferenceSession = self._open

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def _open(self, graph: bytes, options: Any, providers: list[str], **others: Any) -> Any:
        self.asked = providers
        session = ort.InferenceSession(graph, options, providers=[CPU], **others)
        if self._starts and CUDA in providers:
            session.get_providers = lambda: providers
        return session


@pytest.fixture
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime(request.param)
    monkeypatch.setattr(model_module, "ort", fake)
    return fake


@pytest.mark.parametrize(
    ("runtime", "provider", "asked", "taken"),
    [
        (True, "auto", [CUDA, CPU], "cuda"),
        (False, "auto", [CUDA, CPU], "cpu"),
        (True, "cuda", [CUDA], "cuda"),
        (True, "cpu", [CPU], "cpu"),
    ],
    indirect=["runtime"],
)
def test_auto_takes_cuda_where_it_starts(
    runtime: FakeRuntime, provider: Any, asked: list[str], taken: str
) -> None:
    model = OnnxModel(FIXTURE, provider=provider)
    assert (runtime.asked, model.provider) == (asked, taken)


@pytest.mark.parametrize("runtime", [False], indirect=True)
def test_cuda_that_does_not_start_is_an_error_where_it_was_asked_for(runtime: FakeRuntime) -> None:
    with pytest.raises(ValueError, match="provider cuda is not available: onnxruntime has it, but could not"):
        OnnxModel(FIXTURE, provider="cuda")


def test_states_stay_on_the_device_and_token_and_logits_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    placed: list[tuple[tuple[int, ...], str]] = []
    make = ort.OrtValue.ortvalue_from_numpy

    def place(array: Any, device: str = "cpu") -> Any:
        placed.append((array.shape, device))
        return make(array)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", place)
    state = lm_runtime.initial_state(model, 3)
    stepper = BoundStepper(model._session, model.states, state, model.tokenizer.vocab_size, "cuda")
    host = [shape for shape, device in placed if device == "cpu"]
    assert host == [(3, 1), (3, 1, model.tokenizer.vocab_size)]
    assert [shape for shape, device in placed if device == "cuda"] == [array.shape for array in state] * 2
    logits = stepper.step([1, 2, 3])
    expected, after = model.step(np.array([[1], [2], [3]]), state)
    assert np.array_equal(logits, expected[:, 0])
    assert all(map(np.array_equal, stepper.state(), after))
