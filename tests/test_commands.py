"""The commands as people use and misuse them: one clear line, the right exit status, nothing left broken."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import FIXTURE, SMALL, TINY, Invoke, run_command
from lm_export.command import main as lm_export
from lm_runtime.commands.generate import main as lm_generate
from lm_runtime.commands.score import main as lm_score
from lm_trainer.command import main as lm_train


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def one_line(err: str) -> str:
    """The last line, which must be the only complaint."""
    assert "Traceback" not in err
    assert "Warning" not in err
    return err.splitlines()[-1]


# lm-train: the corpus


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


@pytest.mark.parametrize(("train", "valid", "status", "message"), BAD_CORPORA)
def test_a_bad_corpus(
    invoke: Invoke, tmp_path: Path, train: bytes | None, valid: bytes | None, status: int, message: str
) -> None:
    write_corpus(tmp_path / "corpus", train, valid)
    code, out, err = invoke(lm_train, "corpus", *SMALL)
    assert (code, out) == (status, "")
    assert message in one_line(err)
    assert not [name for name in tree(tmp_path) if name.endswith((".pt", ".partial"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: empty"),
        (b"one line", "too few lines to split off a validation and a test text"),
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
        (["--tokenizer", "sentencepiece"], "tokenizer must be word, char, bpe or a tokenizer.json"),
        (["--seq-len", 100_000], "the training text is too short"),
        (["--batch-size", 0], "batch_size must be from 1 to 1048576, got 0"),
        (["--epochs", -1], "epochs must be from 1 to 1048576, got -1"),
        (["--lr", 0], "lr must be above 0, got 0"),
        (["--lr", "nan"], "lr must be above 0, got nan"),
        (["--dropout", 1], "dropout must be at least 0 and below 1, got 1.0"),
        (["--seed", -1], "seed must be from 0 to 4611686018427387904, got -1"),
        (["--layers", 0], "num_layers must be from 1 to 64, got 0"),
        (["--tied"], "tied weights need embedding_dim equal to hidden_size, got 24 and 32"),
        (["--device", "cuda"], "device cuda is not available"),
        (["--preset", "gigantic"], "Invalid value for '--preset'"),
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


def test_a_loss_that_is_no_number(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_train, TINY, *SMALL, "--optimizer", "sgd", "--lr", "1e38", "--out", "run")
    assert code == 1
    assert "the loss became" in one_line(err)
    assert "try a lower --lr" in one_line(err)
    assert "The last good state is run/last.pt" in one_line(err)
    assert invoke(lm_export, "run/last.pt", "--out", "bundle")[0] == 0  # the weights of the beginning


# lm-train: the folder


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


def test_resume_refuses_other_settings(invoke: Invoke, tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    refusal = "--resume goes on with the run's own settings"
    code, _, err = invoke(lm_train, "--out", "run", "--resume", "--lr", 0.5)
    assert (code, one_line(err)) == (2, f"lm-train: {refusal}: lr is 0.01, not 0.5")
    for other in (["--preset", "tutorial"], ["pydocs"]):
        code, _, err = invoke(lm_train, *other, "--out", "run", "--resume")
        assert code == 2
        assert refusal in one_line(err)


# checkpoints


class Hostile:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def newer(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({**content, "format_version": 99}, path)


def without_weights(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    content["model"].popitem()
    torch.save(content, path)


def with_a_changed_byte(path: Path, run: Path) -> None:
    """In the middle of a weight, where torch reads over it."""
    data = bytearray((run / "best.pt").read_bytes())
    weight = torch.load(run / "best.pt", weights_only=True)["model"]["head.weight"].numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    path.write_bytes(data)


def without(name: str) -> Callable[[Path, Path], None]:
    def make(path: Path, run: Path) -> None:
        content = torch.load(run / "best.pt", weights_only=True)
        del content[name]
        torch.save(content, path)

    return make


def with_other_text(path: Path, run: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({**content, "held_out": content["held_out"] + 1000}, path)


BAD_CHECKPOINTS: list[tuple[Callable[[Path, Path], object], str]] = [
    (lambda path, run: None, "no such checkpoint; lm-train makes one"),
    (lambda path, run: path.write_bytes(b""), "not a checkpoint, or damaged"),
    (lambda path, run: path.write_bytes(b"junk" * 100), "not a checkpoint, or damaged"),
    (
        lambda path, run: path.write_bytes((run / "best.pt").read_bytes()[:-5000]),
        "not a checkpoint, or damaged",
    ),
    (lambda path, run: torch.save(Hostile(), path), "refused: it holds more than tensors"),
    (lambda path, run: path.write_bytes(pickle.dumps(Hostile())), "not a checkpoint, or damaged"),
    (lambda path, run: torch.save({"format": "other"}, path), "not a checkpoint of steplm"),
    (newer, "checkpoint format 99, where this version of steplm reads 1"),
    (with_a_changed_byte, "not a checkpoint, or damaged"),
    (without("held_out"), "damaged: held_out is missing"),
    (without("progress"), "damaged: progress is missing"),
    (with_other_text, "the held-out text has tokens that are not in the vocabulary"),
    (without_weights, "damaged: Error(s) in loading state_dict"),
]


@pytest.mark.parametrize(("make", "message"), BAD_CHECKPOINTS)
def test_a_bad_checkpoint(
    invoke: Invoke, tmp_path: Path, small_run: Path, make: Callable[[Path, Path], object], message: str
) -> None:
    make(tmp_path / "model.pt", small_run)
    before = tree(tmp_path)
    code, out, err = invoke(lm_export, "model.pt", "--out", "bundle")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert tree(tmp_path) == before  # and no file called executed


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


# lm-export: the folder


def test_export_replaces_only_a_bundle_and_only_when_told(
    invoke: Invoke, tmp_path: Path, small_run: Path, small_bundle: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    code, _, err = invoke(lm_export, small_run, "--out", "other", "--force")
    assert (code, one_line(err)) == (
        2,
        "lm-export: other holds something that is not a bundle; --force replaces only a bundle",
    )
    shutil.copytree(small_bundle, tmp_path / "bundle")
    code, _, err = invoke(lm_export, small_run, "--out", "bundle")
    assert code == 2
    assert all(word in one_line(err) for word in ("bundle holds something already", "--force", "--out"))
    assert invoke(lm_export, small_run, "--out", "bundle", "--force")[0] == 0
    assert tree(tmp_path) >= {"bundle/config.json", "other/notes.txt"}
    assert "bundle/onnx/model_quantized.onnx" not in tree(tmp_path)
    assert not [name for name in tree(tmp_path) if name.startswith(".")]


def test_an_export_that_fills_the_disk_leaves_nothing(small_run: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "from lm_export.command import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(small_run), "--out", "bundle"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "File too large" in one_line(result.stderr)
    assert tree(tmp_path) == set()


# lm-generate


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--temperature", -0.1], 2, "temperature must be at least 0 and at most 1000, got -0.1"),
        (["--temperature", "nan"], 2, "temperature must be at least 0 and at most 1000, got nan"),
        (["--top-k", -1], 2, "top_k must be at least 0, got -1"),
        (["--top-k", 201], 2, "top_k must be at least 0 and at most 200, got 201"),
        (["--top-p", 0], 2, "top_p must be above 0 and at most 1, got 0.0"),
        (["--top-p", 1.5], 2, "top_p must be above 0 and at most 1, got 1.5"),
        (["--min-p", 2], 2, "min_p must be at least 0 and at most 1, got 2.0"),
        (["--repetition-penalty", 0], 2, "repetition_penalty must be at least 0.01 and at most 100, got 0.0"),
        (["--max-tokens", -5], 2, "max_tokens must be at least 0, got -5"),
        (["--stop", ""], 2, "a stop string must not be empty"),
        (["--samples", 0], 2, "Invalid value for '--samples'"),
        (["--seed", -1], 2, "Invalid value for '--seed'"),
        (["--seed", "x"], 2, "Invalid value for '--seed'"),
        (["--provider", "cuda"], 2, "provider cuda is not available: this onnxruntime"),
        (["--prompt", "a", "--prompt-file", "b"], 2, "give --prompt or --prompt-file, not both"),
        (["--prompt-file", "nowhere.txt"], 1, "nowhere.txt: no such file"),
    ],
)
def test_bad_generation(invoke: Invoke, options: list[object], status: int, message: str) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, *options)
    assert (code, out) == (status, "")
    assert message in one_line(err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [lm_generate, lm_score], ids=["lm-generate", "lm-score"])
def test_a_bundle_that_is_not_there(invoke: Invoke, command: object) -> None:
    arguments = ["nowhere"] if command is lm_generate else ["nowhere", TINY / "valid.txt"]
    code, out, err = invoke(command, *arguments)
    assert (code, out) == (1, "")
    assert one_line(err).endswith("nowhere: no such bundle")


@pytest.mark.parametrize("prompt", ["", "xyzzy plugh 漢字 🙂", "   ", "\n\n"])
def test_an_empty_prompt_and_one_of_unknown_words_are_continued(invoke: Invoke, prompt: str) -> None:
    code, out, _ = invoke(lm_generate, FIXTURE, "--prompt", prompt, "--seed", 1, "--max-tokens", 30)
    assert code == 0
    assert len(out.split()) >= 20


def test_a_prompt_of_a_hundred_thousand_words_is_read(tmp_path: Path) -> None:
    words = (TINY / "train.txt").read_text().split()
    (tmp_path / "prompt.txt").write_text(" ".join((words * 120)[:100_000]))
    options = ["--prompt-file", "prompt.txt", "--max-tokens", 5]
    result = run_command("lm-generate", FIXTURE, *options, cwd=tmp_path)
    assert result.stdout.strip()


def test_the_prompt_comes_from_a_pipe(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "lm-generate"),
        str(FIXTURE),
        "--prompt-file",
        "-",
        "--seed",
        "3",
    ]
    piped = subprocess.run(command, input=b"the keeper\n", capture_output=True, check=True).stdout
    given = run_command("lm-generate", FIXTURE, "--prompt", "the keeper", "--seed", 3, cwd=tmp_path).stdout
    assert piped.decode() == given
    bad = subprocess.run(command, input=b"\xff", capture_output=True, check=False)
    assert (bad.returncode, bad.stderr) == (1, b"lm-generate: /dev/stdin: not UTF-8: byte 0 is 0xff\n")


def test_text_goes_to_standard_output_and_notes_to_standard_error(invoke: Invoke) -> None:
    code, out, err = invoke(lm_generate, FIXTURE, "--seed", 1, "--max-tokens", 50)
    assert code == 0
    assert "tokens/s" not in out
    assert err.endswith("seed 1\n")
    assert out.endswith("\n")
    assert invoke(lm_generate, FIXTURE, "--seed", 1, "--max-tokens", 50)[1] == out


def test_a_seed_is_told_and_gives_the_text_again(invoke: Invoke) -> None:
    _, first, err = invoke(lm_generate, FIXTURE)
    seed = err.rsplit(" ", 1)[1].strip()
    assert invoke(lm_generate, FIXTURE, "--seed", seed)[1] == first


def test_samples_as_json_are_what_they_are_alone(invoke: Invoke) -> None:
    options = ["--seed", 4, "--max-tokens", 25, "--stop", "\\n", "--json"]
    _, out, _ = invoke(lm_generate, FIXTURE, "--samples", 3, *options)
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert json.loads(invoke(lm_generate, FIXTURE, *options)[1]) == records[0]
    assert all("\n" not in record["text"] for record in records)
    assert {record["finish"] for record in records} <= {"stop", "length"}


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    name = Path(sys.executable).parent / "lm-generate"
    result = subprocess.run(
        f"{name} {FIXTURE} --max-tokens 100000 | head -c 100",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert len(result.stdout) == 100
    assert result.stderr == ""


def test_arguments_that_are_no_text_are_refused() -> None:
    name = str(Path(sys.executable).parent / "lm-generate")
    result = subprocess.run([name, str(FIXTURE), "--prompt", b"\xff\xfe"], capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1


# lm-score


def test_score_prints_a_sentence_or_an_object_or_every_token(invoke: Invoke) -> None:
    _, sentence, err = invoke(lm_score, FIXTURE, TINY / "valid.txt")
    assert sentence.startswith("perplexity ")
    assert err == ""
    record = json.loads(invoke(lm_score, FIXTURE, TINY / "valid.txt", "--json")[1])
    assert f"perplexity {record['perplexity']:.4f} a token" in sentence
    assert record["bytes"] == (TINY / "valid.txt").stat().st_size
    _, lines, _ = invoke(lm_score, FIXTURE, TINY / "valid.txt", "--tokens")
    values = [line.split("\t") for line in lines.splitlines()]
    assert len(values) == record["tokens"]
    assert sum(float(value) for value, _ in values) == pytest.approx(record["log_probability"], abs=1e-3)
    assert json.loads(values[-1][1]) == "<eos>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\xff", "not UTF-8: byte 0"),
        (b"a\0", "not a text file"),
    ],
)
def test_a_bad_text_to_score(invoke: Invoke, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    code, out, err = invoke(lm_score, FIXTURE, "text.txt")
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert invoke(lm_score, FIXTURE, "text.txt", "--json", "--tokens")[0] == 2


def test_a_folder_to_score(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke(lm_score, FIXTURE, tmp_path)
    assert code == 1
    assert one_line(err).endswith("a folder, where a text file is needed")
