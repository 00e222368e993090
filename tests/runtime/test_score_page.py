"""What was expected at each place of a text: as values, and as one page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import lm_runtime
import lm_trainer
from conftest import FIXTURE, TINY, Invoke, one_line
from lm_runtime.commands.score import main as lm_score
from lm_runtime.scoring.page import write_page
from lm_runtime.scoring.passages import Passages
from lm_runtime.scoring.tokens import token_scores
from lm_runtime.softmax import log_softmax

TEXT = "the keeper of the lamp\n\nxyzzy said <b>&amp;</b> the clock"


def test_each_token_has_its_probability_and_the_best_in_its_place() -> None:
    model = lm_runtime.load(FIXTURE)
    found = lm_runtime.score_tokens(model, TEXT, k=3)
    (whole,) = lm_runtime.score_texts(model, [TEXT])
    assert math.fsum(score.log_probability for score in found) == pytest.approx(whole.log_probability)
    assert (
        "".join(score.text for score in found)
        == TEXT.replace("xyzzy", "<unk>").replace("<b>&amp;</b>", "<unk>") + "\n"
    )
    state, previous = lm_runtime.initial_state(model, 1), model.tokenizer.eos_id
    for score in found:
        logits, state = model.step(np.array([[previous]]), state)
        values = log_softmax(logits[0, 0])
        assert score.log_probability == pytest.approx(values[score.token], rel=1e-4)
        assert [share for _, share in score.best] == pytest.approx(
            np.sort(np.exp(values))[::-1][:3], rel=1e-4
        )
        previous = score.token
    most_probable = lm_runtime.suggest(model, "the keeper of", 3, allow_unk=True)
    assert [name for name, _ in found[3].best] == [name for name, _ in most_probable]
    assert found[3].surprisal == -found[3].log_probability / math.log(2)
    assert len(repr(found[3])) < 60
    with pytest.raises(ValueError, match="k must be"):
        lm_runtime.score_tokens(model, TEXT, k=201)


def parts(page: str) -> tuple[list[str], dict[str, list[object]]]:
    """The marks of a page in their order, and what its script knows of them."""
    marks = [html.unescape(mark) for mark in re.findall(r"<b class=\w>(.*?)</b>", page)]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    return marks, json.loads(data[1])


def test_a_page_shows_the_text_and_the_most_surprising_passages(invoke: Invoke, tmp_path: Path) -> None:
    plain = invoke(lm_score, FIXTURE, TINY / "train.txt")
    assert invoke(lm_score, FIXTURE, TINY / "train.txt", "--html", "page.html") == plain
    page = (tmp_path / "page.html").read_text()
    marks, data = parts(page)
    surprising, text = page.split("<h2>The text</h2>")
    model = lm_runtime.load(FIXTURE)
    scores = lm_runtime.score_tokens(model, (TINY / "train.txt").read_text())
    assert [mark.replace("↵", "\n") for mark in parts(text)[0]] == [score.text for score in scores]
    # The script finds what belongs to a mark by its number on the page.
    assert len(data["tokens"]) == len(marks)
    of_text = data["tokens"][-len(scores) :]
    for score, entry in zip(scores, of_text, strict=True):
        assert isinstance(entry, list)
        ((hundredths, *best),) = entry
        assert hundredths == round(100 * score.surprisal)
        assert [data["names"][name] for name in best[::2]] == [name for name, _ in score.best]
        assert best[1::2] == [round(10_000 * share) for _, share in score.best]
    means = [float(mean) for mean in re.findall(r"([\d.]+) bits a token", surprising)]
    assert means == sorted(means, reverse=True)
    assert len(means) == 20
    for place in re.findall(r"href=#(t\d+)", surprising):
        assert f"id={place}>" in text


def test_a_page_needs_nothing_else_and_runs_only_its_own_script(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("</script><script>alert(1)</script> & <b>\n")
    assert invoke(lm_score, FIXTURE, "text.txt", "--html", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "alert" not in page  # an unknown word
    assert not re.search(r"(src|href)=[\"']?(https?:|//|\w+\.)", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    )


def test_a_long_text_is_sampled_evenly(tmp_path: Path) -> None:
    model = lm_runtime.load(FIXTURE)
    lines = (TINY / "train.txt").read_text().splitlines() * 4
    passages = Passages(most=1000)
    passages.read(token_scores(model, ((line, True) for line in lines)))
    shown = sum(len(passage.tokens) for passage in passages.shown)
    assert 500 <= shown <= 1000 < passages.tokens
    starts = [passage.start for passage in passages.shown]
    gaps = np.diff([*starts, passages.tokens])
    assert gaps.max() < 4 * np.median(gaps)
    everything = Passages(most=10**6)
    everything.read(token_scores(model, ((line, True) for line in lines)))
    assert everything.surprising == passages.surprising  # of the whole text
    assert everything.shown[:: passages.stride] == passages.shown
    write_page(tmp_path / "page.html", "t", [], passages, [("Documents", "<svg></svg>")])
    page = (tmp_path / "page.html").read_text()
    assert f"One passage of {passages.stride}: {shown:,} of {passages.tokens:,} tokens." in page
    assert page.index("<h2>Documents</h2>\n<svg></svg>") < page.index("most surprising")


def test_characters_of_several_tokens_are_one_mark(tmp_path: Path, small_bytes: Path) -> None:
    model = lm_runtime.load(small_bytes)
    passages = Passages(most=1000)
    passages.read(iter(lm_runtime.score_tokens(model, "漢字 the")))
    write_page(tmp_path / "page.html", "t", [], passages)
    marks, data = parts((tmp_path / "page.html").read_text())
    assert "漢" in marks
    entry = data["tokens"][marks.index("漢")]
    assert isinstance(entry, list)
    assert len(entry) == 3  # its bytes
    assert len(data["tokens"]) == len(marks)


@pytest.fixture(scope="module")
def small_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of byte-level BPE."""
    folder = tmp_path_factory.mktemp("bytes")
    settings = {"model": "ngram", "tokenizer": "bpe", "vocab_size": 300, "sample_tokens": 0}
    return lm_trainer.train(TINY, out=folder / "run", **settings).export(folder / "bundle")


@pytest.mark.parametrize("option", ["--tokens", "--lines", "--nbest"])
def test_a_page_is_of_a_whole_text(invoke: Invoke, tmp_path: Path, option: str) -> None:
    code, out, err = invoke(lm_score, FIXTURE, TINY / "valid.txt", "--html", "page.html", option)
    assert (code, out) == (2, "")
    assert "--html is for a whole text" in one_line(err)
    code, _, err = invoke(lm_score, FIXTURE, TINY / "valid.txt", "--html", "nowhere/page.html")
    assert code != 0
    assert "nowhere" in one_line(err)
    (tmp_path / "empty.txt").touch()
    assert invoke(lm_score, FIXTURE, "empty.txt", "--html", "page.html")[0] == 1
    assert not (tmp_path / "page.html").exists()
