"""The HTTP door: bundles served by OpenAI's completions protocol. Needs the extra ``serve``."""
