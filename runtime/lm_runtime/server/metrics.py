"""What ``/metrics`` tells, in the text format of Prometheus. Knows nothing about HTTP."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of durations.

    Args:
        name: of the metric, in seconds.
        help_: what it is, in a line.
    """

    def __init__(self, name: str, help_: str) -> None:
        self._head = [f"# HELP {name} {help_}", f"# TYPE {name} histogram"]
        self._name = name
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self) -> Iterable[str]:
        """Its lines."""
        yield from self._head
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum:.6f}"
        yield f"{self._name}_count {total}"


class Metrics:
    """The counts of a server."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """Requests by path and status."""
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_token = Histogram("steplm_first_token_seconds", "From a request to its first token.")
        self.duration = Histogram("steplm_request_seconds", "From a request to the end of its answer.")

    def text(self, open_: Mapping[str, int]) -> str:
        """All of it; ``open_`` has the texts of each model that run or wait."""
        lines = ["# HELP steplm_requests_total Requests answered.", "# TYPE steplm_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'steplm_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, help_, value in (
            ("steplm_prompt_tokens_total", "Tokens read.", self.prompt_tokens),
            ("steplm_generated_tokens_total", "Tokens generated.", self.generated_tokens),
        ):
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} counter", f"{name} {value}"]
        lines += ["# HELP steplm_texts Texts that run or wait.", "# TYPE steplm_texts gauge"]
        for model, count in open_.items():
            escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'steplm_texts{{model="{escaped}"}} {count}')
        lines += [*self.first_token.lines(), *self.duration.lines()]
        return "\n".join(lines) + "\n"
