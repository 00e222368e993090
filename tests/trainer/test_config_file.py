"""A file of settings says what the options say; every run writes the one that repeats it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import SMALL, TINY, Invoke, one_line, tree
from lm_runtime.files import write_text
from lm_trainer.command import main as lm_train
from lm_trainer.config_file import read_settings, to_toml
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.training.loop import Trainer

VALUES = st.one_of(
    st.text(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False)
)


@given(settings=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), VALUES))
@example(settings={"corpus": "\"quoted\" C:\\new\\text\0\b\t\n\r\x1b\x7f\x85\u2028 é 😀 # = '''"})
def test_what_is_written_is_read_back(
    settings: dict[str, str | bool | int | float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    write_text(path, to_toml({**settings, "none_": None}))
    found = read_settings(path)
    assert found == settings
    assert [type(value) for value in found.values()] == [type(value) for value in settings.values()]


def test_the_file_that_a_run_wrote_repeats_it(invoke: Invoke, tmp_path: Path, family_run: Path) -> None:
    assert invoke(lm_train, "--config", family_run / "config.toml", "--out", "other")[0] == 0
    first, again = (load_checkpoint(run / "best.pt") for run in (family_run, tmp_path / "other"))
    assert first.weights.keys() == again.weights.keys()
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, again.weights[name]), name
    assert (tmp_path / "other/config.toml").read_text() == (family_run / "config.toml").read_text()


def test_the_file_has_what_applies_to_the_family(family_run: Path) -> None:
    names = set(read_settings(family_run / "config.toml"))
    assert {"corpus", "tokenizer", "vocab_size", "min_frequency", "model"} <= names
    model = read_settings(family_run / "config.toml")["model"]
    assert ("order" in names) == (model == "ngram")
    assert ("window" in names) == (model == "window")
    assert ("layers" in names) == (model in ("lstm", "gru", "rnn"))
    for name in ("hidden_size", "lr", "precision", "seed", "device"):
        assert (name in names) == (model != "ngram")


def test_the_call_comes_before_the_file_and_the_file_before_the_preset(
    invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        f'corpus = "{TINY}"\npreset = "tutorial"\nout = "here"\ntokenizer = "word"\n'
        "vocab-size = 180\nhidden_size = 32\nembedding-dim = 24\nlayers = 2\ntied = false\n"
        "batch-size = 4\nseq-len = 10\nlr = 0.5\nepochs = 1\nsample-tokens = 5\n"
    )
    assert invoke(lm_train, "--config", "run.toml", "--lr", 0.25, "--layers", 1)[0] == 0
    found = read_settings(tmp_path / "here/config.toml")
    wanted = {"corpus": str(TINY), "lr": 0.25, "layers": 1, "hidden_size": 32, "epochs": 1, "clip_norm": 0.5}
    assert {name: found[name] for name in wanted} == wanted
    assert len(load_checkpoint(tmp_path / "here/last.pt").snapshot.descent.hidden[0]) == 1


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("epochs = 3.5", 2, "run.toml: epochs must be a whole number, got 3.5"),
        ("epochs = true", 2, "run.toml: epochs must be a whole number, got True"),
        ("epochs = '3'", 2, "run.toml: epochs must be a whole number, got '3'"),
        ("tied = 1", 2, "run.toml: tied must be true or false, got 1"),
        ("lr = 'high'", 2, "run.toml: lr must be a number, got 'high'"),
        ("corpus = 1", 2, "run.toml: corpus must be a string, got 1"),
        ("out = ['a']", 2, "run.toml: out must be a string, got ['a']"),
        (f"lr = 1{'0' * 400}", 2, "lr must be above 0, got inf"),
        ("epochs = 0", 2, "epochs must be from 1 to 1048576, got 0"),
        (
            "model = 'transformer'",
            2,
            "run.toml: model must be lstm, gru, rnn, window or ngram, got transformer",
        ),
        ("hiden-size = 3", 2, "run.toml: no setting is called hiden_size"),
        ("num_layers = 3", 2, "run.toml: no setting is called num_layers"),
        ("[training]\nlr = 1.0", 2, "run.toml: no setting is called training"),
        ("force = true", 2, "run.toml: no setting is called force"),
        ("config = 'run.toml'", 2, "run.toml: no setting is called config"),
        ("batch-size = 3\nbatch_size = 3", 1, "run.toml: a setting stands there twice"),
        ("lr 3", 1, "run.toml: not TOML: "),
        ("lr = 1\nlr = 2", 1, "run.toml: not TOML: "),
        (f"lr = {'[' * 5000}", 1, "run.toml: not TOML: "),
        (f"lr = {'9' * 5000}", 1, "run.toml: not TOML: "),
        ("corpus = '\udcff'", 1, "run.toml: not UTF-8: byte 10 is 0xff"),
    ],
)
def test_a_bad_file(invoke: Invoke, tmp_path: Path, text: str, status: int, message: str) -> None:
    (tmp_path / "run.toml").write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = invoke(lm_train, TINY, "--config", "run.toml")
    assert (code, out) == (status, "")
    assert message in one_line(err)
    assert len(err.splitlines()) == 1
    assert tree(tmp_path) == {"run.toml"}


def test_no_file_at_all(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_train, "--config", "nowhere.toml")
    assert (code, one_line(err)) == (1, "lm-train: nowhere.toml: no such file")


def test_resuming_takes_the_file_as_given(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    written = ["--config", "run/config.toml", "--out", "run", "--resume", "--sample-tokens", 5]
    code, _, err = invoke(lm_train, *written)
    assert code == 0
    assert "complete: nothing to do" in err
    (tmp_path / "other.toml").write_text("lr = 0.5\n")
    refusal = "--resume goes on with the run's own settings: lr is 0.01, not 0.5"
    code, _, err = invoke(lm_train, "--config", "other.toml", "--out", "run", "--resume")
    assert (code, one_line(err)) == (2, f"lm-train: {refusal}")
    assert invoke(lm_train, *written, "--epochs", 4)[0] == 0
    before = read_settings(small_run / "config.toml")
    assert read_settings(tmp_path / "run/config.toml") == {**before, "epochs": 4}
    assert invoke(lm_train, "--out", "run", "--resume", "--patience", 9)[0] == 0  # of a complete run
    assert read_settings(tmp_path / "run/config.toml") == {**before, "epochs": 4, "patience": 9}
    recipe = load_checkpoint(tmp_path / "run/last.pt").training_config
    assert (recipe.epochs, recipe.patience) == (4, 9)


def test_a_run_that_stopped_early_has_its_length_where_that_is_given(invoke: Invoke, tmp_path: Path) -> None:
    options = [TINY, *SMALL, "--lr", 1e-9, "--epochs", 9, "--patience", 1, "--out", "run"]
    assert invoke(lm_train, *options)[0] == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stopped_early"]
    assert invoke(lm_train, "--out", "run", "--resume", "--epochs", summary["epochs"])[0] == 0
    assert not json.loads((tmp_path / "run/summary.json").read_text())["stopped_early"]
    assert "stopped early" not in (tmp_path / "run/report.html").read_text()


def test_a_run_keeps_its_length_unless_another_is_given(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    begun = [TINY, *SMALL, "--out", "run"]
    code, _, err = invoke(lm_train, *begun, "--preset", "small", "--resume")  # which has four epochs
    assert code == 0
    assert "complete: nothing to do" in err
    before = tree(tmp_path / "run"), (tmp_path / "run/config.toml").read_bytes()
    code, _, err = invoke(lm_train, *begun, "--resume", "--epochs", 2)
    assert (code, one_line(err)) == (2, "lm-train: 3 epochs are trained or begun, which cannot become 2")
    assert (tree(tmp_path / "run"), (tmp_path / "run/config.toml").read_bytes()) == before


def test_an_epoch_that_has_begun_cannot_be_left_out(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def interrupt(self: Trainer) -> torch.Tensor:
        loss = step(self)
        self._signals.stop = (self.progress.epoch, self.progress.window) == (1, 2)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        assert invoke(lm_train, TINY, *SMALL, "--epochs", 3, "--out", "run")[0] == 130
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 1)
    assert (code, one_line(err)) == (2, "lm-train: 2 epochs are trained or begun, which cannot become 1")
    assert invoke(lm_train, "--out", "run", "--resume", "--epochs", 2)[0] == 0
    assert load_checkpoint(tmp_path / "run/last.pt").progress.epoch == 2


def test_a_run_is_repeated_from_another_folder(
    invoke: Invoke, tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(small_run / "tokenizer.json", tmp_path)
    options = [TINY, "--tokenizer", "tokenizer.json", *SMALL[4:], "--epochs", 1, "--out", "run"]
    assert invoke(lm_train, *options)[0] == 0
    assert invoke(lm_train, *options, "--resume")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke(lm_train, "--config", "../run/config.toml", "--out", "run")[0] == 0
    weights, again = (load_checkpoint(path / "last.pt").weights for path in (tmp_path / "run", Path("run")))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_given_tokenizer_is_in_the_file_without_limits_of_its_own(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    given_ = ["--tokenizer", small_run / "tokenizer.json", *SMALL[4:], "--epochs", 1]
    assert invoke(lm_train, TINY, *given_, "--out", "run")[0] == 0
    assert invoke(lm_train, "--config", "run/config.toml", "--out", "other")[0] == 0
    first, again = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "other"))
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in first.weights.items())
