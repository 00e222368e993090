"""What every model of a bundle has beside its weights: tokenizer and default parameters, checked."""

from __future__ import annotations

from pathlib import Path

from lm_runtime.bundle import (
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENS,
    BundleConfig,
    check_files,
    read_generation_config,
)
from lm_runtime.files import UnusableFileError
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.tokenizer import Tokenizer


def open_bundle(folder: Path, config: BundleConfig, weights: str) -> tuple[Tokenizer, SamplingParams]:
    """Check a bundle's files, the one named ``weights`` among them; read its tokenizer and its defaults.

    Raises:
        UnusableFileError: the bundle is incomplete, damaged, or contradicts itself.
    """
    check_files(folder, config, [GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TOKENS, weights])
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    _check_tokenizer(folder / TOKENIZER, tokenizer, config)
    return tokenizer, _sampling_defaults(folder)


def _check_tokenizer(path: Path, tokenizer: Tokenizer, config: BundleConfig) -> None:
    for name, found, wanted in (
        ("vocab_size", tokenizer.vocab_size, config.vocab_size),
        ("vocabulary_sha256", tokenizer.vocabulary_sha256, config.vocabulary_sha256),
        ("eos_token_id", tokenizer.eos_id, config.eos_token_id),
        ("unk_token_id", tokenizer.unk_id, config.unk_token_id),
    ):
        if found != wanted:
            raise UnusableFileError(path, f"does not fit the model: {name} is {found}, not {wanted}")


def _sampling_defaults(folder: Path) -> SamplingParams:
    path = folder / GENERATION_CONFIG
    values = read_generation_config(folder)
    if "max_new_tokens" in values:
        values["max_tokens"] = values.pop("max_new_tokens")
    try:
        return SamplingParams(**values)
    except (TypeError, ValueError) as error:
        raise UnusableFileError(path, f"not usable as sampling parameters ({error})") from None
