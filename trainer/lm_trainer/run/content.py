"""A checkpoint's content: records to plain dictionaries, and back with every value checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import numpy as np

from lm_trainer.config import ModelConfig, TokenizerConfig, TrainingConfig
from lm_trainer.corpora.corpus import CorpusFacts
from lm_trainer.corpora.token_file import TokenFile
from lm_trainer.families import FAMILIES
from lm_trainer.run.records import Checkpoint, Origin, RunFacts
from lm_trainer.tensors import TENSORS, array_of
from lm_trainer.training.snapshot import Descent, Progress, Snapshot

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")

_MOST_THREADS = 1 << 12
_Types = Mapping[str, type | tuple[type, ...]]
_TOP: _Types = {
    "corpus": dict,
    "tokenizer": str,
    "tokenizer_config": dict,
    "held_out": TENSORS,
    "threads": int,
    "device": str,
    "model_config": dict,
    "progress": dict,
    "metrics_bytes": int,
}
_OF_NETWORKS = {"training_config": dict, "model": dict}
_CORPUS = {"name": str, "argument": str, "splits": dict}
_PROGRESS = {"epoch": int, "window": int, "step": int, "seconds": float, "valid_loss": float}
_DESCENT: _Types = {"optimizer": dict, "generator": TENSORS, "hidden": list}


def to_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """The plain values of a checkpoint; what is None in its records is not there."""
    facts, snapshot = checkpoint.facts, checkpoint.snapshot
    content: dict[str, Any] = {
        **{field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)},
        "corpus": dataclasses.asdict(facts.corpus),
        "tokenizer_config": dataclasses.asdict(facts.tokenizer_config),
        "init": facts.init and dataclasses.asdict(facts.init),
        "first": facts.first and dataclasses.asdict(facts.first),
        "model_config": dataclasses.asdict(checkpoint.model_config),
        "training_config": checkpoint.training_config and dataclasses.asdict(checkpoint.training_config),
        "progress": dataclasses.asdict(snapshot.progress),
        "metrics_bytes": snapshot.metrics_bytes,
        "model": snapshot.weights,
    }
    if descent := snapshot.descent:
        content |= {
            "optimizer": descent.optimizer,
            "generator": descent.generators,
            "hidden": list(descent.hidden),
        }
    return {name: value for name, value in content.items() if value is not None}


def _checked(values: Any, where: str, types: _Types) -> dict[str, Any]:
    """``values``, a dictionary that has each name of ``types`` with a value of that type."""
    for name, kind in types.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise ValueError(f"{where}{name} is missing or not what it should be")
    return dict(values)


def _record(kind: type[R], values: Any, where: str) -> R:
    """A record of plain values, and tuples of integers, from its values by name, each of its field's type."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is missing or not what it should be")
    record = kind(**values)
    for name, hint in get_type_hints(kind).items():
        value, kinds = getattr(record, name), get_args(hint) or (hint,)
        if kinds == (int, ...):
            if type(value) is not tuple or any(type(number) is not int for number in value):
                raise ValueError(f"{where} {name} is missing or not what it should be")
        elif type(value) not in kinds and not (type(value) is int and float in kinds):
            raise ValueError(f"{where} {name} is missing or not what it should be")
    return record


def from_content(path: Path, content: dict[str, Any], version: int) -> Checkpoint:
    """The records of a file's content.

    Raises:
        ValueError, TypeError: something is missing or not what it should be.
    """
    _checked(content, "", _TOP)
    model_config = _record(ModelConfig, content["model_config"], "model_config")
    facts = _facts(content)
    _check_held_out(facts.held_out, model_config.vocab_size)
    estimated = FAMILIES[model_config.model_type].is_estimated
    if not estimated:
        _checked(content, "", _OF_NETWORKS)
    _checked(content["progress"], "progress ", _PROGRESS)
    progress = _record(Progress, content["progress"], "progress")
    if min(progress.epoch, progress.window, progress.step, content["metrics_bytes"]) < 0:
        raise ValueError("a count is negative")
    # A setting that is newer than the run has its default.
    recipe = None if estimated else _record(TrainingConfig, content["training_config"], "training_config")
    return Checkpoint(
        path,
        facts,
        model_config,
        recipe,
        Snapshot(
            progress,
            content["metrics_bytes"],
            weights=_weights(content.get("model"), version),
            descent=None if estimated else _descent(content),
        ),
    )


def _facts(content: dict[str, Any]) -> RunFacts:
    corpus = _checked(content["corpus"], "corpus ", _CORPUS)
    splits = {
        str(name): _record(TokenFile, split, str(name))
        for name, split in {"train": None, "valid": None, **corpus["splits"]}.items()
    }
    threads, processes = content["threads"], content.get("processes", 1)
    if type(processes) is not int or processes < 1 or not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"{threads} threads and {processes} processes")
    return RunFacts(
        corpus=CorpusFacts(
            corpus["name"],
            corpus["argument"],
            splits,
            _texts(corpus.get("also", ())),
            _texts(corpus.get("valid", ())),
            None if corpus.get("text_field") is None else str(corpus["text_field"]),
            str(corpus.get("on_error", "stop")),
        ),
        tokenizer=content["tokenizer"],
        tokenizer_config=_record(TokenizerConfig, content["tokenizer_config"], "tokenizer_config"),
        held_out=content["held_out"],
        threads=threads,
        device=content["device"],
        processes=processes,
        init=_record(Origin, content["init"], "init") if "init" in content else None,
        first=_record(TokenFile, content["first"], "first") if "first" in content else None,
        before=_losses(content.get("before")),
    )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, tuple | list):
        raise ValueError("the corpus's texts are not what they should be")
    return tuple(map(str, values))


def _losses(values: Any) -> dict[str, float] | None:
    if values is not None and not (
        isinstance(values, dict) and all(type(value) is float for value in values.values())
    ):
        raise ValueError("the losses before the training are not what they should be")
    return values


def _weights(weights: Any, version: int) -> dict[str, Tensor] | None:
    if weights is None or (version == 1 and weights == {}):  # of an n-gram model before its estimate
        return None
    if not isinstance(weights, dict) or not weights:
        raise ValueError("the model has no weights")
    if not all(isinstance(tensor, TENSORS) for tensor in weights.values()):
        raise ValueError("the weights are not tensors")
    return dict(weights)


def _descent(content: dict[str, Any]) -> Descent | None:
    if not _DESCENT.keys() & content.keys():
        return None
    parts = _checked(content, "", _DESCENT)
    generators = parts["generator"]
    if generators.ndim == 1:  # from before several processes could train together
        generators = generators[None]
    return Descent(parts["optimizer"], generators, tuple(parts["hidden"]))


def _check_held_out(held_out: Tensor, vocab_size: int) -> None:
    ids = array_of(held_out)
    if ids.dtype != np.int64 or ids.ndim != 1 or not ids.size:
        raise ValueError("the held-out text is empty or not what it should be")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError("the held-out text has tokens that are not in the vocabulary")
