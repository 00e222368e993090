"""lm-evaluation-harness runs a bundle: its own command line, on tasks in files, without torch and network."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, run_command
from lm_runtime.lm_eval import StepLM, sampling, score_pairs

ROUNDING = 1e-6
"""Relative: sums of float32 log-probabilities are added up in another order."""

_SITE = """
import os
from importlib.machinery import PathFinder

find = PathFinder.find_spec
missing = {!r}
PathFinder.find_spec = staticmethod(
    lambda name, *place: None if name.partition(".")[0] in missing else find(name, *place)
)

def no_fork():
    raise AssertionError("forked")

os.fork = no_fork
"""
"""Packages look as if they were not installed, and a fork fails: with threads about, it may wait for ever."""
VALID = (TINY / "valid.txt").read_text()
LINES = VALID.splitlines()
COMPLETIONS = [{"context": line.rpartition(" ")[0], "last": " " + line.rpartition(" ")[2]} for line in LINES]
CHOICES = [
    {"question": "", "choices": ["the cat", "cat the the the"], "answer": 0},
    {"question": f"{LINES[0]}\n", "choices": [LINES[1], "the"], "answer": 1},
    {"question": LINES[2].partition(" ")[0], "choices": [" the the", " a", " <unk>"], "answer": 2},
]
STARTS = [{"start": f"{LINES[0]}\nthe", "end": ""}, {"start": "the", "end": ""}, {"start": "", "end": ""}]
TASKS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "tiny_rolling": (
        [{"text": VALID}],
        "{output_type: loglikelihood_rolling, doc_to_text: '', doc_to_target: '{{text}}',"
        " metric_list: [{metric: bits_per_byte}]}",
    ),
    "tiny_last_word": (
        COMPLETIONS,
        "{output_type: loglikelihood, doc_to_text: '{{context}}', doc_to_target: '{{last}}',"
        " target_delimiter: '', metric_list: [{metric: perplexity}, {metric: acc}]}",
    ),
    "tiny_choice": (
        CHOICES,
        "{output_type: multiple_choice, doc_to_text: '{{question}}', doc_to_choice: choices,"
        " doc_to_target: answer, target_delimiter: '', metric_list: [{metric: acc}]}",
    ),
    "tiny_generation": (
        STARTS,
        "{output_type: generate_until, doc_to_text: '{{start}}', doc_to_target: '{{end}}',"
        ' generation_kwargs: {until: ["\\n"], max_gen_toks: 12}, metric_list: [{metric: bypass}]}',
    ),
}


def evaluate(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run lm-eval-steplm in a process that has no torch and asks nobody for anything."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(
        _SITE.format(("torch", "transformers", "lm_trainer", "onnx"))
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lm-eval-steplm"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **offline, "HOME": str(folder), "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == code, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval made of the tasks: its results, and by task its samples."""
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "tasks").mkdir()
    for name, (documents, settings) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        (folder / "tasks" / f"{name}.yaml").write_text(
            f"{{task: {name}, dataset_path: json, dataset_kwargs: {{data_files: {{test: '{data}'}}}},"
            f" test_split: test, {settings[1:]}\n"
        )
    evaluate(
        folder,
        *("--model", "steplm", "--model_args", f"pretrained={FIXTURE}", "--tasks", *TASKS),
        *("--include_path", "tasks", "--output_path", "out", "--log_samples"),
    )
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (path,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
        samples[name].sort(key=lambda sample: sample["doc_id"])
    return {"results": json.loads(results.read_text())["results"], "samples": samples}


@pytest.fixture(scope="module")
def model() -> Any:
    return lm_runtime.load(FIXTURE)


def alone(model: Any, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The score of one continuation, token by token."""
    state, total, greedy = lm_runtime.initial_state(model, 1), 0.0, True
    text = [model.tokenizer.eos_id, *context, *continuation]
    for place, (token, target) in enumerate(itertools.pairwise(text)):
        logits, state = model.step(np.array([[token]]), state)
        values = logits[0, 0].astype(np.float64)
        if place >= len(context):
            total += values[target] - math.log(np.exp(values - values.max()).sum()) - values.max()
            greedy &= values.argmax() == target
    return float(total), bool(greedy)


def greedy_ids(model: Any, context: Sequence[int]) -> list[int]:
    """The three most probable tokens after a context, each after those before it."""
    found: list[int] = []
    for _ in range(3):
        text = [model.tokenizer.eos_id, *context, *found]
        logits, _ = model.step(np.array([text]), lm_runtime.initial_state(model, 1))
        found.append(int(logits[0, -1].argmax()))
    return found


def test_rolling_bits_a_byte_are_those_of_lm_score(evaluated: dict[str, Any], tmp_path: Path) -> None:
    scored = json.loads(run_command("lm-score", FIXTURE, TINY / "valid.txt", "--json", cwd=tmp_path).stdout)
    found = evaluated["results"]["tiny_rolling"]["bits_per_byte,none"]
    # The harness gives them where words are unknown, too.
    expected = -scored["log_probability"] / math.log(2) / (TINY / "valid.txt").stat().st_size
    assert found == pytest.approx(expected, rel=ROUNDING)
    (sample,) = evaluated["samples"]["tiny_rolling"]
    assert float(sample["resps"][0][0]) == pytest.approx(scored["log_probability"], rel=ROUNDING)


def test_a_last_word_is_scored_after_its_context(evaluated: dict[str, Any], model: Any) -> None:
    encode = model.tokenizer.encode
    expected = [
        alone(model, encode(document["context"]), encode(document["last"])) for document in COMPLETIONS
    ]
    for (value, greedy), sample in zip(expected, evaluated["samples"]["tiny_last_word"], strict=True):
        ((found, flag),) = sample["resps"][0]
        assert float(found) == pytest.approx(value, rel=ROUNDING)
        assert flag in (greedy, str(greedy))
    results = evaluated["results"]["tiny_last_word"]
    values, flags = zip(*expected, strict=True)
    assert results["perplexity,none"] == pytest.approx(math.exp(-np.mean(values)), rel=ROUNDING)
    assert results["acc,none"] == pytest.approx(np.mean(flags))


def test_a_choice_is_the_most_probable_continuation(evaluated: dict[str, Any], model: Any) -> None:
    encode = model.tokenizer.encode
    right = []
    for document, sample in zip(CHOICES, evaluated["samples"]["tiny_choice"], strict=True):
        context = encode(document["question"])
        values = [
            alone(model, context, encode(document["question"] + choice)[len(context) :])[0]
            for choice in document["choices"]
        ]
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(values, rel=ROUNDING)
        right.append(int(np.argmax(values)) == document["answer"])
    assert evaluated["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_a_generated_text_is_greedy_and_ends_with_its_line(evaluated: dict[str, Any], model: Any) -> None:
    params = lm_runtime.SamplingParams(temperature=0, max_tokens=12, stop=("\n",))
    for document, sample in zip(STARTS, evaluated["samples"]["tiny_generation"], strict=True):
        text = "".join(lm_runtime.generate(model, document["start"], params))
        assert sample["resps"][0] == [text]
        assert "\n" not in text
    assert any(sample["resps"][0][0] for sample in evaluated["samples"]["tiny_generation"])


@pytest.mark.parametrize("family_run", ["ngram"], indirect=True)
def test_an_n_gram_model_is_scored_too(family_bundle: Path) -> None:
    test_scores_do_not_depend_on_what_is_scored_with_them(lm_runtime.load(family_bundle))


def test_scores_do_not_depend_on_what_is_scored_with_them(model: Any) -> None:
    random = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return [
            int(token) for token in random.integers(0, model.tokenizer.vocab_size, random.integers(0, most))
        ]

    contexts = [[], *(ids(200) for _ in range(40))]
    pairs = [(contexts[random.integers(len(contexts))], ids(30)) for _ in range(90)]
    pairs.append(([], ids(900)))
    for context in contexts[:5]:
        best = greedy_ids(model, context)
        pairs += [(context, best), (context, [*best[:-1], (best[-1] + 1) % model.tokenizer.vocab_size])]
    assert {greedy for _, greedy in score_pairs(model, pairs[-10:])} == {True, False}
    for pair, (value, greedy) in zip(pairs, score_pairs(model, pairs), strict=True):
        expected, flag = alone(model, *pair)
        assert (value, greedy) == (pytest.approx(expected, rel=ROUNDING, abs=ROUNDING), flag)


def test_a_token_across_the_cut_counts_to_the_continuation(model: Any) -> None:
    """Context and continuation are one word together."""
    (found,) = StepLM(str(FIXTURE)).loglikelihood([types.SimpleNamespace(args=("the kee", "per"))])
    the, keeper = model.tokenizer.encode("the keeper")
    assert found == pytest.approx(alone(model, [the], [keeper]), rel=ROUNDING)


def test_parameters_of_generation_mean_what_lm_eval_says() -> None:
    assert sampling({"until": "\n"}) == lm_runtime.SamplingParams(temperature=0, max_tokens=256, stop=("\n",))
    given = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "until": ["a", ""]}
    expected = lm_runtime.SamplingParams(temperature=0.7, top_p=0.9, max_tokens=5, stop=("a",))
    assert sampling({**given, "num_beams": 1}) == expected
    for wrong in ({"num_beams": 4}, {"penalty_alpha": 0.6}, {"temperature": 2000.0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            sampling({"until": [], **wrong})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pretrained=nowhere", "nowhere"),
        (f"pretrained={FIXTURE},precision=int4", "int4"),
        (f"pretrained={FIXTURE},colour=red", "colour"),
        ("threads=1", "pretrained is missing"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    import lm_eval.__main__

    from lm_runtime.commands.lm_eval import main
    from lm_runtime.lm_eval import StepLM

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: StepLM.create_from_arg_string(given))
    with pytest.raises(SystemExit) as exit_:
        main()
    said = str(exit_.value.code)
    assert said.startswith("lm-eval-steplm: ")
    assert message in said
    assert "\n" not in said


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = _SITE.format(("lm_eval",)) + "from lm_runtime.commands.lm_eval import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "lm-eval-steplm: lm_eval is not installed; install the eval extra: "
        "pip install '.[eval]' in steplm's folder\n"
    )
