"""Corpora: what CORPUS means, as token ids on disk with their vocabulary. Knows nothing about models."""
