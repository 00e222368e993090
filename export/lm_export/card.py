"""The model card: the bundle's ``README.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_export.formats.registry import model_files
from lm_export.forms.registry import form_of
from lm_runtime.bundle import CONFIG_FILE, MODELS, TABLES, BundleConfig
from lm_runtime.commands import file_size
from lm_runtime.models.opened import NEEDED
from lm_runtime.scoring.score import bits_in_words
from lm_trainer.families import FAMILIES

INT8_FORM = (
    "int8 weights have one scale a matrix, such that two neighbouring products never exceed 16 bits: "
    "processors with VNNI and without compute the same."
)
"""What the form is and why, in one sentence."""


def model_card(config: BundleConfig, folder: Path, name: str) -> str:
    """The text of the card for the bundle ``name``; its models are in ``folder`` already."""
    training, parity = config.training, config.parity
    states = ", ".join(state.name for state in config.states)
    return f"""# A language model for `{training["corpus"]}`

Model: {_description(config)}; {form_of(config.model_type).sizes(config)}; \
{config.vocab_size:,} tokens ({config.tokenizer}); {training["parameters"]:,} parameters.
One step is `(token, {states}) -> (logits, {states})`; the state has a fixed size, so the \
cost per token never grows.

## Training
{_trained(training)}

## Files
| file | size | |
|---|---|---|
{_files(folder)}
{_kind(config)} `config.json` has the sha256 of every file.
{_quantization(config.quantization)}
## Parity with the checkpoint
{parity["steps"]} steps of held-out text at batch {" and ".join(map(str, parity["batches"]))}, the state \
carried: largest difference {parity["logits"]:.1e} in logits and {parity["states"]:.1e} in states \
(allowed: {parity["tolerance"]:.0e}); {parity["greedy_tokens"]} greedy tokens equal.

## Running it
With steplm installed (torch is not needed):
```
lm-generate {name} --prompt "..."
lm-score {name} text.txt
```
```python
import lm_runtime

model = lm_runtime.load("{name}")
print("".join(lm_runtime.generate(model, "...", seed=1)))
```

## Limits
The model imitates its training text, errors and prejudices included, and states nothing as fact.
"""


def _description(config: BundleConfig) -> str:
    description = FAMILIES[config.model_type].description
    return description.partition(",")[0] if config.training.get("imported") else description


def _trained(training: dict[str, Any]) -> str:
    if training.get("imported"):
        return f"Read from `{training['corpus']}`, an ARPA file; how it was estimated is not known."
    return (
        f"Corpus `{training['corpus']}`: {training['train_tokens']:,} tokens; {training['epoch']} epochs, "
        f"{training['seconds']:.0f} s.{_order(training)}\n{_valid(training['valid'])}"
    )


def _order(training: dict[str, Any]) -> str:
    """What was put in a new order in each epoch."""
    order = training["recipe"].get("shuffle")
    return f" Each {order} stood at another place in each epoch." if order in ("line", "document") else ""


def _kind(config: BundleConfig) -> str:
    return f"ONNX opset {config.opset}." if config.opset else "Tables that steplm's runtime reads."


def _valid(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Exported between two validations: no perplexity was measured for these weights."
    a_word = figures["perplexity_per_word"]  # None for a text without word breaks
    words = "" if a_word is None else f"{a_word:.2f} a word, "
    return (
        f"Validation perplexity {figures['perplexity']:.2f} a token, {words}"
        f"{bits_in_words(figures['bits_per_byte'], figures['unknown'], figures['tokens'])} "
        f"({figures['tokens']:,} tokens, "
        f"{figures['unknown']:,} of them unknown)."
    )


def _files(folder: Path) -> str:
    """A row for each file: models, then what every reader needs, and what else is there."""
    models = {name: kind for name, kind in model_files().items() if (folder / name).exists()}
    one = "one of these" if sum(name in (*MODELS.values(), TABLES) for name in models) > 1 else "needed"
    kinds = {name: one if name in (*MODELS.values(), TABLES) else "for other programs" for name in models}
    rows = [(f"`{name}` ({kind})", name, kinds[name]) for name, kind in models.items()]
    rows += [(f"`{name}`", name, "needed") for name in NEEDED if name != CONFIG_FILE]
    table = "".join(
        f"| {shown} | {file_size((folder / name).stat().st_size)} | {what} |\n" for shown, name, what in rows
    )
    return f"{table}| `{CONFIG_FILE}` | a few kB | needed |\n"


def _quantization(figures: dict[str, Any]) -> str:
    if not figures:
        return ""
    return (
        f"\nOn {figures['tokens']:,} held-out tokens int8 has perplexity {figures['int8']:.2f}, fp32 "
        f"{figures['fp32']:.2f} ({figures['cost_percent']:+.2f} %). In int8: "
        f"{', '.join(figures['layers']['int8'])}"
        + (f"; in fp32: {', '.join(figures['layers']['fp32'])}" if figures["layers"]["fp32"] else "")
        + f".\n{INT8_FORM}\n"
    )
