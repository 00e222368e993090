"""`lm-score --nbest` as people who rescore use it: tune, then apply, in their own format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lm_runtime
from conftest import FIXTURE, Invoke, one_line, run_command
from lm_runtime.commands.score import main as lm_score

DEV = {
    "u1": ("the keeper of the sea", {"the keeper of the sea": -4.2, "sea the of the keeper": -4.0}),
    "u2": ("the clock", {"clock clock the": -0.5, "the clock": -1.0, "clock": -0.9}),
}
"""Right texts, and lists of which the first pass prefers a wrong one."""


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A folder with lists and references."""
    write(
        tmp_path / "dev.txt",
        *(f"{id_} {score} {text}" for id_, (_, texts) in DEV.items() for text, score in texts.items()),
    )
    write(tmp_path / "dev.ref", *(f"{id_} {right}" for id_, (right, _) in DEV.items()))
    return tmp_path


def test_weights_are_tuned_and_applied(dev: Path) -> None:
    tuning = ["--nbest", "--tune", "dev.ref", "--save-weights", "weights.json"]
    result = run_command("lm-score", FIXTURE, "dev.txt", *tuning, cwd=dev)
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0][0] == "lm-weight"
    assert float(table[0][1]) > 0
    assert ["first", "pass", "71.43%", "5"] in table
    assert ["rescored", "0.00%", "0"] in table
    assert ["oracle", "0.00%", "0"] in table
    assert "2 lists are few" in result.stderr
    saved = json.loads((dev / "weights.json").read_text())
    assert saved["tuned"]["rescored"] == 0
    assert saved["models"] == [lm_runtime.load(FIXTURE).identity]
    applied = ["--nbest", "--weights", "weights.json", "--print", "best", "--evaluate", "dev.ref"]
    result = run_command("lm-score", FIXTURE, "dev.txt", *applied, cwd=dev)
    assert result.stdout == (dev / "dev.ref").read_text()
    assert result.stderr == "WER 0.00%; first pass 71.43%, oracle 0.00%; 7 words in 2 lists\n"


def test_characters_are_counted_if_asked(dev: Path, invoke: Invoke) -> None:
    code, out, _ = invoke(
        lm_score, FIXTURE, "dev.txt", "--nbest", "--tune", "dev.ref", "--tune-metric", "cer", "--json"
    )
    found = json.loads(out)
    assert (code, found["metric"], found["length"]) == (0, "cer", 30)
    assert found["rescored"] == found["oracle"] == 0 < found["first_pass"]


def test_the_parts_add_up_and_the_second_model_has_its_own_weight(dev: Path, invoke: Invoke) -> None:
    weights = ["--lm-weight", 0.5, "--word-bonus", 0.25, "--length-bonus", -0.125, "--unk-penalty", 2]
    write(dev / "lists.txt", "u1 -4 the keeper of gibberish")
    code, out, _ = invoke(
        lm_score,
        FIXTURE,
        "lists.txt",
        "--nbest",
        *weights,
        "--second",
        FIXTURE,
        "--second-weight",
        -0.25,
        "--json",
    )
    record = json.loads(out)
    assert code == 0
    assert (record["words"], record["tokens"], record["unknown"]) == (4, 5, 1)
    assert record["second_log_probability"] == record["log_probability"]
    assert record["parts"] == {
        "score": -4,
        "lm_weight": 0.5 * record["log_probability"],
        "second_weight": -0.25 * record["log_probability"],
        "word_bonus": 1,
        "length_bonus": -0.625,
        "unk_penalty": -2,
    }
    plain = json.loads(invoke(lm_score, FIXTURE, "lists.txt", "--nbest", "--lm-weight", 1, "--json")[1])
    assert repr(plain["parts"]["unk_penalty"]) == "0.0"
    assert record["combined"] == pytest.approx(sum(record["parts"].values()), abs=1e-12)


def test_moses_lists_come_back_as_moses_lists(dev: Path, invoke: Invoke) -> None:
    lines = [
        "0 ||| sea the ||| LM0= -1 ||| -1",
        "0 ||| the sea ||| LM0= -2 ||| -1",
        "1 ||| the clock ||| LM0= 0 ||| -3",
    ]
    write(dev / "nbest", *lines)
    write(dev / "ref", "the sea", "the clock")
    options = ["--nbest", "--lm-weight", 1, "--print"]
    code, out, err = invoke(lm_score, FIXTURE, "nbest", *options, "same", "--evaluate", "ref")
    first, second, last = (line.split(" ||| ") for line in out.splitlines())
    assert (code, first[:2], second[:2], last[:2]) == (
        0,
        ["0", "the sea"],
        ["0", "sea the"],
        ["1", "the clock"],
    )
    assert first[2].startswith("LM0= -2 LM= -")
    assert float(first[3]) == -1 + float(first[2].split()[-1])
    assert err.splitlines()[0] == "nbest: read as moses: id ||| text ||| features ||| score"
    assert err.splitlines()[1].startswith("WER 0.00%")
    assert invoke(lm_score, FIXTURE, "nbest", *options, "best")[1] == "the sea\nthe clock\n"
    write(dev / "gap", lines[0], lines[2].replace("1 |||", "2 |||"))
    code, out, err = invoke(lm_score, FIXTURE, "gap", *options, "best", "--evaluate", "ref")
    assert (code, out) == (0, "0 sea the\n2 the clock\n")
    assert "lists without a reference: 1, the first '2'; not among the errors" in err
    assert "references without a list: 1, the first '1'; not among the errors" in err
    assert "the ids are not the numbers of lines from 0" in err


def test_kaldis_lists_are_written_into_a_folder(dev: Path, invoke: Invoke) -> None:
    write(dev / "words_text", "u1-1 sea the", "u1-2 the sea")
    write(dev / "acwt", "u1-1 10", "u1-2 10.1")
    options = ["--nbest", "--lm-weight", 1, "--costs", "acwt:0.1", "--print", "same"]
    code, out, err = invoke(lm_score, FIXTURE, "words_text", *options)
    assert (code, out) == (2, "")
    assert one_line(err) == "lm-score: lists of kaldi are several files; name a folder with --output"
    assert invoke(lm_score, FIXTURE, "words_text", *options, "--output", "new")[0] == 0
    assert (dev / "new" / "text").read_text() == "u1-2 the sea\nu1-1 sea the\n"
    costs = [float(line.split()[1]) for line in (dev / "new" / "cost").read_text().splitlines()]
    assert costs == sorted(costs)


def test_a_file_of_weights_tells_for_which_models_it_is(dev: Path, invoke: Invoke) -> None:
    write(dev / "w.json", '{"lm_weight": 1, "models": ["another"]}')
    code, _, err = invoke(lm_score, FIXTURE, "dev.txt", "--nbest", "--weights", "w.json")
    assert (code, err) == (0, "w.json: these weights were found for other models\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--nbest needs a weight of the model: --lm-weight, --weights FILE, or --tune REFERENCES"),
        (
            ["--lm-weight", 1, "--second", FIXTURE],
            "--second needs --second-weight, --weights FILE, or --tune",
        ),
        (["--lm-weight", 1, "--second-weight", 1], "--second-weight is for a model of --second"),
        (["--lm-weight", 1, "--word-bonus", "nan"], "word_bonus must be from -1000000 to 1000000, got nan"),
        (
            ["--lm-weight", 1, "--tune", "dev.ref", "--evaluate", "dev.ref"],
            "give --tune or --evaluate, not both",
        ),
        (["--lm-weight", 1, "--save-weights", "w"], "--save-weights and --tune-weight are for --tune"),
        (["--lm-weight", 1, "--output", "dev.ref"], "dev.ref is there already; give --output another name"),
        (["--lm-weight", 1, "--print", "same", "--json"], "give --json or --print same, not both"),
        (
            ["--tune", "dev.ref", "--print", "best"],
            "--tune prints weights; order the lists by --weights afterwards",
        ),
        (
            ["--tune", "dev.ref", "--lm-weight", 1, "--word-bonus", 1, "--unk-penalty", 0],
            "--tune has nothing to find: every weight is given",
        ),
        (
            ["--tune", "dev.ref", "--lm-weight", 1, "--tune-weight", "lm-weight"],
            "--lm-weight is given and is to be found; leave out one of both",
        ),
        (["--tune", "dev.ref", "--tune-weight", "x"], "word-bonus, length-bonus, unk-penalty, got x"),
        (
            ["--tune", "dev.ref", "--tune-weight", "second-weight"],
            "--tune-weight second-weight is for a model of --second",
        ),
        (
            ["--lm-weight", 1, "--nbest-fields", "id"],
            "nbest_fields must be of id, score, text, list, as id=utt, got id",
        ),
        (["--lm-weight", 1, "--costs", "acwt:x"], "the scale of --costs is no number: 'x'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    dev: Path, invoke: Invoke, options: list[object], message: str
) -> None:
    code, out, err = invoke(lm_score, FIXTURE, "dev.txt", "--nbest", *options)
    assert (code, out) == (2, "")
    assert one_line(err).startswith("lm-score: ")
    assert one_line(err).endswith(message)


def test_options_of_lists_are_for_lists(dev: Path, invoke: Invoke) -> None:
    for option in ("--word-bonus", "--weights", "--print"):
        value = {"--word-bonus": "1", "--weights": "w", "--print": "best"}[option]
        code, _, err = invoke(lm_score, FIXTURE, "dev.txt", option, value)
        assert code == 2
        assert f"{option} is for --nbest" in one_line(err)


@pytest.mark.parametrize("name", ["missing.json", "dev.ref"])
def test_a_bad_file_of_weights_ends_the_command_in_one_line(dev: Path, invoke: Invoke, name: str) -> None:
    code, out, err = invoke(lm_score, FIXTURE, "dev.txt", "--nbest", "--weights", name)
    assert (code, out) == (1, "")
    assert one_line(err).startswith(f"lm-score: {name}: ")
