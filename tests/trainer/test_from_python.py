"""Training, comparing and looking into runs from Python, as the commands do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import lm_runtime
import lm_trainer
from conftest import TINY, Invoke, one_line
from lm_runtime.files import UnusableFileError
from lm_trainer.command import main as lm_train
from lm_trainer.commands.compare import main as lm_compare
from lm_trainer.training import terminal
from lm_trainer.training.progress import InterruptedRunError
from lm_trainer.training.snapshot import Progress

SMALL: dict[str, Any] = {
    "tokenizer": "word",
    "vocab_size": 180,
    "embedding_dim": 16,
    "hidden_size": 16,
    "batch_size": 4,
    "seq_len": 10,
    "lr": 0.01,
    "epochs": 2,
    "sample_tokens": 5,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> lm_trainer.Run:
    return lm_trainer.train(TINY, out=tmp_path_factory.mktemp("python") / "run", **SMALL)


def test_a_run_is_that_of_the_command(run: lm_trainer.Run, tmp_path: Path, invoke: Invoke) -> None:
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert invoke(lm_train, TINY, *options, "--out", "run")[0] == 0
    there = lm_trainer.Run(tmp_path / "run")
    first, second = (torch.load(one.best, weights_only=True)["model"] for one in (run, there))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run.settings == there.settings
    assert run.sample == there.sample
    assert {**run.summary, "seconds": 0} == {**there.summary, "seconds": 0}


def test_the_curve_is_that_of_the_metrics(run: lm_trainer.Run) -> None:
    valid = [record["valid_perplexity"] for record in run.curve if record["valid_perplexity"]]
    assert len(valid) == 2
    assert min(valid) == pytest.approx(run.summary["valid"]["perplexity"])
    train = [record["train_perplexity"] for record in run.curve if record["train_perplexity"]]
    assert train[-1] < train[0]
    assert all(record.keys() == run.curve[0].keys() for record in run.curve)


def test_a_run_is_exported_and_generates(run: lm_trainer.Run, tmp_path: Path) -> None:
    bundle = run.export(tmp_path / "bundle", quantize="int8")
    model = lm_runtime.load(bundle, precision="int8")
    assert "".join(lm_runtime.generate(model, "the", seed=1))
    with pytest.raises(ValueError, match="holds something"):
        run.export(bundle)
    with pytest.raises(ValueError, match="quantize must be None or int8, got 'int4'"):
        run.export(tmp_path / "other", quantize="int4")


def test_a_run_goes_on_and_is_shown(run: lm_trainer.Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    longer = lm_trainer.train(out=tmp_path / "run", resume=True, epochs=3)
    assert longer.summary["epochs"] == 3
    shown = longer._repr_html_()
    assert shown is not None
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html')
    assert repr(longer) == f"Run({str(tmp_path / 'run')!r})"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 3}, "no setting is called hidden.*is hidden_size meant"),
        ({"epochs": 0}, "epochs must be"),
        ({"lr": "high"}, "lr must be a number, got 'high'"),
        ({"preset": "huge"}, "preset must be"),
        ({"model": "ngram", "lr": 1}, "lr does not apply to ngram"),
        ({"resume": True, "force": True}, "resume or --force"),
    ],
)
def test_settings_are_checked(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lm_trainer.train(TINY, out=tmp_path / "run", **settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for find in (lm_trainer.Run, lambda folder: lm_trainer.compare([folder])):
        with pytest.raises(UnusableFileError, match="no run"):
            find(tmp_path)
        with pytest.raises(UnusableFileError, match="nowhere: no such run"):
            find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no run to compare"):
        lm_trainer.compare([])


def test_the_stop_button_ends_a_run_that_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook sends SIGINT, and its next cell must be able to stop too."""

    def press(self: object, progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr("lm_trainer.training.terminal._RunBar._step", press)
        with pytest.raises(InterruptedRunError, match=r"stopped at step 5 of 48; .*resume=True goes on"):
            lm_trainer.train(TINY, out=tmp_path / "run", **SMALL)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(UnusableFileError, match="not complete"):
        lm_trainer.Run(tmp_path / "run").summary  # noqa: B018
    assert lm_trainer.train(out=tmp_path / "run", resume=True).summary["epochs"] == 2


def test_a_run_is_trained_in_another_thread(tmp_path: Path) -> None:
    found: list[lm_trainer.Run] = []
    settings = {**SMALL, "epochs": 1}
    thread = threading.Thread(
        target=lambda: found.append(lm_trainer.train(TINY, out=tmp_path / "run", **settings))
    )
    thread.start()
    thread.join()
    assert found[0].summary["epochs"] == 1


def test_a_notebook_shows_a_bar_of_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        kernel = object()

    class Module:
        get_ipython = staticmethod(lambda: Shell())

    assert terminal.bar(total=10).ncols == 0
    monkeypatch.setitem(sys.modules, "IPython", Module())
    bar = terminal.bar(total=10)
    assert bar.ncols == 100
    assert bar.fp is sys.stderr or bar.fp._wrapped is sys.stderr
    bar.close()


def test_runs_stand_side_by_side(
    run: lm_trainer.Run, small_run: Path, tmp_path: Path, invoke: Invoke
) -> None:
    found = lm_trainer.compare([run, small_run])
    assert [row["valid"] for row in found.table] == [
        run.summary["valid"]["perplexity"],
        json.loads((small_run / "summary.json").read_text())["valid"]["perplexity"],
    ]
    assert found.same_vocabulary
    assert found.differing["layers"] == [1, 2]
    assert "seq_len" not in found.differing
    assert found._repr_html_().startswith("<iframe")
    code, out, err = invoke(lm_compare, run.folder, small_run, "--html", "page.html", "--png", "curves.png")
    assert (code, err) == (0, "")
    heading, *lines = out.splitlines()
    assert "valid perplexity" in heading
    assert f"{found.table[0]['valid']:.1f}" in lines[0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<img ") == 1
    assert page.count("<pre>") == 2
    assert run.sample.split()[0] in page
    assert "<script" not in page
    records = [
        json.loads(line) for line in invoke(lm_compare, run.folder, small_run, "--json")[1].splitlines()
    ]
    assert records == found.table


def test_vocabularies_that_differ_are_compared_by_bits(
    run: lm_trainer.Run, tmp_path: Path, invoke: Invoke
) -> None:
    settings = {**SMALL, "epochs": 1, "vocab_size": 270}
    bpe = lm_trainer.train(TINY, out=tmp_path / "bpe", **{**settings, "tokenizer": "bpe"})
    other = lm_trainer.train(
        TINY, out=tmp_path / "run", **{**settings, "tokenizer": "char"}
    )  # of the same name
    shutil.copytree(other.folder, tmp_path / "unfinished")
    (tmp_path / "unfinished/summary.json").unlink()
    runs = [bpe.folder, other.folder, tmp_path / "unfinished", run.folder]
    found = lm_trainer.compare(runs)
    assert not found.same_vocabulary
    assert [compared.name for compared in found.runs] == [str(folder) for folder in runs]
    unfinished = found.table[2]
    assert unfinished["valid"] == pytest.approx(found.table[1]["valid"])  # the best so far
    assert unfinished["bits_per_byte"] is None
    assert found.table[3]["bits_per_byte"] is None  # a fifth of the words are unknown
    code, out, err = invoke(lm_compare, *runs, "--html", "page.html")
    assert code == 0
    assert "not complete" in out.splitlines()[3]
    assert "not comparable: " in out.splitlines()[4]
    assert "the vocabularies differ" in err
    page = (tmp_path / "page.html").read_text()
    assert "vocabularies differ" in page
    assert f"without curve: {runs[2]}, {runs[3]}" in page
    assert f"without curve: {runs[2]}, {runs[3]}" in one_line(err)
    assert "texts differ" not in err
    for compared, row in list(zip(found.runs, found.table, strict=True))[:2]:
        assert compared.bits_a_nat is not None
        best = min(record["valid_loss"] for record in compared.epochs)
        assert compared.bits_a_nat * best == pytest.approx(row["bits_per_byte"])


def test_runs_on_other_texts_are_told(run: lm_trainer.Run, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    settings = (tmp_path / "run/config.toml").read_text().splitlines()
    settings[0] = 'corpus = "elsewhere"'
    (tmp_path / "run/config.toml").write_text("\n".join(settings))
    _, _, err = invoke(lm_compare, run.folder, "run")
    assert "texts differ: no figure of one compares" in one_line(err)


def test_a_sample_may_have_any_character(run: lm_trainer.Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run/sample.txt").write_bytes(b"a\0b\x1b \xe2\x82\n")
    assert lm_trainer.Run(tmp_path / "run").sample == "a\0b\x1b \ufffd\n"
    lm_trainer.compare([tmp_path / "run"]).write_html(tmp_path / "page.html")


def test_a_damaged_run_is_named(run: lm_trainer.Run, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run/summary.json").write_text("{")
    code, out, err = invoke(lm_compare, "run")
    assert (code, out) == (1, "")
    assert one_line(err) == "lm-compare: run/summary.json: damaged"
    assert invoke(lm_compare)[0] == 2
