"""What a run tells about itself: its page, TensorBoard's events, and the learning rate that it could have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import COUNTED, SMALL, TINY, Invoke, one_line, tree
from lm_trainer.command import main as lm_train
from lm_trainer.reports.summary import read_summary
from lm_trainer.run import rate_finder
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.training.snapshot import Progress


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.text: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.text[self.tags[-1]] = self.text.get(self.tags[-1], "") + data


def test_the_report_shows_the_run_and_needs_no_other_file(small_run: Path) -> None:
    page = Page(small_run / "report.html")
    assert page.tags.count("img") == len(page.attributes["src"]) == 2
    assert all(str(source).startswith("data:image/png;base64,iVBOR") for source in page.attributes["src"])
    assert not {"script", "link", "iframe", "a"} & set(page.tags)
    assert "href" not in page.attributes
    assert not [name for name in page.attributes if name.startswith("on")]
    content = (small_run / "report.html").read_text(encoding="utf-8")
    assert "http:" not in content
    assert "https:" not in content
    summary = json.loads((small_run / "summary.json").read_text())
    for split in ("valid", "test"):
        assert f"<td>{summary[split]['perplexity']:,.2f}</td>" in content
        share = summary[split]["unknown"] / summary[split]["tokens"]
        assert f"<td>not comparable: {share * 100:.1f} % unknown</td>" in content
    assert f"<td>{summary['baselines']['unigram']:,.1f}</td>" in content
    assert "<tr><th>hidden_size</th><td>32</td></tr>" in content


HOSTILE = '<script>alert("1")</script> & <b onclick=x> &lt;'


@pytest.mark.parametrize("options", [SMALL, ["--model", "ngram", *COUNTED]], ids=["lstm", "ngram"])
def test_a_text_that_is_html_stays_text(invoke: Invoke, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "<i>&.txt").write_text(f"{HOSTILE}\n" * 200)
    assert invoke(lm_train, "<i>&.txt", *options, "--out", "run", "--sample-tokens", 40)[0] == 0
    page = Page(tmp_path / "run/report.html")
    assert not {"script", "b", "i"} & set(page.tags)
    assert page.tags.count("img") == (0 if "ngram" in options else 2)
    sample = (tmp_path / "run/sample.txt").read_text()
    assert "<script>" in sample
    assert page.text["pre"].startswith(sample)
    assert "<i>&" in page.text["h1"]


def test_early_stopping_is_told_and_can_be_taken_back(invoke: Invoke, tmp_path: Path) -> None:
    """On so small a text a network with a high learning rate soon overfits."""
    options = [TINY, *SMALL, "--lr", 0.05, "--out", "run"]
    code, _, err = invoke(lm_train, *options, "--epochs", 40, "--patience", 2)
    assert code == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["epochs"] == summary["best_epoch"] + 2 < 40
    assert "stopped early" in one_line(err)
    assert "stopped early" in (tmp_path / "run/report.html").read_text()
    before = (tmp_path / "run/last.pt").read_bytes()
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 0
    assert "run is complete: nothing to do" in err
    assert "stopped early" in one_line(err)
    assert (tmp_path / "run/last.pt").read_bytes() == before
    more = summary["epochs"] + 1
    assert invoke(lm_train, "--out", "run", "--resume", "--patience", 0, "--epochs", more)[0] == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["epochs"], summary["stopped_early"]) == (more, False)


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder


def test_the_rate_that_is_found_trains_better_than_a_hundredth_and_a_hundred_times_it(
    invoke: Invoke, tmp_path: Path, scratch: Path
) -> None:
    options = [TINY, *SMALL, "--warmup-steps", 0]
    code, out, err = invoke(lm_train, *options, "--find-lr")
    assert code == 0
    assert "suggested" in one_line(err)
    assert tree(tmp_path) == {"lr.png"}
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert list(scratch.iterdir()) == []
    perplexities = []
    for factor in (0.01, 1, 100):
        assert invoke(lm_train, *options, "--lr", float(out) * factor, "--out", "run", "--force")[0] == 0
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        perplexities.append(summary["valid"]["perplexity"])
    assert perplexities[1] < min(perplexities[0], perplexities[2]), perplexities


def test_finding_a_rate_repeats_and_touches_no_run(
    invoke: Invoke, tmp_path: Path, small_run: Path, scratch: Path
) -> None:
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    found = [
        invoke(lm_train, TINY, *SMALL, "--out", small_run, "--find-lr", tmp_path / name)[1]
        for name in ("a.png", "b.png")
    ]
    assert found[0] == found[1]
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before
    assert tree(tmp_path) == {"a.png", "b.png"}


def test_an_interrupted_search_for_a_rate_leaves_nothing(
    invoke: Invoke, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rate_finder, "rise", interrupted)
    code, out, err = invoke(lm_train, TINY, *SMALL, "--find-lr")
    assert (code, out, one_line(err)) == (130, "", "lm-train: interrupted")
    assert tree(tmp_path) == set()
    assert list(scratch.iterdir()) == []


def test_the_suggestion_is_a_quarter_of_the_rate_of_the_lowest_loss() -> None:
    rates = np.geomspace(1e-6, 10, 100)
    losses = 5 + np.log10(rates / rates[60]) ** 2
    assert rate_finder.suggest(rates, losses) == pytest.approx(rates[60] / 4)
    losses[20] = 4.9  # a single low one is no minimum
    assert rate_finder.suggest(rates, losses) == pytest.approx(rates[60] / 4)


def events(folder: Path) -> EventAccumulator:
    log = EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    return log


def metrics(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def check_events(folder: Path) -> None:
    """Each record of the metrics once, in order."""
    log = events(folder)
    for tag, event, name in (
        ("loss/train", "step", "loss"),
        ("learning_rate", "step", "lr"),
        ("gradient_norm", "step", "gradient_norm"),
        ("loss/valid", "epoch", "valid_loss"),
        ("perplexity/valid", "epoch", "valid_perplexity"),
    ):
        records, found = metrics(folder, event), log.Scalars(tag)
        assert [entry.step for entry in found] == [record["step"] for record in records], tag
        values = [record[name] for record in records]
        assert [entry.value for entry in found] == pytest.approx(values, rel=1e-6), tag
    assert all(entry.value > 0 for entry in log.Scalars("tokens_per_second"))
    (sample,) = log.Tensors("sample/text_summary")
    lines = sample.tensor_proto.string_val[0].decode().splitlines()
    assert [line.strip() for line in lines] == [
        line.strip() for line in (folder / "sample.txt").read_text().splitlines()
    ]


def test_events_are_the_metrics_also_after_a_run_was_killed(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with a record after the last checkpoint, which is written again."""

    class KilledError(BaseException):
        pass

    def kill(self: object, progress: Progress, loss: float) -> None:
        if progress.epoch == 1:
            raise KilledError

    options = [TINY, *SMALL, "--epochs", 3, "--clip-norm", 1, "--out", "run", "--tensorboard"]
    with monkeypatch.context() as patch:
        patch.setattr("lm_trainer.training.terminal._RunBar._record", kill)
        with pytest.raises(KilledError):
            invoke(lm_train, *options)
    step = load_checkpoint(tmp_path / "run/last.pt").progress.step
    assert events(tmp_path / "run").Scalars("loss/train")[-1].step > step
    assert invoke(lm_train, *options, "--resume")[0] == 0
    check_events(tmp_path / "run")


def test_events_are_all_metrics_also_of_parts_that_had_none(invoke: Invoke, tmp_path: Path) -> None:
    options = [TINY, *SMALL, "--clip-norm", 1, "--out", "run"]
    assert invoke(lm_train, *options, "--epochs", 1)[0] == 0
    assert invoke(lm_train, *options, "--epochs", 2, "--resume", "--tensorboard")[0] == 0
    check_events(tmp_path / "run")
    assert invoke(lm_train, *options, "--epochs", 3, "--resume")[0] == 0
    (tmp_path / "run/tensorboard/mine").write_text("mine")
    assert invoke(lm_train, *options, "--epochs", 4, "--resume", "--tensorboard")[0] == 0
    check_events(tmp_path / "run")
    losses, records = events(tmp_path / "run").Scalars("loss/train"), metrics(tmp_path / "run", "step")
    assert (tmp_path / "run/tensorboard/mine").read_text() == "mine"
    apart = losses[-1].wall_time - losses[0].wall_time
    assert apart == pytest.approx(records[-1]["seconds"] - records[0]["seconds"], abs=1e-3)
    assert invoke(lm_train, *options, "--epochs", 1, "--force")[0] == 0
    assert not (tmp_path / "run/tensorboard").exists()
    for _ in range(2):  # each is there once
        assert invoke(lm_train, "--out", "run", "--resume", "--tensorboard")[0] == 0
        check_events(tmp_path / "run")


def test_events_of_an_ngram_model(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke(lm_train, TINY, "--model", "ngram", *COUNTED, "--out", "run", "--tensorboard")[0] == 0
    (entry,) = events(tmp_path / "run").Scalars("perplexity/valid")
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert entry.value == pytest.approx(summary["valid"]["perplexity"])


def test_a_notebook_s_backend_does_not_matter(tmp_path: Path) -> None:
    """In a process of its own: matplotlib looks at the environment once."""
    backend = {"MPLBACKEND": "module://nowhere.backend_inline"}
    options = [TINY, *SMALL, "--epochs", 1, "--sample-tokens", 5, "--out", "run"]
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lm-train"), *map(str, options)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **backend},
    )
    assert result.returncode == 0, result.stderr
    assert "could not be made" not in result.stderr
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_complete_without_its_pictures_page_and_events(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space for this")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    monkeypatch.setattr("lm_trainer.reports.markup.write_whole", fail)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
    options = [TINY, *SMALL, "--epochs", 1, "--out", "run", "--tensorboard"]
    code, _, err = invoke(lm_train, *options)
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: run/tensorboard has no events from here on (no space for this)",
        "note: the picture run/loss.png could not be made (no space for this)",
        "note: the page run/report.html could not be made (no space for this)",
    ]
    assert (tmp_path / "run/summary.json").exists()
    assert not (tmp_path / "run/report.html").exists()
