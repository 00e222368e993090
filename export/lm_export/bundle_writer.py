"""Putting a bundle together: every file, proven, then the folder as a whole in its place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lm_export import parity
from lm_export.card import model_card
from lm_export.graph import ExportError, check_size, make_step_graph
from lm_export.quantize import layers_by_precision, quantize_int8
from lm_runtime.bundle import (
    ARPA,
    CONFIG_FILE,
    GENERATION_CONFIG,
    MODEL_CARD,
    MODELS,
    TABLES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENS_FILE,
    BundleConfig,
    read_bundle_config,
)
from lm_runtime.files import UnusableFileError
from lm_runtime.folders import folder_beside, holds_something, replace_folder, restore_folder
from lm_runtime.models.load import load
from lm_runtime.models.ngram_tables import NgramTables
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.config import ModelConfig
from lm_trainer.corpora.token_file import split_figures
from lm_trainer.networks.registry import Model, parameter_count, step_model
from lm_trainer.ngram.estimation import write_arpa
from lm_trainer.run.checkpoint import load_checkpoint, restore_model, training_settings

LARGEST_INT8_COST = 0.01
"""How much perplexity int8 may cost, as a share."""

_DEFAULTS = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "max_tokens": 200}
_TELLING_TOKENS = 4096

Tell = Callable[[str], None]


def export_bundle(
    checkpoint: Path, out: Path, *, opset: int, quantize: bool, arpa: bool, replace: bool, tell: Tell
) -> BundleConfig:
    """Write the bundle of ``checkpoint`` to ``out``, whole or not at all.

    Args:
        checkpoint: a checkpoint, or a run's folder (then its best one).
        out: the bundle's folder.
        opset: the ONNX operator set of a network's graph.
        quantize: whether to add an int8 graph.
        arpa: whether to add an n-gram model's tables as ARPA.
        replace: whether a bundle that is in ``out`` may be replaced.
        tell: takes lines for the person at the terminal.

    Raises:
        UnusableFileError: the checkpoint cannot be used.
        ValueError: ``out`` holds something, the operator set is not possible, or the checkpoint's family
            has not what is asked for.
        ExportError: the graph or its parity is not what it has to be.
    """
    content = load_checkpoint(checkpoint)
    model, tokenizer = restore_model(checkpoint, content)
    counted = isinstance(model, NgramTables)
    if quantize and counted:
        raise ValueError("an n-gram model has no weights to quantize; leave out --quantize")
    if arpa and not counted:
        raise ValueError("ARPA is a format of n-gram models, and this is a network; leave out --arpa")
    held_out: NDArray[np.int64] = content["held_out"].numpy()
    config = _configuration(model, tokenizer, content, opset)
    with _folder_in_place(out, replace=replace) as folder:
        graph = _write_model(folder, model, config)
        if arpa and isinstance(model, NgramTables):
            write_arpa(model, tokenizer.tokens, folder / ARPA)
        _write_texts(folder, tokenizer)
        _write_config(folder, config)

        proof = parity.compare(step_model(model, tokenizer), load(folder, provider="cpu"), held_out)
        tell(f"parity: {proof}")
        if not proof.holds:
            raise ExportError(f"the bundle differs from the checkpoint, none was written: {proof}")
        config = dataclasses.replace(config, parity=proof.to_dict())

        if quantize and graph is not None:
            onnx.save(quantize_int8(graph), folder / MODELS["int8"])
            _write_config(folder, config)
            layers = layers_by_precision(ModelConfig(**content["model_config"]))
            tell(_in_words(layers))
            cost = _int8_cost(folder, held_out, tell)
            config = dataclasses.replace(config, quantization={**cost, "layers": layers})
        (folder / MODEL_CARD).write_text(model_card(config, folder, out.name), encoding="utf-8")
        return _write_config(folder, config)


def _write_model(folder: Path, model: Model, config: BundleConfig) -> onnx.ModelProto | None:
    """Write the graph, and return it; or write the tables."""
    if isinstance(model, NgramTables):
        (folder / TABLES).parent.mkdir()
        model.write(folder / TABLES)
        return None
    check_size(model)
    (folder / MODELS["fp32"]).parent.mkdir()
    graph = make_step_graph(model, config)
    onnx.save(graph, folder / MODELS["fp32"])
    return graph


def _configuration(model: Model, tokenizer: Tokenizer, content: dict[str, Any], opset: int) -> BundleConfig:
    progress, splits = content["progress"], content["corpus"]["splits"]
    measures = ModelConfig(**content["model_config"])
    return BundleConfig(
        model_type=measures.model_type,
        vocab_size=measures.vocab_size,
        embedding_dim=measures.embedding_dim,
        hidden_size=measures.hidden_size,
        num_hidden_layers=measures.num_layers,
        tie_word_embeddings=measures.tied,
        tokenizer=tokenizer.kind,
        eos_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.eos_id,
        unk_token_id=tokenizer.unk_id,
        states=tuple(step_model(model, tokenizer).states),
        opset=0 if isinstance(model, NgramTables) else opset,
        vocabulary_sha256=tokenizer.vocabulary_sha256,
        window=measures.window,
        order=measures.order,
        projection=measures.projection,
        training={
            "corpus": content["corpus"]["name"],
            "train_tokens": splits["train"]["tokens"],
            "parameters": parameter_count(model),
            "epoch": progress["epoch"],
            "steps": progress["step"],
            "seconds": round(progress["seconds"], 1),
            # Within an epoch the weights are no longer those that were validated.
            "valid": split_figures(progress["valid_loss"], splits["valid"])
            if progress["epoch"] and not progress["window"]
            else None,
            "recipe": training_settings(content),
        },
    )


def _write_texts(folder: Path, tokenizer: Tokenizer) -> None:
    """The vocabulary in the forms that readers look for, and the default sampling parameters."""
    eos = tokenizer.tokens[tokenizer.eos_id]
    unk = None if tokenizer.unk_id is None else tokenizer.tokens[tokenizer.unk_id]
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        # The JavaScript reader turns unknown words into nothing unless a token is named here.
        "unk_token": unk or eos,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER).write_text(tokenizer.json_text, encoding="utf-8")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENS_FILE).write_text(
        "".join(f"{token} {number}\n" for number, token in enumerate(tokenizer.tokens)), encoding="utf-8"
    )
    (folder / GENERATION_CONFIG).write_text(json.dumps(_DEFAULTS, indent=2) + "\n", encoding="utf-8")


def _write_config(folder: Path, config: BundleConfig) -> BundleConfig:
    """Write ``config.json`` with the hash of every other file."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CONFIG_FILE
    )
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    config = dataclasses.replace(config, files=hashes)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    return config


def _in_words(layers: dict[str, list[str]]) -> str:
    said = f"int8: {', '.join(layers['int8'])}"
    if layers["fp32"]:
        said += f"; {', '.join(layers['fp32'])} stay fp32: onnxruntime has no int8 form of them"
    return said


def _int8_cost(folder: Path, held_out: NDArray[np.int64], tell: Tell) -> dict[str, Any]:
    """Perplexity of both graphs, token by token as generation runs them."""
    text = held_out[:_TELLING_TOKENS]
    try:
        int8 = parity.perplexity(load(folder, precision="int8", provider="cpu"), text, 1)
    except UnusableFileError as error:
        reason = str(error).split("load it: ")[-1]
        raise ExportError(
            f"onnxruntime cannot run int8 at this opset, no bundle was written: {reason}; "
            "choose a lower --opset or leave out --quantize"
        ) from None
    fp32 = parity.perplexity(load(folder, provider="cpu"), text, 1)
    cost = int8 / fp32 - 1
    tell(
        f"int8: perplexity {int8:.3f} against {fp32:.3f} in fp32 ({cost:+.2%}) "
        f"on {text.size:,} held-out tokens"
    )
    if not cost <= LARGEST_INT8_COST:
        raise ExportError(
            f"int8 costs {cost:.2%} of perplexity, more than {LARGEST_INT8_COST:.0%}; no bundle was written; "
            "leave out --quantize, or train longer"
        )
    return {"fp32": fp32, "int8": int8, "cost_percent": 100 * cost, "tokens": int(text.size)}


@contextmanager
def _folder_in_place(out: Path, *, replace: bool) -> Iterator[Path]:
    """A neighbour of ``out`` to write into; it becomes ``out`` when the body has ended well."""
    place = out.resolve() if out.is_symlink() else out
    restore_folder(place)
    check_out(out, replace=replace)
    with folder_beside(place) as partial:
        yield partial
        check_out(out, replace=replace)  # what is there may have changed since
        replace_folder(partial, place, check=lambda replaced: check_out(replaced, replace=replace))


def check_out(out: Path, *, replace: bool) -> None:
    """Refuse to overwrite what is not a bundle's, or a bundle that is not to be replaced.

    Raises:
        ValueError: with what to do.
    """
    if not holds_something(out):
        return
    if not replace:
        raise ValueError(
            f"{out} holds something already: --force replaces a bundle, --out names another folder"
        )
    try:
        own = {CONFIG_FILE, *read_bundle_config(out).files}
    except UnusableFileError as error:
        raise ValueError(f"{error}; --force replaces only a bundle") from None
    for path in out.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(out).as_posix() not in own:
            raise ValueError(f"{path} is not the bundle's, and --force would remove it; move it away first")
