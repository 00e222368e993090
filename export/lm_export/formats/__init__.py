"""Formats: what ``lm-export --format`` adds to a bundle for other tools, one file a consumer."""
