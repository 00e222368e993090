"""``lm-train``: a model from a text."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from lm_runtime.bundle import NGRAM_TYPE
from lm_runtime.commands import Command, file_size, imports, note
from lm_runtime.files import require_place
from lm_trainer.config import FAMILIES, PRESETS, Preset

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from lm_trainer.ngram_training import NgramTrainer
    from lm_trainer.training import Progress, Report, Trainer

_EXAMPLES = """
\b
Examples:
  lm-train                                  Python's documentation, into artifacts/run
  lm-train my-text.txt --out my-run
  lm-train my-folder --tokenizer word --hidden-size 512 --epochs 10 --out my-run
  lm-train ptb --preset tutorial --out ptb-run
  lm-train ptb --preset tutorial --model gru --out ptb-gru
  lm-train ptb --preset tutorial --model ngram --order 3 --out ptb-3gram
  lm-train --out my-run --resume            go on where the run stopped
  lm-train my-text.txt --find-lr            which learning rate to take

\b
Models:
{models}

\b
Presets:
{presets}
""".format(
    models="\n".join(f"  {name:<10}{family.description}" for name, family in FAMILIES.items()),
    presets="\n".join(f"  {name:<10}{preset.description}" for name, preset in PRESETS.items()),
)


@click.command(cls=Command, name="lm-train", epilog=_EXAMPLES)
@click.argument("corpus", default="pydocs")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("artifacts/run"),
    show_default=True,
    help="The run's folder.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="small",
    show_default=True,
    help="A recipe; the options below change it.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the folder's last checkpoint; start where there is none."
)
@click.option("--force", is_flag=True, help="Replace the run that is in the folder.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train.",
)
@click.option("--tokenizer", type=str, help="word, char, bpe, or a tokenizer.json.")
@click.option("--vocab-size", type=int, help="Most tokens in the vocabulary.")
@click.option("--min-frequency", type=int, help="Leave out what comes less often.")
@click.option("--model", type=click.Choice(list(FAMILIES)), help="The kind of model; lstm if none is named.")
@click.option("--embedding-dim", type=int, help="Width of the embedding.")
@click.option("--hidden-size", type=int, help="Width of each hidden layer.")
@click.option("--layers", type=int, help="Number of recurrent layers.")
@click.option("--window", type=int, help="Tokens that --model window predicts from; 5 if not given.")
@click.option("--order", type=int, help="Longest n-grams of --model ngram; 5 if not given.")
@click.option(
    "--tied/--no-tied", type=bool, default=None, help="Share the embedding's weights with the output layer."
)
@click.option("--epochs", type=int, help="Passes over the text.")
@click.option("--batch-size", type=int, help="Columns read side by side.")
@click.option("--accumulate", type=int, help="Groups of columns, one after the other for each step.")
@click.option("--seq-len", type=int, help="Steps of backpropagation.")
@click.option("--patience", type=int, help="Epochs to wait for a better validation; 0 to train them all.")
@click.option(
    "--projection", type=int, help="Width between the last hidden and the output layer; 0 for none."
)
@click.option("--dropout", type=float, help="Probability of dropping an activation between layers.")
@click.option("--dropout-input", type=float, help="The same before the first layer, where it is to differ.")
@click.option("--dropout-output", type=float, help="The same before the output layer, where it is to differ.")
@click.option("--dropout-words", type=float, help="Probability of dropping a word's embedding.")
@click.option(
    "--locked-dropout/--no-locked-dropout",
    type=bool,
    default=None,
    help="Keep a dropout mask over all steps of a window.",
)
@click.option("--weight-drop", type=float, help="Probability of dropping a weight from state to state.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]), help="How weights are updated.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--weight-decay", type=float, help="L2 penalty, decoupled with adamw.")
@click.option(
    "--schedule", type=click.Choice(["constant", "cosine", "linear"]), help="How the learning rate falls."
)
@click.option("--warmup-steps", type=int, help="Steps over which the learning rate rises.")
@click.option("--clip-norm", type=float, help="Largest norm of the whole gradient, 0 for none.")
@click.option("--clip-value", type=float, help="Largest element of the gradient, 0 for none.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="Of matrix products; bf16 where the processor has it, if not given.",
)
@click.option("--seed", type=int, help="The same seed gives the same run on the same machine.")
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Longest time between checkpoints.",
)
@click.option(
    "--sample-tokens",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Length of sample.txt.",
)
@click.option(
    "--tensorboard", is_flag=True, help="Write TensorBoard's event files into the folder's tensorboard."
)
@click.option(
    "--find-lr",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value="lr.png",
    metavar="[PNG]",
    help="Print a learning rate for this run, found in 100 steps, and draw lr.png; there is no run.",
)
@click.version_option(package_name="steplm")
def main(
    corpus: str,
    out: Path,
    preset: str,
    resume: bool,
    force: bool,
    device: str,
    checkpoint_seconds: float,
    sample_tokens: int,
    tensorboard: bool,
    find_lr: Path | None,
    **settings: Any,
) -> None:
    """Train a language model on CORPUS.

    CORPUS is a folder with train.txt, valid.txt and perhaps test.txt; one text file; or a name: pydocs
    (Python's manual and docstrings), ptb, wikitext-2, wikitext-103, tinyshakespeare, text8.

    Ctrl-C ends the run with a checkpoint; --resume goes on from it, bit for bit.
    """
    if resume and force:
        raise click.UsageError("give --resume or --force, not both")
    given = {name: value for name, value in settings.items() if value is not None}
    for option, name in (("layers", "num_layers"), ("model", "model_type")):
        if option in given:
            given[name] = given.pop(option)
    recipe = PRESETS[preset].with_options(given)
    if str(recipe.tokenizer.tokenizer).endswith(".json") and {"vocab_size", "min_frequency"} & given.keys():
        raise click.UsageError(
            "a given tokenizer.json has its vocabulary; leave out --vocab-size and --min-frequency"
        )
    if find_lr is not None:
        _check_finder(find_lr, recipe, resume or force)
    # Read by torch as it is loaded: large tensors in huge pages, where the system leaves it to the program.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with imports():
        from lm_trainer import run
        from lm_trainer.checkpoint import BEST

        if tensorboard:
            from lm_trainer import events  # noqa: F401  says now that something is missing

    place = run.pick_device(device)
    resuming = resume and run.is_run(out)
    if not resuming:
        if "precision" not in given:
            picked = run.pick_precision(recipe.model["hidden_size"], place)
            recipe = dataclasses.replace(
                recipe, training=dataclasses.replace(recipe.training, precision=picked)
            )
        if find_lr is not None:
            click.echo(f"{_find_rate(find_lr, corpus, recipe, place):.2g}")
            return
        run.start(out, corpus, recipe, place, replace=force, resuming=resume, tell=note)
        main.check_interrupted()
    if resuming and _was_given("preset"):
        # Presets leave the precision to the machine.
        given = {name: value for name, value in recipe.settings.items() if name != "precision"} | given
    trainer = run.resume(
        out,
        corpus if resuming and _was_given("corpus") else None,
        given if resuming else {},
        place,
        checkpoint_seconds,
        note,
    )
    summary = run.read_summary(out) if trainer.complete else None
    if summary is None:
        (out / run.SUMMARY).unlink(missing_ok=True)
        with _events(trainer, out) if tensorboard else nullcontext():
            if not trainer.complete:
                _train(trainer, out)
            summary = run.finish(out, place, sample_tokens)
    else:
        note(f"{out} is complete: nothing to do")
    main.check_interrupted()
    _conclude(summary, out / BEST)


def _train(trainer: Trainer | NgramTrainer, out: Path) -> None:
    from lm_trainer.checkpoint import LAST
    from lm_trainer.training import InterruptedRunError, TrainingError

    try:
        with _Terminal(trainer) as report:
            trainer.train(report)
    except InterruptedRunError:
        note(
            f"stopped at step {trainer.progress.step:,} of {trainer.total_steps:,}; "
            f"{out / LAST} is written, --resume goes on"
        )
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        sys.exit(130)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _events(trainer: Trainer | NgramTrainer, out: Path) -> Iterator[None]:
    """Within, TensorBoard's events are written; at the end the sample."""
    from lm_trainer.events import EventLog
    from lm_trainer.run import SAMPLE

    with closing(EventLog(out, trainer.progress.step)) as log:
        trainer.metrics.watch = log.append
        yield
        log.add_sample((out / SAMPLE).read_text(encoding="utf-8"), trainer.progress.step)


def _check_finder(picture: Path, recipe: Preset, of_a_run: bool) -> None:
    if of_a_run:
        raise click.UsageError("--find-lr begins anew and touches no run: leave out --resume and --force")
    if recipe.model["model_type"] == NGRAM_TYPE:
        raise click.UsageError(f"--find-lr is of no use to {NGRAM_TYPE}: it is counted in one pass")
    if picture.suffix != ".png":
        raise click.UsageError(
            f"--find-lr takes a picture's path, which ends in .png, got {picture}; CORPUS stands before it"
        )
    require_place(picture)


def _find_rate(picture: Path, corpus: str, recipe: Preset, place: torch.device) -> float:
    """A good learning rate for the run that the other arguments describe."""
    import numpy as np

    from lm_trainer import rate_finder, run

    with tempfile.TemporaryDirectory(prefix="lm-train-") as folder:
        out = Path(folder) / "run"
        run.start(out, corpus, recipe, place, replace=False, resuming=False, tell=note)
        trainer = cast("Trainer", run.resume(out, None, {}, place, float("inf"), note))
        with _bar(total=rate_finder.STEPS, unit=" steps") as bar:
            tried = []
            for lr, loss in rate_finder.rise(trainer):
                tried.append((lr, loss))
                bar.set_postfix_str(f"learning rate {lr:.1e}, loss {loss:.3f}", refresh=False)
                bar.update()
    rates, losses = np.array(tried).T
    suggestion = rate_finder.suggest(rates, losses)
    rate_finder.draw(rates, losses, suggestion, picture)
    lowest = suggestion / rate_finder.FRACTION
    note(f"loss lowest at {lowest:.2g}, a quarter of it is the suggested learning rate; {picture}")
    return suggestion


def _was_given(name: str) -> bool:
    """Whether a parameter stands in the call, rather than its default."""
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def _bar(**options: Any) -> tqdm[Any]:
    """A progress bar with the time that is left; without a terminal, a line every half minute."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    return tqdm(
        **options,
        file=sys.stderr if live else _Lines(),
        mininterval=0.2 if live else 30,
        maxinterval=1 if live else 60,
        dynamic_ncols=live,
        leave=live,
        ncols=None if live else 0,
        smoothing=0.05,
    )


class _Terminal:
    """The progress bar of a run."""

    def __init__(self, trainer: Trainer | NgramTrainer) -> None:
        self._per_step = trainer.tokens_per_step
        self._epochs = trainer.epochs
        self._bar = _bar(
            total=trainer.total_steps * self._per_step,
            initial=trainer.progress.step * self._per_step,
            unit=" tokens",
            unit_scale=True,
        )

    def __enter__(self) -> Report:
        from lm_trainer.training import Report

        return Report(step=self._step, record=self._record, epoch=self._epoch)

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _step(self, progress: Progress) -> None:
        self._bar.update(progress.step * self._per_step - self._bar.n)

    def _record(self, progress: Progress, loss: float) -> None:
        self._bar.set_description_str(f"epoch {progress.epoch + 1}/{self._epochs}", refresh=False)
        from lm_runtime.scoring import perplexity

        self._bar.set_postfix_str(f"loss {loss:.3f}, perplexity {perplexity(loss):.1f}", refresh=False)

    def _epoch(self, record: dict[str, Any]) -> None:
        self._bar.write(
            f"epoch {record['epoch']}/{self._epochs}: "
            + (f"train perplexity {record['train_perplexity']:.2f}, " if "train_perplexity" in record else "")
            + f"valid {record['valid_perplexity']:.2f}{' (best)' if record['best'] else ''}, "
            f"{record['seconds']:.0f} s",
            file=self._bar.fp,
        )


class _Lines:
    """Takes what the progress bar writes over and over in one place, and writes it line by line."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            note(line)

    def flush(self) -> None:
        sys.stderr.flush()


def _conclude(summary: dict[str, Any], best: Path) -> None:
    from lm_trainer.report import REPORT

    baselines = ", ".join(f"{name} {value:,.1f}" for name, value in summary["baselines"].items())
    for split in ("valid", "test"):
        if figures := summary.get(split):
            note(
                f"{split} perplexity {figures['perplexity']:.2f} a token "
                f"({figures['perplexity_per_word']:.1f} a word, {figures['bits_per_byte']:.3f} bits a byte)"
                + (f"; against {baselines}" if split == "valid" else "")
            )
    early = " (stopped early: validation no longer improved)" if summary.get("stopped_early") else ""
    report = best.with_name(REPORT)
    note(
        f"trained {summary['parameters']:,} parameters in {summary['seconds']:.0f} s{early}; "
        f"best after epoch {summary['best_epoch']} of {summary['epochs']}: "
        f"{best}, {file_size(best.stat().st_size)}" + (f"; {report}" if report.exists() else "")
    )
    click.echo(best)
