"""``lm-score``: the perplexity of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_runtime.commands import Command, imports, note, where_it_runs, which_graph

if TYPE_CHECKING:
    from lm_runtime.scoring import Score

_EXAMPLES = """
\b
Examples:
  lm-score my-bundle valid.txt
  lm-score my-bundle valid.txt --json
  lm-score my-bundle valid.txt --tokens | sort -n | head     the least expected tokens
"""


@click.command(cls=Command, name="lm-score", epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--tokens",
    "per_token",
    is_flag=True,
    help="Print each token's log-probability: number, tab, token as JSON.",
)
@which_graph
@where_it_runs
@click.version_option(package_name="steplm")
def main(
    bundle: Path,
    file: Path,
    as_json: bool,
    per_token: bool,
    precision: Any,
    provider: Any,
    threads: int | None,
) -> None:
    """Score the text FILE with BUNDLE: log-probabilities (natural logarithm) and perplexity.

    Every line's end counts as the token <eos>; the state is carried through the whole file, from a zero
    state that has read one <eos>. No torch is needed.
    """
    if as_json and per_token:
        raise click.UsageError("give --json or --tokens, not both")
    with imports():
        from lm_runtime.model import OnnxModel
        from lm_runtime.scoring import score_file

    model = OnnxModel(bundle, precision=precision, provider=provider, threads=threads)
    names = [json.dumps(token, ensure_ascii=False) for token in model.tokenizer.tokens] if per_token else []

    def show(ids: Any, log_probabilities: Any) -> None:
        if per_token:
            lines = zip(ids, log_probabilities, strict=True)
            click.echo("\n".join(f"{value:.6f}\t{names[token]}" for token, value in lines))

    result = score_file(model, file, each=show)
    if as_json:
        click.echo(json.dumps(_record(result)))
    elif per_token:
        note(_sentence(result))
    else:
        click.echo(_sentence(result))


def _record(score: Score) -> dict[str, float]:
    return {
        "perplexity": score.perplexity,
        "log_probability": score.log_probability,
        "tokens": score.tokens,
        "unknown": score.unknown,
        "bits_per_byte": score.bits_per_byte,
        "perplexity_per_word": score.perplexity_per_word,
        "bytes": score.bytes,
        "words": score.words,
    }


def _sentence(score: Score) -> str:
    return (
        f"perplexity {score.perplexity:.4f} a token, {score.perplexity_per_word:.2f} a word; "
        f"{score.bits_per_byte:.4f} bits a byte; log-probability {score.log_probability:.2f} "
        f"over {score.tokens:,} tokens, {score.unknown:,} of them unknown"
    )
