"""The options of ``lm-score --nbest``, as a record. Imports nothing heavy: ``--help`` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_runtime.scoring.nbest.registry import FORMATS
from lm_runtime.scoring.weights import Weights
from lm_runtime.settings import check, setting, settings_of

LISTS = "N-best lists"
"""The heading of the options that say what is read and written."""
_TUNING = "Weights of n-best lists"
_NAMES = tuple(entry.option for entry in settings_of(Weights).values())


@dataclass(frozen=True)
class NbestOptions:
    """What is asked of n-best lists."""

    nbest_format: str = setting(
        "auto",
        help="What FILE is: "
        + "; ".join(f"{name} ({entry.description})" for name, entry in FORMATS.items())
        + "; auto finds out.",
        choices=("auto", *FORMATS),
        group=LISTS,
    )
    nbest_fields: str = setting(
        "",
        help='Names of the fields in JSON Lines: "id=utt,score=am,text=hyp"; with "list=nbest" a line has an '
        "id and a list of objects with score and text.",
        metavar="NAMES",
        group=LISTS,
    )
    costs: tuple[str, ...] = setting(
        (),
        help="Kaldi's costs, and what they are multiplied with: acwt:0.1.",
        metavar="FILE[:SCALE]",
        group=LISTS,
    )
    print_: Literal["ranked", "best", "same"] = setting(
        "ranked",
        help="ranked: id, combined score, log-probability, text of every hypothesis; best: id and text of "
        "the best (for Moses the text alone); same: the format of FILE.",
        option="print",
        choices=("ranked", "best", "same"),
        group=LISTS,
    )
    output: str | None = setting(
        None,
        help="Write there, not to standard output: a file, or a folder for formats of several files; "
        "with --documents a .jsonl or a .parquet.",
        metavar="PATH",
        group=LISTS,
    )
    evaluate: str | None = setting(
        None,
        help="Tell the errors before, after, and of the best order there is; lines of id and text.",
        metavar="REFERENCES",
        group=LISTS,
    )
    second: str | None = setting(
        None,
        help="A second model, of any vocabulary, with a weight of its own.",
        metavar="BUNDLE",
        group=_TUNING,
    )
    weights: str | None = setting(
        None, help="Weights from a file that --tune has saved.", metavar="FILE", group=_TUNING
    )
    tune: str | None = setting(
        None,
        help="Find the weights that give the fewest errors on FILE, and print them with the errors; lines of "
        "id and text. Those that are given stay as they are.",
        metavar="REFERENCES",
        group=_TUNING,
    )
    tune_metric: Literal["wer", "cer"] = setting(
        "wer", help="Errors of words, or of characters.", choices=("wer", "cer"), group=_TUNING
    )
    tune_weight: tuple[str, ...] = setting(
        (),
        help="A weight to find; without it all but the length bonus, where they matter and are not given.",
        metavar="|".join(_NAMES),
        group=_TUNING,
    )
    save_weights: str | None = setting(
        None, help="Write what --tune finds to a file for --weights.", metavar="FILE", group=_TUNING
    )

    def __post_init__(self) -> None:
        check(self)
        if unknown := set(self.tune_weight) - set(_NAMES):
            raise ValueError(f"tune_weight must be some of {', '.join(_NAMES)}, got {min(unknown)}")
