"""What an export takes from a checkpoint, or from an ARPA file; the only module that knows a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_export.arpa_reader import read_arpa
from lm_export.formats.arpa import arpa_names, prove_arpa
from lm_runtime.files import UnusableFileError
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.corpora.token_file import split_figures
from lm_trainer.corpora.tokenizer_form import with_line_breaks
from lm_trainer.corpora.vocabulary import word_tokenizer
from lm_trainer.families import FAMILIES, Model
from lm_trainer.ngram.model import NgramLM
from lm_trainer.run.checkpoint import load_checkpoint, restore_model
from lm_trainer.tensors import HAS_TORCH, array_of

_NGRAM = "ngram"
_PROVEN_LINES = 1000


@dataclass(frozen=True)
class Source:
    """A trained model and what is known of it."""

    model: Model
    """The network or the tables."""
    tokenizer: Tokenizer
    """Its vocabulary, in the form of today's bundles."""
    config: ModelConfig
    """Its sizes."""
    held_out: NDArray[np.int64]
    """The beginning of the validation text, ``(tokens,)``, for proofs."""
    training: dict[str, Any]
    """Facts about the training, for ``config.json`` and the card."""


def needs_torch(path: Path) -> bool:
    """Whether a checkpoint's export needs torch: all do that are no tables, and all that cannot be read."""
    if HAS_TORCH:
        return True
    try:
        return not FAMILIES[load_checkpoint(path).model_config.model_type].is_estimated
    except UnusableFileError:
        return True


def read_source(path: Path, tokenizer: Path | None = None) -> Source:
    """Read a checkpoint, or a run's folder (then its best one), or an n-gram model of another tool.

    Args:
        path: a checkpoint, a folder, or a file named ``*.arpa``.
        tokenizer: the tokenizer.json of an ARPA file's tokens; by default they are words.

    Raises:
        UnusableFileError: the file cannot be used.
        ValueError: ``tokenizer`` is given with a checkpoint, which has its own.
        ExportError: what was read of an ARPA file does not give its probabilities.
    """
    if path.suffix == ".arpa":
        return _arpa_source(path, tokenizer)
    if tokenizer is not None:
        raise ValueError("--tokenizer is for an ARPA file; a checkpoint has its own")
    return _checkpoint_source(path)


def _checkpoint_source(path: Path) -> Source:
    checkpoint = load_checkpoint(path)
    model, tokenizer = restore_model(checkpoint)
    corpus, progress = checkpoint.facts.corpus, checkpoint.progress
    # Within an epoch the weights are no longer those that were validated.
    validated = progress.epoch and not progress.window
    training = {
        "corpus": corpus.name,
        "train_tokens": corpus.splits["train"].tokens,
        "parameters": model.parameter_count(),
        "epoch": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "valid": split_figures(progress.valid_loss, corpus.splits["valid"]) if validated else None,
        "recipe": checkpoint.recipe,
        **({"unwrapped": True} if checkpoint.facts.tokenizer_config.unwrap else {}),
    }
    tokenizer = with_line_breaks(tokenizer)
    return Source(model, tokenizer, checkpoint.model_config, array_of(checkpoint.facts.held_out), training)


def _arpa_source(path: Path, tokenizer_file: Path | None) -> Source:
    given = None if tokenizer_file is None else Tokenizer.from_file(tokenizer_file)
    names, tables = read_arpa(path, None if given is None else arpa_names(given.tokens, given.eos_id))
    tokenizer = with_line_breaks(given) if given else word_tokenizer(names[2:])
    held_out = _text_of(tables)
    prove_arpa(path, tables, names, held_out)
    model = NgramLM.of(tables)
    family = {name: value for name, (value, _) in FAMILIES[_NGRAM].fixed.items()}
    config = ModelConfig(
        **{**family, "vocab_size": tables.vocab_size, "model_type": _NGRAM, "order": tables.order}
    )
    training = {"corpus": path.name, "imported": True, "parameters": model.parameter_count()}
    return Source(model, tokenizer, config, held_out, training)


def _text_of(tables: NgramTables) -> NDArray[np.int64]:
    """Lines of a model's longest n-grams, evenly from all of them: ``(tokens,)``."""
    count = tables.counts[-1]
    numbers = np.unique(np.linspace(0, max(0, count - 1), _PROVEN_LINES).astype(np.int64)[:count])
    columns = []
    for level in range(tables.order - 2, -1, -1):
        columns.append(tables.words[level][numbers].astype(np.int64))
        numbers = np.searchsorted(tables.offsets[level], numbers, side="right") - 1
    lines = np.stack([numbers, *reversed(columns), np.full(numbers.size, tables.eos_id)], axis=1)
    return np.append(tables.eos_id, lines)
