"""Generation: texts from prompts, as sessions that an engine steps in one batch."""
