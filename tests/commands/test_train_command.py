"""lm-train as people use and misuse it: one clear line, the right exit status, nothing left broken."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from conftest import COUNTED, FIXTURE, SMALL, TINY, Invoke, family_options, one_line, run_command, tree
from lm_export.command import main as lm_export
from lm_runtime.folders import folder_beside, held
from lm_trainer.command import main as lm_train
from lm_trainer.config_file import read_settings
from lm_trainer.families import FAMILIES
from lm_trainer.ngram import training as ngram_training
from lm_trainer.reports import summary
from lm_trainer.reports.summary import finish
from lm_trainer.run.checkpoint import load_checkpoint
from lm_trainer.training.loop import Trainer


def write_corpus(folder: Path, train: bytes | None, valid: bytes | None = b"a b\n") -> Path:
    folder.mkdir()
    for name, content in (("train", train), ("valid", valid)):
        if content is not None:
            (folder / f"{name}.txt").write_bytes(content)
    return folder


BAD_CORPORA: list[tuple[bytes | None, bytes | None, int, str]] = [
    (None, b"a\n", 1, "train.txt: missing; a corpus folder has train.txt and valid.txt"),
    (b"a\n", None, 1, "valid.txt: missing; a corpus folder has train.txt and valid.txt"),
    (b"", b"a\n", 1, "train.txt: empty"),
    (b"a\n" * 99, b"", 1, "valid.txt: empty"),
    (b"\xff\xfe", b"a\n", 1, "train.txt: not UTF-8: byte 0 is 0xff"),
    (b"fine\n" * 300_000 + b"\x80", b"a\n", 1, "train.txt: not UTF-8: byte 1500000 is 0x80"),
    (b"a\n" * 99, b"ab\0c", 1, "valid.txt: not a text file: byte 2 is NUL"),
    (
        b"\n" * 500,
        b"\n",
        2,
        "the training text has no word that comes 1 times",
    ),
    (b"one line\n", b"a\n", 2, "the training text is too short: 3 tokens in 4 columns are 0 steps each"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("train", "valid", "status", "message"), BAD_CORPORA)
def test_a_bad_corpus(
    invoke: Invoke,
    tmp_path: Path,
    train: bytes | None,
    valid: bytes | None,
    status: int,
    message: str,
    family: str,
) -> None:
    write_corpus(tmp_path / "corpus", train, valid)
    code, out, err = invoke(lm_train, "corpus", *family_options(family))
    if family == "ngram" and "too short" in message:  # for columns, which it has not
        assert code == 0
        return
    assert (code, out) == (status, "")
    assert message in one_line(err)
    assert not [name for name in tree(tmp_path) if name.endswith((".pt", ".partial"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: empty"),
        (b"one line", "too few lines to split off a validation and a test text"),
        (b"one line of text here", "too few lines to split off a validation and a test text"),
        (b"a\n", "too few lines to split off a validation and a test text"),
        (bytes(range(256)) * 40, "text.txt: "),
    ],
)
def test_a_bad_text_file(invoke: Invoke, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    code, _, err = invoke(lm_train, "text.txt", *SMALL)
    assert code == 1
    assert message in one_line(err)
    assert tree(tmp_path) == {"text.txt"}


def test_a_corpus_that_is_nowhere(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_train, "no-such-corpus")
    assert code == 2
    assert one_line(err).startswith(
        "lm-train: no corpus no-such-corpus: neither a folder, a file, nor one of pydocs"
    )
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab-size", 1], "vocab_size must be from 3 to 16777216, got 1"),
        (["--vocab-size", 200, "--tokenizer", "bpe"], "vocab_size must be at least 257 with bpe, got 200"),
        (
            ["--tokenizer", "sentencepiece"],
            "tokenizer must be word, words, char, bpe, a tokenizer.json or a Sente",
        ),
        (["--seq-len", 100_000], "the training text is too short"),
        (["--batch-size", 0], "batch_size must be from 1 to 1048576, got 0"),
        (["--accumulate", 0], "accumulate must be from 1 to 4, got 0"),
        (["--accumulate", 3], "batch_size must be divisible by accumulate, got 4 and 3"),
        (["--patience", -1], "patience must be from 0 to 1000000000, got -1"),
        (
            ["--find-lr", "--resume"],
            "--find-lr begins anew and touches no run: leave out --resume and --force",
        ),
        (["--find-lr", "--dry-run"], "give --dry-run or --find-lr, not both"),
        (["--find-lr", "ptb"], "a picture's path, which ends in .png, got ptb; CORPUS stands before it"),
        (["--find-lr", "--model", "ngram"], "does not apply to ngram"),
        (["--epochs", -1], "epochs must be from 1 to 1048576, got -1"),
        (["--lr", 0], "lr must be above 0, got 0"),
        (["--lr", "nan"], "lr must be above 0, got nan"),
        (["--dropout", 1], "dropout must be at least 0 and below 1, got 1.0"),
        (["--seed", -1], "seed must be from 0 to 4611686018427387904, got -1"),
        (["--layers", 0], "num_layers must be from 1 to 64, got 0"),
        (["--tied"], "tied weights need embedding_dim equal to hidden_size, got 24 and 32"),
        (["--device", "cuda"], "device cuda is not available"),
        (["--preset", "gigantic"], "Invalid value for '--preset'"),
        (["--model", "transformer"], "Invalid value for '--model'"),
        (["--window", 5], "window must be 0 with lstm (what it has read is in its state), got 5"),
        (["--model", "gru", "--window", 5], "window must be 0 with gru"),
        (["--model", "window"], "num_layers must be 1 with window (it has one hidden layer), got 2"),
        (["--model", "window", "--layers", 1, "--tied"], "tied must be False with window (its embedding"),
        (["--model", "window", "--layers", 1, "--window", 1], "window must be from 2 to 1024, got 1"),
        (["--order", 5], "order must be 0 with lstm (what it has read is in its state), got 5"),
        (["--model", "ngram"], "batch_size does not apply to ngram: it is estimated in one pass"),
        (["--projection", -1], "projection must be from 0 to 65536, got -1"),
        (
            ["--tied", "--projection", 20],
            "tied weights need embedding_dim equal to projection, got 24 and 20",
        ),
        (["--tied"], "got 24 and 32; make them equal, give --projection 24, or --no-tied"),
        (["--weight-drop", 1], "weight_drop must be at least 0 and below 1, got 1"),
        (["--dropout-words", -1], "dropout_words must be at least 0 and below 1, got -1"),
        (
            ["--model", "window", "--layers", 1, "--locked-dropout"],
            "locked_dropout must be False with window (it has no recurrent layers), got True",
        ),
        (["--precision", "int4"], "Invalid value for '--precision'"),
        (["--seed", 1 << 80], "seed must be from 0 to"),
        (["--vocab-size", 10**16], "vocab_size must be from 3 to 16777216"),
        (["--hidden-size", 10**7], "hidden_size must be from 1 to 65536"),
        (["--tokenizer", FIXTURE / "tokenizer.json"], "a given tokenizer.json has its vocabulary"),
        (["--resume", "--force"], "give --resume or --force, not both"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_settings(invoke: Invoke, tmp_path: Path, options: list[object], message: str) -> None:
    if "cuda" in options and torch.cuda.is_available():
        options, message = ["--device", "tpu"], "Invalid value for '--device'"
    code, out, err = invoke(lm_train, TINY, *SMALL, *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert not [name for name in tree(tmp_path) if name.endswith((".pt", ".partial"))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--order", 0], "order must be from 1 to 32, got 0"),
        (["--order", 33], "order must be from 1 to 32, got 33"),
        (["--order", "many"], "Invalid value for '--order'"),
        (["--layers", 2], "num_layers must be 0 with ngram (it has tables, no layers), got 2"),
        (["--hidden-size", 8], "hidden_size must be 0 with ngram (it has tables, no layers), got 8"),
        (["--tied"], "tied must be False with ngram (it has tables, no layers), got True"),
        (["--window", 5], "window must be 0 with ngram (it sees one token less than its order), got 5"),
        (["--epochs", 2], "epochs does not apply to ngram: it is estimated in one pass"),
        (["--lr", 0.1], "lr does not apply to ngram: it is estimated in one pass"),
        (["--patience", 1], "patience does not apply to ngram: it is estimated in one pass"),
        (["--find-lr"], "--find-lr does not apply to ngram: it is estimated in one pass"),
        (["--vocab-size", 1], "vocab_size must be from 3 to 16777216, got 1"),
    ],
)
def test_bad_settings_of_an_ngram_model(
    invoke: Invoke, tmp_path: Path, options: list[object], message: str
) -> None:
    code, out, err = invoke(lm_train, TINY, "--model", "ngram", *options)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert tree(tmp_path) == set()


def test_an_ngram_run_that_was_broken_off_goes_on_and_is_not_exported_before(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = [TINY, *family_options("ngram"), "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(ngram_training, "estimate", interrupted)
        code, out, err = invoke(lm_train, *options)
    assert (code, out) == (130, "")
    assert one_line(err) == "stopped at step 0 of 1; run/last.pt is written, --resume goes on"
    code, _, err = invoke(lm_export, "run/last.pt", "--out", "bundle")
    assert code == 1
    assert "broken off before there were tables; lm-train --resume goes on" in one_line(err)
    assert invoke(lm_train, *options, "--resume")[0] == 0
    before = (tmp_path / "run/best.pt").read_bytes()
    assert invoke(lm_train, *options[:-1], "whole")[0] == 0
    tables = [load_checkpoint(tmp_path / run).weights["tables"] for run in ("run", "whole")]
    assert torch.equal(*tables)
    code, _, err = invoke(lm_train, *options, "--resume")
    assert code == 0
    assert "run is complete: nothing to do" in err
    assert (tmp_path / "run/best.pt").read_bytes() == before
    refusal = "--resume goes on with the run's own settings: order is 5, not 3"
    code, _, err = invoke(lm_train, *options, "--resume", "--order", 3)
    assert (code, one_line(err)) == (2, f"lm-train: {refusal}")
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--lr", 1)
    assert (code, one_line(err)) == (2, "lm-train: lr does not apply to ngram: it is estimated in one pass")


def test_a_loss_that_is_no_number(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_train, TINY, *SMALL, "--optimizer", "sgd", "--lr", "1e38", "--out", "run")
    assert code == 1
    assert "the loss became" in one_line(err)
    assert "begin again with a lower --lr" in one_line(err)
    assert "the last good state is run/last.pt, which --init takes" in one_line(err)
    assert invoke(lm_train, TINY, "--init", "run/last.pt", "--epochs", 1, "--out", "other")[0] == 0


def test_a_folder_that_holds_something_is_left_alone(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    code, _, err = invoke(lm_train, TINY, "--out", "run")
    assert code == 2
    wanted = ("run holds something already", "--resume", "--force", "--out")
    assert all(word in one_line(err) for word in wanted)
    assert tree(tmp_path) == {"run", "run/notes.txt"}


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_a_folder_that_is_no_run_is_left_alone_whatever_is_asked(
    invoke: Invoke, tmp_path: Path, option: str
) -> None:
    (tmp_path / "mine/tokens").mkdir(parents=True)
    (tmp_path / "mine/tokens/notes.txt").write_text("mine")
    (tmp_path / "mine/tokenizer.json").write_text("mine")
    before = tree(tmp_path)
    code, _, err = invoke(lm_train, TINY, *SMALL, "--out", "mine", option)
    assert code == 2
    assert "mine holds something" in one_line(err)
    assert tree(tmp_path) == before


def test_a_checkpoint_of_another_tool_makes_no_run(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for name in ("last.pt", "best.pt"):
        torch.save({"epoch": 3}, tmp_path / "weights" / name)
    (tmp_path / "weights/tokenizer.json").write_text("mine")
    for name in ("tokens", "tensorboard"):
        (tmp_path / "weights" / name).mkdir()
    before = tree(tmp_path), (tmp_path / "weights/last.pt").read_bytes()
    code, _, err = invoke(lm_train, TINY, *SMALL, "--out", "weights", "--force")
    assert code == 2
    assert "weights holds something that is not a run" in one_line(err)
    assert (tree(tmp_path), (tmp_path / "weights/last.pt").read_bytes()) == before


def test_a_damaged_run_can_be_replaced(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run/last.pt").write_bytes(b"junk")
    assert invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run", "--force")[0] == 0


def test_a_run_that_was_killed_while_it_was_moved_in_can_be_replaced(
    invoke: Invoke, tmp_path: Path, small_run: Path
) -> None:
    """Its checkpoint comes first: --resume says what is missing, and --force may."""
    (tmp_path / "run").mkdir()
    shutil.copy(small_run / "last.pt", tmp_path / "run")
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 1
    assert "run/tokens/train.bin: missing" in one_line(err)
    assert invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run", "--force")[0] == 0


@pytest.mark.parametrize(
    "arguments", [["nowhere"], [TINY, "--vocab-size", 10, "--tokenizer", "bpe"], [TINY, "--seq-len", 9999]]
)
def test_force_leaves_the_old_run_where_the_new_one_cannot_begin(
    invoke: Invoke, tmp_path: Path, small_run: Path, arguments: list[object]
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    assert invoke(lm_train, *arguments, "--out", "run", "--force")[0] == 2
    assert tree(tmp_path / "run") == tree(small_run)
    assert (tmp_path / "run/best.pt").read_bytes() == (small_run / "best.pt").read_bytes()


def test_force_replaces_the_run_and_nothing_else(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke(lm_train, TINY, "--out", "run", "--epochs", 1, *SMALL)[0] == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = (tmp_path / "run" / "best.pt").stat().st_mtime_ns
    assert invoke(lm_train, TINY, "--out", "run", "--epochs", 1, *SMALL, "--force")[0] == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "best.pt").stat().st_mtime_ns > before


def test_a_link_to_a_folder_on_another_disk_stays_one(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk/run")
    for options in ([], ["--force"]):
        assert invoke(lm_train, TINY, "--out", "run", "--epochs", 1, *SMALL, *options)[0] == 0
        assert (tmp_path / "run").is_symlink()
        assert (tmp_path / "disk/run/best.pt").is_file()


@pytest.mark.parametrize("command", [lm_train, lm_export], ids=["lm-train", "lm-export"])
def test_a_mounted_disk_is_refused_before_any_work(
    invoke: Invoke, tmp_path: Path, small_run: Path, command: click.Command
) -> None:
    code, _, err = invoke(command, TINY if command is lm_train else small_run, "--out", "/")
    assert (code, one_line(err)) == (2, f"{command.name}: / is where a disk is mounted; name a folder in it")


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_two_processes_do_not_train_in_one_folder(
    invoke: Invoke, tmp_path: Path, small_run: Path, option: str
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = [TINY, *SMALL, "--out", "run", option]
    with held(tmp_path / "run"):
        code, _, err = invoke(lm_train, *again)
    assert code == 2
    assert one_line(err).endswith("run: another process is at work in it")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert invoke(lm_train, *again)[0] == 0


def test_a_run_holds_its_folder_as_long_as_it_trains(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, refused = Trainer.step, []

    def try_to_hold(self: Trainer) -> torch.Tensor:
        with pytest.raises(ValueError, match="another process"), held(tmp_path / "run"):
            pass
        refused.append(self.progress.step)
        return step(self)

    monkeypatch.setattr(Trainer, "step", try_to_hold)
    assert invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run")[0] == 0
    assert refused
    with held(tmp_path / "run"):
        pass


@pytest.mark.parametrize("options", [[], ["--tensorboard"]])
def test_a_run_is_summed_up_in_the_memory_that_its_training_had(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """A network of two gigabytes with its optimizer would else need six for its sample."""
    alive: list[int] = []

    def count(*arguments: Any) -> dict[str, Any]:
        alive.append(sum(type(thing) is Trainer for thing in gc.get_objects()))
        return finish(*arguments)

    before = sum(type(thing) is Trainer for thing in gc.get_objects())
    monkeypatch.setattr(summary, "finish", count)
    code, _, err = invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", tmp_path / "run", *options)
    assert code == 0, err
    assert alive == [before]


def test_two_processes_do_not_set_up_one_folder(invoke: Invoke, tmp_path: Path) -> None:
    with folder_beside(tmp_path / "run") as partial:
        (partial / "theirs").write_text("")
        code, _, err = invoke(lm_train, TINY, *SMALL, "--out", "run")
        assert code == 2
        assert one_line(err).endswith(f"{partial.name}: another process is at work in it")
        assert (partial / "theirs").exists()
    assert invoke(lm_train, TINY, *SMALL, "--epochs", 1, "--out", "run")[0] == 0


def test_a_run_that_would_hide_its_corpus_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    """The name would mean the run's folder from then on."""
    code, _, err = invoke(lm_train, "ptb", "--out", "ptb")
    assert code == 2
    assert one_line(err) == "lm-train: --out ptb is the corpus's own name; name another folder"
    assert not tree(tmp_path)


@pytest.mark.parametrize("command", [lm_train, lm_export], ids=["lm-train", "lm-export"])
def test_a_folder_that_is_a_file(invoke: Invoke, tmp_path: Path, small_run: Path, command: object) -> None:
    (tmp_path / "out").write_text("mine")
    code, _, err = invoke(command, TINY if command is lm_train else small_run, "--out", "out", "--force")
    assert code == 2
    assert one_line(err).endswith("out cannot be a folder: out is a file")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("command", ["lm-train", "lm-export"])
def test_a_folder_that_cannot_be_written(small_run: Path, tmp_path: Path, command: str) -> None:
    """A file in the place of the folder's parent: the one obstacle that also stops root."""
    (tmp_path / "file").write_text("mine")
    source = TINY if command == "lm-train" else small_run
    result = run_command(command, source, "--out", "file/out", cwd=tmp_path, code=2)
    assert one_line(result.stderr) == f"{command}: file/out cannot be a folder: file is a file"
    assert tree(tmp_path) == {"file"}


def test_a_given_tokenizer_is_used_as_it_is(invoke: Invoke, tmp_path: Path) -> None:
    recipe = [*SMALL[4:], "--epochs", 1, "--tokenizer", FIXTURE / "tokenizer.json"]
    assert invoke(lm_train, TINY, "--out", "run", *recipe)[0] == 0
    assert (tmp_path / "run/tokenizer.json").read_text() == (FIXTURE / "tokenizer.json").read_text()
    assert invoke(lm_train, TINY, "--out", "other", *SMALL[4:], "--tokenizer", "nowhere.json")[0] == 1
    (tmp_path / "bad.json").write_text("{}")
    code, _, err = invoke(lm_train, TINY, "--out", "other", *SMALL[4:], "--tokenizer", "bad.json")
    assert code == 1
    assert "bad.json: not a tokenizer.json" in one_line(err)


def test_resume_refuses_other_settings(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    refusal = "--resume goes on with the run's own settings"
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--lr", 0.5)
    assert (code, one_line(err)) == (2, f"lm-train: {refusal}: lr is 0.01, not 0.5")
    for other in (["--preset", "tutorial"], ["pydocs"], ["--model", "gru"]):
        code, _, err = invoke(lm_train, *other, "--out", "run", "--resume")
        assert code == 2
        assert refusal in one_line(err)


@pytest.mark.parametrize(
    ("others", "own"),
    [
        (["--model", "ngram", *COUNTED], ["--order", 4]),
        ([*SMALL, "--epochs", 1, "--batch-size", 12], ["--accumulate", 3]),
        ([*SMALL, "--epochs", 1], ["--hidden-size", 48]),
    ],
    ids=["order", "accumulate", "hidden-size"],
)
def test_resuming_takes_the_runs_own_settings_that_would_not_fit_the_preset(
    invoke: Invoke, tmp_path: Path, others: list[object], own: list[object]
) -> None:
    assert invoke(lm_train, TINY, *others, *own, "--out", "run")[0] == 0
    code, _, err = invoke(lm_train, "--out", "run", "--resume", *own)
    assert code == 0
    assert "complete: nothing to do" in err


def test_presets_are_for_every_family(invoke: Invoke, tmp_path: Path) -> None:
    """A preset's tied weights and layers are left out where a family has none; its window is five tokens."""
    options = [*SMALL[:4], *SMALL[11:], "--epochs", 1]  # without a word about the network
    code, _, err = invoke(lm_train, TINY, "--out", "run", "--model", "window", *options)
    assert code == 0
    assert "window 5 x 256 -> 1 x 256: 420,532 parameters" in err
    assert invoke(lm_train, TINY, "--out", "run", "--model", "window", *options, "--resume")[0] == 0
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--model", "window", "--window", 4)
    assert (code, one_line(err)) == (
        2,
        "lm-train: --resume goes on with the run's own settings: window is 5, not 4",
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The threads that torch has now, again after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_has_the_threads_that_were_asked_for_and_keeps_them(
    invoke: Invoke, tmp_path: Path, one_thread: None
) -> None:
    begun = [TINY, *SMALL, "--out", "run"]
    assert invoke(lm_train, *begun, "--epochs", 1, "--threads", 2)[0] == 0
    assert load_checkpoint(tmp_path / "run/last.pt").facts.threads == torch.get_num_threads() == 2
    torch.set_num_threads(1)
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 2)
    assert (code, torch.get_num_threads()) == (0, 2)
    assert "threads" not in err
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--epochs", 3, "--threads", 1)
    assert (code, torch.get_num_threads()) == (0, 1)
    assert "note: the number of threads was 2 and is 1: the run goes on, but not bit for bit" in err
    assert load_checkpoint(tmp_path / "run/last.pt").facts.threads == 1
    for wrong in (0, 1025):
        code, _, err = invoke(lm_train, *begun, "--threads", wrong)
        assert (code, one_line(err)) == (2, f"lm-train: threads must be from 1 to 1024, got {wrong}")


@pytest.mark.parametrize(
    ("options", "projection"),
    [(["--hidden-size", 32], 256), (["--embedding-dim", 24], 24), (["--hidden-size", 256], 0)],
)
@pytest.mark.parametrize("tokenizer", ["bpe", "word"])
def test_one_size_alone_is_enough(
    invoke: Invoke, tmp_path: Path, options: list[object], projection: int, tokenizer: str
) -> None:
    short = ["--tokenizer", tokenizer, "--epochs", 1, "--batch-size", 4, "--sample-tokens", 5]
    code, _, err = invoke(lm_train, TINY, *options, *short, "--out", "run")
    assert code == 0
    config = load_checkpoint(tmp_path / "run/best.pt").model_config
    assert (config.tied, config.projection) == (True, projection)
    assert err.count("note: the weights are tied, embedding-dim is ") == (projection > 0)
    assert f"added --projection {projection}" in err or not projection
    settings = read_settings(tmp_path / "run/config.toml")
    assert settings["projection"] == projection
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--preset", "small", *options, *short[:6])
    assert code == 0
    assert "complete: nothing to do" in err
    assert "note:" not in err


def test_help_names_every_family(invoke: Invoke) -> None:
    code, out, _ = invoke(lm_train, "--help")
    assert code == 0
    for name, family in FAMILIES.items():
        assert f"{name:<10}{family.description}" in out


@pytest.mark.parametrize("where", ["step", "resume"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore", "out of memory"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes", "out of memory"),
        (
            "CUDA error: an illegal memory access was encountered\nCompile with",
            "CUDA error: an illegal memory access was encountered",
        ),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_what_the_machine_is_at_fault_for_is_one_line_and_no_damage(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: str, message: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(error)

    options = [TINY, *SMALL, "--out", "run"]
    if where == "resume":
        assert invoke(lm_train, *options, "--epochs", 1)[0] == 0
    monkeypatch.setattr(Trainer, where, fail)
    code, _, err = invoke(lm_train, *options, "--epochs", 2, *(["--resume"] if where == "resume" else []))
    assert (code, one_line(err)) == (1, f"lm-train: {message}")


def test_damaged_files_of_a_run_are_named(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run/summary.json").write_text("{")
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 1
    assert "run/summary.json: damaged" in one_line(err)
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/metrics.jsonl").write_text("junk")
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 1
    assert "run/metrics.jsonl: damaged" in one_line(err)


def test_resuming_from_a_damaged_checkpoint(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run/last.pt").write_bytes(b"PK\3\4junk")
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 1
    assert "run/last.pt: not a checkpoint, or damaged" in one_line(err)
    (tmp_path / "run/last.pt").write_bytes((small_run / "last.pt").read_bytes())
    (tmp_path / "run/tokens/train.bin").unlink()
    code, _, err = invoke(lm_train, "--out", "run", "--resume")
    assert code == 1
    assert "run/tokens/train.bin: missing" in one_line(err)
