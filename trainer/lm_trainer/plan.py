"""What a call of ``lm-train`` does: from what was given, without doing any of it.

Knows nothing about command lines and torch, and reads no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lm_runtime.settings import check, setting, settings_of
from lm_runtime.texts.reading import ReadingOptions
from lm_trainer.config import MACHINE, VOCABULARY, ModelConfig, TokenizerConfig, recipe_settings
from lm_trainer.families import FAMILIES
from lm_trainer.presets import PRESETS, Preset

RECIPE = "Recipe"
_OUTPUT = "Output"
_CORPUS = ("corpus", "also", "valid", "text_field", "on_error")
_TUNING_RATE = 0.1
"""Of the preset's learning rate, for a network that is trained already."""
_FREE_WHEN_RESUMING = ("precision", "epochs", "patience")
"""What a preset, given with ``--resume``, need not have in common with the run: its precision is the
machine's, its length the run's own."""


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that are no part of its recipe."""

    corpus: str = setting("pydocs", help="The texts: a folder, a file or a name.", group=VOCABULARY)
    also: tuple[str, ...] = setting((), help="More texts to train on.", group=VOCABULARY)
    valid: tuple[str, ...] = setting(
        (),
        help="Text to validate on, as CORPUS, a glob in quotes; else a part of CORPUS.",
        metavar="FILE",
        group=VOCABULARY,
    )
    preset: str = setting(
        "small", help="A recipe; the options below change it.", choices=PRESETS, group=RECIPE
    )
    init: str | None = setting(
        None,
        help="Begin from this checkpoint's network, weights and vocabulary: a .pt file, or a run's folder.",
        metavar="PATH",
        group=RECIPE,
    )
    tokens: str | None = setting(
        None,
        help="A recognizer's tokens.txt: stop unless its ids are those of the given vocabulary.",
        metavar="FILE",
        group=VOCABULARY,
    )
    out: str = setting("artifacts/run", help="The run's folder.", metavar="PATH", group=_OUTPUT)
    checkpoint_seconds: float = setting(60, help="Longest time between checkpoints.", low=0, group=_OUTPUT)
    sample_tokens: int = setting(1000, help="Length of sample.txt.", low=0, group=_OUTPUT)
    tensorboard: bool = setting(
        False, help="Write TensorBoard's event files into the folder's tensorboard.", group=_OUTPUT
    )
    device: str = setting("auto", help="Where to train.", choices=("auto", "cpu", "cuda"), group=MACHINE)

    threads: int | None = setting(
        None,
        help="CPU threads; a resumed run's own, or torch's choice, unless given.",
        low=1,
        high=1024,
        group=MACHINE,
    )

    def __post_init__(self) -> None:
        check(self)


ALL_SETTINGS = recipe_settings() | settings_of(RunSettings) | settings_of(ReadingOptions)
"""What may stand in a file of settings, by the fields' names."""


class CallError(ValueError):
    """Parts of a call contradict each other."""


class Action(Enum):
    """What a call does."""

    START = "start"
    RESUME = "resume"
    DRY_RUN = "dry run"
    FIND_LR = "find a learning rate"


@dataclass(frozen=True)
class Call:
    """What was given to ``lm-train``: settings by their fields' names, and what to do."""

    options: Mapping[str, Any]
    """Those that stand in the call itself."""
    file: Mapping[str, Any] = field(default_factory=dict)
    """Those of the file ``--config``; the call's come before them."""
    resume: bool = False
    """Whether to go on with the run that is there."""
    force: bool = False
    """Whether to replace it."""
    dry_run: bool = False
    """Whether to say only what the run would take."""
    find_lr: Path | None = None
    """The picture to draw when only a learning rate is wanted."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings of file and call together."""
        return {**self.file, **self.options}

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.given.get("out", RunSettings.out))


@dataclass(frozen=True)
class Plan:
    """What a call does, with what."""

    action: Action
    """What to do."""
    run: RunSettings
    """The settings beside the recipe."""
    reading: ReadingOptions
    """How records are read, and what is damaged."""
    recipe: Preset
    """How a new run is made; ``run.init`` gives it another vocabulary and network."""
    held: Mapping[str, Any] = field(default_factory=dict)
    """Settings, by their fields' names, that a run that is resumed must have, but for its length."""
    picture: Path | None = None
    """Where to draw the search for a learning rate."""
    replaces: bool = False
    """Whether a run that is in the folder may go."""
    expects_run: bool = False
    """Whether the call would resume a run, and starts one because there is none."""
    picks_precision: bool = False
    """Whether the machine decides on the precision."""
    picks_replay: bool = False
    """Whether a share of the text of the run that it begins from is replayed, if that is at hand."""
    notes: tuple[str, ...] = ()
    """What to tell about decisions that nobody asked for."""

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.run.out)

    @property
    def model_type(self) -> str:
        """The family, as far as the call tells: a run that is resumed may have another."""
        return str(self.held.get("model_type", self.recipe.model_type))

    @property
    def is_trial(self) -> bool:
        """Whether there is no run, only a few steps of one."""
        return self.action in (Action.DRY_RUN, Action.FIND_LR)


def plan(call: Call, *, has_run: bool) -> Plan:
    """What a call does.

    Args:
        call: what was given.
        has_run: whether ``call.out`` has a checkpoint for resuming.

    Raises:
        CallError: parts of the call contradict each other.
        ValueError: a value is out of its range, or does not apply to the family.
    """
    _check_actions(call)
    given = call.given
    run = RunSettings(**{name: given.pop(name) for name in settings_of(RunSettings) if name in given})
    reading = ReadingOptions(
        **{name: given.pop(name) for name in settings_of(ReadingOptions) if name in given}
    )
    preset, names_preset = PRESETS[run.preset], "preset" in call.given
    if run.init is not None:
        _check_init(given)
    elif given.get("replay"):
        raise CallError("--replay is for --init: it replays the text of the run that this one begins from")
    if call.resume and has_run:
        # The preset alone need not allow what the run allowed: unless named, it is not asked.
        whole = _tuning(preset, given) if run.init is not None else given
        held = _of_preset(preset.with_options(whole), run) if names_preset else {}
        if "tokenizer" in given:  # whose vocabulary's size was another in earlier versions
            held.pop("vocab_size", None)
        named = (*_CORPUS, "init")
        held |= given | {name: value for name, value in call.given.items() if name in named}
        return Plan(Action.RESUME, run, reading, preset, held=held)
    recipe = preset.with_options(_tuning(preset, given) if run.init is not None else given)
    if run.tokens is not None and run.init is None and not recipe.tokenizer.is_file:
        raise CallError("--tokens checks a vocabulary that is given; add --tokenizer FILE or --init")
    if recipe.tokenizer.is_file and {"vocab_size", "min_frequency"} & given.keys():
        raise CallError(
            "a given tokenizer.json has its vocabulary; leave out --vocab-size and --min-frequency"
        )
    if recipe.tokenizer.is_file and recipe.tokenizer.lowercase:
        raise CallError("a given tokenizer.json says itself how texts are read; leave out --lowercase")
    if call.find_lr is not None:
        _check_search(call.find_lr, recipe)
    return Plan(
        Action.DRY_RUN if call.dry_run else Action.START if call.find_lr is None else Action.FIND_LR,
        run,
        reading,
        recipe,
        picture=call.find_lr,
        replaces=call.force,
        expects_run=call.resume,
        picks_precision="precision" not in given,
        picks_replay=run.init is not None and "replay" not in given,
        notes=_notes(preset, recipe, given) + _tuning_notes(run, recipe, given),
    )


def _check_actions(call: Call) -> None:
    if call.resume and call.force:
        raise CallError("give --resume or --force, not both")
    if call.resume and call.dry_run:
        raise CallError("give --resume or --dry-run, not both")
    if call.dry_run and call.find_lr is not None:
        raise CallError("give --dry-run or --find-lr, not both")
    if call.find_lr is not None and (call.resume or call.force):
        raise CallError("--find-lr begins anew and touches no run: leave out --resume and --force")


def _check_init(given: Mapping[str, Any]) -> None:
    for name in (*settings_of(TokenizerConfig), *settings_of(ModelConfig), "initial_weights"):
        if name in given and name != "unwrap":
            raise CallError(
                f"--init gives the network and its vocabulary; leave out --{ALL_SETTINGS[name].option}"
            )


def _check_search(picture: Path, recipe: Preset) -> None:
    if FAMILIES[recipe.model_type].is_estimated:
        raise CallError(f"--find-lr does not apply to {recipe.model_type}: it is estimated in one pass")
    if picture.suffix != ".png":
        raise CallError(
            f"--find-lr takes a picture's path, which ends in .png, got {picture}; CORPUS stands before it"
        )


def _of_preset(recipe: Preset, run: RunSettings) -> dict[str, Any]:
    """What a preset that is given with ``--resume`` says about the run."""
    own = recipe.settings if run.init is None else dataclasses.asdict(recipe.training)
    return {name: value for name, value in own.items() if name not in _FREE_WHEN_RESUMING}


def _tuning(preset: Preset, given: dict[str, Any]) -> dict[str, Any]:
    """What is given, with a learning rate at which a trained network keeps most of what it has learned."""
    return {"lr": float(f"{preset.training.lr * _TUNING_RATE:.3g}"), **given}


def _tuning_notes(run: RunSettings, recipe: Preset, given: Mapping[str, Any]) -> tuple[str, ...]:
    if run.init is None or "lr" in given:
        return ()
    return (f"note: fine-tuning: the learning rate is {recipe.training.lr:g}, a tenth of the preset's",)


def _notes(preset: Preset, recipe: Preset, given: Mapping[str, Any]) -> tuple[str, ...]:
    """What the recipe has that neither the preset nor the call says."""
    model = ModelConfig(**recipe.model)
    if "projection" in given or not model.tied or model.projection == preset.model.get("projection", 0):
        return ()
    added = f"added --projection {model.projection}" if model.projection else "no projection is needed"
    return (
        f"note: the weights are tied, embedding-dim is {model.embedding_dim} and hidden-size "
        f"{model.hidden_size}: {added}",
    )
