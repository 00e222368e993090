"""Resuming a run at its last checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_runtime.files import UnusableFileError
from lm_trainer.families import ModelTrainer, implementation
from lm_trainer.run.checkpoint import load_checkpoint, reading_checkpoint, restore_tokenizer
from lm_trainer.run.folder import LAST, SUMMARY
from lm_trainer.run.job import check_processes, make_job
from lm_trainer.run.records import Checkpoint
from lm_trainer.run.settings import write_settings
from lm_trainer.run.setup import Tell
from lm_trainer.tensors import set_thread_count, thread_count
from lm_trainer.training.processes import Processes
from lm_trainer.training.progress import TrainingError

if TYPE_CHECKING:
    import torch

_LENGTH = ("epochs", "patience")
_PATHS = ("corpus", "also", "valid", "init", "tokenizer")


def resume(
    run: Path,
    given: dict[str, Any],
    device: torch.device,
    checkpoint_seconds: float,
    processes: Processes,
    tell: Tell,
    threads: int | None = None,
) -> ModelTrainer:
    """Resume a run at its last checkpoint.

    Args:
        run: its folder.
        given: settings by their field's name, as for a new run, and the corpus if it was named again. Only
            ``epochs`` and ``patience`` may differ from the run's: there may be more epochs, or fewer of
            those that have not begun.
        device: where to go on.
        checkpoint_seconds: as for :class:`lm_trainer.training.job.Job`.
        processes: as there.
        tell: takes lines for the person at the terminal.
        threads: CPU threads in place of the run's own.

    Raises:
        UnusableFileError: the checkpoint or a token file cannot be used.
        ValueError: a setting differs from the run's own.
    """
    path = run / LAST
    checkpoint = load_checkpoint(path, mapped=False)  # the optimizer's tensors become the trainer's
    tokenizer = restore_tokenizer(checkpoint)
    own = _own_settings(checkpoint)
    _check_given(given, own, checkpoint.model_config.model_type)
    length = {name: given[name] for name in _LENGTH if name in given and given[name] != own[name]}
    checkpoint = _moved(_with_length(checkpoint, length), device, processes, threads, tell)
    job = make_job(
        run,
        checkpoint,
        eos_id=tokenizer.eos_id,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        processes=processes,
    )
    with reading_checkpoint(path, "damaged"):
        family = implementation(checkpoint.model_config.model_type)
        trainer = family.resumed(job, checkpoint.snapshot)
    if length:
        _keep_length(run, checkpoint, trainer, processes)
    tell(trainer.describe())
    if trainer.progress.step:
        tell(f"resumed from {path}: step {trainer.progress.step:,} of {trainer.total_steps:,}")
    return trainer


def _own_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the run by their names, as they can be given in a call."""
    facts, recipe = checkpoint.facts, checkpoint.training_config
    return {
        **(dataclasses.asdict(recipe) | {"shuffle": recipe.shuffle or "none"} if recipe else {}),
        **dataclasses.asdict(checkpoint.model_config),
        **dataclasses.asdict(facts.tokenizer_config),  # whose vocab_size was asked for
        "also": (),
        "valid": (),
        "text_field": None,
        "on_error": "stop",
        **facts.corpus.arguments,
        "init": facts.init.path if facts.init else None,
    }


def _check_given(given: dict[str, Any], own: dict[str, Any], model_type: str) -> None:
    """Refuse what differs from the run's own settings."""
    for name, value in given.items():
        if name not in own:
            raise ValueError(f"{name} does not apply to {model_type}: it is estimated in one pass")
        if name == "shuffle" and value is None:  # a preset leaves it to the corpus
            continue
        same = _spellings(value) if name in _PATHS else {value}
        if name not in _LENGTH and own[name] not in same:
            raise ValueError(
                f"--resume goes on with the run's own settings: {name} is {own[name]}, not {value}"
            )


def _spellings(value: Any) -> set[Any]:
    """A path, or several, as they are given and from the root on: the file may be gone."""
    if isinstance(value, str):
        return {value, str(Path(value).resolve())}
    paths = tuple(value)
    return {paths, tuple(str(Path(path).resolve()) for path in paths)}


def _with_length(checkpoint: Checkpoint, length: dict[str, Any]) -> Checkpoint:
    """The checkpoint with the epochs and the patience that are asked for."""
    recipe, progress = checkpoint.training_config, checkpoint.progress
    if not length or recipe is None:
        return checkpoint
    recipe = dataclasses.replace(recipe, **length)
    begun = progress.epoch + (progress.window > 0)
    if recipe.epochs < begun:
        raise ValueError(f"{begun} epochs are trained or begun, which cannot become {recipe.epochs}")
    return dataclasses.replace(checkpoint, training_config=recipe)


def _moved(
    checkpoint: Checkpoint, device: torch.device, processes: Processes, threads: int | None, tell: Tell
) -> Checkpoint:
    """The checkpoint as it goes on here: on this device, with these processes and threads."""
    facts = checkpoint.facts
    if checkpoint.training_config:
        check_processes(processes.count, checkpoint.model_config.model_type, checkpoint.training_config)
    if processes.count != facts.processes:
        tell(
            f"note: the number of processes was {facts.processes} and is {processes.count}: "
            "the run goes on, but not bit for bit"
        )
        facts = dataclasses.replace(facts, processes=processes.count, threads=thread_count())
    elif threads not in (None, facts.threads):
        if device.type == "cpu" and checkpoint.training_config:
            tell(
                f"note: the number of threads was {facts.threads} and is {threads}: "
                "the run goes on, but not bit for bit"
            )
        facts = dataclasses.replace(facts, threads=threads)
    if device.type == "cpu":
        set_thread_count(facts.threads)  # the order of sums depends on it
    if device.type != facts.device:
        tell(f"note: begun on {facts.device}: the run goes on here, but not bit for bit")
        facts = dataclasses.replace(facts, device=device.type)
    return dataclasses.replace(checkpoint, facts=facts)


def _keep_length(run: Path, checkpoint: Checkpoint, trainer: ModelTrainer, processes: Processes) -> None:
    """Write the run's new length to its settings and its checkpoint."""
    try:
        trainer.save()
    except TrainingError as error:  # the weights are no numbers
        raise UnusableFileError(run / LAST, str(error)) from None
    if processes.is_first:
        write_settings(run, checkpoint.facts, checkpoint.model_config, checkpoint.training_config)
        (run / SUMMARY).unlink(missing_ok=True)  # it says how the run ended
