"""What a complete run leaves: figures in ``summary.json``, a sample, the curve, and the page of them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_runtime.commands import note
from lm_runtime.files import UnusableFileError, write_text
from lm_runtime.generation.generate import generate
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.scoring.score import perplexity
from lm_runtime.text_files import read_text_file
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.corpus import token_path
from lm_trainer.corpora.token_file import split_figures, stretch_perplexities
from lm_trainer.families import Model
from lm_trainer.reports.baselines import unigram_perplexity
from lm_trainer.reports.metrics import read_metrics
from lm_trainer.reports.page import write_page
from lm_trainer.reports.pictures import draw_curve
from lm_trainer.run.checkpoint import load_checkpoint, restore_model
from lm_trainer.run.folder import BEST, CURVE, FIRST, LAST, REPORT, SAMPLE, SUMMARY, TOKEN_FILES
from lm_trainer.run.records import Checkpoint

if TYPE_CHECKING:
    import torch


def read_summary(run: Path) -> dict[str, Any] | None:
    """The content of ``summary.json``; None while the run is not complete.

    Raises:
        UnusableFileError: it is damaged.
    """
    path = run / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(read_text_file(path))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise UnusableFileError(path, "damaged; delete it, and --resume writes it again")
    return summary


def finish(run: Path, device: torch.device, sample_tokens: int) -> dict[str, Any]:
    """Draw the curve, sample a text from the best model, and sum the run up, also as a page.

    Returns:
        the content of ``summary.json``, which is written last.
    """
    best, last = load_checkpoint(run / BEST), load_checkpoint(run / LAST)
    model, tokenizer = restore_model(best)
    model.to(device)
    summary = _figures(run, model, tokenizer, best, last)
    params = SamplingParams(max_tokens=sample_tokens)
    seed = best.training_config.seed if best.training_config else 0
    sample = "".join(generate(model.step_model(tokenizer), "", params, seed=seed)) + "\n"
    write_text(run / SAMPLE, sample)
    records = read_metrics(run)
    _try("picture", run / CURVE, lambda path: draw_curve(records, summary["baselines"], path))
    _try("page", run / REPORT, lambda path: write_page(path, summary, last, records, run / CURVE, sample))
    write_text(run / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _figures(
    run: Path, model: Model, tokenizer: Tokenizer, best: Checkpoint, last: Checkpoint
) -> dict[str, Any]:
    corpus, recipe = best.facts.corpus, last.training_config
    train, valid = (corpus.open(run / TOKEN_FILES, split) for split in ("train", "valid"))
    summary: dict[str, Any] = {
        "corpus": corpus.name,
        "parameters": model.parameter_count(),
        "epochs": last.progress.epoch,
        "best_epoch": best.progress.best_epoch,
        "stopped_early": recipe is not None and last.progress.epoch < recipe.epochs,
        "seconds": round(last.progress.seconds, 1),
        "baselines": {
            "uniform": float(tokenizer.vocab_size),
            "unigram": unigram_perplexity(train, valid, tokenizer.vocab_size),
        },
    }
    losses = {"valid": best.progress.valid_loss}
    test = corpus.splits.get("test")
    if test and test.tokens:
        ids = corpus.open(run / TOKEN_FILES, "test")
        losses["test"] = model.text_loss(ids, tokenizer.eos_id) / test.tokens
    for name, loss in losses.items():
        split, ids = corpus.splits[name], corpus.open(run / TOKEN_FILES, name, verify=False)
        stretches = stretch_perplexities(ids, split, lambda text: model.text_loss(text, tokenizer.eos_id))
        summary[name] = split_figures(loss, split) | stretches
    if before := best.facts.before:
        summary["init"] = {"valid_before": perplexity(before["valid"])}
        if first := best.facts.first:
            loss = model.text_loss(first.open(token_path(run / TOKEN_FILES, FIRST)), tokenizer.eos_id)
            summary["init"] |= {
                "first_before": perplexity(before[FIRST]),
                "first": perplexity(loss / first.tokens),
            }
    return summary


def _try(kind: str, path: Path, write: Callable[[Path], None]) -> None:
    """Write what is only shown: whatever goes wrong there, the run is complete without it."""
    try:
        write(path)
    except ModuleNotFoundError as error:
        note(f"note: no {kind} {path}: {error.name} is not installed")
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        note(f"note: the {kind} {path} could not be made ({reason})")
