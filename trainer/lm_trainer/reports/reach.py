"""How far back a network's gradients reach: what one prediction's loss owes to each token before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from lm_runtime.files import UnusableFileError
from lm_trainer.families import FAMILIES, implementation
from lm_trainer.networks.base import LanguageModel
from lm_trainer.reports.baselines import unigram
from lm_trainer.reports.pictures import new_picture, save_picture
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

_TEXTS = 64
"""The most texts of which the mean is taken."""
_TOGETHER = 8
_COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:gray",
)


@dataclass(frozen=True)
class Reach:
    """Of a run: its network as it was trained, and one with new weights."""

    trained: NDArray[np.float64]
    """For distances of 0, 1, ... tokens the norm of the gradient, as a share of that of distance 0."""
    new: NDArray[np.float64]
    """The same before training."""
    texts: int
    """The number of texts of which it is the mean."""


def reach_of(run: Path, tokens: int = 100) -> Reach:
    """Measure a run's best network on its validation text.

    Args:
        run: its folder, or a checkpoint.
        tokens: how far back to look.

    Raises:
        UnusableFileError: the checkpoint cannot be used, or its model has no gradients.
        ValueError: the text is too short.
    """
    checkpoint = load_checkpoint(run)
    config, recipe = checkpoint.model_config, checkpoint.training_config
    model, _ = restore_model(checkpoint)
    if FAMILIES[config.model_type].is_estimated or recipe is None or not hasattr(model, "embedding"):
        raise UnusableFileError(run, f"an {config.model_type} model has no gradients by its embedding")
    ids = checkpoint.facts.held_out.numpy()
    if ids.size < tokens + 1:
        raise ValueError(
            f"tokens must be at most {ids.size - 1:,}, the length of the run's held-out text, got {tokens:,}"
        )
    fresh = implementation(config.model_type).new_model(
        config, recipe, lambda: unigram(ids, config.vocab_size)
    )
    rows = ids[: min(_TEXTS, ids.size // (tokens + 1)) * (tokens + 1)].reshape(-1, tokens + 1)
    trained, new = (gradient_reach(cast(LanguageModel, network), rows) for network in (model, fresh))
    return Reach(trained, new, len(rows))


def gradient_reach(model: LanguageModel, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much the last prediction's loss depends on the embedding of each token before it.

    Args:
        model: a network whose ``embedding`` has its tokens' rows last.
        rows: texts ``(texts, time + 1)``, of whose last tokens the loss is taken.

    Returns:
        the gradient's norm for distances 0 to time - 1 ``(time,)``, a mean over the texts, as a share of that
        of distance 0.
    """
    own = cast(nn.Embedding, model.embedding)
    before = own.num_embeddings - model.config.vocab_size
    total = np.zeros(rows.shape[1] - 1)
    try:
        for start in range(0, len(rows), _TOGETHER):
            part = torch.from_numpy(rows[start : start + _TOGETHER])
            token, target = part[:, :-1], part[:, -1]
            # A row of its own for each place: so the gradient of each can be told, whatever the network does.
            rows_read = torch.cat([own.weight[:before], own.weight[before + token.flatten()]]).detach()
            places = nn.Embedding(len(rows_read), own.embedding_dim, _weight=rows_read)
            model.embedding = places
            numbers = torch.arange(token.numel()).reshape(token.shape)
            x, _ = model.read(numbers, model.zero_state(len(token)))
            loss = F.cross_entropy(model.head(x[:, -1]), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, places.weight)
            norms = gradient[before:].norm(dim=1).reshape(token.shape)
            total += norms.sum(0).flip(0).double().numpy()
    finally:
        model.embedding = own
    shares: NDArray[np.float64] = total / total[0]
    return shares


def draw_reach(found: Mapping[str, Reach], path: Path) -> None:
    """Draw the curves of runs by their names, dotted before training, as PNG."""
    figure, axes = new_picture(
        "tokens back", "gradient of one prediction's loss,\nshare of the newest token's"
    )
    for number, (name, reach) in enumerate(found.items()):
        color = _COLORS[number % len(_COLORS)]
        for label, values, style in (("trained", reach.trained, "-"), ("new weights", reach.new, ":")):
            axes.semilogy(np.maximum(values, 1e-12), style, color=color, label=f"{name}, {label}")
    axes.set_ylim(1e-12, 3)
    axes.legend()
    save_picture(figure, path)
