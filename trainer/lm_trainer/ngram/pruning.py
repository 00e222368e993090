"""Which n-grams an estimate leaves out, by their occurrences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def numbers_of(text: str) -> list[int]:
    """The numbers in ``text``, such as ``0 0 1``.

    Raises:
        ValueError: it has anything else.
    """
    try:
        return [int(number) for number in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"prune must be numbers such as '0 0 1', got {text!r}") from None


def pruning_thresholds(prune: Sequence[int], order: int) -> list[int]:
    """The occurrences up to which n-grams of each length are left out, ``(order,)``.

    Raises:
        ValueError: there are more than ``order``, they fall, or single words would be left out.
    """
    if len(prune) > order:
        raise ValueError(f"prune must have at most {order} numbers, one for each length, got {len(prune)}")
    if prune and prune[0] != 0:
        raise ValueError(f"prune must begin with 0, since every token needs a probability, got {prune[0]}")
    # An n-gram that is kept needs those that it begins and ends with.
    if any(longer < shorter for shorter, longer in itertools.pairwise(prune)):
        raise ValueError(f"the numbers of prune must not fall, got {' '.join(map(str, prune))}")
    return [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
