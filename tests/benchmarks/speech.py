"""Rescoring real speech: PocketSphinx's n-best lists by a model of Jane Austen's other novels.

    pip install pocketsphinx
    apt-get download pocketsphinx-testdata r-cran-janeaustenr
    for package in *.deb; do dpkg-deb -x $package packages; done
    python tests/benchmarks/speech.py packages --work WORK

Five clips of a reading of *Sense and Sensibility* are recognized by PocketSphinx with its own model of
general English. `lm-train --preset quick`, at smaller sizes, learns from the five other novels. Each clip is
rescored with weights that `lm-score --tune` found on the four others, so that no clip has a part in its own
weights. What is downloaded and trained stays in WORK and in the folder of the packages; run again, the
command goes on.
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
import re
import struct
import subprocess
import sys
import wave
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_runtime.scoring.errors import edit_distances

CLIPS = "usr/share/pocketsphinx/test/data/librivox"
BOOKS = "usr/lib/R/site-library/janeaustenr/data/Rdata"
HELD_OUT = "sensesensibility"
MOST_PATHS, MOST_TEXTS = 2000, 100
LOG_SCALE = 1 << 10
"""PocketSphinx shifts its log-probabilities right by ten bits."""
RECIPE = "--preset quick --embedding-dim 192 --hidden-size 320 --projection 192".split()
SPELLED = {"mr": "mister", "mrs": "missus", "dr": "doctor"}

Clip = tuple[str, str, dict[str, float]]
"""A clip's name, what was read, and the texts held possible with their scores, best first."""


def plain(text: str) -> str:
    """Words in lower case without marks, as a recognizer writes them."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("\u2019", "'"))
    return " ".join(SPELLED.get(word, word) for word in words)


def books(base: Path) -> dict[str, list[str]]:
    """The lines of each text in an R package: vectors of strings in R's lazy-load database."""
    index = gzip.decompress(base.with_suffix(".rdx").read_bytes())
    data = base.with_suffix(".rdb").read_bytes()
    places = re.findall(rb"\0\0\0\x0d\0\0\0\x02(.{8})", index, re.DOTALL)
    names = re.findall(rb"\0\x04\0\x09\0\0\0.([a-z]+)", index, re.DOTALL)[1:]  # the first is "names"
    found = {}
    for name, place in zip(names, places, strict=False):
        start, size = struct.unpack(">ii", place)
        # The unpacked size stands before the compressed data.
        found[name.decode()] = list(_strings(zlib.decompress(data[start + 4 : start + size])))
    return found


def _strings(data: bytes) -> Iterator[str]:
    """The strings of a serialized vector: each has flags that end in 9, its length, its bytes."""
    at = data.index(b"\0\0\0\x10", 20) + 8
    while data[at + 3 : at + 4] == b"\x09":
        size = max(0, struct.unpack(">i", data[at + 4 : at + 8])[0])
        yield data[at + 8 : at + 8 + size].decode("utf-8", "replace")
        at += 8 + size


def write_corpus(packages: Path, folder: Path) -> None:
    """The novels but for the one that is read aloud, a clause a line; every twentieth is for validation."""
    lines: list[str] = []
    for name, text in books(packages / BOOKS).items():
        if name != HELD_OUT:
            spelled = re.sub(r"\b(Mr|Mrs|Dr)\.", r"\1", " ".join(text))
            lines += filter(None, map(plain, re.split(r"[.!?;:]", spelled)))
    random.Random(0).shuffle(lines)  # each is scored as a text of its own
    folder.mkdir(parents=True, exist_ok=True)
    valid = lines[::20]
    del lines[::20]
    for name, part in (("train", lines), ("valid", valid)):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in part), encoding="utf-8")


def recognize(packages: Path) -> Iterator[Clip]:
    """The clips."""
    from pocketsphinx import Decoder

    decoder = Decoder(loglevel="FATAL")
    folder = packages / CLIPS
    for line in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        text, clip = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line).groups()  # type: ignore[union-attr]
        with wave.open(str(folder / f"{clip}.wav")) as file:
            sound = file.readframes(file.getnframes())
        decoder.start_utt()
        decoder.process_raw(sound, False, True)
        decoder.end_utt()
        texts: dict[str, float] = {}
        for _, path in zip(range(MOST_PATHS), decoder.nbest(), strict=False):
            texts.setdefault(plain(path.hypstr), math.log(path.score) * LOG_SCALE)
        yield clip, plain(text), dict(sorted(texts.items(), key=lambda pair: -pair[1])[:MOST_TEXTS])


def run(*arguments: object) -> str:
    """Standard output of one of the project's commands."""
    name, *rest = map(str, arguments)
    command = [str(Path(sys.executable).parent / name), *rest]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def write_lists(folder: Path, clips: Sequence[Clip]) -> tuple[Path, Path]:
    """The n-best lists of some clips, and what was read."""
    folder.mkdir(parents=True, exist_ok=True)
    lists, references = folder / "lists.txt", folder / "references.txt"
    rows = [f"{name} {score:.3f} {text}\n" for name, _, texts in clips for text, score in texts.items()]
    lists.write_text("".join(rows), encoding="utf-8")
    references.write_text("".join(f"{name} {text}\n" for name, text, _ in clips), encoding="utf-8")
    return lists, references


def errors(reference: str, *texts: str) -> list[int]:
    """The word errors of each text."""
    found: list[int] = edit_distances(reference.split(), [text.split() for text in texts]).tolist()
    return found


def main() -> None:
    """Recognize, train, rescore and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work: Path = options.work
    if not (work / "bundle").is_dir():
        write_corpus(options.packages, work / "corpus")
        run("lm-train", work / "corpus", "--out", work / "run", *RECIPE)
        run("lm-export", work / "run", "--out", work / "bundle")
    clips = list(recognize(options.packages))
    totals = [0, 0, 0]
    for name, text, texts in clips:
        lists, references = write_lists(work / "others", [clip for clip in clips if clip[0] != name])
        weights = work / "others" / "weights.json"
        run("lm-score", work / "bundle", lists, "--nbest", "--tune", references, "--save-weights", weights)
        lists, _ = write_lists(work / "clip", [(name, text, texts)])
        best = run("lm-score", work / "bundle", lists, "--nbest", "--weights", weights, "--print", "best")
        found = best.rstrip("\n").partition(" ")[2]
        first, *_ = texts
        row = [*errors(text, first, found), min(errors(text, *texts))]
        totals = [total + one for total, one in zip(totals, row, strict=True)]
        print(f"read:       {text}\nrecognized: {first}\nrescored:   {found}\nerrors: {row}\n")
    words = sum(len(text.split()) for _, text, _ in clips)
    for what, total in zip(("recognized", "rescored", "oracle"), totals, strict=True):
        print(f"{what:<12}{total:>4} of {words} words  {total / words:7.1%}")
    print("\nweights found on all five:\n")
    lists, references = write_lists(work / "all", clips)
    print(run("lm-score", work / "bundle", lists, "--nbest", "--tune", references))


if __name__ == "__main__":
    main()
