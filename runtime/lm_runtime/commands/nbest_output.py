"""What ``lm-score --nbest`` writes: lists in their new order, weights that were found, and error rates."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from lm_runtime.commands import note
from lm_runtime.commands.nbest_options import NbestOptions
from lm_runtime.files import write_text
from lm_runtime.scoring.errors import Metric
from lm_runtime.scoring.nbest.registry import ListFormat
from lm_runtime.scoring.rescoring import Rescored
from lm_runtime.scoring.tuning import ErrorRates
from lm_runtime.scoring.weights import Weights
from lm_runtime.wire import Record

_FEW_LISTS = 100
"""Below, what is found on the lists may be true of these texts alone."""
_UNITS = {"wer": "words", "cer": "characters"}


def print_lists(
    rows: Sequence[Rescored], format: ListFormat, options: NbestOptions, *, as_json: bool
) -> None:
    """Print the lists, or write them to the file or folder that the options name."""
    if options.print_ == "same":
        _write(format.load().write(rows), options.output)
        return
    numbered = format.numbered
    if options.print_ == "best":
        rows = [next(group) for _, group in itertools.groupby(rows, key=lambda row: row.hypothesis.id)]
        if numbered and any(row.hypothesis.id != str(line) for line, row in enumerate(rows)):
            note("the ids are not the numbers of lines from 0, and are printed with the texts")
            numbered = False
    lines: Iterable[str]
    if as_json:
        lines = map(_json_line, rows)
    elif options.print_ == "best":
        lines = (row.hypothesis.text if numbered else _with_id(row) for row in rows)
    else:
        lines = map(_ranked_line, rows)
    _write({"": lines}, options.output)


def _with_id(row: Rescored) -> str:
    return f"{row.hypothesis.id} {row.hypothesis.text}"


def _ranked_line(row: Rescored) -> str:
    given = row.hypothesis
    return f"{given.id}\t{row.combined:.6f}\t{row.lm.log_probability:.6f}\t{given.text}"


def _json_line(row: Rescored) -> str:
    record: Record = {
        "id": row.hypothesis.id,
        "combined": row.combined,
        "log_probability": row.lm.log_probability,
        "score": row.hypothesis.score,
        "tokens": row.lm.tokens,
        "unknown": row.lm.unknown,
        "words": row.words,
    }
    if row.second is not None:
        record |= {"second_log_probability": row.second.log_probability}
    return json.dumps(record | {"parts": row.parts, "text": row.hypothesis.text}, ensure_ascii=False)


def _write(files: Mapping[str, Iterable[str]], output: str | None) -> None:
    """Write lines to standard output, to a file, or several files into a folder."""
    if output is None:
        for line in files[""]:
            click.echo(line.encode())
        return
    for name, lines in files.items():
        path = Path(output, name) if name else Path(output)
        if name:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in lines))


def print_tuning(weights: Weights, rates: ErrorRates, metric: Metric, *, as_json: bool) -> None:
    """Print the weights that were found and what they bring."""
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(weights) | facts(rates, metric)))
    else:
        for line in _table(weights, rates, metric):
            click.echo(line)
    if rates.lists < _FEW_LISTS:
        note(f"{rates.lists} lists are few: expect less on other texts")


def facts(rates: ErrorRates, metric: Metric) -> Record:
    """The error rates and what they were measured on, as JSON has them."""
    return {
        "metric": metric,
        "lists": rates.lists,
        "hypotheses": rates.hypotheses,
        "length": rates.length,
        **{name: rates.rate(errors) for name, errors in _errors(rates).items()},
    }


def _errors(rates: ErrorRates) -> dict[str, int]:
    return {"first_pass": rates.first_pass, "rescored": rates.rescored, "oracle": rates.oracle}


def _table(weights: Weights, rates: ErrorRates, metric: Metric) -> Iterator[str]:
    for name, value in dataclasses.asdict(weights).items():
        if value or name == "lm_weight":
            yield f"{name.replace('_', '-'):<14}{value:>10g}"
    yield ""
    yield f"{'':<14}{metric.upper():>10}{'errors':>10}"
    for name, errors in _errors(rates).items():
        yield f"{name.replace('_', ' '):<14}{rates.rate(errors):>10.2%}{errors:>10,}"
    yield f"{rates.length:,} {_UNITS[metric]} in {rates.lists:,} lists of {rates.hypotheses:,} hypotheses"


def sentence(rates: ErrorRates, metric: Metric) -> str:
    """The error rates in a line."""
    return (
        f"{metric.upper()} {rates.rate(rates.rescored):.2%}; first pass {rates.rate(rates.first_pass):.2%}, "
        f"oracle {rates.rate(rates.oracle):.2%}; {rates.length:,} {_UNITS[metric]} in {rates.lists:,} lists"
    )
