"""``lm-serve``: bundles over HTTP, by OpenAI's completions protocol, with a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_runtime.commands import Command, imports, note, where_it_runs, which_graph
from lm_runtime.commands.options import option, settings_options
from lm_runtime.server.limits import Limits
from lm_runtime.settings import Setting

if TYPE_CHECKING:
    from lm_runtime.models.protocol import BundleModel

_EXAMPLES = """
\b
Examples:
  lm-serve                                  the bundle in artifacts/bundle, at http://127.0.0.1:8000/
  lm-serve my-bundle my-ngram --port 8080
  lm-serve my-bundle --precision int8 --max-batch 128

Then open the address in a browser, or ask:

\b
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "Return the", "max_tokens": 20}'
"""

_FILE = click.Path(path_type=Path)
_ADDRESS, _ACCESS = "Address", "Access"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_SHORTEST_KEY = 16


def _default(entry: Setting) -> str:
    return f"{entry.default:,}" if isinstance(entry.default, int) else f"{entry.default:g}"


@click.command(cls=Command, name="lm-serve", epilog=_EXAMPLES)
@click.argument("bundles", type=_FILE, nargs=-1, metavar="[BUNDLE]...")
@option("--host", default="127.0.0.1", show_default=True, group=_ADDRESS, help="The address to listen at.")
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    group=_ADDRESS,
    help="The port; 0 takes a free one.",
)
@option(
    "--api-key-file",
    type=_FILE,
    metavar="FILE",
    group=_ACCESS,
    help="Answer only requests that bring a key of this file, one a line.",
)
@option(
    "--state-key-file",
    type=_FILE,
    metavar="FILE",
    group=_ACCESS,
    help="Sign the states that clients hold with the key in this file, and refuse others.",
)
@option(
    "--cors-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    group=_ACCESS,
    help="Let pages from there ask, such as https://example.org; * is all. Repeatable.",
)
@settings_options(Limits, defaults=_default)
@which_graph
@where_it_runs
@option("--log-texts", is_flag=True, help="Log prompts and texts too.")
@click.version_option(package_name="steplm")
def main(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    state_key_file: Path | None,
    origins: tuple[str, ...],
    log_texts: bool,
    precision: Any,
    provider: Any,
    threads: int | None,
    **limits: Any,
) -> None:
    """Serve each BUNDLE, a folder that lm-export wrote, over HTTP by OpenAI's completions protocol.

    Without a BUNDLE that is artifacts/bundle. Requests call a bundle by its folder's name. The address of the
    page goes to standard output, a JSON object for each request to standard error. No torch is needed.
    """
    with imports():
        from lm_runtime.models.load import load_together
        from lm_runtime.server.guard import Rules
        from lm_runtime.server.process import listen, run
        from lm_runtime.server.service import Service
        from lm_runtime.server.states import States

    bounds = Limits(**{name: value for name, value in limits.items() if value is not None})
    folders = bundles or (Path("artifacts/bundle"),)
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two bundles are called {max(names, key=names.count)}; rename a folder")
    keys = _keys(api_key_file) if api_key_file is not None else ()
    state_keys = _keys(state_key_file) if state_key_file is not None else (None,)
    models = load_together(folders, precision=precision, provider=provider, threads=threads)
    listener = listen(host, port)
    rules = Rules(keys, origins, tuple({host, *_LOCAL}) if host in _LOCAL else ())
    service = Service(
        models=dict(zip(names, models, strict=True)),
        limits=bounds,
        states=States(state_keys[0]),
        rules=rules,
        log_texts=log_texts,
    )
    shown = f"[{host}]" if ":" in host else host
    note(f"serving {', '.join(map(_called, names, models))}; Ctrl-C stops")
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    run(service, listener, lambda: click.echo(address), note)


def _called(name: str, model: BundleModel) -> str:
    return f"{name} ({model.config.model_type}, {model.precision})"


def _keys(path: Path) -> tuple[bytes, ...]:
    """The keys in a file, one a line.

    Raises:
        ValueError: there is none, or one is too short.
        UnusableFileError: the file cannot be read.
    """
    from lm_runtime.text_files import read_text_file

    keys = tuple(line.strip().encode() for line in read_text_file(path).splitlines() if line.strip())
    if not keys or any(len(key) < _SHORTEST_KEY for key in keys):
        raise ValueError(f"{path} must have a key of at least {_SHORTEST_KEY} characters a line")
    return keys
