"""The options of ``lm-score --documents``, as a record. Imports nothing heavy: ``--help`` lists them."""

from __future__ import annotations

from dataclasses import dataclass

from lm_runtime.settings import check, setting

DOCUMENTS = "Documents"
"""The heading of the options."""


@dataclass(frozen=True)
class DocumentsOptions:
    """What is asked of documents."""

    output: str = setting(
        "",
        help="Where they go: a .jsonl, or a .parquet.",
        metavar="FILE",
        group=DOCUMENTS,
    )
    score_prefix: str = setting(
        "", help="What the names of the new fields begin with.", metavar="TEXT", group=DOCUMENTS
    )
    min_perplexity: float | None = setting(None, help="Leave out documents below it.", low=0, group=DOCUMENTS)
    max_perplexity: float | None = setting(None, help="Leave out documents above it.", low=0, group=DOCUMENTS)
    buckets: str = setting(
        "",
        help="Two perplexities, such as 30,60: adds a field bucket: head below the first, middle, or tail "
        "from the second on.",
        metavar="LOW,HIGH",
        group=DOCUMENTS,
    )
    workers: int | None = setting(
        None,
        help="Processes, each with --threads (1 unless given).  [default: the cores]",
        low=1,
        high=1024,
        group=DOCUMENTS,
    )

    def __post_init__(self) -> None:
        check(self)
        low, high = self.min_perplexity, self.max_perplexity
        if low is not None and high is not None and low > high:
            raise ValueError(f"min-perplexity must be at most max-perplexity, got {low:g} and {high:g}")
        if not self.output:
            raise ValueError("--documents needs --output, a .jsonl or a .parquet")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The perplexities that part the buckets.

        Raises:
            ValueError: they are no two ascending numbers.
        """
        from lm_runtime.scoring.documents import check_buckets

        if not self.buckets:
            return None
        try:
            found = [float(number) for number in self.buckets.split(",")]
        except ValueError:
            raise ValueError(f"buckets takes two numbers, such as 30,60, got {self.buckets}") from None
        check_buckets(found)
        return found[0], found[1]
