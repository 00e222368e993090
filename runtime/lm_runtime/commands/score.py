"""``lm-score``: the perplexity of a text or of each of its lines, and n-best lists in a new order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_runtime.commands import Command, Progress, imports, note, note_precisions, where_it_runs, which_graph
from lm_runtime.commands.adaptation import adapted, adapts, take_adaptation
from lm_runtime.commands.adaptation import fit as fit_on
from lm_runtime.commands.documents_options import DOCUMENTS, DocumentsOptions
from lm_runtime.commands.nbest_options import LISTS, NbestOptions
from lm_runtime.commands.options import option, settings_options
from lm_runtime.files import require_place
from lm_runtime.models.adaptation import ADAPTATION
from lm_runtime.scoring.weights import NAMES, Weights
from lm_runtime.settings import settings_of
from lm_runtime.text_files import STANDARD_INPUT
from lm_runtime.texts.reading import ReadingOptions, Texts, open_texts

if TYPE_CHECKING:
    from lm_runtime.commands.nbest import Prepared
    from lm_runtime.models.interpolation import InterpolatedModel
    from lm_runtime.models.protocol import BundleModel, StepModel
    from lm_runtime.scoring.score import Score

_LONG_FIGURE = 1e9

_EXAMPLES = """
\b
Examples:
  lm-score my-bundle valid.txt
  lm-score my-bundle valid.txt --json
  lm-score my-bundle valid.txt --tokens | sort -n | head      the least expected tokens
  lm-score my-bundle valid.txt --html report.html             what surprises the model, in colours
  lm-score my-bundle sentences.txt --lines | sort -n | head   the least expected lines
  lm-score my-bundle news/ 'books/*.txt.gz' --text-field body
  lm-score my-bundle crawl/*.parquet --documents --output scored.parquet --max-perplexity 300
  lm-score my-bundle lists.txt --nbest --lm-weight 0.5
  lm-score my-bundle dev.txt --nbest --tune dev.ref --save-weights weights.json
  lm-score my-bundle lists.txt --nbest --weights weights.json --print best
  lm-score my-bundle test.txt --with my-ngram --fit valid.txt
  lm-score my-bundle test.txt --fit-adaptation valid.txt      a cache of what was read
  echo "Is it likely?" | lm-score my-bundle -
"""


@click.command(cls=Command, name="lm-score", epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; with --lines or --nbest one a line."
)
@click.option(
    "--tokens",
    "per_token",
    is_flag=True,
    help="Print each token's log-probability: number, tab, token as JSON.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page too: the text coloured by surprisal, what was expected in place of each token, the "
    "most surprising passages first.",
)
@click.option("--lines", "by_line", is_flag=True, help="Score each line as a text of its own.")
@option(
    "--nbest",
    is_flag=True,
    group=LISTS,
    help="FILE has n-best lists of a recognizer or a translator, with scores of a first pass (natural "
    "logarithm): print those of each id, best first.",
)
@click.option(
    "--with",
    "other",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Interpolate with a second model of the same vocabulary.",
)
@click.option("--weight", type=float, help="The second model's weight, above 0 and below 1.")
@click.option(
    "--fit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Fit the weight on a held-out text instead; - is standard input.",
)
@option(
    "--documents",
    "by_document",
    is_flag=True,
    group=DOCUMENTS,
    help="Score each record of JSON Lines or Parquet, and each text file, as a text of its own, and write it "
    "with its scores to --output. A call that was broken off goes on where it was.",
)
@settings_options(DocumentsOptions, omit=("output",))
@option(
    "--fit-adaptation",
    type=click.Path(path_type=Path),
    metavar="FILE",
    group=ADAPTATION,
    help="Fit the adaptation on a held-out text, and make it the bundle's default.",
)
@adapts
@settings_options(NbestOptions)
@settings_options(Weights)
@settings_options(ReadingOptions)
@which_graph
@where_it_runs
@click.version_option(package_name="steplm")
def main(
    bundle: Path,
    files: tuple[str, ...],
    as_json: bool,
    per_token: bool,
    page: Path | None,
    by_line: bool,
    by_document: bool,
    nbest: bool,
    other: Path | None,
    weight: float | None,
    fit: Path | None,
    text_field: str | None,
    on_error: str | None,
    fit_adaptation: Path | None,
    adapt: bool,
    precision: Any,
    provider: Any,
    threads: int | None,
    **lists: Any,
) -> None:
    """Score the texts FILE... with BUNDLE: log-probabilities (natural logarithm) and perplexity.

    FILE is a text, JSON Lines (.jsonl) or Parquet, also packed (.gz, .zst, .xz, .bz2); a folder or a glob of
    such files; or - for standard input.

    Every line's end is the token <eos>; the state is carried through the whole text, and from one file or
    record to the next, from a zero state that has read one <eos>. With --lines or --nbest every line starts
    from there. No torch is needed.

    With --with, --precision and --provider go to each of the two that has them.
    """
    adaptation = take_adaptation(lists)
    adapt |= bool(adaptation or fit_adaptation)
    modes = {"--json": as_json, "--tokens": per_token, "--lines": by_line, "--nbest": nbest}
    modes["--documents"] = by_document
    for one, two in itertools.combinations([name for name, given in modes.items() if given], 2):
        if one != "--json" or two in ("--tokens", "--documents"):
            raise click.UsageError(f"give {one} or {two}, not both")
    asked = {name: value for name, value in lists.items() if value not in (None, ())}
    documents_settings = [name for name in settings_of(DocumentsOptions) if name != "output" or by_document]
    of_documents = {name: asked.pop(name) for name in documents_settings if name in asked}
    if of_documents and not by_document:
        raise click.UsageError(f"--{next(iter(of_documents)).replace('_', '-')} is for --documents")
    if asked and not nbest:
        raise click.UsageError(f"{_option(next(iter(asked)))} is for --nbest")
    if (other is None) != (weight is None and fit is None) or (weight is not None and fit is not None):
        raise click.UsageError(
            "--with takes a second bundle, and either its --weight or a text to --fit it on"
        )
    if page is not None:
        if per_token or by_line or nbest:
            raise click.UsageError("--html is for a whole text; leave out --tokens, --lines and --nbest")
        require_place(page)
    if by_document:
        for name, given in {"--with": other, "--html": page, "--adapt": adapt or None}.items():
            if given is not None:
                raise click.UsageError(f"leave out {name} with --documents")
        wanted = DocumentsOptions(**of_documents)
    with imports():
        from lm_runtime.models.load import load, load_together

    if "-" in files and str(fit) == "-":
        raise click.UsageError("FILE and --fit cannot both be standard input")
    if nbest and len(files) > 1:
        raise click.UsageError(f"--nbest takes one FILE, got {len(files)}")
    file = STANDARD_INPUT if files[0] == "-" else Path(files[0])
    prepared = _prepared(file, asked, as_json=as_json) if nbest else None
    if not nbest:
        texts = open_texts(files, ReadingOptions(text_field, on_error or "stop"), note)
    options: dict[str, Any] = {"precision": precision, "provider": provider, "threads": threads}
    if by_document:
        from lm_runtime.commands.documents import score_documents

        score_documents(bundle, texts, wanted, **options)
        return
    folders = [folder for folder in (bundle, other, asked.get("second")) if folder is not None]
    if len(folders) == 1:
        loaded = [load(bundle, **options)]
    else:
        loaded = load_together(folders, **options)
        note_precisions(loaded, precision)
    if by_line or nbest:
        _note_orders(loaded)
    model: StepModel = loaded[0]
    if fit_adaptation is not None:
        adaptation = fit_on(model, loaded[0], fit_adaptation, adaptation)
    if adapt:
        model = adapted(model, loaded[0], adaptation)
    facts = {}
    if other is not None:
        model = _interpolated(model, loaded[1], weight, fit)
        facts = {"weight": model.weight}
    if prepared is not None:
        from lm_runtime.commands.nbest import run

        run(prepared, model, loaded[-1] if "second" in asked else None, as_json=as_json)
    elif by_line:
        _print_lines(model, texts, as_json=as_json)
    else:
        title = f"{file.name} by {bundle.resolve().name}"
        _print_file(model, texts, facts, as_json=as_json, per_token=per_token, page=page, title=title)


def _prepared(file: Path, asked: dict[str, Any], *, as_json: bool) -> Prepared:
    """The n-best lists and what is asked of them."""
    with imports():
        from lm_runtime.commands.nbest import prepare

    given = {name: asked[name] for name in NAMES if name in asked}
    options = NbestOptions(**{name: value for name, value in asked.items() if name not in given})
    return prepare(file, options, given, as_json=as_json)


def _option(name: str) -> str:
    """How a setting is called on the command line."""
    settings = settings_of(Weights) | settings_of(NbestOptions)
    return f"--{settings[name].option}"


def _note_orders(models: Sequence[BundleModel]) -> None:
    """Tell which models were not trained on lines that stand by themselves."""
    from lm_runtime.commands.orders import order_note

    for text in dict.fromkeys(order_note(model.config, "line") for model in models):
        if text is not None:
            note(text)


def _interpolated(
    first: StepModel, second: StepModel, weight: float | None, fit: Path | None
) -> InterpolatedModel:
    from lm_runtime.models.interpolation import InterpolatedModel, fit_weight

    if fit is not None:
        weight = fit_weight(first, second, STANDARD_INPUT if str(fit) == "-" else fit)
        note(f"weight {weight:.4f} of the second model, fitted on {fit}")
    return InterpolatedModel(first, second, weight or 0.0)


def _print_file(
    model: StepModel,
    texts: Texts,
    facts: dict[str, float],
    *,
    as_json: bool,
    per_token: bool,
    page: Path | None,
    title: str,
) -> None:
    from lm_runtime.commands.report import score_to_page
    from lm_runtime.scoring.score import score_fragments
    from lm_runtime.wire import score_record

    names = [json.dumps(token, ensure_ascii=False) for token in model.tokenizer.tokens] if per_token else []

    def show(ids: Any, log_probabilities: Any) -> None:
        if per_token:
            lines = zip(ids, log_probabilities, strict=True)
            click.echo("\n".join(f"{value:.6f}\t{names[token]}" for token, value in lines))

    fragments, name = texts.fragments(), texts.name
    if page is None:
        result = score_fragments(model, fragments, name, each=show)
    else:
        result = score_to_page(model, fragments, name, page, title)
    texts.skipped.conclude()
    if as_json:
        click.echo(json.dumps(score_record(result) | facts))
    elif per_token:
        note(_sentence(result))
    else:
        click.echo(_sentence(result))


def _print_lines(model: StepModel, texts: Texts, *, as_json: bool) -> None:
    from lm_runtime.scoring.score import Score, text_lines
    from lm_runtime.scoring.texts import score_texts
    from lm_runtime.wire import score_record

    lines = text_lines(texts.fragments(), texts.name)
    total = Score(0.0, 0, 0, 0, 0)
    shown, scored = itertools.tee(_watched(lines, texts.size if texts.is_one_text else 0))
    for line, score in zip(shown, score_texts(model, scored), strict=True):
        total += score
        if as_json:
            _print_record(score_record(score) | {"text": line})
        else:
            numbers = f"{score.log_probability:.6f}\t{score.tokens}\t{score.perplexity:.4f}"
            click.echo(f"{numbers}\t{line}".encode())
    texts.skipped.conclude()
    note(_sentence(total))


def _print_record(record: dict[str, Any]) -> None:
    click.echo(json.dumps(record, ensure_ascii=False).encode())  # UTF-8, whatever the terminal's encoding is


def _watched(items: Iterable[str], size: int) -> Iterator[str]:
    """Pass ``items`` on as they are asked for, and show the progress by their bytes."""
    progress, done = Progress(size), 0
    for item in items:
        progress.show(done)
        done += len(item.encode()) + 1
        yield item


def _sentence(score: Score) -> str:
    from lm_runtime.scoring.score import bits_in_words

    a_word = score.perplexity_per_word
    words = "" if a_word is None else f", {_figure(a_word, 2)} a word"
    bits = bits_in_words(score.bits_per_byte, score.unknown, score.tokens, 4)
    return (
        f"perplexity {_figure(score.perplexity, 4)} a token{words}; "
        f"{bits}; log-probability {score.log_probability:.2f} "
        f"over {score.tokens:,} tokens, {score.unknown:,} of them unknown"
    )


def _figure(value: float, places: int) -> str:
    """A number with ``places`` decimals, or with an exponent where it is long."""
    return f"{value:.{places}f}" if value < _LONG_FIGURE else f"{value:.4e}"
