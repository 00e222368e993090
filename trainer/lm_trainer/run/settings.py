"""The file of settings that repeats a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lm_runtime.files import write_text
from lm_trainer.config import ModelConfig, TrainingConfig
from lm_trainer.config_file import in_file, to_toml
from lm_trainer.families import FAMILIES
from lm_trainer.plan import ALL_SETTINGS
from lm_trainer.run.folder import SETTINGS
from lm_trainer.run.records import RunFacts


def write_settings(
    run: Path, facts: RunFacts, model_config: ModelConfig, recipe: TrainingConfig | None
) -> None:
    """Write each setting that the family, or the checkpoint that the run begins from, leaves open."""
    settings: dict[str, Any] = {**facts.corpus.arguments}
    if facts.tokenizer_config.unwrap:
        settings["unwrap"] = True
    if facts.init:
        settings["init"] = facts.init.path
    else:
        tokenizer = facts.tokenizer_config
        settings |= {"tokenizer": tokenizer.tokenizer} if tokenizer.is_file else dataclasses.asdict(tokenizer)
        closed = {"vocab_size", *FAMILIES[model_config.model_type].fixed}
        sizes = dataclasses.asdict(model_config).items()
        settings |= {name: value for name, value in sizes if name not in closed}
    if recipe:
        own = dataclasses.asdict(recipe).items()
        settings |= {name: value for name, value in own if not (facts.init and name == "initial_weights")}
        settings["device"] = facts.device
    named = {in_file(ALL_SETTINGS[name]): value for name, value in settings.items()}
    write_text(run / SETTINGS, to_toml(named))
