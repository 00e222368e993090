"""A run in its folder: begun from a corpus, or taken up where it stopped.

The folder holds ``config.toml``, ``last.pt``, ``best.pt``, ``tokenizer.json``, the token files,
``metrics.jsonl``, ``loss.png``, ``sample.txt``, perhaps ``tensorboard`` and, once the run is complete,
``report.html`` and ``summary.json``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lm_runtime.bundle import NGRAM_TYPE, TOKENIZER
from lm_runtime.commands import machine_fault
from lm_runtime.files import UnusableFileError, write_text
from lm_runtime.folders import folder_beside, held, holds_something, remove
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import BEST, LAST, OPTIONS, ModelConfig, Preset, TokenizerConfig, TrainingConfig
from lm_trainer.config_file import CONFIG, to_toml
from lm_trainer.corpora.corpus import TOKENS, encode_corpus, find_corpus, open_split, texts, token_path
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.families import FAMILIES
from lm_trainer.networks.registry import make_model, parameter_count
from lm_trainer.ngram.training import NgramTrainer
from lm_trainer.reports.baselines import unigram
from lm_trainer.reports.metrics import CURVE, EVENTS, METRICS, MetricsLog
from lm_trainer.reports.page import REPORT
from lm_trainer.reports.summary import SAMPLE, SUMMARY
from lm_trainer.run.checkpoint import is_checkpoint, load_checkpoint, restore_config
from lm_trainer.run.pretrained import Pretrained
from lm_trainer.training.loop import Trainer
from lm_trainer.training.processes import ALONE, Processes

_HELD_OUT_TOKENS = 16_384
_WIDE = 512
_FACTS = ("corpus", "tokenizer", "tokenizer_config", "held_out", "threads", "processes", "device")
_FILES = (CONFIG, LAST, BEST, TOKENIZER, METRICS, CURVE, SAMPLE, REPORT, SUMMARY)
_FOLDERS = (TOKENS, EVENTS)
_LENGTH = ("epochs", "patience")
_PATHS = ("corpus", "init", "tokenizer")

Tell = Callable[[str], None]


def pick_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` stands for here.

    Raises:
        ValueError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is not available: this torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(hidden_size: int, device: torch.device) -> str:
    """``bf16`` where products in bfloat16 are faster: the device has them, and the layers are wide enough.

    Measured on two cores with AVX512-BF16: 1.6 to 2 times as fast from a width of 512 on, nothing to be had
    below 256.
    """
    if hidden_size < _WIDE:
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # which the oldest torch that will do lacks
    has: dict[str, Any] = capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16") else "fp32"


def start(
    run: Path,
    corpus_argument: str,
    preset: Preset,
    device: torch.device,
    tell: Tell,
    *,
    pretrained: Pretrained | None = None,
    replace: bool = False,
    resuming: bool = False,
    processes: int = 1,
) -> None:
    """Set a new run up: corpus, vocabulary, token files, and a checkpoint before the first step.

    All of it is made beside ``run`` and moved there at the end, so that a call that fails, or is
    interrupted, leaves what was there as it was.

    Args:
        run: its folder; what is there of an earlier run is removed, and nothing else.
        corpus_argument: as for :func:`lm_trainer.corpora.corpus.find_corpus`.
        preset: the recipe.
        device: where the run will be.
        tell: takes lines for the person at the terminal.
        pretrained: what it begins from, if not from nothing; ``preset`` is its recipe.
        replace: whether a run that is there may go.
        resuming: whether a run was to be resumed, and there is none.
        processes: how many will train; this one alone sets up.

    Raises:
        ValueError, UnusableFileError: the corpus or the settings cannot be used; one line says why.
    """
    _check_processes(processes, preset.model["model_type"], preset.training)
    place = run.resolve()  # a link to a folder stays one
    if place == Path(corpus_argument).resolve():
        raise ValueError(f"--out {run} is the corpus's own name; name another folder")
    if holds_something(run) and not (replace and _is_run(run)):
        raise ValueError(
            f"{run} holds something that is not a run; --force replaces only a run"
            if replace or resuming
            else f"{run} holds something already: --resume goes on with its run, --force replaces it, "
            "--out names another folder"
        )
    if resuming:
        tell(f"no run in {run} yet: starting")
    with ExitStack() as stack:
        if holds_something(place):
            stack.enter_context(held(place))
        partial = stack.enter_context(folder_beside(place))
        _prepare(partial, corpus_argument, preset, pretrained, device, processes, tell)
        if not holds_something(place):
            if place.exists():
                place.rmdir()
            partial.rename(place)
            return
        # The checkpoint first: the folder stays a run, which --force may replace again.
        (partial / LAST).replace(place / LAST)
        for name in (*_FILES, *_FOLDERS):
            if name != LAST:
                remove(place / name)
        for entry in partial.iterdir():
            entry.rename(place / entry.name)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, damaged or not: others call their files ``last.pt`` too."""
    ours = any(is_checkpoint(folder / name) for name in (LAST, BEST))
    return (folder / LAST).is_file() and (ours or token_path(folder / TOKENS, "train").is_file())


def _check_processes(count: int, model_type: str, config: TrainingConfig) -> None:
    """Check that so many processes can train a model together.

    Raises:
        ValueError: they cannot.
    """
    if count > 1 and model_type == NGRAM_TYPE:
        raise ValueError(f"{model_type} is counted in one process, not in {count}: start it without torchrun")
    if count > 1 and config.batch_size % (count * config.accumulate):
        groups = f", in {config.accumulate} groups each" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size must be divisible by the number of processes{groups}, got {config.batch_size} and "
            f"{count}"
        )


def _prepare(
    run: Path,
    corpus_argument: str,
    preset: Preset,
    pretrained: Pretrained | None,
    device: torch.device,
    processes: int,
    tell: Tell,
) -> None:
    corpus = find_corpus(corpus_argument)
    tell(f"corpus {corpus.name}: {corpus.remark}")
    for split in corpus.splits.values():  # before any long work
        if not any(True for _ in split.pieces()):
            raise UnusableFileError(split.path, "empty")
    begun = time.perf_counter()
    if pretrained:
        tokenizer = pretrained.tokenizer
        tell(f"network, weights and vocabulary from {pretrained.path}")
    else:
        tokenizer = make_tokenizer(preset.tokenizer, texts(corpus.splits["train"].pieces()))
    model_config = ModelConfig(**{**preset.model, "vocab_size": tokenizer.vocab_size})
    write_text(run / TOKENIZER, tokenizer.json_text)
    files = encode_corpus(corpus, tokenizer, run / TOKENS)
    counts = ", ".join(f"{name} {file.tokens:,} tokens" for name, file in files.items())
    unknown = f" ({files['valid'].unknown:,} unknown in valid)" if tokenizer.unk_id is not None else ""
    tell(
        f"vocabulary {tokenizer.vocab_size:,} ({tokenizer.kind}); {counts}{unknown}; "
        f"{time.perf_counter() - begun:.1f} s"
    )
    valid = files["valid"].open(token_path(run / TOKENS, "valid"), verify=False)
    facts = {
        "corpus": {
            "name": corpus.name,
            "argument": _resolved(corpus_argument),
            "splits": {name: file.to_dict() for name, file in files.items()},
        },
        "tokenizer": tokenizer.json_text,
        "tokenizer_config": _with_whole_path(preset.tokenizer),
        "held_out": torch.from_numpy(valid[:_HELD_OUT_TOKENS].astype("int64")),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device.type,
    }
    if pretrained:
        facts["init"] = {"path": pretrained.path, "sha256": pretrained.sha256}
    _write_config(run, model_config, preset.training, facts)
    trainer = _trainer(run, model_config, preset.training, tokenizer, facts, device, math.inf, ALONE)
    if isinstance(trainer, Trainer):
        if pretrained:
            trainer.model.load_state_dict(pretrained.weights)
        elif preset.training.initial_weights == "scaled":
            train = files["train"].open(token_path(run / TOKENS, "train"), verify=False)
            frequencies = torch.from_numpy(unigram(train, tokenizer.vocab_size))
            generator = torch.Generator().manual_seed(-1 - preset.training.seed)  # another one's numbers
            trainer.model.scale_weights(frequencies, generator)
    trainer.save()


def _write_config(
    run: Path, model_config: ModelConfig, config: TrainingConfig, facts: dict[str, Any]
) -> None:
    """Write what repeats the run: each setting that its family, or its checkpoint, leaves open."""
    settings = {"corpus": facts["corpus"]["argument"]}
    recipe = dataclasses.asdict(config)
    if "init" in facts:
        settings["init"] = facts["init"]["path"]
        del recipe["initial_weights"]
    else:
        tokenizer = TokenizerConfig(**facts["tokenizer_config"])
        settings |= {"tokenizer": tokenizer.tokenizer} if tokenizer.is_file else dataclasses.asdict(tokenizer)
        closed = {"vocab_size", *FAMILIES[model_config.model_type].fixed}
        measures = dataclasses.asdict(model_config).items()
        settings |= {name: value for name, value in measures if name not in closed}
    if model_config.model_type != NGRAM_TYPE:
        settings |= {**recipe, "device": facts["device"]}
    write_text(run / CONFIG, to_toml({OPTIONS.get(name, name): value for name, value in settings.items()}))


def _resolved(argument: str) -> str:
    """A path from the root on, so that it is the same from everywhere; a name as it is."""
    path = Path(argument)
    return str(path.resolve()) if path.exists() else argument


def _with_whole_path(config: TokenizerConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    return {**settings, "tokenizer": _resolved(config.tokenizer)} if config.is_file else settings


def resume(
    run: Path,
    corpus_argument: str | None,
    given: dict[str, Any],
    device: torch.device,
    checkpoint_seconds: float,
    processes: Processes,
    tell: Tell,
) -> Trainer | NgramTrainer:
    """Take a run up at its last checkpoint.

    Args:
        run: its folder.
        corpus_argument: the corpus, if it was named again; it must be the run's.
        given: settings by their field's name, as for a new run. Only ``epochs`` and ``patience`` may differ
            from the run's: there may be more epochs, or fewer of those that have not begun.
        device: where to go on.
        checkpoint_seconds: as for :class:`lm_trainer.training.loop.Trainer`.
        processes: as there.
        tell: takes lines for the person at the terminal.

    Raises:
        UnusableFileError: the checkpoint or a token file cannot be used.
        ValueError: a setting differs from the run's own.
    """
    path = run / LAST
    content = load_checkpoint(path, mapped=False)  # the optimizer's tensors become the trainer's
    model_config, tokenizer = restore_config(path, content)
    try:  # a setting that is newer than the run has its default
        recipe = content["training_config"] and dataclasses.asdict(
            TrainingConfig(**content["training_config"])
        )
    except (TypeError, ValueError) as error:
        raise UnusableFileError(path, f"damaged: {error}") from None
    own = {**content["tokenizer_config"], **recipe, **dataclasses.asdict(model_config)}
    own["vocab_size"] = content["tokenizer_config"]["vocab_size"]  # what was asked for
    own["corpus"] = content["corpus"]["argument"]
    own["init"] = content["init"]["path"] if "init" in content else None
    wanted = given if corpus_argument is None else {**given, "corpus": corpus_argument}
    for name, value in wanted.items():
        if name not in own:
            raise ValueError(f"{name} is of no use to {model_config.model_type}: it is counted in one pass")
        same = {value, str(Path(value).resolve())} if name in _PATHS else {value}  # the file may be gone
        if name not in _LENGTH and own[name] not in same:
            raise ValueError(
                f"--resume goes on with the run's own settings: {name} is {own[name]}, not {value}"
            )
    _check_processes(processes.count, model_config.model_type, TrainingConfig(**recipe))
    facts = {"processes": 1, **{name: content[name] for name in (*_FACTS, "init") if name in content}}
    if processes.count != facts["processes"]:
        tell(
            f"note: the number of processes was {facts['processes']} and is {processes.count}: "
            "the run goes on, but not bit for bit"
        )
        facts |= {"processes": processes.count, "threads": torch.get_num_threads()}
    if device.type == "cpu":
        torch.set_num_threads(facts["threads"])  # the order of sums depends on it
    if device.type != facts["device"]:
        tell(f"note: begun on {facts['device']}: the run goes on here, but not bit for bit")
        facts["device"] = device.type
    length = {name: given[name] for name in _LENGTH if name in given and given[name] != own[name]}
    config = TrainingConfig(**{**recipe, **length})
    try:
        trainer = _trainer(run, model_config, config, tokenizer, facts, device, checkpoint_seconds, processes)
        trainer.resume(content)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if machine_fault(error):
            raise
        raise UnusableFileError(path, f"damaged: {str(error).splitlines()[0]}") from None
    if length and isinstance(trainer, Trainer):
        begun = trainer.progress.epoch + (trainer.progress.window > 0)
        if config.epochs < begun:
            raise ValueError(f"{begun} epochs are trained or begun, which cannot become {config.epochs}")
        if processes.is_first:
            _write_config(run, model_config, config, facts)
            (run / SUMMARY).unlink(missing_ok=True)  # it says how the run ended
        trainer.save()  # the checkpoint says as much
    tell(f"{model_config}{_measures(trainer)}")
    if trainer.progress.step:
        tell(f"resumed from {path}: step {trainer.progress.step:,} of {trainer.total_steps:,}")
    return trainer


def _measures(trainer: Trainer | NgramTrainer) -> str:
    if isinstance(trainer, NgramTrainer):
        return ""
    count, precision = parameter_count(trainer.model), trainer.config.precision
    return f": {count:,} parameters, {precision} on {trainer.model.device}"


def _trainer(
    run: Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    device: torch.device,
    checkpoint_seconds: float,
    processes: Processes,
) -> Trainer | NgramTrainer:
    """What trains a new model; that of a checkpoint is taken up by its ``resume``."""
    common: dict[str, Any] = {
        "train": open_split(run, facts, "train"),
        "valid": open_split(run, facts, "valid"),
        "eos_id": tokenizer.eos_id,
        "facts": facts,
        "metrics": MetricsLog(run / METRICS if processes.is_first else Path(os.devnull)),
    }
    if model_config.model_type == NGRAM_TYPE:
        return NgramTrainer(run, model_config, **common)
    model = make_model(model_config, torch.Generator().manual_seed(config.seed)).to(device)
    return Trainer(run, model, config, **common, checkpoint_seconds=checkpoint_seconds, processes=processes)
