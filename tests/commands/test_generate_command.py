"""lm-generate, lm-score and lm-bench as people use and misuse them: one clear line, the right exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FIXTURE, TINY, Invoke, one_line, run_command
from lm_runtime.commands.bench import main as lm_bench
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import settings_of


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--temperature", -0.1], 2, "temperature must be from 0 to 1000, got -0.1"),
        (["--temperature", "nan"], 2, "temperature must be from 0 to 1000, got nan"),
        (["--top-k", -1], 2, "top_k must be at least 0, got -1"),
        (["--top-p", 0], 2, "top_p must be above 0 and at most 1, got 0.0"),
        (["--top-p", 1.5], 2, "top_p must be above 0 and at most 1, got 1.5"),
        (["--min-p", 2], 2, "min_p must be from 0 to 1, got 2.0"),
        (["--repetition-penalty", 0], 2, "repetition_penalty must be from 0.01 to 100, got 0.0"),
        (["--max-tokens", -5], 2, "max_tokens must be at least 0, got -5"),
        (["--stop", ""], 2, "a stop string must not be empty"),
        (["--samples", 0], 2, "Invalid value for '--samples'"),
        (["--seed", -1], 2, "Invalid value for '--seed'"),
        (["--seed", "x"], 2, "Invalid value for '--seed'"),
        (["--provider", "cuda"], 2, "provider cuda is not available: this onnxruntime"),
        (["--prompt", "a", "--prompt-file", "b"], 2, "give --prompt or --prompt-file, not both"),
        (["--prompt-file", "nowhere.txt"], 1, "nowhere.txt: no such file"),
    ],
)
def test_bad_generation(invoke: Invoke, options: list[object], status: int, message: str) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, *options)
    assert (code, out) == (status, "")
    assert message in one_line(err)
    assert len(err.splitlines()) == 1


def test_a_backslash_begins_an_escape_and_is_itself_escaped(invoke: Invoke) -> None:
    """By JSON's rules, in every option that takes text."""
    greedy = ["--temperature", 0, "--max-tokens", 30, "--allow-unk", "--json"]
    line_end = invoke(lm_generate, FIXTURE, "--stop", "\\n", *greedy)[1]
    assert line_end == invoke(lm_generate, FIXTURE, "--stop", "\\u000a", *greedy)[1]
    assert json.loads(line_end)["finish"] == "stop"
    for text in ("\\\\nabla", "\\\\n"):  # no line break, but a backslash
        assert json.loads(invoke(lm_generate, FIXTURE, "--stop", text, *greedy)[1])["finish"] == "length"
    escaped = invoke(lm_generate, FIXTURE, "--prompt", "the\\u0020keeper\\n", *greedy, "--echo")[1]
    assert json.loads(escaped)["text"].startswith("the keeper\n")
    bans = ["--logit-bias", "th\\u0065=-inf", "--ban", "o\\u0066"]
    words = json.loads(invoke(lm_generate, FIXTURE, *bans, *greedy)[1])["text"].split()
    assert not {"the", "of"} & set(words)
    for option, text in (
        ("--stop", "\\d"),
        ("--prompt", "a\\"),
        ("--ban", "\\ud800"),
        ("--logit-bias", "\\q=1"),
    ):
        code, out, err = invoke(lm_generate, FIXTURE, option, text)
        assert (code, out) == (2, "")
        assert f"Invalid value for '{option}'" in one_line(err)


def test_options_are_grouped_by_purpose_and_come_from_one_table(invoke: Invoke) -> None:
    text = invoke(lm_generate, "--help")[1]
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Prompt:",
        "Sampling:",
        "Penalties and bans:",
        "Output:",
        "Instead of a sampled text:",
        "Many texts:",
        "State:",
        "A second model:",
        "Adaptation:",
        "Where it runs:",
        "Options:",
    ]
    flat = " ".join(text.split())
    for entry in settings_of(SamplingParams).values():
        assert f"--{entry.option} " in flat
        assert " ".join(entry.help.split()) in flat
        assert f"[{entry.bounds}" in flat or not entry.bounds


@pytest.mark.parametrize("command", [lm_generate, lm_score], ids=["lm-generate", "lm-score"])
def test_a_bundle_that_is_not_there(invoke: Invoke, command: object) -> None:
    arguments = ["nowhere"] if command is lm_generate else ["nowhere", TINY / "valid.txt"]
    code, out, err = invoke(command, *arguments)
    assert (code, out) == (1, "")
    assert one_line(err).endswith("nowhere: no such bundle")


@pytest.mark.parametrize("prompt", ["", "xyzzy plugh 漢字 🙂", "   ", "\n\n"])
def test_an_empty_prompt_and_one_of_unknown_words_are_continued(invoke: Invoke, prompt: str) -> None:
    code, out, _ = invoke(lm_generate, FIXTURE, "--prompt", prompt, "--seed", 1, "--max-tokens", 30)
    assert code == 0
    assert len(out.split()) >= 20


def test_a_prompt_of_a_hundred_thousand_words_is_read(tmp_path: Path) -> None:
    words = (TINY / "train.txt").read_text().split()
    (tmp_path / "prompt.txt").write_text(" ".join((words * 120)[:100_000]))
    options = ["--prompt-file", "prompt.txt", "--max-tokens", 5]
    result = run_command("lm-generate", FIXTURE, *options, cwd=tmp_path)
    assert result.stdout.strip()


def test_the_prompt_comes_from_a_pipe(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "lm-generate"),
        str(FIXTURE),
        "--prompt-file",
        "-",
        "--seed",
        "3",
    ]
    piped = subprocess.run(command, input=b"the keeper\n", capture_output=True, check=True).stdout
    given = run_command("lm-generate", FIXTURE, "--prompt", "the keeper", "--seed", 3, cwd=tmp_path).stdout
    assert piped.decode() == given
    bad = subprocess.run(command, input=b"\xff", capture_output=True, check=False)
    assert (bad.returncode, bad.stderr) == (1, b"lm-generate: /dev/stdin: not UTF-8: byte 0 is 0xff\n")


def test_text_goes_to_standard_output_and_notes_to_standard_error(invoke: Invoke) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--seed", 1, "--max-tokens", 50)
    assert code == 0
    assert "tokens/s" not in out
    assert err.endswith("seed 1\n")
    assert out.endswith("\n")
    assert invoke(lm_generate, FIXTURE, "--seed", 1, "--max-tokens", 50)[1] == out


def test_a_seed_is_told_and_gives_the_text_again(invoke: Invoke) -> None:
    _, first, err = invoke(lm_generate, FIXTURE)
    seed = err.rsplit(" ", 1)[1].strip()
    assert invoke(lm_generate, FIXTURE, "--seed", seed)[1] == first


def test_samples_as_json_are_what_they_are_alone(invoke: Invoke) -> None:
    options = ["--seed", 4, "--max-tokens", 25, "--stop", "\\n", "--json"]
    _, out, _ = invoke(lm_generate, FIXTURE, "--samples", 3, *options)
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert json.loads(invoke(lm_generate, FIXTURE, *options)[1]) == records[0]
    assert all("\n" not in record["text"] for record in records)
    assert {record["finish"] for record in records} <= {"stop", "length"}


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    name = Path(sys.executable).parent / "lm-generate"
    result = subprocess.run(
        f"{name} {FIXTURE} --max-tokens 100000 | head -c 100",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert len(result.stdout) == 100
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("place", "problem"), [(".", "not a regular file"), ("nowhere/s.npz", "there is no such folder")]
)
def test_a_state_that_cannot_be_saved_is_said_before_the_text(
    invoke: Invoke, place: str, problem: str
) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--save-state", place)
    assert (code, out) == (1, "")
    assert problem in one_line(err)


def test_suggestions_are_printed_with_their_probabilities(invoke: Invoke) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--prompt", "the keeper of", "--suggest", 3)
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    records = invoke(lm_generate, FIXTURE, "--prompt", "the keeper of", "--suggest", 3, "--json")[1]
    assert [
        [f"{r['probability']:.6f}", json.dumps(r["text"])] for r in map(json.loads, records.splitlines())
    ] == lines
    code, _, err = invoke(lm_generate, FIXTURE, "--suggest", 500)
    assert (code, one_line(err)) == (2, "lm-generate: k must be from 1 to 200, got 500")


def test_arguments_that_are_no_text_are_refused() -> None:
    name = str(Path(sys.executable).parent / "lm-generate")
    result = subprocess.run([name, str(FIXTURE), "--prompt", b"\xff\xfe"], capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1


def test_score_prints_a_sentence_or_an_object_or_every_token(invoke: Invoke) -> None:
    _, sentence, err = invoke(lm_score, FIXTURE, TINY / "valid.txt")
    assert sentence.startswith("perplexity ")
    assert err == ""
    record = json.loads(invoke(lm_score, FIXTURE, TINY / "valid.txt", "--json")[1])
    assert f"perplexity {record['perplexity']:.4f} a token" in sentence
    assert record["bytes"] == (TINY / "valid.txt").stat().st_size
    _, lines, _ = invoke(lm_score, FIXTURE, TINY / "valid.txt", "--tokens")
    values = [line.split("\t") for line in lines.splitlines()]
    assert len(values) == record["tokens"]
    assert sum(float(value) for value, _ in values) == pytest.approx(record["log_probability"], abs=1e-3)
    assert json.loads(values[-1][1]) == "<eos>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\xff", "not UTF-8: byte 0"),
        (b"a\0", "not a text file"),
    ],
)
def test_a_bad_text_to_score(invoke: Invoke, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    code, out, err = invoke(lm_score, FIXTURE, "text.txt")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert invoke(lm_score, FIXTURE, "text.txt", "--json", "--tokens")[0] == 2


def test_a_folder_to_score(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_score, FIXTURE, tmp_path)
    assert code == 1
    assert one_line(err).endswith("also packed as .gz, .zst, .xz or .bz2")


def test_bench_prints_a_table_or_an_object(invoke: Invoke) -> None:
    options = ["--batch", 1, "--batch", 3, "--tokens", 20]
    code, table, _ = invoke(lm_bench, FIXTURE, *options)
    assert code == 0
    assert "memory reads" in table
    report = json.loads(invoke(lm_bench, FIXTURE, *options, "--json")[1])
    assert [(step["precision"], step["batch"]) for step in report["steps"]] == [
        ("fp32", 1),
        ("fp32", 3),
        ("int8", 1),
        ("int8", 3),
    ]
    assert all(step["graph"] > 0 and step["generation"] > 0 for step in report["steps"])


def test_bench_measures_every_family(invoke: Invoke, family_bundle: Path) -> None:
    options = ["--batch", 2, "--tokens", 5]
    code, table, _ = invoke(lm_bench, family_bundle, *options)
    assert code == 0
    report = json.loads(invoke(lm_bench, family_bundle, *options, "--json")[1])
    counted = family_bundle.parent.name.startswith("ngram")
    assert [graph["weights_bytes"] is None for graph in report["graphs"]] == (
        [True] if counted else [False] * 2
    )
    assert ("tables" in table) == counted
    assert all(step["generation"] > 0 for step in report["steps"])


def test_bench_of_nothing(invoke: Invoke) -> None:
    code, out, err = invoke(lm_bench, "nowhere")
    assert (code, out) == (1, "")
    assert one_line(err).endswith("nowhere: no such bundle")
