"""Many prompts at once: in order, each text as it is alone, and a run that was cut off goes on."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, Invoke, one_line
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.generation.complete import Request, complete
from lm_runtime.generation.generate import generate_samples
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.models.protocol import State
from lm_runtime.sampling.params import SamplingParams

PROMPTS = ["the keeper", "", "Mara wrote a letter\nand", "the", "the keeper", "xyzzy"]


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("max_batch", [1, 2, 32])
def test_completions_come_in_order_and_are_what_they_are_alone(model: OnnxModel, max_batch: int) -> None:
    requests = [
        Request(prompt, SamplingParams(max_tokens=5 * number, top_p=0.9, stop=("\n",)), seed=3, index=number)
        for number, prompt in enumerate(PROMPTS)
    ]
    completions = list(complete(model, requests, max_batch=max_batch))
    for request, completion in zip(requests, completions, strict=True):
        alone = list(
            generate_samples(model, request.prompt, request.params, seed=3, indices=(request.index,))
        )
        assert completion.text == "".join(piece.text for piece in alone)
        assert [piece.token for piece in completion.pieces] == [piece.token for piece in alone]
        assert completion.finish == (alone[-1].finish if alone else "length")


def test_requests_are_taken_as_there_is_room(model: OnnxModel) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield Request("the", SamplingParams(max_tokens=3), index=number)

    completions = complete(model, endless(), max_batch=4)
    for number in range(1, 20):
        next(completions)
        assert taken <= number + 2 * 4


def test_a_prompt_is_read_once(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    advance = OnnxModel.advance

    def counting(self: OnnxModel, token: Any, state: State) -> Any:
        read.append(token.size)
        return advance(self, token, state)

    monkeypatch.setattr(OnnxModel, "advance", counting)
    requests = [Request("the keeper of the clock", SamplingParams(max_tokens=2), index=n) for n in range(9)]
    assert len(list(complete(model, requests))) == 9
    assert read == [5]  # the line's end before it and four of its five words, once


def test_json_lines_come_back_in_order_with_what_they_brought(invoke: Invoke, tmp_path: Path) -> None:
    records = [
        {"id": number, "prompt": prompt, "max_tokens": 12 - number, "note": {"kept": True}}
        for number, prompt in enumerate(PROMPTS)
    ]
    write_jsonl(tmp_path / "in.jsonl", records)
    code, out, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--seed", 5)
    assert (code, err) == (0, "6 texts\n")
    for number, (record, result) in enumerate(zip(records, read_jsonl(out), strict=True)):
        assert record.items() <= result.items()
        assert result["tokens"] == 12 - number
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--seed", 5)[1] == out
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--seed", 6)[1] != out
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--seed", 5, "--output", "out.jsonl")[0] == 0
    assert (tmp_path / "out.jsonl").read_text() == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_several_samples_a_line(invoke: Invoke, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the"}, {"prompt": "a"}])
    _, out, _ = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--samples", 3)
    results = read_jsonl(out)
    assert [(result["prompt"], result["sample"]) for result in results] == [
        (prompt, sample) for prompt in ("the", "a") for sample in range(3)
    ]
    assert len({result["text"] for result in results}) == 6


def test_a_line_s_parameters_win(invoke: Invoke, tmp_path: Path) -> None:
    bias = {str(token): 5.0 for token in (7, 8)}
    records: list[dict[str, Any]] = [
        {"prompt": "the", "temperature": 0, "max_tokens": 4},
        {"prompt": "the", "temperature": 0, "max_tokens": 4, "seed": 9},
        {"prompt": "the", "stop": ["\n"], "logit_bias": bias, "logprobs": 1, "max_tokens": 3},
    ]
    write_jsonl(tmp_path / "in.jsonl", records)
    results = read_jsonl(invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--temperature", 1.5)[1])
    assert results[0]["text"] == results[1]["text"]
    assert [len(entry["top"]) for entry in results[2]["logprobs"]] == [1] * results[2]["tokens"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON: Expecting property name enclosed in double quotes, at character 2"),
        ('{"prompt": "a",}', "line 3: not JSON: a comma before a closing bracket, at character 16"),
        ("the keeper", "line 3: not JSON: Expecting value, at character 1"),
        ("[1]", "line 3: not a JSON object, but [1]"),
        ("[" * 200_000, "line 3: nested more than 64 deep"),
        ('{"prompt": "a", "x": ' + "[" * 70 + "]" * 70 + "}", "line 3: nested more than 64 deep"),
        ('{"prompt": 5}', "line 3: prompt must be a string, got 5"),
        ("{}", 'line 3: "prompt" is missing'),
        ('{"prompt": null}', 'line 3: "prompt" is missing'),
        ('{"Promt": "a"}', 'line 3: "prompt" is missing, but there is "Promt"'),
        ('{"prompt": "a", "top_p": 2}', "line 3: top_p must be above 0 and at most 1, got 2"),
        ('{"prompt": "a", "top_p": "x"}', "line 3: top_p must be a number, got 'x'"),
        ('{"prompt": "a", "top_k": "5"}', "line 3: top_k must be a whole number, got '5'"),
        ('{"prompt": "a", "logprobs": 500}', "line 3: logprobs must be from 0 to 200, got 500"),
        ('{"prompt": "a", "seed": -1}', "line 3: seed must be at least 0, got -1"),
        ('{"prompt": "a", "seed": 1.5}', "line 3: seed must be a whole number, got 1.5"),
        ('{"prompt": "a", "x": NaN}', "line 3: NaN is not JSON"),
        ('{"prompt": "a", "x": {"y": [-Infinity]}}', "line 3: -Infinity is not JSON"),
        ('{"prompt": "a", "x": [1e999]}', "line 3: the number '1e999' is too large"),
        ('{"prompt": "a", "temperature": 1e999}', "line 3: the number '1e999' is too large"),
        ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "line 3: a number has 5000 digits"),
        ('{"prompt": "a", "text": ""}', 'line 3: "text" is a key of the completion; rename it'),
        ('{"prompt": "a", "temperature": true}', "line 3: temperature must be a number, got True"),
        ('{"prompt": "a", "logit_bias": [3]}', "line 3: logit_bias must map ids to numbers, got [3]"),
        ('{"prompt": "a", "logit_bias": [[3, true]]}', "line 3: logit_bias must map ids to numbers"),
        ('{"prompt": "a", "logit_bias": [[true, 3]]}', "line 3: logit_bias must map ids to numbers"),
        (
            '{"prompt": "a", "logit_bias": {"200": 3}}',
            "line 3: logit_bias must name ids from 0 to 199, got 200",
        ),
        ('{"prompt": "a", "logit_bias": {"3": -1' + "0" * 400 + "}}", "line 3: logit_bias must be within"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "line 3: logit_bias: 'x' is no token of the vocabulary"),
        ('{"prompt": "a", "logit_bias": [["the sea", 1]]}', "line 3: logit_bias: 'the sea' is no token"),
        ('{"prompt": "a", "regex": "("}', "line 3: regex '('"),
        ('{"prompt": "a", "regex": "(.*a){500}"}', "line 3: regex '(.*a){500}': too complex"),
        ('{"prompt": "a", "banned": ["\\ud800"]}', "line 3: not valid text"),
        ('{"prompt": "a", "stop": [5]}', "line 3: stop must be a sequence of strings"),
        ('{"prompt": "a", "stop": ""}', "line 3: a stop string must not be empty"),
        ('{"prompt": "\\ud800"}', "line 3: not valid text"),
    ],
)
def test_a_bad_line_is_named_before_any_text(invoke: Invoke, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "the"}\n\n' + line + "\n")
    code, out, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert len(err) < 300
    invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_json_may_say_it_as_other_tools_do(invoke: Invoke, tmp_path: Path) -> None:
    (the,) = lm_runtime.load(FIXTURE).tokenizer.encode("the")
    plain = {"prompt": "of", "max_tokens": 6, "seed": 1}
    forms: list[list[dict[str, Any]]] = [
        [
            {},
            {
                "stop": None,
                "top_k": None,
                "regex": None,
                "logit_bias": None,
                "banned": None,
                "logprobs": None,
            },
        ],
        [{"stop": ["\n"]}, {"stop": "\n"}],
        [{"banned": ["the"]}, {"banned": "the"}],
        [
            {"logit_bias": {str(the): None}},
            {"logit_bias": [[the, False]]},
            {"logit_bias": [["the", None]]},
            {"logit_bias": {"the": False}},
        ],
        [{"logit_bias": {str(the): 2.5}}, {"logit_bias": [["the", 2.5]]}],
        [{"top_k": 200}, {"top_k": 10**30}],
    ]
    for alike in forms:
        write_jsonl(tmp_path / "in.jsonl", [plain | form for form in alike])
        code, out, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl")
        assert (code, err) == (0, f"{len(alike)} texts\n")
        assert len({record["text"] for record in read_jsonl(out)}) == 1


def test_a_key_that_may_be_misspelt_gets_a_note_and_strictly_none_is_unknown(
    invoke: Invoke, tmp_path: Path
) -> None:
    records = [{"prompt": "the", "id": 1}, {"prompt": "a", "top-p": 0.5}, {"prompt": "a", "top-p": 0.6}]
    write_jsonl(tmp_path / "in.jsonl", records)
    code, out, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl")
    assert (code, len(read_jsonl(out))) == (0, 3)
    assert err == "in.jsonl: line 2: 'top-p' means nothing; is 'top_p' meant?\n3 texts\n"
    code, out, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--strict")
    assert (code, out) == (1, "")
    assert one_line(err) == "lm-generate: in.jsonl: line 1: unknown key 'id'"
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the", "max_tokens": 3, "seed": 1}])
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--strict")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--input", "in.jsonl", "--prompt", "a"],
        ["--input", "in.jsonl", "--suggest", 3],
        ["--input", "in.jsonl", "--save-state", "s.npz"],
        ["--output", "out.jsonl"],
        ["--strict"],
        ["--save-state", "-"],
        ["--logprobs", 2],
        ["--beams", 2, "--top-p", 0.5],
        ["--beams", 2, "--samples", 3],
        ["--regex", "a", "--save-state", "s.npz"],
        ["--logit-bias", "the"],
        ["--logit-bias", "the keeper=1"],
        ["--logit-bias", "the=nan"],
        ["--logit-bias", "xyzzy=1"],
        ["--suggest", 2, "--ban", "the"],
        ["--suggest", 2, "--beams", 2],
        ["--suggest", 2, "--save-state", "s.npz"],
        ["--complete", 2, "--top-k", 3],
        ["--complete", 2, "--suggest", 3],
        ["--line-breaks"],
        ["--temperatures", "0.5,1", "--temperature", 1],
        ["--temperatures", "0.5,1", "--samples", 2],
        ["--temperatures", "0.5;1"],
        ["--temperatures", "0.5,-1"],
        ["--unique", "--beams", 2],
        ["--unique", "--save-state", "s.npz"],
        ["--not-in", "in.jsonl", "--input", "in.jsonl"],
    ],
)
def test_options_that_do_not_go_together_are_refused(invoke: Invoke, options: list[object]) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, *options)
    assert (code, out) == (2, "")
    one_line(err)


def test_a_name_as_long_as_the_system_takes_is_no_hindrance(invoke: Invoke, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the"}])
    name = "x" * 249 + ".jsonl"  # 255 bytes
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", name)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", name}


def test_a_run_that_was_interrupted_goes_on_and_ends_the_same(invoke: Invoke, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": PROMPTS[n % 6]} for n in range(3000)])
    arguments = [FIXTURE, "--input", "in.jsonl", "--max-tokens", 20, "--seed", 2, "--output", "out.jsonl"]
    name = Path(sys.executable).parent / "lm-generate"
    process = subprocess.Popen([name, *map(str, arguments)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (parts := list(tmp_path.glob(".out.jsonl.*"))) or parts[0].stat().st_size < 5000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].splitlines()[-1] == "lm-generate: interrupted"
    assert process.returncode == 130
    (partial,) = tmp_path.glob(".out.jsonl.*")
    with partial.open("ab") as file:
        file.write(b'{"id": 1')  # as a machine that lost its power leaves it
    before = partial.stat().st_ino
    code, _, err = invoke(lm_generate, *arguments)
    assert code == 0
    assert "of them from before" in err
    assert (tmp_path / "out.jsonl").stat().st_ino == before
    whole = invoke(lm_generate, *arguments[:-1], "whole.jsonl")
    assert whole[0] == 0
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    code, _, err = invoke(lm_generate, *arguments)
    assert (code, one_line(err)) == (
        2,
        "lm-generate: out.jsonl is there already; give --output another name",
    )


def partial_of(invoke: Invoke, tmp_path: Path, records: list[dict[str, Any]]) -> Path:
    """A file that an interrupted run has left, with one text."""
    write_jsonl(tmp_path / "in.jsonl", records)
    assert invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")[0] == 0
    (tmp_path / "out.jsonl").unlink()
    before = set(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: self)  # so that its name is known
        invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")
    (partial,) = set(tmp_path.iterdir()) - before
    partial.write_text(partial.read_text().split("\n")[0] + "\n")
    return partial


def test_only_the_same_prompts_and_settings_go_on_with_a_file(invoke: Invoke, tmp_path: Path) -> None:
    records = [{"prompt": "the", "x": "\ud83d"}, {"prompt": "a", "logit_bias": {"3": None}}]
    partial_of(invoke, tmp_path, records)
    for changed in ([{"prompt": "the"}], [*records, {"prompt": "b"}]):
        write_jsonl(tmp_path / "in.jsonl", changed)
        _, _, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")
        assert err == f"{len(changed)} texts\n"  # from the first on
        (tmp_path / "out.jsonl").unlink()
    write_jsonl(tmp_path / "in.jsonl", records)
    other = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl", "--top-p", 0.5)
    assert other[2] == "2 texts\n"
    (tmp_path / "out.jsonl").unlink()
    _, _, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")
    assert err == "going on after 1 texts\n2 texts, 1 of them from before\n"
    assert [r["x"] for r in read_jsonl((tmp_path / "out.jsonl").read_text())[:1]] == ["\ud83d"]


def test_a_dash_is_standard_output(invoke: Invoke, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the"}])
    code, out, _ = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "-")
    assert (code, len(read_jsonl(out))) == (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_file_that_another_run_writes_is_left_alone(invoke: Invoke, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")  # not on Windows
    partial = partial_of(invoke, tmp_path, [{"prompt": "the"}, {"prompt": "a"}])
    before = partial.read_bytes()
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = invoke(lm_generate, FIXTURE, "--input", "in.jsonl", "--output", "out.jsonl")
    assert (code, one_line(err)) == (2, "lm-generate: out.jsonl is being written by another run")
    assert partial.read_bytes() == before


def test_prompts_come_from_a_pipe(tmp_path: Path) -> None:
    name = Path(sys.executable).parent / "lm-generate"
    lines = b'{"prompt": "the"}\n{"prompt": "a"}\n'
    command = [name, FIXTURE, "--input", "-", "--output", tmp_path / "out.jsonl"]
    subprocess.run(list(map(str, command)), input=lines, capture_output=True, check=True)
    assert [record["prompt"] for record in read_jsonl((tmp_path / "out.jsonl").read_text())] == ["the", "a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_line_s_own_seed_fixes_its_text_wherever_it_stands(invoke: Invoke, tmp_path: Path) -> None:
    texts = []
    for before in (0, 3):
        records: list[dict[str, Any]] = [{"prompt": "a"}] * before + [{"prompt": "the", "seed": 9}]
        write_jsonl(tmp_path / "in.jsonl", records)
        texts.append(read_jsonl(invoke(lm_generate, FIXTURE, "--input", "in.jsonl")[1])[-1]["text"])
    assert texts[0] == texts[1]


def test_the_prompt_is_echoed_with_its_log_probabilities(invoke: Invoke) -> None:
    options = [FIXTURE, "--prompt", "the keeper\nof", "--seed", 1, "--max-tokens", 4, "--echo"]
    text = invoke(lm_generate, *options)[1]
    assert text.startswith("the keeper\nof ")
    record = json.loads(invoke(lm_generate, *options, "--json", "--logprobs", 2)[1])
    assert record["text"] == text.removesuffix("\n")
    assert [entry["token"] for entry in record["prompt_logprobs"]] == ["the", "keeper", "<eos>", "of"]
    assert [len(entry["top"]) for entry in record["logprobs"]] == [2] * 4
    logits, _ = lm_runtime.load(FIXTURE, provider="cpu").step(
        np.zeros((1, 1), dtype=np.int64) + record["prompt_logprobs"][2]["id"],
        lm_runtime.initial_state(lm_runtime.load(FIXTURE, provider="cpu"), 1),
    )
    expected = float(logits[0, 0, record["prompt_logprobs"][0]["id"]] - np.logaddexp.reduce(logits[0, 0]))
    assert record["prompt_logprobs"][0]["logprob"] == pytest.approx(expected, abs=1e-5)


def test_a_prompt_of_another_system_is_echoed_as_it_is_read(invoke: Invoke) -> None:
    options = ["--echo", "--json", "--logprobs", 0, "--seed", 1]
    found = [
        json.loads(invoke(lm_generate, FIXTURE, "--prompt", prompt, *options)[1])["prompt_logprobs"]
        for prompt in ("the\nkeeper\n", "the\r\nkeeper\r\n")
    ]
    assert found[0] == found[1]


def test_what_a_saved_text_holds_back_is_not_lost(invoke: Invoke) -> None:
    greedy = ["--temperature", 0, "--seed", 1]
    held = invoke(lm_generate, FIXTURE, "--prompt", "the", *greedy, "--max-tokens", 3)[1].rstrip("\n")
    stop = ["--stop", f"{held} and then what never comes"]
    start = [FIXTURE, "--prompt", "the", *greedy, *stop, "--max-tokens", 3]
    assert invoke(lm_generate, *start)[1] == held + "\n"
    assert invoke(lm_generate, *start, "--save-state", "s.npz")[1] == ""
    assert invoke(lm_generate, FIXTURE, "--load-state", "s.npz", *stop, "--max-tokens", 0)[1] == ""
    rest = [FIXTURE, "--load-state", "s.npz", "--temperature", 0, "--max-tokens", 2]
    whole = invoke(lm_generate, FIXTURE, "--prompt", "the", *greedy, "--max-tokens", 5)[1]
    assert invoke(lm_generate, *rest)[1] == whole
    assert invoke(lm_generate, *rest, *stop)[1] == whole


def test_suggestions_go_on_from_a_saved_text(invoke: Invoke) -> None:
    start = ["--prompt", "the keeper", "--temperature", 0, "--max-tokens", 1, "--save-state", "s.npz"]
    text = "the keeper" + invoke(lm_generate, FIXTURE, *start)[1].rstrip("\n")
    expected = invoke(lm_generate, FIXTURE, "--prompt", text, "--suggest", 3, "--allow-unk")[1]
    found = invoke(lm_generate, FIXTURE, "--load-state", "s.npz", "--suggest", 3, "--allow-unk")[1]
    assert found == expected


def test_the_best_lines_are_searched(invoke: Invoke) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--prompt", "the", "--beams", 3, "--max-tokens", 8)
    assert (code, err) == (0, "")
    records = read_jsonl(
        invoke(
            lm_generate,
            FIXTURE,
            "--prompt",
            "the",
            "--beams",
            3,
            "--samples",
            3,
            "--max-tokens",
            8,
            "--json",
        )[1]
    )
    assert records[0]["text"] == out.removesuffix("\n")
    assert [record["score"] for record in records] == sorted(
        (record["score"] for record in records), reverse=True
    )


def test_a_text_matches_its_regular_expression(invoke: Invoke) -> None:
    pattern = r" (keeper|clock)( of the (sea|town|clock)){1,3}"
    options = [FIXTURE, "--prompt", "the", "--regex", pattern, "--samples", 20, "--seed", 3, "--json"]
    records = read_jsonl(invoke(lm_generate, *options)[1])
    assert all(re.fullmatch(pattern, record["text"]) for record in records)
    assert {record["finish"] for record in records} == {"regex"}
    assert len({record["text"] for record in records}) > 3
    assert read_jsonl(invoke(lm_generate, *options)[1]) == records


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "regex '('"), ("zzz", "no text of this vocabulary matches"), ("the", "a word follows a space")],
)
def test_a_bad_regular_expression_is_one_line(invoke: Invoke, pattern: str, message: str) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--prompt", "the", "--regex", pattern)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_without_the_extra_the_message_names_it(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    code, out, err = invoke(lm_generate, FIXTURE, "--regex", "never compiled before")
    assert (code, out) == (1, "")
    assert one_line(err) == (
        "lm-generate: llguidance is not installed; install the regex extra: "
        "pip install '.[regex]' in steplm's folder"
    )
