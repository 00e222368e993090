"""Carries out a plan: a run from its beginning or its last checkpoint to its end, or a trial of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_runtime.bundle import TOKENIZER
from lm_runtime.commands import note
from lm_runtime.folders import held
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.token_list import check_tokens
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.families import ModelTrainer
from lm_trainer.plan import Action, Plan
from lm_trainer.presets import REPLAY, Preset
from lm_trainer.reports import summary as reports
from lm_trainer.reports.sample import read_sample
from lm_trainer.run import trial
from lm_trainer.run.device import pick_device, pick_precision
from lm_trainer.run.folder import LAST, SHUFFLED, SUMMARY, TOKEN_FILES
from lm_trainer.run.pretrained import Pretrained, read_pretrained
from lm_trainer.run.resume import resume
from lm_trainer.run.setup import CorpusArguments, start
from lm_trainer.tensors import set_thread_count
from lm_trainer.training import terminal
from lm_trainer.training.processes import Processes
from lm_trainer.training.progress import InterruptedRunError
from lm_trainer.training.signals import ignore_signals

if TYPE_CHECKING:
    import torch


def train(plan: Plan, check_interrupted: Callable[[], None]) -> dict[str, Any] | None:
    """Start or resume a run and train to its end; several processes may do so together.

    Args:
        plan: to start or to resume.
        check_interrupted: raises where an interruption got lost.

    Returns:
        the figures of the complete run; None in all processes but the first.

    Raises:
        ValueError, UnusableFileError: the run cannot begin; one line says why.
        InterruptedRunError: a signal ended it; the message says where it can be resumed.
        TrainingError: it cannot go on.
    """
    device = _device(plan)
    processes = Processes.join(device)
    out, first = plan.out, processes.is_first
    trainer = None
    if first and plan.action is Action.START:
        trainer = _start(plan, device, processes)
        check_interrupted()
    processes.from_first(0)  # once there is a run
    with ExitStack() as stack:
        if first:
            stack.enter_context(held(out))
        if trainer is None:
            trainer = _resume(plan, device, processes)
        summary = reports.read_summary(out) if trainer.complete and first else None
        if plan.run.tensorboard and first:
            stack.enter_context(_events(trainer, out))
        if not trainer.complete:
            _train(trainer, out, processes)
        del trainer  # and with it the optimizer's memory
        if first:
            (out / TOKEN_FILES / SHUFFLED).unlink(missing_ok=True)
        processes.leave()
        if first and summary is None:
            return reports.finish(out, device, plan.run.sample_tokens)
    if first:
        note(f"{out} is complete: nothing to do")
    return summary


def try_out(plan: Plan) -> str:
    """Take a few steps of a run, which leave nothing: what they say about it, for standard output.

    Raises:
        ValueError, UnusableFileError: the run could not begin; one line says why.
    """
    device = _device(plan)
    if Processes.join(device).count > 1:
        raise ValueError("--dry-run and --find-lr are for one process; leave out torchrun")
    recipe, pretrained = _recipe(plan, device)
    corpus = _corpus(plan)
    if plan.picture is not None:
        return f"{trial.find_rate(plan.picture, corpus, recipe, device, pretrained):.2g}"
    figures = trial.dry_run(corpus, recipe, device, pretrained)
    return "\n".join(f"{name:<16}  {value}" for name, value in figures.items())


def _device(plan: Plan) -> torch.device:
    """Where to train; torch has the threads that are asked for from here on."""
    if plan.run.threads is not None:
        set_thread_count(plan.run.threads)
    return pick_device(plan.run.device)


def _recipe(plan: Plan, device: torch.device) -> tuple[Preset, Pretrained | None]:
    """The recipe of a new run, and what it begins from."""
    for text in plan.notes:
        note(text)
    pretrained = None if plan.run.init is None else read_pretrained(plan.run.init)
    recipe = pretrained.recipe(plan.recipe) if pretrained else plan.recipe
    if plan.run.tokens is not None:
        tokenizer = pretrained.tokenizer if pretrained else make_tokenizer(recipe.tokenizer, [])
        check_tokens(tokenizer, Path(plan.run.tokens))
    if plan.picks_replay and pretrained and pretrained.text("train") is not None:
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, replay=REPLAY))
    if plan.picks_precision:
        picked = pick_precision(recipe.model["hidden_size"], device)
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, precision=picked))
    return recipe, pretrained


def _corpus(plan: Plan) -> CorpusArguments:
    return CorpusArguments(plan.run.corpus, plan.run.also, plan.run.valid, plan.reading)


def _start(plan: Plan, device: torch.device, processes: Processes) -> ModelTrainer:
    recipe, pretrained = _recipe(plan, device)
    return start(
        plan.out,
        _corpus(plan),
        recipe,
        device,
        note,
        checkpoint_seconds=plan.run.checkpoint_seconds,
        pretrained=pretrained,
        replace=plan.replaces,
        resuming=plan.expects_run,
        processes=processes,
    )


def _resume(plan: Plan, device: torch.device, processes: Processes) -> ModelTrainer:
    if plan.run.tokens is not None and plan.action is Action.RESUME:
        check_tokens(Tokenizer.from_file(plan.out / TOKENIZER), Path(plan.run.tokens))
    tell = note if processes.is_first else _say_nothing
    seconds = plan.run.checkpoint_seconds
    return resume(plan.out, dict(plan.held), device, seconds, processes, tell, plan.run.threads)


def _train(trainer: ModelTrainer, out: Path, processes: Processes) -> None:
    if processes.is_first:
        (out / SUMMARY).unlink(missing_ok=True)
    try:
        with terminal.watching(trainer, processes) as observer:
            trainer.train(observer)
    except InterruptedRunError:
        ignore_signals()  # once is enough
        processes.leave()
        raise InterruptedRunError(
            f"stopped at step {trainer.progress.step:,} of {trainer.total_steps:,}; "
            f"{out / LAST} is written, --resume goes on"
            if processes.is_first
            else ""
        ) from None


@contextmanager
def _events(trainer: ModelTrainer, out: Path) -> Iterator[None]:
    """Within, TensorBoard's events are written; at the end the sample."""
    from lm_trainer.reports.events import EventLog

    progress = trainer.progress
    with closing(EventLog(out, progress.seconds)) as log:
        trainer.metrics.watch = log.append
        del trainer  # which the caller lets go
        yield
        log.add_sample(read_sample(out), progress.step)


def _say_nothing(_: str) -> None:
    """What the processes beside the first one tell."""
