"""A complete run as one page, ``report.html``: it needs no other file, no script and no network."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_runtime.scoring.score import not_comparable
from lm_trainer.families import FAMILIES
from lm_trainer.reports import markup
from lm_trainer.reports.pictures import draw_rates
from lm_trainer.run.records import Checkpoint

_TUNED = {
    "valid_before": "valid, before fine-tuning",
    "first_before": "earlier text, before fine-tuning",
    "first": "earlier text",
}


def write_page(
    path: Path,
    summary: dict[str, Any],
    last: Checkpoint,
    records: list[dict[str, Any]],
    curve: Path,
    sample: str,
) -> None:
    """Write the page of a run.

    Args:
        path: the page.
        summary: the content of ``summary.json``.
        last: the last checkpoint.
        records: the metrics.
        curve: the picture of the perplexity, if it could be drawn.
        sample: a text of the best model.
    """
    title = f"{last.model_config} on {summary['corpus']}"
    pictures = ""
    if any(record["event"] == "step" for record in records) and curve.exists():
        rates = io.BytesIO()
        draw_rates(records, rates)
        pictures = (
            "<h2>The course of the training</h2>\n"
            + markup.picture("perplexity over the steps", curve.read_bytes())
            + markup.picture("learning rate over the steps", rates.getvalue())
        )
    facts = last.facts
    settings = {
        **dataclasses.asdict(facts.tokenizer_config),
        **dataclasses.asdict(last.model_config),
        **last.recipe,
    }
    if facts.init:
        settings["init"] = facts.init.path
    body = f"""{markup.table(_facts(summary, last))}
<h2>Perplexity</h2>
{markup.table(_figures(summary))}
{pictures}
<h2>A sample</h2>
<pre>{markup.escape(sample)}</pre>
<h2>Settings</h2>
{markup.table(settings.items())}"""
    markup.write_page(path, markup.page(title, body))


def _facts(summary: dict[str, Any], last: Checkpoint) -> Iterable[tuple[object, ...]]:
    config, facts, progress, recipe = last.model_config, last.facts, last.progress, last.training_config
    yield "model", FAMILIES[config.model_type].description
    yield "parameters", f"{summary['parameters']:,}"
    yield "vocabulary", f"{config.vocab_size:,} tokens ({facts.tokenizer_config.tokenizer})"
    yield "corpus", ", ".join((facts.corpus.argument, *facts.corpus.also))
    if recipe and recipe.shuffle in ("line", "document"):
        yield "order", f"each {recipe.shuffle} at another place in each epoch"
    for name, split in facts.corpus.splits.items():
        yield name, f"{split.tokens:,} tokens, {split.words:,} words, {split.bytes:,} bytes"
    early = ", stopped early: validation no longer improved" if summary["stopped_early"] else ""
    yield "epochs", f"{summary['epochs']}, best after {summary['best_epoch']}{early}"
    trained = facts.corpus.splits["train"].tokens
    if recipe:
        trained = progress.step * recipe.batch_size * recipe.seq_len
        yield "steps", f"{progress.step:,}"
    yield "time", f"{progress.seconds:,.1f} s on {facts.device}, {facts.threads} threads"
    yield "speed", f"{trained / progress.seconds:,.0f} tokens a second, validation included"


def _figures(summary: dict[str, Any]) -> Iterable[tuple[object, ...]]:
    yield "", "a token", "a word", "bits a byte", "tokens", "unknown"
    for split in ("valid", "test"):
        if figures := summary.get(split):
            yield (
                split,
                f"{figures['perplexity']:,.2f}",
                # None for a text without word breaks.
                "" if (a_word := figures["perplexity_per_word"]) is None else f"{a_word:,.1f}",
                _bits(figures),
                f"{figures['tokens']:,}",
                f"{figures['unknown']:,}",
            )
    for name, value in summary.get("init", {}).items():
        yield _TUNED[name], f"{value:,.2f}"
    for name, value in summary["baselines"].items():
        yield f"{name} distribution, valid", f"{value:,.1f}"


def _bits(figures: dict[str, Any]) -> str:
    if (bits := figures["bits_per_byte"]) is not None:
        return f"{bits:.3f}"
    return not_comparable(figures["unknown"], figures["tokens"])
