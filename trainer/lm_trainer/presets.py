"""The recipes that ``lm-train --preset`` names, and what becomes of one with options.

``tests/benchmarks/recipes.py`` and ``characters.py`` measure them. Layers of 512 and more are trained in bf16
where the processor has it, which is 1.6 to 2 times as fast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lm_runtime.settings import settings_of
from lm_trainer.config import DEFAULT_VOCABULARY, ModelConfig, TokenizerConfig, TrainingConfig
from lm_trainer.families import FAMILIES

REPLAY = 0.2
"""The share of the earlier text in fine-tuning, where that is at hand."""


@dataclass(frozen=True)
class Preset:
    """A recipe with a name."""

    description: str
    """What it is for, in a few words."""
    tokenizer: TokenizerConfig
    """The vocabulary."""
    model: dict[str, Any]
    """Values for :class:`ModelConfig`."""
    training: TrainingConfig
    """The optimization."""

    def __post_init__(self) -> None:
        for name, (value, reason) in FAMILIES[self.model_type].fixed_training.items():
            if (found := getattr(self.training, name)) != value:
                raise ValueError(f"{name} must be {value} with {self.model_type} ({reason}), got {found}")

    @property
    def model_type(self) -> str:
        """The family."""
        return str(self.model.get("model_type", ModelConfig.model_type))

    @property
    def settings(self) -> dict[str, Any]:
        """Every value by its field's name; without those of the optimization where it does not apply."""
        values = {**dataclasses.asdict(self.tokenizer), **self.model}
        if FAMILIES[self.model_type].is_estimated:
            return values
        return {**values, **dataclasses.asdict(self.training)}

    def with_options(self, given: dict[str, Any]) -> Preset:
        """The preset with the values ``given`` in place of its own, each by its field's name.

        Another tokenizer than the preset's has a vocabulary of its own size, unless that is given.
        A tied model gets the projection that its sizes need, unless that, or tied and both sizes, are given.

        Raises:
            ValueError: a value is out of its range, or does not apply to the family.
        """
        model_type = given.get("model_type", self.model_type)
        settings_of(ModelConfig)["model_type"].check(model_type)
        family = FAMILIES[model_type]
        training = _part(TrainingConfig, given)
        if family.is_estimated and training:
            raise ValueError(
                f"{next(iter(training))} does not apply to {model_type}: it is estimated in one pass"
            )
        tokenizer = self._tokenizer(_part(TokenizerConfig, given))
        model = {
            **family.defaults,
            **self.model,
            **{name: value for name, (value, _) in family.fixed.items()},
            **_part(ModelConfig, given),
            "model_type": model_type,
            "vocab_size": tokenizer.vocab_size,
        }
        in_full = {"tied", "embedding_dim", "hidden_size"} <= given.keys()
        if not in_full and "projection" not in given.keys() | family.fixed.keys():
            model |= _projection(model)
        ModelConfig(**model)  # says now what would be wrong after the tokenizer's training
        if "dropout" in training:  # it stands for all places that are not named beside it
            training = {"dropout_input": None, "dropout_output": None, **training}
        training = {name: value for name, (value, _) in family.fixed_training.items()} | training
        return dataclasses.replace(
            self,
            tokenizer=tokenizer,
            model=model,
            training=dataclasses.replace(self.training, **training),
        )

    def _tokenizer(self, given: dict[str, Any]) -> TokenizerConfig:
        kind = given.get("tokenizer", self.tokenizer.tokenizer)
        if kind != self.tokenizer.tokenizer and kind in DEFAULT_VOCABULARY:
            given = {"vocab_size": DEFAULT_VOCABULARY[kind], **given}
        return dataclasses.replace(self.tokenizer, **given)


def _part(record: type, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are fields of a record."""
    names = {field.name for field in dataclasses.fields(record)}
    return {name: value for name, value in given.items() if name in names}


def _projection(model: dict[str, Any]) -> dict[str, int]:
    """The projection that a tied model's sizes need, where it has another one."""
    embedding_dim, hidden_size = (
        model.get(name, getattr(ModelConfig, name)) for name in ("embedding_dim", "hidden_size")
    )
    if not model.get("tied", ModelConfig.tied) or embedding_dim == (model.get("projection") or hidden_size):
        return {}
    return {"projection": 0 if embedding_dim == hidden_size else embedding_dim}


PRESETS = {
    "small": Preset(
        "byte-level BPE, small and tied: readable text from 2 MB in three minutes on 2 cores",
        TokenizerConfig("bpe", 2048),
        {"embedding_dim": 256, "hidden_size": 256, "num_layers": 1, "tied": True},
        TrainingConfig(
            epochs=4,
            batch_size=16,
            seq_len=48,
            dropout=0.1,
            optimizer="adamw",
            lr=0.006,
            initial_weights="scaled",
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=50,
            clip_norm=1.0,
        ),
    ),
    "quick": Preset(
        "words, in five minutes on 2 cores with bf16: 98.8 valid perplexity on the Penn Treebank",
        TokenizerConfig("word", 10_000),
        {"embedding_dim": 256, "hidden_size": 512, "num_layers": 1, "tied": True, "projection": 256},
        TrainingConfig(
            epochs=2,
            batch_size=20,
            seq_len=35,
            dropout=0.05,
            locked_dropout=True,
            optimizer="adamw",
            lr=0.005,
            initial_weights="scaled",
            schedule="cosine",
            warmup_steps=50,
            clip_norm=1.0,
        ),
    ),
    "word": Preset(
        "words, in seventy minutes on 2 cores with bf16: 76.6 valid perplexity on the Penn Treebank",
        TokenizerConfig("word", 10_000),
        {"embedding_dim": 400, "hidden_size": 800, "num_layers": 1, "tied": True, "projection": 400},
        TrainingConfig(
            epochs=18,
            batch_size=20,
            seq_len=35,
            dropout_input=0.4,
            dropout_output=0.5,
            locked_dropout=True,
            dropout_words=0.05,
            weight_drop=0.25,
            optimizer="adamw",
            lr=0.003,
            initial_weights="scaled",
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=1.0,
        ),
    ),
    "char": Preset(
        "characters of about a megabyte of English, in ten minutes on 2 cores with bf16",
        TokenizerConfig("char", 1000),
        {"embedding_dim": 64, "hidden_size": 512, "num_layers": 1, "tied": False},
        TrainingConfig(
            epochs=11,
            batch_size=32,
            seq_len=48,
            dropout_output=0.35,
            weight_drop=0.3,
            optimizer="adamw",
            lr=0.005,
            initial_weights="scaled",
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
        ),
    ),
    "awd-lstm": Preset(
        "words, for a GPU: after the AWD-LSTM of Merity et al. 2018 (theirs: 60.0 on the Penn Treebank)",
        TokenizerConfig("word", 10_000),
        {"embedding_dim": 400, "hidden_size": 1150, "num_layers": 3, "tied": True, "projection": 400},
        TrainingConfig(
            epochs=150,
            batch_size=40,
            seq_len=70,
            dropout=0.25,
            dropout_input=0.4,
            dropout_output=0.4,
            locked_dropout=True,
            dropout_words=0.1,
            weight_drop=0.5,
            optimizer="adamw",
            lr=0.003,
            initial_weights="scaled",
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=500,
            clip_norm=0.25,
        ),
    ),
    "tutorial": Preset(
        "PyTorch's RNN language-model tutorial: 134 valid perplexity on the Penn Treebank after epoch 2",
        TokenizerConfig("word", 10_000),
        {"embedding_dim": 128, "hidden_size": 1024, "num_layers": 1, "tied": False},
        TrainingConfig(epochs=5, batch_size=20, seq_len=30, optimizer="adam", lr=0.002, clip_norm=0.5),
    ),
}
