"""A scored text as one page, which needs no other file and no network: tokens coloured by their surprisal."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lm_runtime.files import write_whole
from lm_runtime.scoring.passages import Passage, Passages

_BITS = (0.5, 1, 2, 3, 4.5, 6, 8, 10, 13)
"""The bounds of the colours."""
_LETTERS = "abcdefghij"
_COLORS = "\n".join(
    f".{letter} {{ background: rgb(255 {255 - 18 * number} {255 - 22 * number}) }}"
    for number, letter in enumerate(_LETTERS)
)
_STYLE = f"""
body {{ font: 16px/1.7 sans-serif; max-width: 56em; margin: 2em auto 12em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ddd; padding: .2em 1.5em .2em 0; text-align: left }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .8em 0; content-visibility: auto }}
small {{ color: #767676 }}
b {{ font-weight: normal; cursor: default }}
b:hover {{ outline: 1px solid #222 }}
#best {{ position: fixed; left: 0; right: 0; bottom: 0; background: #fff; border-top: 1px solid #999 }}
#best div {{ max-width: 56em; margin: 0 auto; padding: .5em 1em; min-height: 8em; font: 14px/1.5 monospace }}
#best div {{ white-space: pre-wrap }}
{_COLORS}
"""
_SCRIPT = """
const { names, tokens } = JSON.parse(document.getElementById("data").textContent);
const box = document.querySelector("#best div"), marks = document.querySelectorAll("p b");
const show = (text) => text.replace(/\\n/g, "\\u21b5").replace(/ /g, "\\u2423");
marks.forEach((mark, number) => { mark.dataset.n = number; });
document.addEventListener("mouseover", (event) => {
  const mark = event.target.closest("p b");
  if (!mark) return;
  const lines = tokens[mark.dataset.n].map(([bits, ...best]) => {
    const rows = [];
    for (let at = 0; at < best.length; at += 2) {
      rows.push(`${(best[at + 1] / 100).toFixed(2).padStart(6)} %  ${show(names[best[at]])}`);
    }
    return `${(bits / 100).toFixed(2)} bits; expected were\\n${rows.join("\\n")}`;
  });
  box.textContent = `${show(mark.textContent)}  ${lines.join("\\n")}`;
});
"""


def write_page(
    path: Path,
    title: str,
    facts: Iterable[tuple[str, str]],
    passages: Passages,
    sections: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page of a scored text.

    Args:
        path: the page.
        title: its heading.
        facts: what stands in its table, names and values.
        passages: the text.
        sections: further parts between the table and the text: heading and HTML, such as a picture in SVG.
    """
    table = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts
    )
    further = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{part}" for heading, part in sections)
    shown = sum(len(passage.tokens) for passage in passages.shown)
    note = (
        f"<p><small>One passage of {passages.stride}: {shown:,} of {passages.tokens:,} tokens.</small></p>"
        if passages.stride > 1
        else ""
    )
    data = _Data()
    places = {passage.start for passage in passages.shown}
    surprising = "\n".join(
        data.paragraph(one, "<a href=#t{}>" if one.start in places else "<a>") for one in passages.surprising
    )
    text = "\n".join(data.paragraph(passage, "<a id=t{}>") for passage in passages.shown)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
<table>
{table}
</table>
{further}
<p>{_legend()}</p>
<h2>The most surprising passages</h2>
{surprising}
<h2>The text</h2>
{note}
{text}
<div id="best"><div>Point at a token: what was expected in its place.</div></div>
<script type="application/json" id="data">{data.json()}</script>
<script>{_SCRIPT}</script>
</html>
"""
    with write_whole(path) as file:
        file.write(page.encode("utf-8", "replace"))  # a file's name may be no text


class _Data:
    """What the script needs of each token on the page, in the order of the page."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._tokens: list[list[list[int]]] = []

    def paragraph(self, passage: Passage, place: str) -> str:
        """A passage, with its place, as the end or the beginning of a link, and its surprisal."""
        marks = "".join(self._marks(passage))
        label = (
            f"{place.format(passage.start)}token {passage.start:,}</a>, {passage.surprisal:.2f} bits a token"
        )
        return f"<p><small>{label}\n</small>{marks.rstrip()}</p>"

    def _marks(self, passage: Passage) -> Iterator[str]:
        """A mark for each token, or for those that spell one character together."""
        pending: list[list[int]] = []
        bits = 0.0
        for number, token in enumerate(passage.tokens):
            best = [
                value
                for name, share in token.best
                for value in (self._names.setdefault(name, len(self._names)), round(10_000 * share))
            ]
            pending.append([round(100 * token.surprisal), *best])
            bits += token.surprisal
            if not token.text and number + 1 < len(passage.tokens):
                continue
            self._tokens.append(pending)
            letter = _LETTERS[sum(bits >= bound for bound in _BITS)]
            shown = html.escape(token.text).replace("\n", "\u21b5")
            yield f"<b class={letter}>{shown}</b>" + "\n" * token.text.count("\n")
            pending, bits = [], 0.0

    def json(self) -> str:
        """Names, and for each mark the hundredths of bits and the best, in hundredths of a percent."""
        content = {"names": list(self._names), "tokens": self._tokens}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.replace("<", "\\u003c")  # nothing in it ends the element


def _legend() -> str:
    bounds = [0, *_BITS]
    parts = (
        f"<span class={letter}> {bound:g}{'+' if number == len(_BITS) else ''} </span>"
        for number, (letter, bound) in enumerate(zip(_LETTERS, bounds, strict=True))
    )
    explained = "1 bit: one of two, 10 bits: one of a thousand"
    return f"<small>surprisal in bits, from {''.join(parts)}; {explained}</small>"
