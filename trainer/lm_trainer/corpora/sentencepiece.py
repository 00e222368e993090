"""A SentencePiece model becomes a ``tokenizer.json`` with the same ids for every line.

Normalization, byte fallback, control and user-defined symbols included. One difference is left: SentencePiece
adds up scores in 32 bits, so that rounding decides between two ways to cut a line that are equally good; here
it is the first one. Knows nothing about corpora.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Engine

from lm_runtime.files import UnusableFileError, read_regular
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.corpora.charsmap import character_normalizer, literal
from lm_trainer.corpora.sentencepiece_model import Kind, SentencePieceModel, read_model

_SPACE = "\u2581"
_LARGEST_FILE = 1 << 28
_SYMBOLS = ("<blk>", "<sos/eos>")
"""A recognizer's blank and end of line: symbols of no text, which its recipes define as a user would."""
_OTHER_UNKNOWN = "\ufff2"
"""A character that no vocabulary has."""


def read_sentencepiece(path: Path) -> Tokenizer:
    """Read a ``.model`` file.

    Raises:
        UnusableFileError: it is missing or damaged, has no end of line, or asks for what a
            ``tokenizer.json`` cannot say.
    """
    content = read_regular(path, _LARGEST_FILE)
    try:
        engine = _engine(read_model(content))
        tokenizer = Tokenizer(engine.to_str())
    except ValueError as error:
        raise UnusableFileError(path, f"no SentencePiece model that can be read: {error}") from None
    eos = tokenizer.tokens[tokenizer.eos_id]
    # For other readers of the file: a text begins after the end of the line before it.
    engine.post_processor = processors.TemplateProcessing(
        single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_id)]
    )
    return Tokenizer(engine.to_str())


def _engine(model: SentencePieceModel) -> Engine:
    altered, cuts = _guards(model)
    engine = Engine(_bpe(model) if model.is_bpe else _unigram(model))
    engine.normalizer = normalizers.Sequence([*_normalizers(model), *altered])
    symbols = [name for name in model.names(Kind.USER_DEFINED) if len(name) > 1]
    split: list[pre_tokenizers.PreTokenizer] = []
    if model.is_bpe and symbols:
        pattern = "|".join(map(literal, sorted(symbols, key=len, reverse=True)))
        split.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if cuts and (symbols or not model.is_bpe):
        split.append(pre_tokenizers.Split(Regex("|".join(cuts)), "merged_with_previous"))
    by_word = not any(_SPACE in text[1:] for text in model.texts)
    split.append(pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=by_word))
    engine.pre_tokenizer = pre_tokenizers.Sequence(split)
    begins_with_space = model.add_dummy_prefix or model.remove_extra_whitespaces
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            *([decoders.ByteFallback()] if model.byte_fallback else []),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if begins_with_space else []),
        ]
    )
    special = model.names(Kind.UNKNOWN, Kind.CONTROL)
    special += [name for name in _SYMBOLS if name in model.names(Kind.USER_DEFINED)]
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return engine


def _unigram(model: SentencePieceModel) -> models.Unigram:
    """The model of the most probable cut; unknown text has the lowest score less 10, on both sides."""
    scores = [piece.score for piece in model.pieces if piece.kind == Kind.NORMAL] or [0.0]
    lowest, highest = min(scores), max(scores)
    vocabulary = []
    for piece in model.pieces:
        score = piece.score if piece.kind == Kind.NORMAL else lowest
        if piece.kind == Kind.USER_DEFINED:
            # SentencePiece's own rule; what is lower would lower unknown text.
            score = max(lowest, highest * len(piece.text.encode()) - 0.1)
        vocabulary.append((piece.text, score))
    unknown = [piece.kind for piece in model.pieces].index(Kind.UNKNOWN)
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=model.byte_fallback)


def _bpe(model: SentencePieceModel) -> models.BPE:
    """Merges in the order of the scores of what they make.

    A user-defined symbol is cut off before, and is a piece without merges: ``ignore_merges`` takes it whole.
    """
    ids = {piece.text: id_ for id_, piece in enumerate(model.pieces)}
    texts = set(model.texts)
    merges = []
    for piece in sorted(model.pieces, key=lambda piece: -piece.score):
        if piece.kind == Kind.NORMAL:
            cuts = ((piece.text[:at], piece.text[at:]) for at in range(len(piece.text) - 1, 0, -1))
            merges += [cut for cut in cuts if texts.issuperset(cut)]
    return models.BPE(
        ids,
        merges,
        unk_token=model.names(Kind.UNKNOWN)[0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(model.names(Kind.USER_DEFINED)),
    )


def _normalizers(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    """The steps from a line to the text that is cut into pieces."""
    steps: list[normalizers.Normalizer] = []
    prefix = [normalizers.Prepend(_SPACE)] if model.add_dummy_prefix else []
    if not model.remove_extra_whitespaces:
        steps += prefix  # also of a line of which nothing else is left
    if model.charsmap:
        known = None if model.byte_fallback else set("".join(model.texts))
        symbols = model.names(Kind.USER_DEFINED)
        characters = character_normalizer(model.charsmap, known, symbols)
        for name in symbols:
            if (found := characters.normalize_str(name)) != name:
                raise ValueError(f"its normalization makes {found!r} of its own symbol {name!r}")
        steps.append(characters)
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +"), ""), normalizers.Replace(Regex("  +"), " ")]
    steps.append(normalizers.Replace(" ", _SPACE))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(f"{_SPACE}+$"), ""), *prefix]
    return steps


def _guards(model: SentencePieceModel) -> tuple[list[normalizers.Normalizer], list[str]]:
    """What keeps a text that spells the name of a symbol of no text, as ``</s>``, from becoming it.

    Returns:
        steps that put another unknown character in the place of one of the name's, and patterns after which a
        text is cut: within the name, where no piece of text spans the cut.
    """
    characters = set("".join(model.texts))
    pairs = {text[at : at + 2] for text in model.texts for at in range(len(text) - 1)}
    altered: list[normalizers.Normalizer] = []
    cuts = []
    for name in model.names(Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE):
        unknown = [character for character in name if character not in characters]
        if unknown and not model.byte_fallback:
            altered.append(normalizers.Replace(name, name.replace(unknown[0], _OTHER_UNKNOWN)))
            continue
        for at in range(1, len(name)):
            if name[at - 1 : at + 1] not in pairs:
                before, last, after = (literal(part) for part in (name[: at - 1], name[at - 1], name[at:]))
                cuts.append((f"(?<={before})" if before else "") + f"{last}(?={after})")
                break
    return altered, cuts
