"""``lm-bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from lm_runtime.bundle import MODELS, read_bundle_config
from lm_runtime.commands import Command, file_size, imports, note, where_it_runs

_EXAMPLES = """
\b
Examples:
  lm-bench my-bundle
  lm-bench my-bundle --batch 1 --batch 16 --tokens 500 --json
"""


@click.command(cls=Command, name="lm-bench", epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path), default=Path("artifacts/bundle"))
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 4096),
    multiple=True,
    default=[1, 8, 64],
    show_default=True,
    help="Sequences in one batch. Repeatable.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1_000_000),
    default=200,
    show_default=True,
    help="Steps of each of five runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@where_it_runs
@click.version_option(package_name="steplm")
def main(
    bundle: Path, batches: tuple[int, ...], tokens: int, as_json: bool, provider: Any, threads: int | None
) -> None:
    """Measure BUNDLE on this machine: steps, text with sampling (top-p 0.95), prompts; medians of five runs.

    The limit is the rate at which this machine reads a step's weights from memory, measured now: at batch 1 a
    graph that does not fit the cache cannot be faster.
    """
    with imports():
        from lm_runtime import bench
        from lm_runtime.models.load import load

    listed = read_bundle_config(bundle).precisions
    precisions = [precision for precision in listed if (bundle / MODELS[precision]).exists()]
    bandwidth = bench.memory_bandwidth()
    figures: dict[str, Any] = {"memory_bytes_per_second": bandwidth, "steps": [], "prompts": [], "graphs": []}
    for precision in precisions or ["fp32"]:
        options: dict[str, Any] = {"precision": precision, "provider": provider, "threads": threads}
        model = load(bundle, **options)
        size = model.step_bytes
        figures["graphs"].append(
            {
                "precision": precision,
                "provider": model.provider,
                "load_seconds": bench.load_seconds(bundle, **options),
                "weights_bytes": size,
                "memory_limit_steps_per_second": None if size is None else bandwidth / size,
            }
        )
        for batch in batches:
            note(f"measuring {precision} at batch {batch} ...")
            rate = bench.step_rate(model, batch, max(1, tokens // (1 + batch // 16)))
            figures["steps"].append({**dataclasses.asdict(rate), "outside_us": rate.outside})
        figures["prompts"].append(dataclasses.asdict(bench.prompt_rate(model)))
    click.echo(json.dumps(figures) if as_json else _table(figures))


def _table(figures: dict[str, Any]) -> str:
    lines = [f"memory reads {figures['memory_bytes_per_second'] / 1e9:.1f} GB/s", ""]
    lines.append(f"{'graph':6} {'on':5} {'load':>8} {'weights a step':>15} {'memory limit':>18}")
    for graph in figures["graphs"]:
        line = f"{graph['precision']:6} {graph['provider']:5} {graph['load_seconds']:6.2f} s "
        if graph["weights_bytes"] is None:
            lines.append(f"{line}{'tables':>15}")
        else:
            limit = graph["memory_limit_steps_per_second"]
            lines.append(f"{line}{file_size(graph['weights_bytes']):>15} {limit:>10,.0f} steps/s")
    lines += ["", f"{'graph':6} {'batch':>5} {'graph alone':>17} {'text':>17} {'outside':>14} {'share':>6}"]
    lines += [
        f"{step['precision']:6} {step['batch']:5} {step['graph']:>8,.0f} tokens/s "
        f"{step['generation']:>8,.0f} tokens/s {step['outside_us']:>5.0f} us/token "
        f"{1 - step['generation'] / step['graph']:>5.0%}"
        for step in figures["steps"]
    ]
    lines += ["", f"{'graph':6} {'prompt of 512, one call':>24} {'step by step':>17}"]
    lines += [
        f"{prompt['precision']:6} {prompt['one_call']:>15,.0f} tokens/s {prompt['stepping']:>8,.0f} tokens/s"
        for prompt in figures["prompts"]
    ]
    return "\n".join(lines)
