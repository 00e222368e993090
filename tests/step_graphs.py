"""Small models of each family, and how far their step graphs are from torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch

from lm_runtime.bundle import BundleConfig
from lm_trainer.config import ModelConfig
from lm_trainer.networks.base import LanguageModel
from lm_trainer.networks.family import make_model

SHAPES = [(1, 1), (3, 5), (2, 64)]


def make(
    layers: int = 2, tied: bool = False, opset: int = 17, family: str = "lstm"
) -> tuple[LanguageModel, BundleConfig]:
    layers, window = (1, 5) if family == "window" else (layers, 0)
    config = ModelConfig(700, 40, 40 if tied else 28, layers, tied, family, window)
    model = make_model(config, torch.Generator().manual_seed(layers))
    bundle = BundleConfig(
        model_type=family,
        vocab_size=700,
        embedding_dim=40,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
        tokenizer="word",
        eos_token_id=0,
        bos_token_id=0,
        unk_token_id=1,
        states=model.states,
        window=window,
        opset=opset,
        vocabulary_sha256="0" * 64,
    )
    return model, bundle


def random_state(model: LanguageModel, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.randint(0, 1 + model.config.vocab_size, tensor.shape, generator=generator)
        for tensor in model.zero_state(batch)
    )


def largest_difference(model: LanguageModel, graph: onnx.ModelProto) -> float:
    session = ort.InferenceSession(graph.SerializeToString())
    worst = 0.0
    for batch, time in SHAPES:
        generator = torch.Generator().manual_seed(batch)
        token = torch.randint(0, 700, (batch, time), generator=generator)
        state = random_state(model, batch, generator)
        feeds = {tensor.name: array.numpy() for tensor, array in zip(model.states, state, strict=True)}
        outputs = ["logits", *(tensor.output for tensor in model.states)]
        found = session.run(outputs, {"token": token.numpy(), **feeds})
        with torch.no_grad():
            logits, after = model(token, state)
        worst = max(
            worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, (logits, *after), strict=True))
        )
    return worst


def shapes(graph: onnx.ModelProto) -> dict[str, list[str | int]]:
    """The shape of each input and output, its free axes by name."""
    return {
        tensor.name: [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.graph.input, *graph.graph.output)
    }
