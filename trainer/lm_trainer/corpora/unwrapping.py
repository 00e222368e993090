"""Paragraphs of texts whose lines are broken by hand, as those of books are. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def unwrap(fragments: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Join the lines of each paragraph by a space, in bounded memory.

    A paragraph ends before an empty line, which is dropped, and before one that begins with white space, as
    indented paragraphs, verses and lists have it.

    Args:
        fragments: the text, as :func:`lm_runtime.text_files.read_fragments` gives it.

    Yields:
        fragments of the same kind, whose lines are paragraphs.
    """
    begins, open_ = True, False  # a line; whether a paragraph is to be ended
    for text, ends in fragments:
        if begins and open_ and (not text.strip() or text[0].isspace()):
            yield "", True
            open_ = False
        kept = text.rstrip() if ends else text
        if kept:
            yield (f" {kept}" if begins and open_ else kept), False
            open_ = True
        begins = ends
    if open_:
        yield "", True
