"""The commands beside ``lm-train`` that read runs: ``lm-compare`` and ``lm-reach``."""
