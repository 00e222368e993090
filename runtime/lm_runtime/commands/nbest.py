"""``lm-score --nbest``: n-best lists in a new order, and weights that are found on some of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_runtime.commands import Progress, note
from lm_runtime.commands.nbest_options import NbestOptions
from lm_runtime.commands.nbest_output import facts, print_lists, print_tuning, sentence
from lm_runtime.files import require_place
from lm_runtime.models.protocol import StepModel
from lm_runtime.scoring.nbest.hypothesis import Hypothesis, number
from lm_runtime.scoring.nbest.lists import open_lists
from lm_runtime.scoring.nbest.references import read_references
from lm_runtime.scoring.nbest.registry import FORMATS, ListFormat
from lm_runtime.scoring.rescoring import Scored, rank, score_hypotheses
from lm_runtime.scoring.tuning import Development, tune
from lm_runtime.scoring.weights import Weights
from lm_runtime.scoring.weights_file import load_weights, save_weights
from lm_runtime.settings import short

_FIELDS = ("id", "score", "text", "list")


@dataclass(frozen=True)
class Prepared:
    """Lists and what is asked of them, read and checked before a model is opened."""

    options: NbestOptions
    """What is asked."""
    weights: Weights
    """The weights that are given."""
    given: tuple[str, ...]
    """The names of those that options gave."""
    to_find: tuple[str, ...]
    """The names of those to be found; empty for the usual ones."""
    models: list[str]
    """What tells the models that the file of weights is for; empty if nobody knows."""
    format: ListFormat
    """The format of the lists."""
    hypotheses: list[Hypothesis]
    """The hypotheses of all lists."""
    references: dict[str, str] | None
    """The right texts by the lists' ids."""


def prepare(file: Path, options: NbestOptions, given: Mapping[str, float], *, as_json: bool) -> Prepared:
    """Read the lists, the references and the weights.

    Args:
        file: the lists.
        options: what is asked.
        given: the weights that were given, by their names.
        as_json: whether results are wanted as JSON.

    Raises:
        UnusableFileError: a file cannot be used; the message names the line.
        ValueError: options do not go together.
    """
    _check_options(options, given)
    weights, models = (Weights(), []) if options.weights is None else load_weights(Path(options.weights))
    weights = dataclasses.replace(weights, **given)
    if weights.second_weight and options.second is None:
        raise ValueError("--second-weight is for a model of --second")
    fields = _fields(options.nbest_fields)
    lists = open_lists(
        file, options.nbest_format, fields=fields, costs=[_cost(text) for text in options.costs]
    )
    format_ = FORMATS[lists.format]
    if options.nbest_format == "auto" and lists.format != "plain":
        note(f"{file}: read as {lists.format}: {format_.description}")
    if options.print_ == "same" and as_json:
        raise ValueError("give --json or --print same, not both")
    if options.print_ == "same" and format_.is_folder and options.output is None:
        raise ValueError(f"lists of {lists.format} are several files; name a folder with --output")
    references = options.tune if options.tune is not None else options.evaluate
    return Prepared(
        options,
        weights,
        tuple(given),
        tuple(name.replace("-", "_") for name in options.tune_weight),
        models,
        format_,
        list(lists.hypotheses),
        None if references is None else read_references(references, lists.format, fields=fields),
    )


def run(prepared: Prepared, model: StepModel, second: StepModel | None, *, as_json: bool) -> None:
    """Score the hypotheses, and print them in their new order, or the weights that were found."""
    options, weights = prepared.options, prepared.weights
    models = [one.identity for one in (model, second) if one is not None]
    if prepared.models and prepared.models != models:
        note(f"{options.weights}: these weights were found for other models")
    scored = score_hypotheses(model, _watched(prepared.hypotheses), second)
    lists = None
    if prepared.references is not None:
        lists = Development(scored, prepared.references, options.tune_metric)
        ids = {one.hypothesis.id for one in scored}
        for what, left in (
            ("lists without a reference", ids - prepared.references.keys()),
            ("references without a list", prepared.references.keys() - ids),
        ):
            if left:
                note(f"{what}: {len(left)}, the first {short(min(left))}; not among the errors")
    if lists is not None and options.tune is not None:
        to_find = prepared.to_find or _usual(options, prepared.given, scored)
        if not to_find:
            raise ValueError("--tune has nothing to find: every weight is given")
        weights = tune(lists, weights, to_find)
        rates = lists.rates(weights)
        print_tuning(weights, rates, options.tune_metric, as_json=as_json)
        if options.save_weights is not None:
            save_weights(Path(options.save_weights), weights, models, facts(rates, options.tune_metric))
        return
    if lists is not None:
        note(sentence(lists.rates(weights), options.tune_metric))
    print_lists(rank(scored, weights), prepared.format, options, as_json=as_json)


def _check_options(options: NbestOptions, given: Mapping[str, float]) -> None:
    """Refuse what does not go together."""
    if options.tune is not None and options.evaluate is not None:
        raise ValueError("give --tune or --evaluate, not both")
    if options.tune is None and options.weights is None and "lm_weight" not in given:
        raise ValueError(
            "--nbest needs a weight of the model: --lm-weight, --weights FILE, or --tune REFERENCES"
        )
    if options.tune is None and (options.save_weights is not None or options.tune_weight):
        raise ValueError("--save-weights and --tune-weight are for --tune")
    if options.second is not None and not (options.tune or options.weights or "second_weight" in given):
        raise ValueError("--second needs --second-weight, --weights FILE, or --tune")
    if options.tune is not None and (options.output is not None or options.print_ != "ranked"):
        raise ValueError("--tune prints weights; order the lists by --weights afterwards")
    if options.second is None and "second-weight" in options.tune_weight:
        raise ValueError("--tune-weight second-weight is for a model of --second")
    if both := [name for name in options.tune_weight if name.replace("-", "_") in given]:
        raise ValueError(f"--{both[0]} is given and is to be found; leave out one of both")
    if options.save_weights is not None:
        require_place(Path(options.save_weights))
    if options.output is not None and os.path.lexists(options.output):
        raise ValueError(f"{options.output} is there already; give --output another name")


def _usual(options: NbestOptions, given: Sequence[str], scored: Sequence[Scored]) -> list[str]:
    """The weights to find unless others are asked for: all but the length bonus, where they can matter."""
    matter = {
        "lm_weight": True,
        "second_weight": options.second is not None,
        "word_bonus": True,
        "unk_penalty": any(one.lm.unknown for one in scored),
    }
    return [name for name, matters in matter.items() if matters and name not in given]


def _fields(text: str) -> dict[str, str]:
    """``id=utt,score=am`` by the names on the left."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, field = part.partition("=")
        if name not in _FIELDS or not equals or not field:
            raise ValueError(f"nbest_fields must be of {', '.join(_FIELDS)}, as id=utt, got {part}")
        found[name] = field
    return found


def _cost(text: str) -> tuple[Path, float]:
    """``FILE:SCALE``; a file alone has the scale 1."""
    name, colon, scale = text.rpartition(":")
    if not colon or os.path.lexists(text):
        return Path(text), 1.0
    return Path(name), number(scale, "scale of --costs")


def _watched(hypotheses: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
    """Pass the hypotheses on as they are asked for, and show the progress by their bytes."""
    sizes = [len(hypothesis.text.encode()) + 1 for hypothesis in hypotheses]
    progress, done = Progress(sum(sizes)), 0
    for hypothesis, size in zip(hypotheses, sizes, strict=True):
        progress.show(done)
        done += size
        yield hypothesis
