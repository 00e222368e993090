"""The formats by their names. Imports nothing heavy: ``lm-score --help`` lists them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from lm_runtime.scoring.nbest.hypothesis import Hypothesis, Source
    from lm_runtime.scoring.rescoring import Rescored


class ListModule(Protocol):
    """What the module of a format defines."""

    def fits(self, source: Source) -> bool:
        """Whether a file or folder looks like it."""

    def read(self, source: Source) -> Iterator[Hypothesis]:
        """The hypotheses.

        Raises:
            UnusableFileError: something is wrong with a line; the message names it.
        """

    def write(self, rows: Sequence[Rescored]) -> Mapping[str, Iterable[str]]:
        """Lines of each file by its name; the only one of a format of one file has the name ``""``.

        Args:
            rows: the lists of all ids, best first, read from the same format.
        """


@dataclass(frozen=True)
class ListFormat:
    """A format of n-best lists."""

    description: str
    """What a list looks like, in a few words."""
    module: str
    """The module that has the functions of :class:`ListModule`."""
    is_folder: bool = False
    """Whether it has several files, and is written into a folder."""
    numbered: bool = False
    """Whether ids are numbers of lines from 0, so that references and best texts are lines without an id."""

    def load(self) -> ListModule:
        """The format's module, imported."""
        return cast(ListModule, importlib.import_module(self.module))


_HERE = __name__.rpartition(".")[0]
FORMATS = {
    "espnet": ListFormat("folders 1best_recog, 2best_recog ...", f"{_HERE}.espnet", is_folder=True),
    "moses": ListFormat("id ||| text ||| features ||| score", f"{_HERE}.moses", numbered=True),
    "json": ListFormat("JSON Lines", f"{_HERE}.jsonl"),
    "kaldi": ListFormat("utterance-n text, with files of costs", f"{_HERE}.kaldi", is_folder=True),
    "plain": ListFormat("id score text", f"{_HERE}.plain"),
}
"""Each format by its name, in the order in which ``auto`` asks them whether a file is theirs."""
