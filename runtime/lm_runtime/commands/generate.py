"""``lm-generate``: text from a bundle."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lm_runtime.commands import Command, imports, note_precisions, where_it_runs, which_graph
from lm_runtime.commands.adaptation import adapted, adapts, take_adaptation
from lm_runtime.commands.options import ESCAPED_TEXT, option, settings_options
from lm_runtime.files import require_place
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.settings import Setting
from lm_runtime.text_files import STANDARD_INPUT, read_text_file

if TYPE_CHECKING:
    from lm_runtime.models.protocol import BundleModel, StepModel

_EXAMPLES = """
\b
Examples:
  lm-generate                                     the bundle in artifacts/bundle
  lm-generate my-bundle --prompt "Once upon" --temperature 0.8 --top-p 0.95
  lm-generate my-bundle --max-tokens 1000 --seed 1 > sample.txt
  lm-generate my-bundle --stop '\\n' --samples 5 --json
  lm-generate my-bundle --prompt "Once upon" --suggest 5
  lm-generate my-bundle --prompt "Once up" --complete 5
  lm-generate my-bundle --prompt "Once upon" --beams 4
  lm-generate my-bundle --temperatures 0.5,0.8,1.1 --seed 1
  lm-generate my-bundle --samples 5 --unique --not-in my-text.txt    five new lines
  lm-generate my-bundle --with my-ngram --weight 0.3
  lm-generate my-bundle --regex '[A-Z][a-z]+ [A-Z][a-z]+'
  lm-generate my-bundle --prompt "Once upon" --save-state tale.npz
  lm-generate my-bundle --load-state tale.npz     the same text, bit for bit, from there on
  lm-generate my-bundle --input prompts.jsonl --output texts.jsonl
  echo "Once upon" | lm-generate my-bundle --prompt-file -

TEXT may have the escapes of JSON: \\n is a line break, \\t a tab, \\u00e9 an e with an accent, and
\\\\ a backslash. Files are taken as they are.
"""


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # older versions of click take no argument
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The numbers."""
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers with commas between them", param, ctx)


_FILE = click.Path(path_type=Path)
_TEMPERATURES = _Numbers()
_TRIES = 20
"""The most texts that are generated for each one of a list."""
_IN_BUNDLES = ("temperature", "top_k", "top_p", "max_tokens")
"""What every bundle brings a default of."""


def _default(entry: Setting) -> str:
    return "the bundle's" if entry.name in _IN_BUNDLES else ""


@click.command(cls=Command, name="lm-generate", epilog=_EXAMPLES)
@click.argument("bundle", type=_FILE, default=Path("artifacts/bundle"))
@option("--prompt", type=ESCAPED_TEXT, metavar="TEXT", group="Prompt", help="Text to continue.")
@option(
    "--prompt-file",
    metavar="FILE",
    group="Prompt",
    help="Read the prompt from a file, or - for standard input.",
)
@option("--echo", is_flag=True, group="Prompt", help="Print the prompt before its text.")
@option(
    "--seed",
    type=click.IntRange(min=0),
    group="Sampling",
    help="Makes a run repeatable.  [default: a new one each time; 0 with --input]",
)
@settings_options(SamplingParams, defaults=_default)
@option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    group="Output",
    help="Number of texts.",
)
@option(
    "--temperatures",
    type=_TEMPERATURES,
    metavar="T,T,...",
    group="Output",
    help="The text of one seed at each of several temperatures.",
)
@option(
    "--unique",
    is_flag=True,
    group="Output",
    help=f"Print --samples lines that differ, one a line; at most {_TRIES} times as many are tried.",
)
@option(
    "--not-in",
    type=_FILE,
    metavar="FILE",
    group="Output",
    help="Likewise, but lines that are not in FILE.",
)
@option("--json", "as_json", is_flag=True, group="Output", help="Print a JSON object for each text.")
@option(
    "--suggest",
    type=click.IntRange(min=1),
    metavar="K",
    group="Instead of a sampled text",
    help="Print the K most probable next tokens.",
)
@option(
    "--complete",
    type=click.IntRange(1, 1000),
    metavar="K",
    group="Instead of a sampled text",
    help="Print the K most probable words that begin as the prompt's last word, or that follow it after a "
    "space.",
)
@option(
    "--line-breaks/--no-line-breaks",
    default=None,
    group="Instead of a sampled text",
    help="Whether the line's end may be among them.  [default: with --suggest, not with --complete]",
)
@option(
    "--beams",
    type=click.IntRange(min=1),
    metavar="K",
    group="Instead of a sampled text",
    help="Search the most probable line with K beams.",
)
@option(
    "--input",
    "input_",
    type=_FILE,
    metavar="FILE",
    group="Many texts",
    help='JSON Lines, each with a "prompt" and perhaps sampling options by their names with underscores, '
    "and seed; - for standard input.",
)
@option(
    "--output",
    type=_FILE,
    metavar="FILE",
    group="Many texts",
    help="Where the texts of --input go; interrupted, the same command goes on.",
)
@option("--strict", is_flag=True, group="Many texts", help="Refuse a line with keys that mean nothing.")
@option(
    "--save-state",
    type=_FILE,
    metavar="FILE",
    group="State",
    help="Save where the text ends, to go on from there.",
)
@option("--load-state", type=_FILE, metavar="FILE", group="State", help="Go on where a text was saved.")
@option(
    "--with",
    "other",
    type=_FILE,
    metavar="BUNDLE",
    group="A second model",
    help="Interpolate with a second model of the same vocabulary, such as n-grams of a user's own words.",
)
@option(
    "--weight", type=float, group="A second model", help="The second model's weight, above 0 and below 1."
)
@adapts
@which_graph
@where_it_runs
@click.version_option(package_name="steplm")
def main(
    bundle: Path,
    prompt: str | None,
    prompt_file: str | None,
    seed: int | None,
    samples: int,
    echo: bool,
    temperatures: tuple[float, ...] | None,
    unique: bool,
    not_in: Path | None,
    suggest: int | None,
    complete: int | None,
    line_breaks: bool | None,
    beams: int | None,
    input_: Path | None,
    output: Path | None,
    strict: bool,
    save_state: Path | None,
    load_state: Path | None,
    as_json: bool,
    other: Path | None,
    weight: float | None,
    adapt: bool,
    precision: Any,
    provider: Any,
    threads: int | None,
    **sampling: Any,
) -> None:
    """Generate text from BUNDLE, a folder that lm-export wrote.

    The text goes to standard output, notes to standard error. No torch is needed.
    """
    with imports():
        from lm_runtime.commands import lists, texts
        from lm_runtime.models.interpolation import InterpolatedModel
        from lm_runtime.models.load import load, load_together
        from lm_runtime.sampling.sampler import NotFiniteError

    adaptation = take_adaptation(sampling)
    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    states = save_state or load_state
    others, listed = suggest or complete or beams, unique or not_in
    _check_together(
        prompt is not None and prompt_file is not None, "give --prompt or --prompt-file, not both"
    )
    _check_together(
        (output or strict) and not input_, "--output and --strict are for the texts of --input; give it too"
    )
    _check_together(
        input_ and (states or others or listed or temperatures or echo or prompt is not None or prompt_file),
        "--input brings its prompts and prints JSON; beside it only sampling options and --samples go",
    )
    _check_together(
        "logprobs" in given and not (as_json or input_), "--logprobs prints JSON; give --json too"
    )
    _check_together(
        states and (samples > 1 or as_json) and not (suggest or complete),
        "--save-state and --load-state go on with one text; leave out --samples and --json",
    )
    _check_together(
        states and "regex" in given, "--regex matches a whole text; leave out --save-state and --load-state"
    )
    _check_together(
        line_breaks is not None and not (suggest or complete),
        "--line-breaks and --no-line-breaks are for --suggest and --complete",
    )
    _check_together(
        complete and (given or save_state or suggest or beams or samples > 1 or echo),
        "--complete prints the model's own probabilities; beside it only a prompt, --load-state, "
        "--line-breaks and --json go",
    )
    _check_together(
        temperatures and ("temperature" in given or samples > 1 or others or states),
        "--temperatures prints one text at each; leave out --temperature, --samples and what is no "
        "sampled text",
    )
    _check_together(
        listed and (others or states or temperatures or "regex" in given),
        "--unique and --not-in list sampled lines; leave out --regex and what is no new text",
    )
    _check_together(
        suggest and (set(given) - {"allow_unk"} or save_state or beams or samples > 1 or echo),
        "--suggest prints the model's own probabilities; beside it only a prompt, --load-state, --allow-unk "
        "and --json go",
    )
    _check_together(
        beams and (set(given) - {"max_tokens", "allow_unk"} or states),
        "--beams searches and does not sample; beside it only a prompt, --max-tokens, --samples, "
        "--allow-unk, --echo and --json go",
    )
    _check_together((other is None) != (weight is None), "--with takes a second bundle and its --weight")
    _check_together(str(save_state) == "-", "--save-state needs a file, and - is none")
    output = None if str(output) == "-" else output  # standard output, as without it
    if prompt_file is not None:
        prompt = _read_prompt(prompt_file)
    for place in filter(None, (save_state, output)):
        require_place(place)
    options: dict[str, Any] = {"precision": precision, "provider": provider, "threads": threads}
    if other is None or weight is None:
        first, second = load(bundle, **options), None
    else:
        first, second = load_together([bundle, other], **options)
        note_precisions([first, second], precision)
    steps: StepModel = adapted(first, first, adaptation) if adapt or adaptation else first
    if second is not None and weight is not None:
        steps = InterpolatedModel(steps, second, weight)
    model = cast("BundleModel", steps)  # what sampling needs of one
    if "logit_bias" in given:
        given["logit_bias"] = _bias(model, given["logit_bias"])
    params = dataclasses.replace(first.defaults, **given)
    params.check_ids(first.config.vocab_size)
    prompt = prompt or ""
    try:
        if suggest:
            start = texts.session_of(model, load_state, prompt, seed)
            breaks = line_breaks is not False
            texts.print_suggestions(
                model, start, suggest, allow_unk=params.allow_unk, line_breaks=breaks, as_json=as_json
            )
        elif complete:
            texts.print_words(
                model, load_state, prompt, complete, line_breaks=bool(line_breaks), as_json=as_json
            )
        elif beams:
            texts.print_hypotheses(model, prompt, params, beams, samples, echo=echo, as_json=as_json)
        elif input_:
            from lm_runtime.commands.requests import run_requests

            input_ = STANDARD_INPUT if str(input_) == "-" else input_
            run_requests(model, input_, output, params, seed=seed or 0, samples=samples, strict=strict)
        elif states:
            texts.go_on(model, prompt, params, seed, save_state, load_state, echo=echo)
        elif temperatures:
            lists.print_temperatures(
                model, prompt, params, _drawn(seed), temperatures, echo=echo, as_json=as_json
            )
        elif listed:
            lists.print_list(
                model,
                prompt,
                params,
                _drawn(seed),
                samples,
                tries=_TRIES * samples,
                unique=unique,
                known=not_in,
                echo=echo,
                as_json=as_json,
            )
        else:
            texts.print_samples(model, prompt, params, _drawn(seed), samples, echo=echo, as_json=as_json)
    except NotFiniteError as error:
        raise click.ClickException(f"{bundle}: {error}") from None


def _check_together(wrong: object, why: str) -> None:
    if wrong:
        raise click.UsageError(why)


def _drawn(seed: int | None) -> int:
    return secrets.randbelow(1 << 32) if seed is None else seed


def _bias(model: BundleModel, given: tuple[str, ...]) -> dict[int, float]:
    """``TOKEN=B`` by ids."""
    bias = {}
    for text in given:
        token, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"logit_bias must be TOKEN=NUMBER, got {text!r}") from None
        try:
            bias[model.tokenizer.one_token(token)] = number
        except ValueError as error:
            raise ValueError(f"logit_bias {text!r}: {error}") from None
    return bias


def _read_prompt(name: str) -> str:
    """The prompt in a file; the line break that ends its last line is not part of it."""
    path = STANDARD_INPUT if name == "-" else Path(name)
    return read_text_file(path).removesuffix("\n")
