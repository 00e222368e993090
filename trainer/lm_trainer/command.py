"""``lm-train``: a model from a text. Parses the call, makes a plan of it, runs that, and prints."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from lm_runtime.commands import Command, file_size, imports, note
from lm_runtime.commands.options import option, settings_options
from lm_runtime.files import require_place
from lm_runtime.settings import Setting
from lm_runtime.texts.reading import ReadingOptions
from lm_trainer.config import ModelConfig, TokenizerConfig, TrainingConfig
from lm_trainer.config_file import by_fields, read_settings
from lm_trainer.families import FAMILIES
from lm_trainer.plan import ALL_SETTINGS, RECIPE, Action, Call, CallError, RunSettings, plan
from lm_trainer.presets import PRESETS
from lm_trainer.run.folder import BEST, LAST, REPORT
from lm_trainer.training.memory import keep_freed_memory
from lm_trainer.training.threads import wait_passively

_EXAMPLES = """
\b
Examples:
  lm-train                                  Python's documentation, into artifacts/run
  lm-train my-text.txt --out my-run
  lm-train news.jsonl.zst 'books/*.txt' --shuffle document --out my-texts
  lm-train my-folder --tokenizer word --hidden-size 512 --epochs 10 --out my-words
  lm-train my-text.txt --tokenizer words --lowercase --unwrap --out my-book
  lm-train ptb --preset tutorial --out ptb-run
  lm-train ptb --preset tutorial --model gru --out ptb-gru
  lm-train ptb --preset tutorial --model ngram --order 3 --out ptb-3gram
  lm-train --out my-run --resume            resume the run from its last checkpoint
  lm-train --config my-run/config.toml --out again
  lm-train my-text.txt --init ptb-run --lr 0.0005 --out tuned
  torchrun --nproc-per-node 2 --no-python lm-train ptb      two processes share each batch
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

_THIS_CALL = "This call"
_MUCH = 1.5
"""Ratio of the perplexities of a text's stretches from which on it is said."""


class _TrainCommand(Command):
    """A command that several processes may run together: the first that fails says why."""

    def _fail(self, message: str, status: int) -> NoReturn:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            from lm_trainer.training.processes import is_first_to_fail

            if not is_first_to_fail():
                sys.exit(status)
        super()._fail(message, status)


def _default(entry: Setting) -> str:
    return "" if entry.default is None or entry.kind is bool else str(entry.default)


@click.command(cls=_TrainCommand, name="lm-train", epilog=_EXAMPLES)
@click.argument("corpus", nargs=-1)
@option(
    "--config",
    type=click.Path(path_type=Path),
    group=RECIPE,
    help="A TOML file of settings, one NAME = VALUE a line: corpus, and options by their names. "
    "What stands in the call comes first, then the file, then the preset.",
)
@settings_options(TokenizerConfig)
@settings_options(ModelConfig)
@settings_options(TrainingConfig)
@settings_options(RunSettings, omit=("corpus", "also"), defaults=_default)
@settings_options(ReadingOptions)
@option(
    "--resume",
    is_flag=True,
    group=_THIS_CALL,
    help="Resume the folder's run from its last checkpoint; start one where there is none.",
)
@option("--force", is_flag=True, group=_THIS_CALL, help="Replace the run that is in the folder.")
@option(
    "--dry-run",
    is_flag=True,
    group=_THIS_CALL,
    help="Train a few steps, write nothing, and say what the run takes.",
)
@option(
    "--find-lr",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value="lr.png",
    metavar="[PNG]",
    group=_THIS_CALL,
    help="Print a learning rate for this run, found in 100 steps, and draw lr.png; there is no run.",
)
@click.version_option(package_name="steplm")
def main(
    corpus: tuple[str, ...],
    config: Path | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    find_lr: Path | None,
    **options: Any,
) -> None:
    """Train a language model on CORPUS.

    CORPUS is a folder with train.txt, valid.txt and perhaps test.txt; one text file; or a name: pydocs
    (Python's manual and docstrings), ptb, wikitext-2, wikitext-103, tinyshakespeare, text8. Or it is several
    texts: files, folders and globs of .txt, .jsonl and .parquet, also packed (.gz, .zst, .xz, .bz2); - is
    standard input. Of several, a share that is chosen by a hash of the text validates, unless --valid is
    given.

    Ctrl-C ends the run with a checkpoint; --resume goes on from it, bit for bit on a CPU. The run's
    config.toml, given as --config, repeats it.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if corpus:
        given |= {"corpus": corpus[0], "also": corpus[1:]}
    in_file = {} if config is None else by_fields(read_settings(config), ALL_SETTINGS, config)
    call = Call(given, in_file, resume, force, dry_run, find_lr)
    try:
        what = plan(call, has_run=(call.out / LAST).is_file())
    except CallError as error:
        raise click.UsageError(str(error)) from None
    if what.picture is not None:
        require_place(what.picture)
    if not FAMILIES[what.model_type].is_estimated:
        keep_freed_memory()
        wait_passively()
    with imports():
        if what.action is not Action.RESUME and not FAMILIES[what.model_type].is_estimated:
            importlib.import_module("torch")  # says now that it is missing
        from lm_trainer.run import execution
        from lm_trainer.training.progress import InterruptedRunError, TrainingError

        if what.run.tensorboard:
            importlib.import_module("lm_trainer.reports.events")  # says now what is missing
    try:
        if what.is_trial:
            click.echo(execution.try_out(what))
        elif (summary := execution.train(what, main.check_interrupted)) is not None:
            main.check_interrupted()
            _conclude(summary, what.out / BEST)
    except InterruptedRunError as stop:
        note(str(stop))
        sys.exit(130)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None


def _conclude(summary: dict[str, Any], best: Path) -> None:
    """Print the figures of a complete run, and where its best checkpoint is."""
    from lm_runtime.scoring.score import bits_in_words

    baselines = ", ".join(f"{name} {value:,.1f}" for name, value in summary["baselines"].items())
    for split in ("valid", "test"):
        if figures := summary.get(split):
            a_word = figures["perplexity_per_word"]  # None for a text without word breaks
            words = "" if a_word is None else f"{a_word:.1f} a word, "
            note(
                f"{split} perplexity {figures['perplexity']:.2f} a token "
                f"({words}{bits_in_words(figures['bits_per_byte'], figures['unknown'], figures['tokens'])})"
                + (f"; against {baselines}" if split == "valid" else "")
            )
            parts = figures.get("stretches", [0.0])
            if max(parts) > _MUCH * min(parts):
                shown = ", ".join(f"{part:.1f}" for part in parts)
                note(f"note: the {len(parts)} stretches of the {split} text differ: perplexity {shown}")
    if tuned := summary.get("init"):
        note(_both_texts(tuned, summary["valid"]["perplexity"]))
    early = " (stopped early: validation no longer improved)" if summary.get("stopped_early") else ""
    report = best.with_name(REPORT)
    note(
        f"trained {summary['parameters']:,} parameters in {summary['seconds']:.0f} s{early}; "
        f"best after epoch {summary['best_epoch']} of {summary['epochs']}: "
        f"{best}, {file_size(best.stat().st_size)}" + (f"; {report}" if report.exists() else "")
    )
    click.echo(best)


def _both_texts(tuned: dict[str, float], valid: float) -> str:
    """What fine-tuning brought on the new text, and what it cost on the earlier one."""
    said = f"fine-tuned: perplexity on the new text {tuned['valid_before']:.2f} before, {valid:.2f} now"
    if "first" not in tuned:
        return f"{said}; the text of the run that it began from is not at hand"
    return f"{said}; on the earlier text {tuned['first_before']:.2f} before, {tuned['first']:.2f} now"
