"""What a fine-tuned run begins from: a checkpoint's network, weights and vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import BEST, ModelConfig, Preset, TokenizerConfig
from lm_trainer.run.checkpoint import load_checkpoint, restore_model


@dataclass(frozen=True)
class Pretrained:
    """A trained network and its vocabulary."""

    path: str
    """The checkpoint or the run's folder, from the root on."""
    sha256: str
    """Of its file."""
    config: ModelConfig
    """The network's measures."""
    weights: dict[str, Tensor]
    """The network's tensors by their names."""
    tokenizer: Tokenizer
    """The vocabulary."""
    tokenizer_config: TokenizerConfig
    """How it was made."""

    def recipe(self, preset: Preset) -> Preset:
        """``preset`` with this network and this vocabulary in place of its own.

        Raises:
            ValueError: its training is not possible with the network.
        """
        return dataclasses.replace(
            preset, tokenizer=self.tokenizer_config, model=dataclasses.asdict(self.config)
        )


def read_pretrained(argument: str) -> Pretrained:
    """Read a checkpoint, or a run's folder's best one.

    Raises:
        UnusableFileError: it cannot be used, or holds an n-gram model.
    """
    path = Path(argument)
    path = path / BEST if path.is_dir() else path
    content = load_checkpoint(path)
    model, tokenizer = restore_model(path, content)
    if isinstance(model, NgramTables):
        raise UnusableFileError(path, "an n-gram model, which is counted: it cannot be trained further")
    with open_regular(path, "checkpoint") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        tokenizer_config = TokenizerConfig(**content["tokenizer_config"])
    except (TypeError, ValueError) as error:
        raise UnusableFileError(path, f"damaged: {error}") from None
    return Pretrained(
        str(Path(argument).resolve()), sha256, model.config, model.state_dict(), tokenizer, tokenizer_config
    )
