"""What a run is made of: its checkpoints' names, its records, and what a recipe is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lm_runtime.bundle import HIGHEST_ORDER
from lm_trainer.families import FAMILIES

LAST = "last.pt"
"""The newest state of a run, for resuming. Every run has one from its beginning on."""
BEST = "best.pt"
"""The state of the lowest validation loss, once an epoch is complete."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How the corpus is cut into tokens."""

    tokenizer: str = "bpe"
    """word, char, bpe, or the path of a ``tokenizer.json`` or of a SentencePiece ``.model``."""
    vocab_size: int = 2048
    """The most tokens in the vocabulary, ``<eos>`` and ``<unk>`` included."""
    min_frequency: int = 1
    """Words, characters or merges that come less often are left out."""

    def __post_init__(self) -> None:
        _within("vocab_size", self.vocab_size, 3, 1 << 24)
        _within("min_frequency", self.min_frequency, 1, 1 << 31)

    @property
    def is_file(self) -> bool:
        """Whether a file is given, which has its vocabulary."""
        return self.tokenizer.endswith((".json", ".model"))


OPTIONS = {"model_type": "model", "num_layers": "layers"}
"""The options of ``lm-train`` that are not called what their fields are."""


@dataclass(frozen=True)
class ModelConfig:
    """The network: embedding, hidden layers, output layer."""

    vocab_size: int
    """The number of tokens."""
    embedding_dim: int = 256
    """The width of the embedding."""
    hidden_size: int = 256
    """The width of each hidden layer."""
    num_layers: int = 1
    """How many hidden layers are stacked."""
    tied: bool = True
    """Whether the output layer shares the embedding's weights (Press and Wolf 2017)."""
    model_type: str = "lstm"
    """The family, one of :data:`FAMILIES`."""
    window: int = 0
    """How many tokens a ``window`` model predicts the next one from; 0 in the other families."""
    order: int = 0
    """The length of the longest n-grams of an ``ngram`` model; 0 in the other families."""
    projection: int = 0
    """The width to which a linear layer brings the last hidden layer for the output layer; 0 for none."""

    def __post_init__(self) -> None:
        if self.vocab_size < 3:
            raise ValueError(
                f"the vocabulary has {self.vocab_size} tokens; a language model needs at least 3"
            )
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {self.model_type}")
        for name, (value, reason) in FAMILIES[self.model_type].fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value} with {self.model_type} ({reason}), got {getattr(self, name)}"
                )
        for name, low, high in (
            ("embedding_dim", 1, 1 << 16),
            ("hidden_size", 1, 1 << 16),
            ("num_layers", 1, 64),
            ("window", 2, 1 << 10),
            ("order", 1, HIGHEST_ORDER),
            ("projection", 0, 1 << 16),
        ):
            if name not in FAMILIES[self.model_type].fixed:
                _within(name, getattr(self, name), low, high)
        if self.tied and self.embedding_dim != self.head_size:
            raise ValueError(
                f"tied weights need embedding_dim equal to hidden_size, got {self.embedding_dim} and "
                f"{self.head_size}; make them equal, give --projection {self.embedding_dim}, or --no-tied"
                if not self.projection
                else f"tied weights need embedding_dim equal to projection, got {self.embedding_dim} and "
                f"{self.projection}; make them equal or give --no-tied"
            )

    @property
    def head_size(self) -> int:
        """The width that the output layer reads."""
        return self.projection or self.hidden_size

    def __str__(self) -> str:
        if self.order:
            return f"{self.model_type} of order {self.order}"
        read = f"{self.window} x {self.embedding_dim}" if self.window else f"{self.embedding_dim}"
        projected = f" -> {self.projection}" if self.projection else ""
        return f"{self.model_type} {read} -> {self.num_layers} x {self.hidden_size}{projected}"


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe of the optimization."""

    epochs: int = 5
    """Passes over the training text."""
    batch_size: int = 20
    """Columns into which the text is cut; each is read from its beginning to its end."""
    accumulate: int = 1
    """Groups of columns that are read one after the other for each step, so that less is in memory."""
    seq_len: int = 35
    """Steps of truncated backpropagation; the state is carried on, detached."""
    dropout: float = 0.0
    """Probability that an activation between layers is dropped (Zaremba et al. 2014)."""
    dropout_input: float | None = None
    """The same for what the first layer reads; None is ``dropout``."""
    dropout_output: float | None = None
    """The same for what the output layer reads; None is ``dropout``."""
    locked_dropout: bool = False
    """Whether a mask stays the same over a window's steps (Gal and Ghahramani 2016)."""
    dropout_words: float = 0.0
    """Probability that a word's embedding is dropped, wherever the window has it (the same)."""
    weight_drop: float = 0.0
    """Probability that a weight from a layer's hidden state to itself is dropped (Merity et al. 2018)."""
    optimizer: str = "adam"
    """adam, adamw or sgd."""
    lr: float = 0.002
    """Learning rate."""
    weight_decay: float = 0.0
    """L2 penalty; decoupled with adamw."""
    schedule: str = "constant"
    """constant, cosine or linear: how the learning rate falls over the run."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero; half the run's, where these are fewer."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all weights together; 0 does not clip."""
    clip_value: float = 0.0
    """Largest absolute value of a gradient's element; 0 does not clip."""
    precision: str = "fp32"
    """fp32, or bf16: matrix products in bfloat16, weights and what is summed over steps in float32."""
    patience: int = 0
    """Epochs without a better validation loss after which the run ends; 0 for never."""
    initial_weights: str = "torch"
    """torch: its layers' own. scaled: the first prediction is the tokens' frequencies in the training text,
    and a tied embedding is large enough to move the gates."""
    seed: int = 0
    """Of the weights and the dropout masks."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seq_len"):
            _within(name, getattr(self, name), 1, 1 << 20)
        _within("accumulate", self.accumulate, 1, self.batch_size)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be divisible by accumulate, got {self.batch_size} and {self.accumulate}"
            )
        for name in ("weight_decay", "warmup_steps", "clip_norm", "clip_value", "patience"):
            _within(name, getattr(self, name), 0, 1e9)
        _within("seed", self.seed, 0, 1 << 62)
        if self.initial_weights not in ("torch", "scaled"):
            raise ValueError(f"initial_weights must be torch or scaled, got {self.initial_weights}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision}")
        for name in ("dropout", "dropout_input", "dropout_output", "dropout_words", "weight_drop"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be above 0, got {self.lr}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not
        raise ValueError(f"{name} must be from {low} to {high:.0f}, got {value}")


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
        family = self.model.get("model_type", ModelConfig.model_type)
        for name, (value, reason) in FAMILIES[family].fixed_training.items():
            if (found := getattr(self.training, name)) != value:
                raise ValueError(f"{name} must be {value} with {family} ({reason}), got {found}")

    @property
    def settings(self) -> dict[str, Any]:
        """Every value by its field's name; n-grams are counted, without an optimization."""
        values = {**dataclasses.asdict(self.tokenizer), **self.model}
        if FAMILIES[self.model.get("model_type", ModelConfig.model_type)].is_estimated:
            return values
        return {**values, **dataclasses.asdict(self.training)}

    def with_options(self, given: dict[str, Any]) -> Preset:
        """The preset with the values ``given`` in place of its own, each by its field's name.

        Raises:
            ValueError: a value is out of its range.
        """

        def part(record: type) -> dict[str, Any]:
            names = {entry.name for entry in dataclasses.fields(record)}
            return {name: value for name, value in given.items() if name in names}

        tokenizer = dataclasses.replace(self.tokenizer, **part(TokenizerConfig))
        model_type = given.get("model_type", ModelConfig.model_type)
        family = FAMILIES[model_type]
        if family.is_estimated and (unused := list(part(TrainingConfig))):
            raise ValueError(f"{unused[0]} is of no use to {model_type}: it is counted in one pass")
        own = {**family.defaults, **{name: value for name, (value, _) in family.fixed.items()}}
        model = {
            **self.model,
            **own,
            "model_type": model_type,
            **part(ModelConfig),
            "vocab_size": tokenizer.vocab_size,
        }
        ModelConfig(**model)  # says now what would be wrong after the tokenizer's training
        recipe = part(TrainingConfig)
        if "dropout" in recipe:  # it is for all places that are not named beside it
            recipe = {"dropout_input": None, "dropout_output": None, **recipe}
        recipe = {name: value for name, (value, _) in family.fixed_training.items()} | recipe
        training = dataclasses.replace(self.training, **recipe)
        return dataclasses.replace(self, tokenizer=tokenizer, model=model, training=training)
