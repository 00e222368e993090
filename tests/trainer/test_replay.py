"""Fine-tuning keeps what was learned: by a lower learning rate, and by a share of the earlier text."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import Invoke, one_line
from lm_trainer.command import main as lm_train
from lm_trainer.config_file import read_settings
from lm_trainer.corpora.corpus import token_path
from lm_trainer.corpora.replay import replay
from lm_trainer.corpora.token_file import TokenFile, write_token_file
from lm_trainer.run.checkpoint import load_checkpoint

TRAINING: list[object] = ["--batch-size", 2, "--seq-len", 10, "--sample-tokens", 5, "--epochs", 1]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    for name, repeats in (("train", 30), ("valid", 2)):
        (tmp_path / f"new/{name}.txt").write_text(
            "the clock of the clock\nthe keeper of the clock\n" * repeats
        )
    return tmp_path / "new"


def ids_of(run: Path, split: str) -> list[int]:
    facts = load_checkpoint(run).facts
    return [int(token) for token in facts.corpus.open(run / "tokens", split)]


def test_stretches_of_both_texts_alternate_and_have_their_share(tmp_path: Path) -> None:
    texts = {name: np.arange(size) + low for name, size, low in (("new", 9000, 0), ("old", 50_000, 10_000))}
    files = {
        name: dataclasses.replace(
            write_token_file(tmp_path / name, [ids], vocab_size=65_000, unk_id=10_000), bytes=4 * ids.size
        )
        for name, ids in texts.items()
    }
    old = files["old"].open(tmp_path / "old")
    mixed = replay(tmp_path / "new", files["new"], old, files["old"], 0.25, vocab_size=65_000, unk_id=10_000)
    ids = mixed.open(tmp_path / "new")
    assert (mixed.tokens, mixed.unknown, mixed.bytes) == (12_000, 1, 48_000)
    assert ids[ids < 10_000].tolist() == texts["new"].tolist()
    taken = ids[ids >= 10_000]
    assert taken[0] == 10_000
    assert taken[-1] > 25_000  # spread over the earlier text
    for half in np.split(ids, 2):
        assert (half >= 10_000).mean() == 0.25


def test_no_more_is_taken_than_there_is(tmp_path: Path) -> None:
    new = write_token_file(tmp_path / "new", [np.zeros(100, np.int64)], vocab_size=10, unk_id=None)
    old = np.ones(20, np.uint16)
    mixed: TokenFile = replay(
        tmp_path / "new", new, old, dataclasses.replace(new, tokens=20), 0.9, vocab_size=10, unk_id=None
    )
    assert mixed.tokens == 120


def test_both_texts_are_measured_before_and_after(
    invoke: Invoke, tmp_path: Path, small_run: Path, corpus: Path
) -> None:
    code, _, err = invoke(lm_train, corpus, "--init", small_run, *TRAINING, "--out", "run")
    assert code == 0
    assert "note: fine-tuning: the learning rate is 0.0006, a tenth of the preset's\n" in err
    assert "note: 20 % of the training text is the earlier run's; --replay 0 leaves it out\n" in err
    assert load_checkpoint(tmp_path / "run").training_config.lr == 0.0006  # type: ignore[union-attr]
    tuned = json.loads((tmp_path / "run/summary.json").read_text())["init"]
    earlier = load_checkpoint(small_run).progress.valid_loss
    assert tuned["first_before"] == pytest.approx(math.exp(earlier), rel=1e-6)
    assert tuned["first"] != tuned["first_before"]
    assert f"; on the earlier text {tuned['first_before']:.2f} before, {tuned['first']:.2f} now\n" in err
    assert f"on the new text {tuned['valid_before']:.2f} before, " in err
    assert f"<td>{tuned['first']:,.2f}</td>" in (tmp_path / "run/report.html").read_text()


def test_a_share_of_the_earlier_text_is_replayed_and_repeated(
    invoke: Invoke, tmp_path: Path, small_run: Path, corpus: Path
) -> None:
    shutil.copytree(small_run, tmp_path / "first")
    call = [corpus, "--init", "first", *TRAINING]
    assert invoke(lm_train, *call, "--replay", 0.5, "--out", "run")[0] == 0
    found, earlier = ids_of(tmp_path / "run", "train"), ids_of(small_run, "train")
    own = 60 * 6  # lines of five words and an end
    assert len(found) == 2 * own
    assert found[own:] == earlier[:own]
    assert read_settings(tmp_path / "run/config.toml")["replay"] == 0.5
    assert invoke(lm_train, "--config", "run/config.toml", "--out", "again")[0] == 0
    assert ids_of(tmp_path / "again", "train") == found
    shutil.rmtree(tmp_path / "first/tokens")
    assert invoke(lm_train, "--out", "run", "--resume")[0] == 0  # has what it needs
    code, _, err = invoke(lm_train, *call, "--replay", 0.5, "--out", "other")
    assert code == 1
    assert one_line(err).endswith(
        "train.bin: missing or changed: --replay needs the text of the run that --init names"
    )
    err = invoke(lm_train, *call, "--out", "other")[2]
    assert "; the text of the run that it began from is not at hand\n" in err
    assert token_path(tmp_path / "run/tokens", "first").is_file()


def test_a_rate_that_is_given_is_taken(invoke: Invoke, small_run: Path, corpus: Path) -> None:
    code, _, err = invoke(lm_train, corpus, "--init", small_run, *TRAINING, "--lr", 0.01, "--out", "run")
    assert (code, "fine-tuning: the learning rate" in err) == (0, False)
    assert load_checkpoint(Path("run")).training_config.lr == 0.01  # type: ignore[union-attr]


def test_replay_is_for_a_run_that_begins_from_another(invoke: Invoke, corpus: Path) -> None:
    code, _, err = invoke(lm_train, corpus, "--replay", 0.2)
    assert code == 2
    assert "--replay is for --init" in one_line(err)
