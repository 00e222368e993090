"""``lm-train``: a model from a text."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from lm_runtime.bundle import NGRAM_TYPE
from lm_runtime.commands import Command, file_size, imports, note
from lm_runtime.files import read_text_file, require_place
from lm_runtime.folders import held
from lm_trainer.config import BEST, LAST, OPTIONS, ModelConfig, TokenizerConfig
from lm_trainer.config_file import read_config
from lm_trainer.families import FAMILIES
from lm_trainer.presets import PRESETS
from lm_trainer.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from lm_trainer.ngram.training import NgramTrainer
    from lm_trainer.training.loop import Trainer
    from lm_trainer.training.processes import Processes

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


_THIS_CALL = ("resume", "force", "dry_run", "find_lr")
"""What stands in no file of settings."""

_TOML_TYPES: dict[type[click.ParamType[Any]], tuple[tuple[type, ...], str]] = {
    click.types.BoolParamType: ((bool,), "true or false"),
    click.types.IntParamType: ((int,), "a whole number"),
    click.types.FloatParamType: ((float, int), "a number"),
    click.ParamType: ((str,), "a string"),
}
"""What a parameter's value is in a file of settings."""


def _take_settings(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a file's settings the defaults of the call's parameters.

    Raises:
        UnusableFileError: it cannot be read.
        ValueError: a name or a type is wrong.
    """
    if path is None:
        return
    settings = read_config(path)
    parameters = {
        parameter.name: parameter.type
        for parameter in context.command.params
        if parameter.expose_value and parameter.name not in _THIS_CALL
    }
    for name, value in settings.items():
        if name not in parameters:
            raise ValueError(
                f"{path}: no setting is called {name}; they are the options of lm-train, and corpus"
            )
        kind = parameters[name]
        types, wanted = next(entry for base, entry in _TOML_TYPES.items() if isinstance(kind, base))
        if type(value) not in types:
            raise ValueError(f"{path}: {name} must be {wanted}, got {value!r}")
    # Read as if they stood in the call.
    context.default_map = {name: str(value) for name, value in settings.items()}


class _TrainCommand(Command):
    """A command that several processes may run together: the first that fails says why."""

    def _fail(self, message: str, status: int) -> NoReturn:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            from lm_trainer.training.processes import is_first_to_fail

            if not is_first_to_fail():
                sys.exit(status)
        super()._fail(message, status)


@click.command(cls=_TrainCommand, name="lm-train", epilog=_EXAMPLES)
@click.argument("corpus", default="pydocs")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_take_settings,
    help="A TOML file of settings, one NAME = VALUE a line: corpus, and options by their names. "
    "What stands in the call comes first, then the file, then the preset.",
)
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
@click.option("--dry-run", is_flag=True, help="Train a few steps, write nothing, and say what the run takes.")
@click.option(
    "--init",
    type=click.Path(),
    help="Begin from this checkpoint's network, weights and vocabulary: a .pt file, or a run's folder.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train.",
)
@click.option("--tokenizer", type=str, help="word, char, bpe, a tokenizer.json, or a SentencePiece .model.")
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
@click.option(
    "--dropout",
    type=float,
    help="Probability of dropping an activation before, between and behind the layers, "
    "whatever the preset has for each.",
)
@click.option("--dropout-input", type=float, help="The same before the first layer, where it is to differ.")
@click.option("--dropout-output", type=float, help="The same behind the last layer, where it is to differ.")
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
@click.option(
    "--initial-weights",
    type=click.Choice(["torch", "scaled"]),
    help="Of a new network: torch's own, or such that it learns sooner.",
)
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
    help="Of matrix products; bf16 where the processor has it and layers are 512 wide or more, if not given.",
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
    dry_run: bool,
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

    Ctrl-C ends the run with a checkpoint; --resume goes on from it, bit for bit on a CPU. The run's
    config.toml, given as --config, repeats it.
    """
    if resume and force:
        raise click.UsageError("give --resume or --force, not both")
    if resume and dry_run:
        raise click.UsageError("give --resume or --dry-run, not both")
    if dry_run and find_lr is not None:
        raise click.UsageError("give --dry-run or --find-lr, not both")
    if find_lr is not None and (resume or force):
        raise click.UsageError("--find-lr begins anew and touches no run: leave out --resume and --force")
    given = _by_fields(settings)
    init = given.get("init")
    resuming = resume and (out / LAST).is_file()
    recipe = PRESETS[preset]
    if not resuming or _was_given("preset"):  # else what is given is held against the run's own
        recipe = recipe.with_options(given)
    if recipe.tokenizer.is_file and {"vocab_size", "min_frequency"} & given.keys():
        raise click.UsageError(
            "a given tokenizer.json has its vocabulary; leave out --vocab-size and --min-frequency"
        )
    if find_lr is not None:
        _check_finder(find_lr, given)
    if given.get("model_type") != NGRAM_TYPE:
        keep_freed_memory()
    with imports():
        from lm_trainer.reports.summary import finish, read_summary
        from lm_trainer.run import setup as run
        from lm_trainer.run import trial
        from lm_trainer.run.pretrained import read_pretrained
        from lm_trainer.training.processes import Processes

        if tensorboard:
            importlib.import_module("lm_trainer.reports.events")  # says now what is missing

    place = run.pick_device(device)
    processes = Processes.join(place)
    tell = note if processes.is_first else _say_nothing
    if processes.is_first and not resuming:
        pretrained = None if init is None else read_pretrained(init)
        if pretrained:
            recipe = pretrained.recipe(recipe)
        if "precision" not in given:
            picked = run.pick_precision(recipe.model["hidden_size"], place)
            recipe = dataclasses.replace(
                recipe, training=dataclasses.replace(recipe.training, precision=picked)
            )
        if dry_run or find_lr is not None:
            if processes.count > 1:
                raise click.UsageError("--dry-run and --find-lr are for one process; leave out torchrun")
            if find_lr is None:
                figures = trial.dry_run(corpus, recipe, place, pretrained)
                main.check_interrupted()
                for name, value in figures.items():
                    click.echo(f"{name:<16}  {value}")
            else:
                click.echo(f"{trial.find_rate(find_lr, corpus, recipe, place, pretrained):.2g}")
            return
        run.start(
            out,
            corpus,
            recipe,
            place,
            note,
            pretrained=pretrained,
            replace=force,
            resuming=resume,
            processes=processes.count,
        )
        main.check_interrupted()
    resuming = bool(processes.from_first(resuming)[0])  # which comes once there is a run
    if processes.is_first:
        click.get_current_context().with_resource(held(out))
    if resuming and _was_given("preset"):
        # Presets leave the precision to the machine, and the run's length to the run.
        own = recipe.settings if init is None else dataclasses.asdict(recipe.training)
        left = ("precision", "epochs", "patience")
        given = {name: value for name, value in own.items() if name not in left} | given
    trainer = run.resume(
        out,
        corpus if resuming and _was_given("corpus") else None,
        given if resuming else {},
        place,
        checkpoint_seconds,
        processes,
        tell,
    )
    summary = read_summary(out) if trainer.complete and processes.is_first else None
    with _events(trainer, out) if tensorboard and processes.is_first else nullcontext():
        if not trainer.complete:
            _train(trainer, out, processes)
        del trainer  # and with it the optimizer's memory
        processes.leave()
        if not processes.is_first:
            return
        if summary is None:
            summary = finish(out, place, sample_tokens)
        else:
            note(f"{out} is complete: nothing to do")
    main.check_interrupted()
    _conclude(summary, out / BEST)


def _by_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, by their fields' names."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name, option in OPTIONS.items():
        if option in given:
            given[name] = given.pop(option)
    if "init" in given:
        fields = (*dataclasses.fields(TokenizerConfig), *dataclasses.fields(ModelConfig))
        for name in (*(field.name for field in fields), "initial_weights"):
            if name in given:
                option = OPTIONS.get(name, name).replace("_", "-")
                raise click.UsageError(f"--init gives the network and its vocabulary; leave out --{option}")
    return given


def _train(trainer: Trainer | NgramTrainer, out: Path, processes: Processes) -> None:
    from lm_trainer.reports.summary import SUMMARY
    from lm_trainer.training import progress as terminal
    from lm_trainer.training.loop import InterruptedRunError, TrainingError

    if processes.is_first:
        (out / SUMMARY).unlink(missing_ok=True)
    try:
        with terminal.report(trainer, processes) as report:
            trainer.train(report)
    except InterruptedRunError:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough
        if processes.is_first:
            note(
                f"stopped at step {trainer.progress.step:,} of {trainer.total_steps:,}; "
                f"{out / LAST} is written, --resume goes on"
            )
        processes.leave()
        sys.exit(130)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _events(trainer: Trainer | NgramTrainer, out: Path) -> Iterator[None]:
    """Within, TensorBoard's events are written; at the end the sample."""
    from lm_trainer.reports.events import EventLog
    from lm_trainer.reports.summary import SAMPLE

    progress = trainer.progress
    with closing(EventLog(out, progress.seconds)) as log:
        trainer.metrics.watch = log.append
        del trainer  # which the caller lets go
        yield
        log.add_sample(read_text_file(out / SAMPLE), progress.step)


def _check_finder(picture: Path, given: dict[str, Any]) -> None:
    if given.get("model_type") == NGRAM_TYPE:
        raise click.UsageError(f"--find-lr is of no use to {NGRAM_TYPE}: it is counted in one pass")
    if picture.suffix != ".png":
        raise click.UsageError(
            f"--find-lr takes a picture's path, which ends in .png, got {picture}; CORPUS stands before it"
        )
    require_place(picture)


def _say_nothing(_: str) -> None:
    """What the processes beside the first one tell."""


def _was_given(name: str) -> bool:
    """Whether a parameter stands in the call or in a file of settings, rather than its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


def _conclude(summary: dict[str, Any], best: Path) -> None:
    from lm_trainer.reports.page import REPORT

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
