"""Training a tokenizer on a corpus, by the ``tokenizers`` library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from lm_runtime.tokenizer import ANY_CHARACTER, EOS, UNK, Tokenizer
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora import words
from lm_trainer.corpora.sentencepiece import read_sentencepiece
from lm_trainer.corpora.tokenizer_form import with_line_breaks

_BYTES = 256
_LONGEST_RUN = 1000
_RUN = re.compile(rf"\S{{{_LONGEST_RUN}}}(?=\S)")


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train a tokenizer on ``texts``, or read the one that ``config`` names.

    bpe learns from at most 1,000 characters at once where no white space parts them.

    Args:
        config: the kind and the limits.
        texts: lines or parts of lines, without line breaks.

    Raises:
        ValueError: the kind or its limits are not possible, or the texts hold no word at all.
        UnusableFileError: ``config`` names a file that is no usable tokenizer.
    """
    lower = normalizers.Lowercase() if config.lowercase else None
    match config.tokenizer:
        case "word":
            engine = _closed_vocabulary(lower, pre_tokenizers.WhitespaceSplit(), config, texts)
        case "words":
            normalizer = words.normalizer(lowercase=config.lowercase)
            engine = _closed_vocabulary(normalizer, words.pre_tokenizer(), config, texts)
            engine.decoder = words.decoder()
        case "char":
            characters = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
            engine = _closed_vocabulary(lower, characters, config, texts)
            engine.decoder = decoders.Fuse()
        case "bpe":
            engine = _byte_level_bpe(lower, config, texts)
        case path if path.endswith(".json"):
            return Tokenizer.from_file(Path(path))
        case path if path.endswith(".model"):
            return read_sentencepiece(Path(path))
        case other:
            raise ValueError(
                "tokenizer must be word, words, char, bpe, a tokenizer.json or a SentencePiece .model, "
                f"got {other}"
            )
    return with_line_breaks(Tokenizer(engine.to_str()))


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """The word tokenizer of ``<eos>``, ``<unk>`` and ``words``, in this order."""
    engine = _of_parts(None, pre_tokenizers.WhitespaceSplit(), [EOS, UNK, *words])
    return with_line_breaks(Tokenizer(engine.to_str()))


def _closed_vocabulary(
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    config: TokenizerConfig,
    texts: Iterable[str],
) -> Engine:
    """``<eos>``, ``<unk>``, then the parts that ``pre_tokenizer`` makes, the most frequent first."""
    counter = Engine(models.WordLevel(unk_token=UNK))
    _set_normalizer(counter, normalizer)
    counter.pre_tokenizer = pre_tokenizer
    # The library's trainer leaves gaps in the ids where a text has a special token's name, as the Penn
    # Treebank has <unk>. So it counts without them, and they are put before the others.
    counter.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=config.vocab_size, min_frequency=config.min_frequency, show_progress=False
        ),
    )
    counted = counter.get_vocab()
    parts = [part for part in sorted(counted, key=counted.__getitem__) if part not in (EOS, UNK)]
    if not parts:
        raise ValueError(
            f"the training text has no {'character' if config.tokenizer == 'char' else 'word'} that comes "
            f"{config.min_frequency} times: the vocabulary would be empty"
        )
    return _of_parts(normalizer, pre_tokenizer, [EOS, UNK, *parts][: config.vocab_size])


def _of_parts(
    normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer, tokens: list[str]
) -> Engine:
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    engine = Engine(models.WordLevel(vocabulary, unk_token=UNK))
    _set_normalizer(engine, normalizer)
    engine.pre_tokenizer = pre_tokenizer
    engine.add_special_tokens([_special(EOS), _special(UNK)])
    return engine


def _set_normalizer(engine: Engine, normalizer: normalizers.Normalizer | None) -> None:
    if normalizer is not None:  # which the library does not take
        engine.normalizer = normalizer


def _byte_level_bpe(
    normalizer: normalizers.Normalizer | None, config: TokenizerConfig, texts: Iterable[str]
) -> Engine:
    """Every text can be spelled: the 256 bytes are tokens, and there is no ``<unk>``."""
    if config.vocab_size <= _BYTES:
        raise ValueError(f"vocab_size must be at least {_BYTES + 1} with bpe, got {config.vocab_size}")
    engine = Engine(models.BPE())
    _set_normalizer(engine, normalizer)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.train_from_iterator(
        _without_long_runs(texts),
        trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            special_tokens=[_special(EOS)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return engine


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut within characters that no white space parts, such as DNA or base64.

    The trainer's time grows with the square of a run's length.
    """
    for text in texts:
        begun = 0
        if len(text) > _LONGEST_RUN:
            for run in _RUN.finditer(text):
                yield text[begun : run.end()]
                begun = run.end()
        yield text[begun:]


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
