"""Corpora, tokenizer training, models, the training loop and its checkpoints (torch)."""
