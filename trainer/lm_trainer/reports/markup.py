"""Parts of pages that need no other file, no script and no network. Knows nothing about runs."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from lm_runtime.files import write_whole

_ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ddd; padding: .2em 1.5em .2em 0; text-align: left; vertical-align: top }
img { max-width: 100% }
pre { background: #f5f5f5; padding: 1em; white-space: pre-wrap; overflow-wrap: anywhere }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A page: its title is its heading, and ``body`` is HTML; ``style`` is added to the pages' own."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
<h1>{escape(title)}</h1>
{body}
</html>
"""


def write_page(path: Path, text: str) -> None:
    """Write a page, atomically."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", "replace"))  # a file's name may be no text


def table(rows: Iterable[tuple[object, ...]]) -> str:
    """A table whose first column is a heading."""
    lines = (
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for first, *cells in rows
    )
    return "\n".join(["<table>", *lines, "</table>"])


def picture(title: str, png: bytes) -> str:
    """A picture within the page."""
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(png).decode()}">\n'


def in_frame(text: str) -> str:
    """A page within another one, such as a notebook, whose look it leaves alone."""
    return f'<iframe srcdoc="{escape(text)}" style="width: 100%; height: 40em; border: 0"></iframe>'


def escape(value: object) -> str:
    """Text, as HTML."""
    return html.escape(str(value))
