"""What a server allows a request to take. Knows nothing about HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from lm_runtime.settings import check, setting

_LIMITS = "Limits"


@dataclass(frozen=True)
class Limits:
    """The bounds of a server.

    Raises:
        ValueError: a value is out of its range.
    """

    max_batch: int = setting(
        64, help="Most texts of a bundle in one step.", metavar="N", low=1, high=4096, group=_LIMITS
    )
    max_queue: int = setting(
        256,
        help="Most texts of a bundle that wait for room; more are answered 429.",
        metavar="N",
        low=0,
        high=1 << 20,
        group=_LIMITS,
    )
    max_texts: int = setting(
        128, help="Most texts that one request asks for.", metavar="N", low=1, high=1 << 16, group=_LIMITS
    )
    max_prompt: int = setting(
        32_768,
        help="Most tokens that one request brings, all its prompts together.",
        metavar="N",
        low=1,
        high=1 << 30,
        group=_LIMITS,
    )
    max_tokens: int = setting(
        4096,
        help="Most tokens of one text.",
        option="max-text",
        metavar="N",
        low=1,
        high=1 << 24,
        group=_LIMITS,
    )
    max_body: int = setting(
        1 << 20, help="Most bytes of a request.", metavar="BYTES", low=1024, high=1 << 30, group=_LIMITS
    )
    timeout: float = setting(
        300.0, help="Most seconds for one request.", metavar="S", above=0, high=86_400, group=_LIMITS
    )
    grace: float = setting(
        30.0,
        help="Seconds that running requests have to end once the server is told to stop.",
        metavar="S",
        low=0,
        high=86_400,
        group=_LIMITS,
    )

    def __post_init__(self) -> None:
        check(self)
