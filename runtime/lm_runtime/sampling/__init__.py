"""Sampling: from the logits of one step to a token. Knows nothing about models."""
