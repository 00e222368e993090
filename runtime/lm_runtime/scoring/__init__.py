"""Scoring: the probability that a model gives to texts. Knows nothing about what is printed."""
