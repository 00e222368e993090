"""What a fine-tuned run begins from: a checkpoint's network, weights and vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_runtime.files import UnusableFileError, open_regular
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig, TokenizerConfig
from lm_trainer.corpora.corpus import CorpusFacts
from lm_trainer.corpora.token_file import Ids
from lm_trainer.families import FAMILIES
from lm_trainer.presets import Preset
from lm_trainer.run.checkpoint import load_checkpoint, restore_model
from lm_trainer.run.folder import TOKEN_FILES
from lm_trainer.run.records import Origin

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pretrained:
    """A trained network and its vocabulary."""

    origin: Origin
    """The checkpoint."""
    config: ModelConfig
    """The network's sizes."""
    weights: dict[str, Tensor]
    """The network's tensors by their names."""
    tokenizer: Tokenizer
    """The vocabulary."""
    tokenizer_config: TokenizerConfig
    """How it was made."""
    corpus: CorpusFacts
    """What it was trained on."""
    token_files: Path
    """The folder where the token files of that are, if they are still there."""

    def text(self, split: str) -> Ids | None:
        """The token ids of a split of what it was trained on; None if they are not at hand."""
        try:
            return self.corpus.open(self.token_files, split)
        except UnusableFileError:
            return None

    def recipe(self, preset: Preset) -> Preset:
        """``preset`` with this network and this vocabulary in place of its own.

        Raises:
            ValueError: its training is not possible with the network.
        """
        # How the new text is read is the new run's.
        tokenizer = dataclasses.replace(self.tokenizer_config, unwrap=preset.tokenizer.unwrap)
        return dataclasses.replace(preset, tokenizer=tokenizer, model=dataclasses.asdict(self.config))


def read_pretrained(argument: str) -> Pretrained:
    """Read a checkpoint, or a run's folder's best one.

    Raises:
        UnusableFileError: it cannot be used, or holds a model that cannot be trained further.
    """
    checkpoint = load_checkpoint(Path(argument))
    path, config = checkpoint.path, checkpoint.model_config
    if FAMILIES[config.model_type].is_estimated:
        raise UnusableFileError(
            path, f"an {config.model_type} model, which is estimated: it cannot be trained further"
        )
    _, tokenizer = restore_model(checkpoint)
    with open_regular(path, "checkpoint") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Pretrained(
        Origin(str(Path(argument).resolve()), sha256),
        config,
        checkpoint.weights,
        tokenizer,
        checkpoint.facts.tokenizer_config,
        checkpoint.facts.corpus,
        path.parent / TOKEN_FILES,
    )
