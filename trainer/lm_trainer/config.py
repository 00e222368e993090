"""The records of a recipe: its vocabulary, its model and its training.

Each field says once what all doors need of it: the command line, files of settings and checks. Knows nothing
about files and torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_runtime.bundle import HIGHEST_ORDER
from lm_runtime.settings import Setting, check, check_number, setting, settings_of
from lm_trainer.families import FAMILIES
from lm_trainer.ngram.pruning import numbers_of, pruning_thresholds

VOCABULARY = "Corpus and vocabulary"
_NETWORK = "Network"
_TRAINING = "Training"
MACHINE = "Machine"
_REGULARIZATION, _OPTIMIZER = "Regularization", "Optimizer"
_WIDEST = 1 << 16
_LARGEST = 1 << 20


DEFAULT_VOCABULARY = {"bpe": 2048, "word": 10_000, "words": 10_000, "char": 1000}
"""The most tokens of each kind of tokenizer, where neither the call nor a preset of that kind says it."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How the corpus is cut into tokens."""

    tokenizer: str = setting(
        "bpe",
        help="word (what stands between white space), words (marks parted from them), char, bpe, a "
        "tokenizer.json, or a SentencePiece .model.",
        group=VOCABULARY,
    )
    vocab_size: int = setting(
        DEFAULT_VOCABULARY["bpe"],
        help="Most tokens in the vocabulary, <eos> and <unk> included; unless given the preset's, or with "
        f"another tokenizer {', '.join(f'{size} ({kind})' for kind, size in DEFAULT_VOCABULARY.items())}.",
        low=3,
        high=1 << 24,
        group=VOCABULARY,
    )
    min_frequency: int = setting(
        1,
        help="Leave out words, characters or merges that are less frequent.",
        low=1,
        high=1 << 31,
        group=VOCABULARY,
    )
    lowercase: bool = setting(False, help="Read every text in lower case.", group=VOCABULARY)
    unwrap: bool = setting(
        False,
        help="Join the corpus's lines to paragraphs, for books whose lines are broken by hand; empty and "
        "indented lines part them.",
        group=VOCABULARY,
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def is_file(self) -> bool:
        """Whether a ``tokenizer.json`` or a SentencePiece ``.model`` is given, which has its vocabulary."""
        return self.tokenizer.endswith((".json", ".model"))


@dataclass(frozen=True)
class ModelConfig:
    """The model's family and sizes: embedding, hidden layers, output layer; or an n-gram model's order."""

    vocab_size: int
    """The number of tokens."""
    embedding_dim: int = setting(256, help="Width of the embedding.", low=1, high=_WIDEST, group=_NETWORK)
    hidden_size: int = setting(256, help="Width of each hidden layer.", low=1, high=_WIDEST, group=_NETWORK)
    num_layers: int = setting(
        1, help="Number of recurrent layers.", option="layers", low=1, high=64, group=_NETWORK
    )
    tied: bool = setting(True, help="Share the embedding's weights with the output layer.", group=_NETWORK)
    """Press and Wolf 2017."""
    model_type: str = setting(
        "lstm", help="The family of models; see below.", option="model", choices=FAMILIES, group=_NETWORK
    )
    window: int = setting(
        0,
        help="The number of tokens that --model window predicts from; 5 unless given.",
        low=2,
        high=1 << 10,
        group=_NETWORK,
    )
    """0 in the other families."""
    order: int = setting(
        0,
        help="The longest n-grams of --model ngram; 5 unless given.",
        low=1,
        high=HIGHEST_ORDER,
        group=_NETWORK,
    )
    """0 in the other families."""
    prune: str = setting(
        "",
        help="Leave out n-grams of --model ngram that occur no more often than this, for each length: "
        "'0 0 1' leaves out those of three words and more that occur once.",
        group=_NETWORK,
    )
    """Empty in the other families."""
    projection: int = setting(
        0,
        help="Width of a linear layer between the last hidden and the output layer, 0 for none; tied weights "
        "whose sizes differ get one unless it is given.",
        low=0,
        high=_WIDEST,
        group=_NETWORK,
    )

    def __post_init__(self) -> None:
        if self.vocab_size < 3:
            raise ValueError(
                f"the vocabulary has {self.vocab_size} tokens; a language model needs at least 3"
            )
        settings_of(ModelConfig)["model_type"].check(self.model_type)
        fixed = FAMILIES[self.model_type].fixed
        for name, (value, reason) in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value if value != '' else 'empty'} with {self.model_type} ({reason}), "
                    f"got {getattr(self, name)}"
                )
        check(self, omit=fixed)
        if self.order:
            pruning_thresholds(numbers_of(self.prune), self.order)
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

    epochs: int = setting(5, help="Passes over the text.", low=1, high=_LARGEST, group=_TRAINING)
    batch_size: int = setting(
        20,
        help="Columns into which the text is cut; each is read from its beginning to its end.",
        low=1,
        high=_LARGEST,
        group=_TRAINING,
    )
    accumulate: int = setting(
        1,
        help="Groups into which the columns are divided, one after the other for each step: less memory.",
        low=1,
        group=_TRAINING,
    )
    seq_len: int = setting(
        35, help="Steps of truncated backpropagation.", low=1, high=_LARGEST, group=_TRAINING
    )
    """The state is carried on, detached."""
    replay: float = setting(
        0.0,
        help="With --init, the share of the training text that is the earlier run's; unless given 0.2, where "
        "that run's folder is at hand.",
        low=0,
        below=1,
        group=_TRAINING,
    )
    dropout: float = setting(
        0.0,
        help="Probability of dropping an activation before, between and after the layers, whatever the "
        "preset has for each.",
        low=0,
        below=1,
        group=_REGULARIZATION,
    )
    """Zaremba et al. 2014."""
    dropout_input: float | None = setting(
        None, help="The same before the first layer alone.", low=0, below=1, group=_REGULARIZATION
    )
    """None is ``dropout``."""
    dropout_output: float | None = setting(
        None, help="The same after the last layer alone.", low=0, below=1, group=_REGULARIZATION
    )
    """None is ``dropout``."""
    locked_dropout: bool = setting(
        False, help="Keep a dropout mask over all steps of a window.", group=_REGULARIZATION
    )
    """Gal and Ghahramani 2016."""
    dropout_words: float = setting(
        0.0,
        help="Probability of dropping a token's embedding, wherever the window has it.",
        low=0,
        below=1,
        group=_REGULARIZATION,
    )
    """Gal and Ghahramani 2016."""
    weight_drop: float = setting(
        0.0,
        help="Probability of dropping a weight from state to state.",
        low=0,
        below=1,
        group=_REGULARIZATION,
    )
    """Merity et al. 2018."""
    optimizer: str = setting(
        "adam", help="How weights are updated.", choices=("adam", "adamw", "sgd"), group=_OPTIMIZER
    )
    lr: float = setting(0.002, help="Learning rate.", above=0, group=_OPTIMIZER)
    weight_decay: float = setting(
        0.0, help="L2 penalty, decoupled with adamw.", low=0, high=10**9, group=_REGULARIZATION
    )
    schedule: str = setting(
        "constant",
        help="How the learning rate falls over the run.",
        choices=("constant", "cosine", "linear"),
        group=_OPTIMIZER,
    )
    warmup_steps: int = setting(
        0,
        help="Steps over which the learning rate rises from zero; at most half the run's.",
        low=0,
        high=10**9,
        group=_OPTIMIZER,
    )
    clip_norm: float = setting(
        0.0, help="Largest norm of the whole gradient, 0 for any.", low=0, high=10**9, group=_OPTIMIZER
    )
    clip_value: float = setting(
        0.0, help="Largest element of the gradient, 0 for any.", low=0, high=10**9, group=_OPTIMIZER
    )
    shuffle: str | None = setting(
        None,
        help="What is put in a new order in each epoch: line, document (a record, or a file), or none.  "
        "[default: document where the corpus is several, else none]",
        choices=("none", "line", "document"),
        group=_TRAINING,
    )
    """A run has one of them; None is what the corpus asks for."""
    precision: str = setting(
        "fp32",
        help="Of matrix products; weights and what is summed over steps stay in float32. bf16 where the "
        "processor has it and layers are 512 wide or more, unless given.",
        choices=("fp32", "bf16"),
        group=MACHINE,
    )
    patience: int = setting(
        0,
        help="Epochs to wait for a better validation loss; 0 to train them all.",
        low=0,
        high=10**9,
        group=_TRAINING,
    )
    initial_weights: str = setting(
        "torch",
        help="Of a new network: torch's own, or scaled, with which it learns sooner.",
        choices=("torch", "scaled"),
        group=_TRAINING,
    )
    """scaled: the first prediction is the tokens' frequencies in the training text, and a tied embedding is
    large enough to move the gates."""
    seed: int = setting(
        0,
        help="Of weights and dropout masks: the same seed gives the same run on the same machine.",
        low=0,
        high=1 << 62,
        group=_TRAINING,
    )

    def __post_init__(self) -> None:
        check(self, omit=("accumulate",))
        check_number("accumulate", self.accumulate, int, low=1, high=self.batch_size)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be divisible by accumulate, got {self.batch_size} and {self.accumulate}"
            )


def recipe_settings() -> dict[str, Setting]:
    """The settings of a recipe by their fields' names."""
    return settings_of(TokenizerConfig) | settings_of(ModelConfig) | settings_of(TrainingConfig)
