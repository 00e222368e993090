"""A recognizer's list of tokens, held against a vocabulary: a model speaks to a recognizer by ids alone."""

from __future__ import annotations

import re
from pathlib import Path

from lm_runtime.files import UnusableFileError
from lm_runtime.text_files import read_lines
from lm_runtime.tokenizer import Tokenizer


def check_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Check a vocabulary against a recognizer's ``tokens.txt``, a line ``token id`` for each token.

    Names after the last id that begin with # are a lexicon's (``#0``), and are left out.

    Raises:
        UnusableFileError: it is no such list, or differs; the message has the first difference.
    """
    theirs: dict[int, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        token, separator, id_ = line.rstrip().replace("\t", " ").rpartition(" ")
        if not (separator and re.fullmatch("[0-9]{1,9}", id_)) or int(id_) in theirs:
            raise UnusableFileError(path, f"line {number}: not a token and an id of its own: {line[:80]!r}")
        theirs[int(id_)] = token.rstrip()
    ours = dict(enumerate(tokenizer.tokens))
    theirs = {id_: token for id_, token in theirs.items() if id_ in ours or not token.startswith("#")}
    differ = sorted(id_ for id_ in ours.keys() | theirs.keys() if ours.get(id_) != theirs.get(id_))
    if differ:
        here, there = (
            repr(names[differ[0]]) if differ[0] in names else "nothing" for names in (theirs, ours)
        )
        raise UnusableFileError(
            path,
            f"not the model's vocabulary: id {differ[0]} is {here} in the list and {there} in the tokenizer, "
            f"and {len(differ):,} of {len(ours.keys() | theirs.keys()):,} ids differ",
        )
