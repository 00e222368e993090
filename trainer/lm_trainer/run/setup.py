"""Setting up a new run: corpus, vocabulary, token files, and a checkpoint before the first step."""

from __future__ import annotations

import dataclasses
import glob
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_runtime.bundle import TOKENIZER
from lm_runtime.files import UnusableFileError, write_text
from lm_runtime.folders import folder_beside, held, holds_something, remove
from lm_runtime.texts.reading import ReadingOptions
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig, TokenizerConfig
from lm_trainer.corpora.collection import Reading
from lm_trainer.corpora.corpus import Corpus, CorpusFacts, encode_corpus, find_corpus, texts, token_path
from lm_trainer.corpora.replay import replay
from lm_trainer.corpora.vocabulary import make_tokenizer
from lm_trainer.families import FAMILIES, Model, ModelTrainer, implementation
from lm_trainer.presets import Preset
from lm_trainer.reports.baselines import unigram
from lm_trainer.run.checkpoint import is_checkpoint, save_checkpoint
from lm_trainer.run.folder import BEST, FILES, FIRST, FOLDERS, LAST, TOKEN_FILES
from lm_trainer.run.job import check_processes, make_job
from lm_trainer.run.pretrained import Pretrained
from lm_trainer.run.records import Checkpoint, RunFacts
from lm_trainer.run.settings import write_settings
from lm_trainer.tensors import tensor_of, thread_count
from lm_trainer.training.processes import ALONE, Processes
from lm_trainer.training.snapshot import Progress, Snapshot

if TYPE_CHECKING:
    import torch

_HELD_OUT_TOKENS = 16_384
_MANY_UNKNOWN = 0.05
"""The share of unknown tokens above which a perplexity says little."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class CorpusArguments:
    """What was given to name a corpus."""

    corpus: str
    """As for :func:`lm_trainer.corpora.corpus.find_corpus`."""
    also: tuple[str, ...] = ()
    """More texts to train on."""
    valid: tuple[str, ...] = ()
    """Texts to validate on."""
    options: ReadingOptions = field(default_factory=ReadingOptions)
    """How they are read."""

    def reading(self, tell: Tell, copies: Path) -> Reading:
        """How they are read, with the folder for copies of those that cannot be read twice."""

        def place() -> Path:
            copies.mkdir(exist_ok=True)
            return copies

        return Reading(self.also, self.valid, self.options, tell, place)


def start(
    run: Path,
    named: CorpusArguments | str,
    preset: Preset,
    device: torch.device,
    tell: Tell,
    *,
    checkpoint_seconds: float = math.inf,
    pretrained: Pretrained | None = None,
    replace: bool = False,
    resuming: bool = False,
    processes: Processes = ALONE,
) -> ModelTrainer:
    """Set up a new run, and return what trains it.

    The folder is made beside ``run`` and moved there at the end, so that a call that fails, or is
    interrupted, leaves everything as it was.

    Args:
        run: its folder; the files of an earlier run are removed, and nothing else.
        named: the corpus.
        preset: the recipe.
        device: where to train.
        tell: takes lines for the person at the terminal.
        checkpoint_seconds: as for :class:`lm_trainer.training.job.Job`.
        pretrained: what it begins from, if not from new weights; ``preset`` is its recipe.
        replace: whether an earlier run may be replaced.
        resuming: whether a run was to be resumed, and there is none.
        processes: as for :class:`lm_trainer.training.job.Job`; this one alone sets up.

    Raises:
        ValueError, UnusableFileError: the corpus or the settings cannot be used; one line says why.
    """
    check_processes(processes.count, preset.model["model_type"], preset.training)
    place = run.resolve()  # a link to a folder stays one
    if isinstance(named, str):
        named = CorpusArguments(named)
    if place == Path(named.corpus).resolve():
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
        copies = partial / "copies"
        corpus = find_corpus(named.corpus, reading=named.reading(tell, copies))
        preset = _with_order(preset, corpus)
        if preset.tokenizer.unwrap:
            corpus = corpus.unwrapped()
        for text in (f"corpus {corpus.name}: {corpus.remark}", *corpus.notes):
            tell(text)
        tokenizer, facts = _encode(
            partial, corpus, named, preset.tokenizer, pretrained, device, processes, tell
        )
        remove(copies)
        if pretrained:
            facts = _with_earlier_text(partial, facts, preset.training.replay, pretrained, tell)
        first, model = _first_checkpoint(partial, facts, tokenizer, preset, pretrained)
        if pretrained and model:
            first = dataclasses.replace(first, facts=_with_losses(partial, facts, model, tokenizer.eos_id))
        write_settings(partial, facts, first.model_config, first.training_config)
        save_checkpoint(first)
        _move(partial, place)
    job = make_job(
        run,
        first,
        eos_id=tokenizer.eos_id,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        processes=processes,
    )
    trainer = implementation(first.model_config.model_type).trainer(job, model)
    tell(trainer.describe())
    return trainer


def _move(partial: Path, place: Path) -> None:
    """Put the folder ``partial`` in its place, which may hold an earlier run."""
    if not holds_something(place):
        if place.exists():
            place.rmdir()
        partial.rename(place)
        return
    # The checkpoint first: the folder stays a run, which --force may replace again.
    (partial / LAST).replace(place / LAST)
    for name in (*FILES, *FOLDERS):
        if name != LAST:
            remove(place / name)
    for entry in partial.iterdir():
        entry.rename(place / entry.name)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, damaged or not: other tools too call their files ``last.pt``."""
    ours = any(is_checkpoint(folder / name) for name in (LAST, BEST))
    return (folder / LAST).is_file() and (ours or token_path(folder / TOKEN_FILES, "train").is_file())


def _encode(
    folder: Path,
    corpus: Corpus,
    named: CorpusArguments,
    config: TokenizerConfig,
    pretrained: Pretrained | None,
    device: torch.device,
    processes: Processes,
    tell: Tell,
) -> tuple[Tokenizer, RunFacts]:
    """Write the vocabulary and the token files into ``folder``, and return what is known of the run then."""
    for split in corpus.splits.values():  # before any long work
        if not any(True for _ in split.fragments()):
            raise UnusableFileError(split.path, "empty")
    begun = time.perf_counter()
    if pretrained:
        tokenizer = pretrained.tokenizer
        tell(f"network, weights and vocabulary from {pretrained.origin.path}")
    else:
        tokenizer = make_tokenizer(config, texts(corpus.splits["train"].fragments()))
    write_text(folder / TOKENIZER, tokenizer.json_text)
    splits = encode_corpus(corpus, tokenizer, folder / TOKEN_FILES)
    counts = ", ".join(f"{name} {file.tokens:,} tokens" for name, file in splits.items())
    unknown = f" ({splits['valid'].unknown:,} unknown in valid)" if tokenizer.unk_id is not None else ""
    kind = tokenizer.kind if config.is_file else config.tokenizer
    tell(
        f"vocabulary {tokenizer.vocab_size:,} ({kind}); {counts}{unknown}; "
        f"{time.perf_counter() - begun:.1f} s"
    )
    if (share := splits["valid"].unknown / max(splits["valid"].tokens, 1)) > _MANY_UNKNOWN:
        tell(
            f"warning: {share * 100:.1f} % of the validation text's tokens are unknown, and cost little: its "
            "perplexity does not compare with that of a larger vocabulary"
            + ("" if pretrained or config.is_file else f"; --vocab-size is {config.vocab_size:,}")
        )
    facts = CorpusFacts(
        corpus.name,
        _resolved(named.corpus),
        splits,
        tuple(map(_resolved, named.also)),
        tuple(map(_resolved, named.valid)),
        named.options.text_field,
        named.options.on_error,
    )
    valid = facts.open(folder / TOKEN_FILES, "valid", verify=False)
    return tokenizer, RunFacts(
        facts,
        tokenizer.json_text,
        dataclasses.replace(config, tokenizer=_resolved(config.tokenizer)) if config.is_file else config,
        held_out=tensor_of(valid[:_HELD_OUT_TOKENS].astype("int64")),
        threads=thread_count(),
        device=device.type,
        processes=processes.count,
        init=pretrained.origin if pretrained else None,
    )


def _with_earlier_text(
    folder: Path, facts: RunFacts, share: float, pretrained: Pretrained, tell: Tell
) -> RunFacts:
    """Replay a share of the text that the network was trained on, and keep its validation text."""
    train, valid = pretrained.text("train"), pretrained.text("valid")
    splits, files = facts.corpus.splits, folder / TOKEN_FILES
    earlier = pretrained.corpus.splits
    if share and earlier["train"].sha256 != splits["train"].sha256:
        if train is None or not train.size:
            raise UnusableFileError(
                token_path(pretrained.token_files, "train"),
                "missing or changed: --replay needs the text of the run that --init names",
            )
        mixed = replay(
            token_path(files, "train"),
            splits["train"],
            train,
            earlier["train"],
            share,
            vocab_size=pretrained.tokenizer.vocab_size,
            unk_id=pretrained.tokenizer.unk_id,
        )
        taken = 1 - splits["train"].tokens / mixed.tokens
        tell(f"note: {taken * 100:.0f} % of the training text is the earlier run's; --replay 0 leaves it out")
        facts = dataclasses.replace(
            facts, corpus=dataclasses.replace(facts.corpus, splits={**splits, "train": mixed})
        )
    if valid is None or not valid.size or earlier["valid"].sha256 == splits["valid"].sha256:
        return facts
    shutil.copyfile(token_path(pretrained.token_files, "valid"), token_path(files, FIRST))
    return dataclasses.replace(facts, first=earlier["valid"])


def _with_losses(folder: Path, facts: RunFacts, model: Model, eos_id: int) -> RunFacts:
    """What a network that is trained already loses on the new text, and on its own."""
    files = {"valid": facts.corpus.splits["valid"], FIRST: facts.first}
    losses = {
        name: model.text_loss(file.open(token_path(folder / TOKEN_FILES, name)), eos_id) / file.tokens
        for name, file in files.items()
        if file and file.tokens
    }
    return dataclasses.replace(facts, before=losses)


def _first_checkpoint(
    folder: Path, facts: RunFacts, tokenizer: Tokenizer, preset: Preset, pretrained: Pretrained | None
) -> tuple[Checkpoint, Model | None]:
    """The checkpoint before the first step, for ``folder``, and its model."""
    config = ModelConfig(**{**preset.model, "vocab_size": tokenizer.vocab_size})
    family = implementation(config.model_type)
    family.check(preset.training, facts.corpus.splits["train"].tokens)

    def log_frequencies() -> NDArray[np.float64]:
        train = facts.corpus.open(folder / TOKEN_FILES, "train", verify=False)
        return unigram(train, tokenizer.vocab_size)

    if pretrained:
        model: Model | None = family.restore(config, pretrained.weights)
    else:
        model = family.new_model(config, preset.training, log_frequencies)
    recipe = None if FAMILIES[config.model_type].is_estimated else preset.training
    snapshot = Snapshot(Progress(), 0, model.weights() if model else None)
    return Checkpoint(folder / LAST, facts, config, recipe, snapshot), model


def _with_order(preset: Preset, corpus: Corpus) -> Preset:
    """The recipe with the order in which the corpus is read.

    Raises:
        ValueError: documents are to be shuffled, and there is one.
    """
    wanted = preset.training.shuffle
    if wanted == "document" and not corpus.has_documents:
        raise ValueError("--shuffle document is for several documents, and the corpus is one text")
    order = wanted or ("document" if corpus.has_documents else "none")
    return dataclasses.replace(preset, training=dataclasses.replace(preset.training, shuffle=order))


def _resolved(argument: str) -> str:
    """A path from the root on, so that it is the same from everywhere; a name as it is."""
    path = Path(argument)
    return str(path.resolve()) if path.exists() or glob.has_magic(argument) else argument
