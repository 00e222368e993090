"""The recipes that ``lm-train --preset`` names.

``tests/benchmarks/recipes.py`` and ``characters.py`` measure them. Layers of 512 and more are trained in bf16
where the processor has it, which is 1.6 to 2 times as fast.
"""

from __future__ import annotations

from lm_trainer.config import Preset, TokenizerConfig, TrainingConfig

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
