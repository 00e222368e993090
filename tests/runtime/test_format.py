"""A reader written from runtime/FORMAT.md, with onnxruntime and numpy alone, finds what cases.json says."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import lm_runtime
import make_cases
from conftest import FIXTURE
from lm_runtime.generation.session import Session
from lm_runtime.models.ngram_lookup import log_probabilities
from lm_runtime.models.ngram_tables import NgramTables

CASES: dict[str, Any] = json.loads(make_cases.CASES.read_text(encoding="utf-8"))
CLOSE = 1e-4
"""Of float32 logits and log-probabilities, on whatever processor; FORMAT.md promises as much."""
MASK32, MASK64, MASK128 = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def fold(x: int) -> int:
    x &= MASK32
    return x ^ x >> 16


def words_of(number: int) -> list[int]:
    found = [number & MASK32]
    while number := number >> 32:
        found.append(number & MASK32)
    return found


class Generator:
    """PCG64, from a seed and an index or from a state."""

    def __init__(self, seed: int, index: int) -> None:
        a = 0x43B0D7E5

        def hashed(x: int) -> int:
            nonlocal a
            x ^= a
            a = a * 0x931E8875 & MASK32
            return fold(x * a)

        def mixed(x: int, y: int) -> int:
            return fold(0xCA01F9DD * x - 0x4973F715 * y)

        words = words_of(seed) + words_of(index)
        pool = [hashed(word) for word in [*words, 0, 0, 0, 0][:4]]
        for source in range(4):
            for target in range(4):
                if source != target:
                    pool[target] = mixed(pool[target], hashed(pool[source]))
        for word in words[4:]:
            for target in range(4):
                pool[target] = mixed(pool[target], hashed(word))
        b, out = 0x8B51F9DD, []
        for i in range(8):
            x = pool[i % 4] ^ b
            b = b * 0x58F38DED & MASK32
            out.append(fold(x * b))
        v = [out[2 * j] | out[2 * j + 1] << 32 for j in range(4)]
        self.inc = (2 * (v[2] << 64 | v[3]) + 1) & MASK128
        self.state = ((self.inc + (v[0] << 64 | v[1])) * MULTIPLIER + self.inc) & MASK128

    def uniform(self) -> float:
        self.state = (self.state * MULTIPLIER + self.inc) & MASK128
        number, turn = (self.state >> 64 ^ self.state) & MASK64, self.state >> 122
        number = (number >> turn | number << (64 - turn)) & MASK64
        return (number >> 11) / (1 << 53)


class Bundle:
    """The word model of the fixture."""

    def __init__(self) -> None:
        self.config = json.loads((FIXTURE / "config.json").read_text())
        lines = (FIXTURE / "tokens.txt").read_text().split("\n")[:-1]
        self.tokens = [line.rpartition(" ")[0] for line in lines]
        self.ids = {
            token: int(line.rpartition(" ")[2]) for token, line in zip(self.tokens, lines, strict=True)
        }
        self.session = ort.InferenceSession(FIXTURE / "onnx/model.onnx", providers=["CPUExecutionProvider"])
        self.eos, self.unk = self.config["eos_token_id"], self.config["unk_token_id"]
        del self.ids[self.tokens[self.eos]]  # a text that spells this name is a word

    def encode(self, text: str) -> list[int]:
        ids = []
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n")):
            ids += [self.eos] * (number > 0)
            words = re.split("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+", line)
            ids += [self.ids.get(word, self.unk) for word in words if word]
        return ids

    def decode(self, ids: Sequence[int], line_start: bool = True) -> str:
        text = ""
        for id_ in ids:
            text += "\n" if id_ == self.eos else " " * (not line_start) + self.tokens[id_]
            line_start = id_ == self.eos
        return text

    def zero_state(self) -> dict[str, Any]:
        return {
            state["name"]: np.zeros([1 if size is None else size for size in state["shape"]], state["dtype"])
            for state in self.config["states"]
        }

    def step(self, id_: int, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        outputs = ["logits", *(tensor["output"] for tensor in self.config["states"])]
        logits, *after = self.session.run(outputs, {"token": np.array([[id_]]), **state})
        return logits[0, 0], dict(zip(state, after, strict=True))

    def start(self, prompt: str) -> tuple[list[int], dict[str, Any]]:
        ids, state = [self.eos, *self.encode(prompt)], self.zero_state()
        for id_ in ids[:-1]:
            _, state = self.step(id_, state)
        return ids, state


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle()


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def processed(logits: Any, history: Sequence[int], params: dict[str, Any], unk: int) -> Any:
    """Steps 1 to 7, as far as the cases use them."""
    logits = logits.astype(np.float64)
    for id_, bias in params.get("logit_bias", {}).items():
        logits[int(id_)] += bias
    penalty = params.get("repetition_penalty", 1)
    for id_, count in Counter(history).items():
        logits[id_] = logits[id_] / penalty if logits[id_] > 0 else logits[id_] * penalty
        logits[id_] -= params.get("frequency_penalty", 0) * count + params.get("presence_penalty", 0)
    if size := params.get("no_repeat_ngram_size", 0):
        last = list(history[len(history) - size + 1 :])
        for start in range(len(history) - size + 1):
            if list(history[start : start + size - 1]) == last:
                logits[history[start + size - 1]] = -math.inf
    if not params.get("allow_unk"):
        logits[unk] = -math.inf
    return logits


def ruled_out(logits: Any, params: dict[str, Any]) -> Any:
    """The filters in their order."""
    logits = logits.copy()
    if k := params.get("top_k", 0):
        logits[logits < np.sort(logits)[-k]] = -math.inf
    if (p := params.get("top_p", 1)) < 1:
        weights = np.exp(logits - logits.max())
        order = np.argsort(-logits, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        logits[order[before >= p * weights.sum()]] = -math.inf
    if p := params.get("min_p", 0):
        logits[logits < logits.max() + math.log(p)] = -math.inf
    if (p := params.get("typical_p", 1)) < 1:
        logs = log_softmax(logits)
        possible = np.flatnonzero(logits > -math.inf)
        entropy = -float(np.exp(logs[possible]) @ logs[possible])
        order = possible[np.argsort(np.abs(-logs[possible] - entropy), kind="stable")]
        kept = int(np.searchsorted(np.cumsum(np.exp(logs[order])), p)) + 1
        logits[order[kept:]] = -math.inf
    return logits


def drawn(logits: Any, uniform: float) -> int:
    cumulative = np.cumsum(np.exp(logits - logits.max()))
    return int(np.flatnonzero(cumulative > uniform * cumulative[-1])[0])


def chosen(logits: Any, params: dict[str, Any], uniform: Callable[[], float]) -> int:
    temperature = params.get("temperature", 1)
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    kept = ruled_out(logits, params)
    if params.get("typical_p", 1) < 1 or (params.get("top_p", 1) < 1 and params.get("top_k", 0)):
        return drawn(kept, uniform())
    for _ in range(17):
        id_ = drawn(logits, uniform())
        if kept[id_] > -math.inf:
            return id_
    return drawn(kept, uniform())


def go_on(
    bundle: Bundle,
    ids: list[int],
    state: dict[str, Any],
    params: dict[str, Any],
    uniform: Callable[[], float],
) -> Iterator[tuple[int, float]]:
    """The ids that follow, and their log-probabilities by the model."""
    ids = list(ids)
    for _ in range(params["max_tokens"]):
        logits, state = bundle.step(ids[-1], state)
        id_ = chosen(processed(logits, ids[1:][-1024:], params, bundle.unk), params, uniform)
        ids.append(id_)
        yield id_, float(log_softmax(logits)[id_])


@pytest.mark.parametrize("case", CASES["generators"])
def test_the_generator_is_pcg64_of_the_seed_sequence(case: dict[str, Any]) -> None:
    generator = Generator(int(case["seed"]), int(case["index"]))
    assert (str(generator.state), str(generator.inc)) == (case["state"], case["inc"])
    assert [generator.uniform() for _ in case["uniforms"]] == case["uniforms"]


@pytest.mark.parametrize("case", CASES["encoded"])
def test_texts_become_ids_and_come_back(bundle: Bundle, case: dict[str, Any]) -> None:
    assert bundle.encode(case["text"]) == case["ids"]
    assert bundle.decode(case["ids"]) == case["decoded"]


def test_the_first_step_is_as_listed(bundle: Bundle) -> None:
    logits, state = bundle.step(bundle.eos, bundle.zero_state())
    assert logits == pytest.approx(CASES["first_step"]["logits"], abs=CLOSE)
    for name, values in CASES["first_step"]["state"].items():
        assert state[name].ravel() == pytest.approx(values, abs=CLOSE)


def test_a_text_is_scored_as_listed(bundle: Bundle) -> None:
    case = CASES["scored"]
    ids = bundle.encode(case["text"])
    assert ids == case["ids"]
    state, values = bundle.zero_state(), []
    for before, id_ in zip([bundle.eos, *ids], ids, strict=False):
        logits, state = bundle.step(before, state)
        values.append(float(log_softmax(logits)[id_]))
    assert values == pytest.approx(case["log_probabilities"], abs=CLOSE)
    assert math.exp(-sum(values) / len(ids)) == pytest.approx(case["perplexity"], rel=CLOSE)
    bits = -sum(values) / math.log(2) / len(case["text"].encode())
    assert bits == pytest.approx(case["bits_per_byte"], rel=CLOSE)
    assert case["perplexity_per_word"] == case["perplexity"]  # of a word model


@pytest.mark.parametrize("case", [CASES["greedy"], *CASES["sampled"]])
def test_texts_are_drawn_from_the_uniforms_as_listed(bundle: Bundle, case: dict[str, Any]) -> None:
    """From those of the generator, too, which are used up in this order."""
    ids, state = bundle.start(case["prompt"])
    generator = Generator(int(case["seed"]), int(case["index"]))
    listed = iter(case["uniforms"])
    used = []

    def uniform() -> float:
        used.append(generator.uniform())
        assert used[-1] == next(listed)
        return used[-1]

    found, values = zip(*go_on(bundle, ids, state, case["params"], uniform), strict=True)
    assert list(found) == case["ids"]
    assert next(listed, None) is None
    assert values == pytest.approx(case["log_probabilities"], abs=CLOSE)
    assert bundle.decode(found, line_start=False) == case["text"]


def test_a_saved_session_goes_on_as_listed(bundle: Bundle) -> None:
    case = CASES["session"]
    arrays: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(case["file"]))) as archive:
        for name in archive.namelist():
            arrays[name] = np.load(io.BytesIO(archive.read(name)))
    facts = json.loads(arrays["facts.npy"].tobytes())
    assert (facts["format"], facts["format_version"]) == ("steplm session", 3)
    assert facts["model"] == bundle.config["files"]["onnx/model.onnx"]
    state = {name: arrays[f"state_{name}.npy"] for name in bundle.zero_state()}
    generator = Generator(0, 0)
    numbers = facts["generator"]["state"]
    generator.state, generator.inc = int(numbers["state"]), int(numbers["inc"])
    ids = [bundle.eos, *arrays["history.npy"].tolist()]
    assert ids[-1] == facts["token"]
    found = [id_ for id_, _ in go_on(bundle, ids, state, case["params"], generator.uniform)]
    assert found == case["ids"]


class Trie:
    """N-gram tables, as a dictionary of n-grams."""

    def __init__(self, content: bytes) -> None:
        header, self.at = json.loads(content[: content.index(b"\n")]), content.index(b"\n") + 1
        assert self.at % 64 == 0
        self.content, self.eos = content, header["eos_id"]
        self.logs: dict[tuple[int, ...], float] = {}
        self.backoffs: dict[tuple[int, ...], float] = {}
        grams: list[tuple[int, ...]] = [(id_,) for id_ in range(header["vocab_size"])]
        starts: list[int] = []
        for n, count in enumerate(header["counts"], 1):
            logs = self.take("<f4", count)
            if n > 1:
                words = self.take("<u2" if header["vocab_size"] <= 65_536 else "<u4", count)
                grams = [
                    (*gram, words[i])
                    for number, gram in enumerate(grams)
                    for i in range(starts[number], starts[number + 1])
                ]
            self.logs |= dict(zip(grams, logs, strict=True))
            if n < header["order"]:
                self.backoffs |= dict(zip(grams, self.take("<f4", count), strict=True))
                starts = self.take("<u4", count + 1)
        assert self.at == len(content)

    def take(self, dtype: str, count: int) -> list[Any]:
        array = np.frombuffer(self.content, dtype, count, self.at)
        self.at += -(-array.nbytes // 64) * 64
        return array.tolist()

    def score(self, ids: Sequence[int]) -> Iterator[float]:
        contexts = [(self.eos,)]
        for id_ in ids:
            total = 0.0
            for context in reversed(contexts):
                if (*context, id_) in self.logs:
                    total += self.logs[(*context, id_)]
                    break
                total += self.backoffs[context]
            else:
                total += self.logs[(id_,)]
            yield total
            longer = [(*context, id_) for context in contexts]
            contexts = [(id_,), *(gram for gram in longer if gram in self.backoffs)]


def test_tables_give_the_listed_log_probabilities() -> None:
    case = CASES["ngram"]
    content = base64.b64decode(case["file"])
    found = list(Trie(content).score(case["ids"]))
    assert found == pytest.approx(case["log_probabilities"], abs=CLOSE)
    tables = NgramTables.from_bytes(content)
    assert log_probabilities(tables, np.array(case["ids"])).tolist() == case["log_probabilities"]


def test_the_runtime_itself_finds_what_is_listed(tmp_path: Path) -> None:
    model = lm_runtime.load(FIXTURE, precision=make_cases.PRECISION, provider="cpu")
    for case in CASES["encoded"]:
        assert make_cases.encoded(model, case["text"]) == case
    for case in [CASES["greedy"], *CASES["sampled"]]:
        found = make_cases.sampled(model, case["params"], int(case["seed"]), int(case["index"]))
        values = found.pop("log_probabilities")
        assert values == pytest.approx(case["log_probabilities"], abs=CLOSE)
        assert found == {name: value for name, value in case.items() if name != "log_probabilities"}
    assert make_cases.ngram() == CASES["ngram"]
    (tmp_path / "s.npz").write_bytes(base64.b64decode(CASES["session"]["file"]))
    again = Session.load(tmp_path / "s.npz", model)
    assert again.position == len(model.tokenizer.encode(CASES["session"]["prompt"]))
