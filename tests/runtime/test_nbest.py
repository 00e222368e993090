"""N-best lists in every format: what is written is read, and what is wrong is named by its line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lm_runtime.files import UnusableFileError
from lm_runtime.scoring.nbest.hypothesis import Hypothesis
from lm_runtime.scoring.nbest.lists import open_lists, read_hypotheses
from lm_runtime.scoring.nbest.references import read_references
from lm_runtime.scoring.nbest.registry import FORMATS
from lm_runtime.scoring.rescoring import Rescored
from lm_runtime.scoring.score import Score

WORDS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters=" |{\ufeff"), min_size=1
)
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
SCORES = st.floats(allow_nan=False, allow_infinity=False, width=32)
LISTS = st.lists(st.builds(Hypothesis, WORDS, SCORES, TEXTS), min_size=1, max_size=6)
ODD = [
    Hypothesis("u\u00a01", -0.5, "no\u00a0break"),
    Hypothesis("u2", 1e-30, ""),
    Hypothesis("u2", -7, "a b"),
]
"""A no-break space is part of a word, a text may be empty, a score small."""


def write_plain(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    write(path, *(f"{one.id} {one.score!r} {one.text}" for one in hypotheses))


def write_moses(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    write(path, *(f"{one.id} ||| {one.text} ||| LM0= -1 TM0= 2 ||| {one.score!r}" for one in hypotheses))


def write_json(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    write(path, *(json.dumps({"id": one.id, "text": one.text, "score": one.score}) for one in hypotheses))


def write_kaldi(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    keys = [f"{one.id}-{number}" for number, one in enumerate(hypotheses)]
    write(path, *(f"{key} {one.text}" for key, one in zip(keys, hypotheses, strict=True)))
    write(path.with_name("ac"), *(f"{key} {-one.score!r}" for key, one in zip(keys, hypotheses, strict=True)))
    write(path.with_name("lm"), *(f"{key} 7.5" for key in keys))


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize(
    ("name", "writer"),
    [("plain", write_plain), ("moses", write_moses), ("json", write_json), ("kaldi", write_kaldi)],
)
@given(hypotheses=LISTS)
@example(hypotheses=ODD)
def test_lists_are_read_as_they_were_written(
    tmp_path: Path, name: str, writer: Callable[..., None], hypotheses: list[Hypothesis]
) -> None:
    path = tmp_path / "lists"
    writer(path, hypotheses)
    costs = [(tmp_path / "ac", 1.0), (tmp_path / "lm", 0.0)] if name == "kaldi" else []
    assert list(read_hypotheses(path, name, costs=costs)) == hypotheses


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(
        st.one_of(st.sampled_from('u1- \t|{}":,.e9\n\u00a0'), st.characters(blacklist_categories=["Cs"]))
    )
)
def test_any_text_is_lists_or_is_refused_in_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lists"
    path.write_text(text, encoding="utf-8", newline="\n")
    for name in ("auto", "plain", "moses", "json", "kaldi"):
        try:
            found = list(read_hypotheses(path, name, costs=[(path, 1.0)] if name == "kaldi" else []))
        except UnusableFileError as error:
            assert str(error).startswith(str(path))
            assert len(str(error).splitlines()) == 1
        else:
            assert all(one.id and math.isfinite(one.score) for one in found)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("u1 -1.5 the sea", "plain"),
        ("u1-1 -1.5 the sea", "plain"),
        ("u1-1 the sea", "kaldi"),
        ("0 ||| the sea ||| LM0= -1 ||| -1", "moses"),
        ('{"id": 1, "score": -1, "text": "the sea"}', "json"),
        ("what is this", "plain"),
    ],
)
def test_auto_takes_a_file_for_what_its_first_line_is(tmp_path: Path, line: str, name: str) -> None:
    path = write(tmp_path / "lists", line)
    try:
        assert open_lists(path).format == name
    except UnusableFileError as error:
        assert name == "kaldi"
        assert "--costs" in str(error)


ID = "a string of one line nor a whole number"
JSON = '{"id": "u", "score": -1, "text": "a"}'


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("plain", "", "not an id, a score and a text: ''"),
        ("plain", "u 1_000 a", "the score is no number: '1_000'"),
        ("plain", "u 1e400 a", "the score is no number: '1e400'"),
        ("plain", "u", "not an id, a score and a text: 'u'"),
        ("moses", "", "not id ||| text ||| features ||| score: ''"),
        ("moses", "0 ||| a ||| f", "not id ||| text ||| features ||| score: '0 ||| a ||| f'"),
        ("moses", "0 ||| a ||| f ||| 1_000", "the score is no number: '1_000'"),
        ("moses", "0 ||| a ||| f ||| 1e400", "the score is no number: '1e400'"),
        ("moses", "0 ||| a ||| f ||| \u00a01", "the score is no number: '\\xa01'"),
        ("moses", "0 ||| a ||| f ||| ", "the score is no number: ''"),
        ("moses", " ||| a ||| f ||| 1", "not id ||| text ||| features ||| score: ' ||| a ||| f ||| 1'"),
        ("kaldi", "", "not an id and a text: ''"),
        ("kaldi", "u1 a", "the key has no -number at its end: 'u1'"),
        ("kaldi", "u1-2 a", "costs has no cost of 'u1-2'"),
        ("json", "", "not JSON: Expecting value, at character 1"),
        ("json", "[1]", "not a JSON object, but [1]"),
        ("json", '{"id": "u", "text": "a"}', '"score" is missing'),
        ("json", '{"id": "u", "score": null, "text": "a"}', '"score" is missing'),
        ("json", '{"id": "u", "score": "1", "text": "a"}', "the score is no number: '1'"),
        ("json", '{"id": "u", "score": true, "text": "a"}', "the score is no number: True"),
        ("json", '{"id": "u", "score": 1e400, "text": "a"}', "the number '1e400' is too large"),
        ("json", '{"id": "u", "score": NaN, "text": "a"}', "NaN is not JSON"),
        ("json", '{"id": "u", "score": 1, "text": "a\\nb"}', "\"text\" is no line of text, but 'a\\nb'"),
        ("json", '{"id": "u", "score": 1, "text": "\\ud800"}', '"text" has half a surrogate pair'),
        ("json", '{"id": "\\ud800", "score": 1, "text": "a"}', '"id" has half a surrogate pair'),
        ("json", '{"id": 1.5, "score": 1, "text": "a"}', f'"id" is neither {ID}, but 1.5'),
        ("json", '{"id": "a\\tb", "score": 1, "text": "a"}', f"\"id\" is neither {ID}, but 'a\\tb'"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, name: str, line: str, message: str) -> None:
    good = {"plain": "u -1 a", "moses": "0 ||| a ||| f ||| -1", "kaldi": "u-1 a", "json": JSON}[name]
    path = write(tmp_path / "lists", good, line)
    costs = [(write(tmp_path / "costs", "u-1 3"), 1.0)] if name == "kaldi" else []
    with pytest.raises(UnusableFileError) as error:
        list(read_hypotheses(path, name, costs=costs))
    assert str(error.value) == f"{path}: line 2: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not an id and a cost: ''"),
        ("u-1", "the cost is no number: ''"),
        ("u-1 1e400", "the cost is no number: '1e400'"),
        ("u-0 2", "'u-0' comes a second time"),
    ],
)
def test_a_bad_cost_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    path, costs = write(tmp_path / "text", "u-1 a"), write(tmp_path / "acwt", "u-0 1", line)
    with pytest.raises(UnusableFileError) as error:
        list(read_hypotheses(path, costs=[(costs, 0.1)]))
    assert str(error.value) == f"{costs}: line 2: {message}"


def test_kaldis_score_is_minus_the_sum_of_scaled_costs(tmp_path: Path) -> None:
    path = write(tmp_path / "words_text", "u-1-1 the sea", "u-1-2 ")
    acoustic = write(tmp_path / "acwt", "u-1-2 30", "u-1-1 -20")
    graph = write(tmp_path / "lmwt", "u-1-1 4", "u-1-2 5")
    costs = [(acoustic, 0.1), (graph, 1.0)]
    assert list(read_hypotheses(path, costs=costs)) == [
        Hypothesis("u-1", -(0.1 * -20) - 4, "the sea"),
        Hypothesis("u-1", -(0.1 * 30) - 5, ""),
    ]


def espnet(folder: Path) -> Path:
    for rank, texts in ((1, ("the sea", "a clock")), (2, ("the see", "the clock"))):
        recog = folder / f"{rank}best_recog"
        write(recog / "text", *(f"u{number} {text}" for number, text in enumerate(texts)))
        write(recog / "score", f"u0 tensor(-{rank}.5)", f"u1 tensor(-{rank}.25, device='cuda:0')")
    return folder


@pytest.mark.parametrize("below", ["", "output.1", "logdir/output.1"])
def test_espnets_folders_are_read_rank_by_rank(tmp_path: Path, below: str) -> None:
    espnet(tmp_path / below)
    lists = open_lists(tmp_path)
    assert lists.format == "espnet"
    assert list(lists.hypotheses) == [
        Hypothesis("u0", -1.5, "the sea"),
        Hypothesis("u1", -1.25, "a clock"),
        Hypothesis("u0", -2.5, "the see"),
        Hypothesis("u1", -2.25, "the clock"),
    ]


@pytest.mark.parametrize(
    ("line", "file", "message"),
    [
        ("u1 tensor(nan)", "score", "line 2: the score is no number: 'nan'"),
        ("u2 -1", "text", "line 2: the file score has no 'u1'"),
    ],
)
def test_espnets_bad_scores_are_named(tmp_path: Path, line: str, file: str, message: str) -> None:
    folder = espnet(tmp_path) / "2best_recog"
    write(folder / "score", "u0 -1", line)
    with pytest.raises(UnusableFileError) as error:
        list(read_hypotheses(tmp_path))
    assert str(error.value) == f"{folder / file}: {message}"


@pytest.mark.parametrize("name", ["auto", "plain", "espnet"])
def test_a_folder_without_lists_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusableFileError, match=str(tmp_path)):
        list(read_hypotheses(tmp_path, name))


def test_json_fields_have_the_names_that_are_given(tmp_path: Path) -> None:
    expected = [Hypothesis("7", -1.0, "the sea"), Hypothesis("7", -2.0, "the see")]
    flat = [{"utt": 7, "am": one.score, "hyp": one.text} for one in expected]
    path = write(tmp_path / "flat", *map(json.dumps, flat))
    names = {"id": "utt", "score": "am", "text": "hyp"}
    assert list(read_hypotheses(path, fields=names)) == expected
    nested = {"utt": 7, "wav": "7.wav", "nbest": [{"am": one.score, "hyp": one.text} for one in expected]}
    path = write(tmp_path / "nested", json.dumps(nested))
    assert list(read_hypotheses(path, fields=names | {"list": "nbest"})) == expected


def rescored(hypotheses: Sequence[Hypothesis]) -> list[Rescored]:
    """As if a model had put them in the reverse order of each list."""
    return [
        Rescored(one, Score(-3.5, 2, 0, 5, 2), None, 1, number / 3, {})
        for number, one in enumerate(sorted(hypotheses, key=lambda one: (one.id, one.score)))
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_in_the_same_format_is_read_again(tmp_path: Path, name: str) -> None:
    given = [
        Hypothesis("0", -1.5, "the sea"),
        Hypothesis("0", -2.5, ""),
        Hypothesis("1", -1.25, "a\u00a0clock"),
    ]
    source, costs = tmp_path / "lists", [(tmp_path / "ac", 1.0), (tmp_path / "lm", 0.0)]
    if name == "espnet":
        espnet(source := tmp_path / "folder")
    else:
        {"plain": write_plain, "moses": write_moses, "json": write_json, "kaldi": write_kaldi}[name](
            source, given
        )
    rows = rescored(list(read_hypotheses(source, name, costs=costs if name == "kaldi" else [])))
    files = FORMATS[name].load().write(rows)
    for file, lines in files.items():
        write(tmp_path / "new" / (file or "lists"), *lines)
    assert FORMATS[name].is_folder == ("" not in files)
    again = tmp_path / "new" / {"espnet": "", "kaldi": "text"}.get(name, "lists")
    found = read_hypotheses(
        again,
        name,
        fields={"score": "combined"} if name == "json" else None,
        costs=[(tmp_path / "new" / "cost", 1.0)] if name == "kaldi" else [],
    )
    expected = [Hypothesis(row.hypothesis.id, row.combined, row.hypothesis.text) for row in rows]
    if name == "espnet":  # rank by rank
        assert sorted(found, key=lambda one: one.score) == expected
    else:
        assert list(found) == expected


def test_what_else_a_format_has_is_passed_on(tmp_path: Path) -> None:
    path = write(tmp_path / "moses", "0 ||| the sea ||| LM0= -1 TM0= 2 ||| -1 ||| 0-0 1-1")
    lines = FORMATS["moses"].load().write(rescored(list(read_hypotheses(path))))[""]
    assert list(lines) == ["0 ||| the sea ||| LM0= -1 TM0= 2 LM= -3.5 ||| 0.0 ||| 0-0 1-1"]
    record = {
        "id": 7,
        "wav": "7.wav",
        "nbest": [{"score": -1, "text": "b", "n": 1}, {"score": -2, "text": "a"}],
    }
    path = write(tmp_path / "json", json.dumps(record))
    rows = rescored(list(read_hypotheses(path, fields={"list": "nbest"})))
    (line,) = FORMATS["json"].load().write(rows)[""]
    assert json.loads(line) == {
        "id": 7,
        "wav": "7.wav",
        "nbest": [
            {"score": -2, "text": "a", "combined": 0.0, "log_probability": -3.5},
            {"score": -1, "text": "b", "n": 1, "combined": 1 / 3, "log_probability": -3.5},
        ],
    }


def test_references_are_read_by_the_lists_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "u1 the sea", "u2")
    assert read_references(path) == {"u1": "the sea", "u2": ""}
    assert read_references(write(tmp_path / "lines", "the sea", "", "a"), "moses") == {
        "0": "the sea",
        "1": "",
        "2": "a",
    }
    path = write(tmp_path / "json", '{"utt": 1, "text": "the sea"}')
    assert read_references(path, "json", fields={"id": "utt"}) == {"1": "the sea"}
    for lines, message in (
        (("u1 a", "u1 b"), "line 2: 'u1' comes a second time"),
        (("u1 a", ""), "line 2: not an"),
    ):
        with pytest.raises(UnusableFileError, match=message):
            read_references(write(tmp_path / "bad", *lines))
