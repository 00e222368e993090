"""lm-evaluation-harness asks lm-serve by its own ``local-completions``, unmodified: scores are lm-score's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lm_runtime
from conftest import FIXTURE, TINY, run_command
from lm_runtime.scoring.texts import score_ids
from served import NAME, Server, serving

RELATIVE = 1e-4
"""The bar; they are seen to agree to 1e-7."""
VALID = (TINY / "valid.txt").read_text(encoding="utf-8")
LINES = VALID.splitlines()
PAIRS = [(line.rpartition(" ")[0], " " + line.rpartition(" ")[2]) for line in LINES]
TASKS: dict[str, tuple[list[dict[str, str]], str]] = {
    "rolling": (
        [{"text": VALID}],
        "output_type: loglikelihood_rolling, doc_to_text: '', doc_to_target: '{{text}}',"
        " metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
    ),
    "last_word": (
        [{"context": context, "last": last} for context, last in PAIRS],
        "output_type: loglikelihood, doc_to_text: '{{context}}', doc_to_target: '{{last}}',"
        " target_delimiter: '', metric_list: [{metric: perplexity}, {metric: acc}]",
    ),
    "generation": (
        [{"start": "the keeper", "end": ""}, {"start": f"{LINES[0]}\nthe", "end": ""}],
        "output_type: generate_until, doc_to_text: '{{start}}', doc_to_target: '{{end}}',"
        ' generation_kwargs: {until: ["\\n"], max_gen_toks: 12}, metric_list: [{metric: bypass}]',
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def evaluated(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval says of the tasks: its results, and by task its samples."""
    folder = tmp_path_factory.mktemp("local_completions")
    (folder / "tasks").mkdir()
    for name, (documents, settings) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        (folder / "tasks" / f"{name}.yaml").write_text(
            f"{{task: {name}, dataset_path: json, dataset_kwargs: {{data_files: {{test: '{data}'}}}},"
            f" test_split: test, {settings}}}\n"
        )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    model = f"model={NAME},base_url={server.url}/completions,num_concurrent=4"
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "local-completions"]
    command += ["--model_args", model, "--tasks", *TASKS, "--include_path", "tasks"]
    command += ["--output_path", "out", "--log_samples"]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **offline, "HOME": str(folder), "DISABLE_MULTIPROC": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (path,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
        samples[name].sort(key=lambda sample: sample["doc_id"])
    return {"results": json.loads(results.read_text())["results"], "samples": samples}


def test_a_text_has_the_perplexity_that_lm_score_says(evaluated: dict[str, Any], tmp_path: Path) -> None:
    scored = json.loads(run_command("lm-score", FIXTURE, TINY / "valid.txt", "--json", cwd=tmp_path).stdout)
    expected = -scored["log_probability"] / math.log(2) / len(VALID.encode())
    assert evaluated["results"]["rolling"]["bits_per_byte,none"] == pytest.approx(expected, rel=RELATIVE)


def test_continuations_have_the_log_probabilities_of_the_runtime(evaluated: dict[str, Any]) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    encode = model.tokenizer.encode
    texts = [np.array(encode(context + last), dtype=np.int64) for context, last in PAIRS]
    samples = evaluated["samples"]["last_word"]
    assert len(samples) == len(PAIRS)
    for sample, (values, greedy), (context, _) in zip(samples, score_ids(model, texts), PAIRS, strict=True):
        begin = len(encode(context))
        told, is_greedy = sample["resps"][0][0]
        assert float(told) == pytest.approx(float(values[begin:].sum()), rel=RELATIVE)
        assert str(is_greedy) == str(bool(greedy[begin:].all()))


def test_generated_texts_are_the_greedy_ones(evaluated: dict[str, Any]) -> None:
    model = lm_runtime.load(FIXTURE, provider="cpu")
    params = lm_runtime.SamplingParams(temperature=0, max_tokens=12, top_p=0.95, stop=("\n",))
    for sample, document in zip(evaluated["samples"]["generation"], TASKS["generation"][0], strict=True):
        expected = "".join(lm_runtime.generate(model, document["start"], params))
        assert sample["resps"][0][0] == expected
