"""SentencePiece's models, read into a tokenizer.json: the same ids as SentencePiece gives, for any line."""

from __future__ import annotations

import functools
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lm_runtime
from conftest import SMALL, TINY, Invoke, one_line, run_command
from lm_export.command import main as lm_export
from lm_runtime.files import UnusableFileError
from lm_runtime.tokenizer import Tokenizer
from lm_trainer.command import main as lm_train
from lm_trainer.config import TokenizerConfig
from lm_trainer.corpora import charsmap
from lm_trainer.corpora.sentencepiece import read_sentencepiece
from lm_trainer.corpora.token_list import check_tokens
from lm_trainer.corpora.vocabulary import make_tokenizer

TIE = 1e-3
"""SentencePiece adds up scores in float32: cuts of a line that differ by less may change places."""

LINES = [
    *(TINY / "train.txt").read_text().splitlines(),
    "Größe und Maß, schöne Übung für Ärzte; naïve café déjà vu à la carte",
    "Тихо вокруг, только не спит барсук, ёж и йод",
    "το γρήγορο καφέ αλεπού",
    "שלום עולם טוב",
    "السلام عليكم ورحمة",
    "नमस्ते दुनिया हिन्दी",
    "日本語のテキストです。ガギグ",
    "한국어 문장입니다 한국",
    "ไทยภาษา",
    "Tiếng Việt rất đẹp",
    "a … b ½ c ﬁ d 10 ㎏",
]
ICEFALL: dict[str, Any] = {
    "user_defined_symbols": ["<blk>", "<sos/eos>"],
    "unk_id": 2,
    "bos_id": -1,
    "eos_id": -1,
}
BYTES: dict[str, Any] = {"byte_fallback": True, "vocab_size": 600, "character_coverage": 0.98}
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "icefall": {**ICEFALL, "character_coverage": 0.98},
    "icefall bpe": {**ICEFALL, "model_type": "bpe"},
    "bytes": BYTES,
    "bpe bytes": {**BYTES, "model_type": "bpe"},
    "controls": {"pad_id": 3, "control_symbols": ["<mask>"], "normalization_rule_name": "identity"},
    "lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "as it is": {"normalization_rule_name": "identity"},
    "no prefix": {"add_dummy_prefix": False, "normalization_rule_name": "nfkc"},
    "every space": {"remove_extra_whitespaces": False},
    "every space bpe": {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "model_type": "bpe"},
    "across words": {"split_by_whitespace": False, "normalization_rule_name": "identity"},
}
NAMES = ["<s>", "</s>", "<unk>", "<blk>", "<sos/eos>", "<pad>", "<mask>", "<0x41>", "\u2581"]
SPACES = [" ", "  ", "\t", "\u3000", "\xa0", "\u200b", "\u2028", "\r", "\x0b", "\x01", "\xad", "\ufeff"]
MARKS = [
    chr(code) for code in (*range(0x300, 0x346), 0x3099, 0x309A, 0x5B7, 0x5BC, 0x5C1, 0x64E, 0x651, 0x653)
]
MARKS += [chr(code) for code in (0x93C, 0x94D, 0x9BE, 0x9C7, 0x1161, 0x11A8, 0x200D, 0xFE0F)]
OWN = "\ufff0\ufff1\ufff2"
"""Unassigned characters that the normalizer uses for itself."""


def characters() -> st.SearchStrategy[str]:
    return st.one_of(
        st.sampled_from(sorted(set("".join(LINES)))),
        st.sampled_from(sorted({word for line in LINES for word in line.split()})),
        st.sampled_from([unicodedata.normalize("NFD", line) for line in LINES[-11:]]),
        st.sampled_from([*MARKS, *SPACES, *NAMES]),
        st.characters(exclude_categories=["Cs", "Co"], exclude_characters="\0\n" + OWN),
    )


def train(**options: Any) -> bytes:
    """A model of LINES, as the bytes of its file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 400, "hard_vocab_limit": False, "character_coverage": 1.0, **options},
    )
    return model.getvalue()


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The rules of SentencePiece's own tables, which are many, are read once for all models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charsmap, "read_rules", functools.cache(charsmap.read_rules))
        yield


@pytest.fixture(scope="module", params=MODELS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    """SentencePiece and what was read of its file."""
    proto = train(**MODELS[request.param])
    path = tmp_path_factory.mktemp("sp") / "bpe.model"
    path.write_bytes(proto)
    return sentencepiece.SentencePieceProcessor(model_proto=proto), read_sentencepiece(path)


def assert_same(processor: Any, tokenizer: Tokenizer, line: str) -> None:
    expected, found = processor.encode(line), tokenizer.encode(line)
    if expected != found:
        totals = [sum(map(processor.get_score, ids)) for ids in (expected, found)]
        assert processor.decode(expected) == processor.decode(found), line
        assert totals[0] == pytest.approx(totals[1], abs=TIE), line


def test_names_and_ids_are_unchanged(both: Any) -> None:
    processor, tokenizer = both
    assert tokenizer.tokens == [processor.id_to_piece(id_) for id_ in range(processor.vocab_size())]
    assert tokenizer.unk_id == processor.unk_id()
    ends = "<sos/eos>" if "<sos/eos>" in tokenizer.tokens else "</s>"
    assert tokenizer.tokens[tokenizer.eos_id] == ends


def test_known_lines_have_sentencepiece_s_ids(both: Any) -> None:
    for line in ["", " ", *LINES, *NAMES, *(f"a{name}b {name} c" for name in (*NAMES, *SPACES, *MARKS))]:
        assert_same(*both, line)
        assert_same(*both, unicodedata.normalize("NFD", line))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(characters(), max_size=12))
def test_any_line_has_sentencepiece_s_ids(both: Any, parts: list[str]) -> None:
    assert_same(*both, "".join(parts))


def test_a_stream_gives_the_text_back(both: Any) -> None:
    processor, tokenizer = both
    text = "\n".join(LINES[:20])
    ids = tokenizer.encode(text)
    decoder = tokenizer.decoder()
    streamed = "".join(decoder.push(id_) for id_ in ids) + decoder.flush()
    expected = "\n".join(processor.decode(processor.encode(line)) for line in LINES[:20])
    assert streamed == expected.replace(" ⁇ ", "<unk>")
    if tokenizer.unk_id not in ids:
        assert tokenizer.encode(streamed) == ids


def test_other_readers_see_the_end_of_a_line_before_a_text(both: Any) -> None:
    processor, tokenizer = both
    engine = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    assert engine.encode(LINES[0]).ids == [tokenizer.eos_id, *processor.encode(LINES[0])]
    special = {token["content"] for token in json.loads(tokenizer.json_text)["added_tokens"]}
    assert special == {name for name in NAMES if name in tokenizer.tokens and not name.startswith("<0x")} - {
        "\u2581"
    }


def test_lines_of_a_run_of_one_character_are_cut_as_well(tmp_path: Path) -> None:
    """Here ties are many: a run may be cut in many orders of the same pieces."""
    model = io.BytesIO()
    text = ["a" * length + " " + "-" * length for length in range(1, 12)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=14, minloglevel=2
    )
    (tmp_path / "a.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = read_sentencepiece(tmp_path / "a.model")
    for length in range(1, 60):
        assert_same(processor, tokenizer, "a" * length + " -" * (length % 5))


def test_own_rules_of_normalization_are_carried_out(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("61 62\t78\n63\t\n2019\t27\n")  # ab -> x, c goes, ’ -> '
    proto = train(normalization_rule_tsv=str(rules))
    (tmp_path / "own.model").write_bytes(proto)
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    tokenizer = read_sentencepiece(tmp_path / "own.model")
    for line in ("abc", "aab", "ac b", "the cab’s", "c", "a\u0301b", "cé"):
        assert tokenizer.encode(line) == processor.encode(line)


@pytest.fixture(scope="module")
def icefall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recognizer's model of the words of data/tiny."""
    folder = tmp_path_factory.mktemp("lang")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TINY / "train.txt").read_text().splitlines()),
        model_writer=model,
        vocab_size=150,
        minloglevel=2,
        **ICEFALL,
    )
    (folder / "bpe.model").write_bytes(model.getvalue())
    return folder / "bpe.model"


def test_a_damaged_file_is_refused_in_one_line(icefall: Path, tmp_path: Path) -> None:
    content = icefall.read_bytes()
    path = tmp_path / "damaged.model"
    random = np.random.default_rng(0)
    cases = [b"", b"\xff" * 50, b"no model", content[:-1], content[: len(content) // 2], content[:100]]
    for _ in range(60):
        changed = bytearray(content)
        # Within the pieces, or the table's array.
        for place in random.integers(0, 4000 if random.random() < 0.7 else len(content), 3):
            changed[place] = random.integers(256)
        cases.append(bytes(changed))
    refused = 0
    for case in cases:
        path.write_bytes(case)
        try:
            tokenizer = read_sentencepiece(path)
        except UnusableFileError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
        else:
            tokenizer.encode(LINES[0])
    assert refused > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word"}, "a word model"),
        ({"model_type": "char"}, "a char model"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix has no counterpart here"),
        ({"eos_id": -1}, "no end-of-line token"),
        (
            {"normalization_rule_name": "nmt_nfkc_cf", "user_defined_symbols": ["<BLK>"]},
            "its normalization makes '<blk>' of its own symbol '<BLK>'",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "other.model").write_bytes(train(**options))
    with pytest.raises(UnusableFileError, match=r"other\.model: .*" + message):
        read_sentencepiece(tmp_path / "other.model")


def test_a_recognizer_s_list_is_held_against_the_vocabulary(icefall: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(TokenizerConfig(str(icefall)), [])
    lines = [f"{token} {id_}" for id_, token in enumerate(tokenizer.tokens)]
    path = tmp_path / "tokens.txt"
    path.write_text("\n".join([*lines, f"#0 {len(lines)}"]) + "\n")
    check_tokens(tokenizer, path)
    for wrong, message in (
        ([*lines[:5], "X 5", *lines[6:]], f"id 5 is 'X' in the list and {tokenizer.tokens[5]!r} in the"),
        (lines[:-2], "id 148 is nothing in the list and '.*' in the tokenizer, and 2 of 150 ids differ"),
        ([*lines, "X 150"], "id 150 is 'X' in the list and nothing in the tokenizer, and 1 of 151"),
        ([*lines, "nothing"], "line 151: not a token and an id of its own: 'nothing'"),
        ([*lines, "twice 3"], "line 151: not a token and an id of its own: 'twice 3'"),
    ):
        path.write_text("\n".join(wrong) + "\n")
        with pytest.raises(UnusableFileError, match=message):
            check_tokens(tokenizer, path)


def test_a_model_of_a_recognizer_s_units_is_trained_exported_and_scored(
    icefall: Path, tmp_path: Path
) -> None:
    sizes = SMALL[SMALL.index("--embedding-dim") :]
    run_command("lm-train", TINY, "--tokenizer", icefall, "--out", "run", *sizes, "--epochs", 2, cwd=tmp_path)
    run_command("lm-export", "run", "--out", "bundle", cwd=tmp_path)
    scored = json.loads(run_command("lm-score", "bundle", TINY / "valid.txt", "--json", cwd=tmp_path).stdout)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(icefall))
    lines = (TINY / "valid.txt").read_text().splitlines()
    assert scored["tokens"] == sum(len(processor.encode(line)) + 1 for line in lines)
    assert 1 < scored["perplexity"] < 150
    bundle = lm_runtime.load(tmp_path / "bundle")
    assert bundle.tokenizer.tokens[bundle.config.eos_token_id] == "<sos/eos>"
    text = "".join(lm_runtime.generate(bundle, lines[0], lm_runtime.SamplingParams(max_tokens=30), seed=1))
    assert text
    assert "\u2581" not in text


def test_a_vocabulary_that_is_not_the_recognizer_s_is_named_before_anything_is_written(
    icefall: Path, invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    sizes = SMALL[SMALL.index("--embedding-dim") :]
    tokens = make_tokenizer(TokenizerConfig(str(icefall)), []).tokens
    lines = [f"{token} {id_}" for id_, token in enumerate(tokens)]
    (tmp_path / "right.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "wrong.txt").write_text("\n".join([*lines[:9], "X 9", *lines[10:]]) + "\n")
    train = [TINY, "--tokenizer", icefall, "--out", "run", *sizes, "--epochs", 1]
    differs = f"id 9 is 'X' in the list and {tokens[9]!r} in the tokenizer, and 1 of 150 ids differ"

    code, _, err = invoke(lm_train, *train, "--tokens", "wrong.txt")
    assert (code, differs in one_line(err)) == (1, True)
    assert not (tmp_path / "run").exists()
    code, _, err = invoke(lm_train, TINY, "--out", "run", "--tokens", "right.txt")
    assert (code, "--tokens checks a vocabulary that is given" in err) == (2, True)
    assert invoke(lm_train, *train, "--tokens", "right.txt")[0] == 0
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--tokens", "wrong.txt")
    assert (code, differs in one_line(err)) == (1, True)

    export = ["--format", "sherpa", "--out", "bundle", "--tokens"]
    code, _, err = invoke(lm_export, "run", *export, "wrong.txt")
    assert (code, differs in one_line(err)) == (1, True)
    code, _, err = invoke(lm_export, small_run, *export, "right.txt")
    assert (code, "id 0 is '<blk>' in the list and '<eos>' in the tokenizer" in one_line(err)) == (1, True)
    assert not (tmp_path / "bundle").exists()
    code, _, err = invoke(lm_export, "run", *export, "right.txt")
    assert code == 0
    assert "not a recognizer's blank" not in err


def test_a_missing_file_is_named(invoke: Invoke) -> None:
    code, _, err = invoke(lm_train, TINY, "--tokenizer", "nowhere.model", "--out", "run")
    assert code == 1
    assert one_line(err) == "lm-train: nowhere.model: no such file"
