"""What a complete run leaves: figures in ``summary.json``, a sample, the curve, and the page of them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lm_runtime.files import UnusableFileError, read_text_file, write_text
from lm_runtime.generation.generate import generate
from lm_runtime.sampling.params import SamplingParams
from lm_trainer.config import BEST, LAST
from lm_trainer.corpora.corpus import open_split
from lm_trainer.corpora.token_file import split_figures
from lm_trainer.networks.base import LanguageModel
from lm_trainer.networks.registry import parameter_count, step_model, text_loss
from lm_trainer.reports.baselines import unigram_perplexity
from lm_trainer.reports.metrics import draw_curve
from lm_trainer.reports.page import write_report
from lm_trainer.run.checkpoint import load_checkpoint, restore_model

SAMPLE = "sample.txt"
SUMMARY = "summary.json"


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
    path = run / BEST
    content = load_checkpoint(path)
    model, tokenizer = restore_model(path, content)
    if isinstance(model, LanguageModel):
        model.to(device)
    splits = content["corpus"]["splits"]
    end = load_checkpoint(run / LAST)
    best, last = content["progress"], end["progress"]
    baselines = {
        "uniform": float(tokenizer.vocab_size),
        "unigram": unigram_perplexity(
            open_split(run, content, "train"), open_split(run, content, "valid"), tokenizer.vocab_size
        ),
    }
    summary = {
        "corpus": content["corpus"]["name"],
        "parameters": parameter_count(model),
        "epochs": last["epoch"],
        "best_epoch": best["best_epoch"],
        "stopped_early": last["epoch"] < end["training_config"].get("epochs", 1),
        "seconds": round(last["seconds"], 1),
        "baselines": baselines,
        "valid": split_figures(best["valid_loss"], splits["valid"]),
    }
    if "test" in splits and splits["test"]["tokens"]:
        loss = text_loss(model, open_split(run, content, "test"), tokenizer.eos_id)
        summary["test"] = split_figures(loss / splits["test"]["tokens"], splits["test"])
    draw_curve(run, baselines)
    params = SamplingParams(max_tokens=sample_tokens)
    seed = content["training_config"].get("seed", 0)
    sample = "".join(generate(step_model(model, tokenizer), "", params, seed=seed)) + "\n"
    write_text(run / SAMPLE, sample)
    write_report(run, summary, end, sample)
    write_text(run / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary
