"""``lm-generate --unique --not-in FILE``: a list of new texts, one a line. Knows nothing about options."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path

import click

from lm_runtime.commands import note
from lm_runtime.commands.texts import write_record, write_text
from lm_runtime.generation.complete import Request, complete
from lm_runtime.models.protocol import BundleModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.text_files import read_lines
from lm_runtime.wire import completion_record


def print_list(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int,
    samples: int,
    *,
    tries: int,
    unique: bool,
    known: Path | None,
    echo: bool,
    as_json: bool,
) -> None:
    """Print texts of one line each, those left out that are empty, known, or there already.

    What is compared is the whole line: the end of the prompt and the text, without white space around them.

    Args:
        model: the model.
        prompt: what each text continues.
        params: how tokens are chosen; a line break ends a text too.
        seed: of the generators.
        samples: the number of texts that are wanted.
        tries: the most texts that are generated for it.
        unique: whether a text may come only once.
        known: a file of lines that may not come.
        echo: whether to print the prompt before each text.
        as_json: whether to print objects; their index is that of the sample.

    Raises:
        UnusableFileError: the file of known lines cannot be read.
        ClickException: too few were found in these tries.
    """
    started = time.perf_counter()
    taken = {} if known is None else {line.strip(): f"in {known}" for line in read_lines(known)}
    taken[""] = "empty"
    params = dataclasses.replace(params, stop=(*params.stop, "\n"))
    begun = prompt.rpartition("\n")[2]
    left_out: Counter[str] = Counter()
    requests = (Request(prompt, params, seed, index) for index in range(tries))
    found = tried = 0
    for tried, completion in enumerate(complete(model, requests), start=1):
        line = (begun + completion.text).strip() if completion.text.strip() else ""
        if line in taken:
            left_out[taken[line]] += 1
            continue
        if unique:
            taken[line] = "there already"
        text = prompt * echo + completion.text
        if as_json:
            write_record({"index": tried - 1, **completion_record(model, completion), "text": text})
        else:
            write_text(text.strip() + "\n")
        found += 1
        if found == samples:
            break
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    said = f"{found} of {samples} texts in {tried} tries" + (f" ({reasons})" if reasons else "")
    if found < samples:
        raise click.ClickException(f"{said}, and no more are made")
    note(f"{said}, {time.perf_counter() - started:.1f} s, seed {seed}")


def print_temperatures(
    model: BundleModel,
    prompt: str,
    params: SamplingParams,
    seed: int,
    temperatures: tuple[float, ...],
    *,
    echo: bool,
    as_json: bool,
) -> None:
    """Print the text of one seed at each of several temperatures."""
    requests = [
        Request(prompt, dataclasses.replace(params, temperature=temperature), seed)
        for temperature in temperatures
    ]
    for request, completion in zip(requests, complete(model, requests), strict=True):
        temperature, text = request.params.temperature, prompt * echo + completion.text
        if as_json:
            record = completion_record(model, completion)
            write_record({"temperature": temperature, **record, "text": text})
        else:
            write_text(f"--- temperature {temperature:g}\n{text}" + "\n" * (not text.endswith("\n")))
    note(f"seed {seed}")
