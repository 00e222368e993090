"""What is printed in place of one sampled text: lists of new lines, temperatures, completions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lm_runtime
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.commands.generate import main as lm_generate

LINES = 30
SHORT = ["--max-tokens", 3, "--seed", 1]
"""Texts of three tokens, of which many come again."""


def test_a_list_has_only_new_lines_one_a_line(invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--samples", LINES, "--unique", *SHORT)
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == len(set(lines)) == LINES
    (tmp_path / "known.txt").write_text("\n".join(lines[:20]) + "\n")
    arguments = ["--samples", LINES, "--unique", "--not-in", "known.txt", *SHORT]
    code, out, err = invoke(lm_generate, FIXTURE, *arguments)
    new = out.splitlines()
    assert code == 0
    assert len(new) == len(set(new)) == LINES
    assert not set(new) & set(lines[:20])
    assert new[:10] == lines[20:]  # the samples of the same seed, in their order
    assert f"{LINES} of {LINES} texts in " in one_line(err)
    assert "in known.txt" in one_line(err)


def test_the_whole_line_is_compared_with_its_prompt(invoke: Invoke, tmp_path: Path) -> None:
    options = ["--prompt", "the keeper", "--temperature", 0, "--max-tokens", 3]
    (tmp_path / "known.txt").write_text("of the old\n")
    assert invoke(lm_generate, FIXTURE, *options, "--not-in", "known.txt")[:2] == (0, "of the old\n")
    (tmp_path / "known.txt").write_text("the keeper of the old\n")
    assert invoke(lm_generate, FIXTURE, *options, "--not-in", "known.txt")[0] == 1


def test_the_objects_of_a_list_name_their_samples(invoke: Invoke) -> None:
    code, out, _ = invoke(lm_generate, FIXTURE, "--samples", LINES, "--unique", *SHORT, "--json")
    assert code == 0
    model = lm_runtime.load(FIXTURE)
    params = lm_runtime.SamplingParams(**{**vars(model.defaults), "max_tokens": 3, "stop": ("\n",)})
    for record in map(json.loads, out.splitlines()):
        alone = "".join(lm_runtime.generate(model, "", params, seed=1, index=record["index"]))
        assert record["text"] == alone


def test_the_tries_are_bounded_and_said(invoke: Invoke) -> None:
    options = ["--samples", 3, "--unique", "--temperature", 0, "--max-tokens", 2, "--prompt", "the keeper"]
    code, out, err = invoke(lm_generate, FIXTURE, *options)
    assert (code, out) == (1, "of the\n")
    assert one_line(err) == "lm-generate: 1 of 3 texts in 60 tries (59 there already), and no more are made"
    assert invoke(lm_generate, FIXTURE, "--not-in", "nowhere.txt")[0] == 1


def test_each_temperature_prints_the_text_that_it_alone_gives(invoke: Invoke) -> None:
    options = ["--seed", 3, "--max-tokens", 9]
    code, out, _ = invoke(lm_generate, FIXTURE, "--temperatures", "0,0.8,1.5", *options)
    assert code == 0
    alone = [
        invoke(lm_generate, FIXTURE, "--temperature", temperature, *options)[1]
        for temperature in (0, 0.8, 1.5)
    ]
    names = ("0", "0.8", "1.5")
    assert out == "".join(f"--- temperature {n}\n{text}" for n, text in zip(names, alone, strict=True))
    out = invoke(lm_generate, FIXTURE, "--temperatures", "0,0.8,1.5", *options, "--json")[1]
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["temperature"] for record in records] == [0, 0.8, 1.5]
    assert [record["text"].rstrip("\n") for record in records] == [text.rstrip("\n") for text in alone]


def test_a_half_typed_word_is_completed(invoke: Invoke) -> None:
    model = lm_runtime.load(FIXTURE)
    for prompt in ("the ke", "the keeper of the l", "Th"):
        expected = lm_runtime.complete_word(model, prompt, k=3)
        assert expected
        code, out, err = invoke(lm_generate, FIXTURE, "--prompt", prompt, "--complete", 3)
        assert (code, err) == (0, "")
        assert out.splitlines() == [f"{value:.6f}\t{json.dumps(word)}" for word, value in expected]
        out = invoke(lm_generate, FIXTURE, "--prompt", prompt, "--complete", 3, "--json")[1]
        found = [json.loads(line) for line in out.splitlines()]
        assert [(record["text"], record["probability"]) for record in found] == expected


def test_a_saved_text_is_completed_as_it_stands(invoke: Invoke) -> None:
    text = invoke(lm_generate, FIXTURE, "--prompt", "the", "--save-state", "s.npz", "--max-tokens", 5)[1]
    expected = invoke(lm_generate, FIXTURE, "--prompt", f"the{text.removesuffix(chr(10))} l", "--complete", 4)
    found = invoke(lm_generate, FIXTURE, "--load-state", "s.npz", "--prompt", "l", "--complete", 4)
    assert found == expected
    assert found[1]


@pytest.mark.parametrize("option", ["--suggest", "--complete"])
def test_line_breaks_are_suggested_only_where_they_may_be(invoke: Invoke, option: str) -> None:
    arguments = [FIXTURE, "--prompt", (TINY / "valid.txt").read_text().partition("\n")[0] + " ", option, 150]
    ended, without = (
        [
            json.loads(line.partition("\t")[2])
            for line in invoke(lm_generate, *arguments, flag)[1].splitlines()
        ]
        for flag in ("--line-breaks", "--no-line-breaks")
    )
    assert "\n" in ended
    assert "\n" not in without
    assert [text for text in ended if text != "\n"][:100] == without[:100]
    default = invoke(lm_generate, *arguments)[1].count('"\\n"')
    assert default == (option == "--suggest")
