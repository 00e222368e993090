"""Writing a bundle: every file, proven, in a folder that then takes its place as a whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lm_export import parity
from lm_export.card import model_card
from lm_export.errors import ExportError
from lm_export.formats.registry import FORMATS, check_applies
from lm_export.forms.registry import form_of
from lm_export.int8_cost import layers_in_words, measure_cost
from lm_export.source import Source, read_source
from lm_runtime.bundle import (
    CONFIG_FILE,
    GENERATION_CONFIG,
    MODEL_CARD,
    MODELS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENS_FILE,
    BundleConfig,
    read_bundle_config,
)
from lm_runtime.files import UnusableFileError
from lm_runtime.folders import folder_beside, holds_something, replace_folder, restore_folder
from lm_runtime.models.load import load
from lm_runtime.tokenizer import LINE_BREAK, Tokenizer
from lm_trainer.corpora.token_list import check_tokens

if TYPE_CHECKING:
    import onnx

    from lm_trainer.networks.base import LanguageModel

_DEFAULTS = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "max_new_tokens": 200}

Tell = Callable[[str], None]


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    opset: int,
    quantize: bool,
    only_int8: bool = False,
    formats: tuple[str, ...] = (),
    tokens: Path | None = None,
    tokenizer: Path | None = None,
    adaptive: bool = False,
    replace: bool,
    tell: Tell,
) -> BundleConfig:
    """Write the bundle of ``checkpoint`` to ``out``, atomically.

    Args:
        checkpoint: a checkpoint, a run's folder (then its best one), or an n-gram model as ``*.arpa``.
        out: the bundle's folder.
        opset: the ONNX operator set of a network's graph.
        quantize: whether to add an int8 graph.
        only_int8: whether that takes the fp32 graph's place, after it was compared with it.
        formats: names of :data:`FORMATS` to add.
        tokens: a recognizer's list, which the vocabulary must be.
        tokenizer: the tokenizer.json of an ARPA file's tokens; by default they are words.
        adaptive: whether the graphs have the output ``hidden``.
        replace: whether a bundle that is in ``out`` may be replaced.
        tell: takes lines for the person at the terminal.

    Raises:
        UnusableFileError: the checkpoint cannot be used, or ``tokens`` differs from its vocabulary.
        ValueError: ``out`` holds something, the operator set is out of its bounds, or ``quantize`` or one of
            ``formats`` does not apply to the model.
        ExportError: the bundle failed a check.
    """
    source = read_source(checkpoint, tokenizer)
    config = _configuration(source, opset)
    layers = form_of(config.model_type).layers(config) if quantize else {}
    check_applies(formats, config)
    if adaptive and not form_of(config.model_type).has_hidden:
        raise ValueError(
            f"--adaptive is for recurrent models; what a {config.model_type} model has read is counted by "
            "--adapt without it"
        )
    if tokens is not None:
        check_tokens(source.tokenizer, tokens)
    with _folder_in_place(out, replace=replace) as folder:
        graph = _write_model(folder, source, config, adaptive=adaptive)
        write_texts(folder, source.tokenizer)
        config = _write_config(folder, config)

        model = load(folder, provider="cpu")
        proof = parity.compare(source.model.step_model(source.tokenizer), model, source.held_out)
        tell(f"parity: {proof}")
        if not proof.holds:
            raise ExportError(f"the bundle differs from the checkpoint, none was written: {proof}")
        config = dataclasses.replace(config, parity=proof.to_dict())
        if adaptive:
            from lm_export.hidden import prove_hidden

            largest = prove_hidden(cast("LanguageModel", source.model), model, source.held_out)
            tell(f"hidden: largest difference {largest:.1e}")

        if quantize and graph is not None:
            import onnx

            from lm_export.quantize import quantize_int8

            onnx.save(quantize_int8(graph), folder / MODELS["int8"])
            config = _write_config(folder, config)
            tell(layers_in_words(layers))
            cost = measure_cost(folder, source.held_out, tell)
            config = dataclasses.replace(config, quantization={**cost, "layers": layers})
            if only_int8:
                (folder / MODELS["fp32"]).unlink()
        for name in dict.fromkeys(formats):
            writer = FORMATS[name].load()
            writer.write(model)
            tell(f"{name}: {writer.prove(model, source.held_out)}")
        (folder / MODEL_CARD).write_text(model_card(config, folder, out.name), encoding="utf-8")
        return _write_config(folder, config)


def _write_model(
    folder: Path, source: Source, config: BundleConfig, *, adaptive: bool
) -> onnx.ModelProto | None:
    """Write the graph, and return it; or write the tables."""
    form = form_of(config.model_type)
    if not form.has_graph:
        form.write_tables(source.model, folder)
        return None
    import onnx

    from lm_export.graph import make_step_graph

    graph = make_step_graph(cast("LanguageModel", source.model), config, adaptive=adaptive)
    (folder / MODELS["fp32"]).parent.mkdir()
    onnx.save(graph, folder / MODELS["fp32"])
    return graph


def _configuration(source: Source, opset: int) -> BundleConfig:
    model, tokenizer = source.config, source.tokenizer
    return BundleConfig(
        model_type=model.model_type,
        vocab_size=model.vocab_size,
        embedding_dim=model.embedding_dim,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        tie_word_embeddings=model.tied,
        tokenizer=tokenizer.kind,
        eos_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.eos_id,
        unk_token_id=tokenizer.unk_id,
        states=tuple(source.model.states),
        opset=opset if form_of(model.model_type).has_graph else 0,
        vocabulary_sha256=tokenizer.vocabulary_sha256,
        window=model.window,
        order=model.order,
        projection=model.projection,
        training=source.training,
    )


def write_texts(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the vocabulary as other tools read it, and the default sampling parameters."""
    unk = None if tokenizer.unk_id is None else tokenizer.tokens[tokenizer.unk_id]
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.eos_spelling,
        "eos_token": tokenizer.eos_spelling,
        # transformers would cut a text around whatever it finds named here.
        "unk_token": None if tokenizer.eos_spelling == LINE_BREAK else unk,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER).write_text(tokenizer.json_text, encoding="utf-8")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENS_FILE).write_text(
        "".join(f"{token} {number}\n" for number, token in enumerate(tokenizer.tokens)), encoding="utf-8"
    )
    (folder / GENERATION_CONFIG).write_text(json.dumps(_DEFAULTS, indent=2) + "\n", encoding="utf-8")


def _write_config(folder: Path, config: BundleConfig) -> BundleConfig:
    """Write ``config.json`` with the hash of every other file; those it has already are not hashed again."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CONFIG_FILE
    )
    hashes = {name: config.files.get(name) or _sha256(folder / name) for name in names}
    config = dataclasses.replace(config, files=hashes)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    return config


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
