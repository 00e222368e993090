"""A record's fields say once what is allowed, and options, checks and messages follow."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lm_runtime.commands.options import GroupedCommand, option, settings_options, unescape
from lm_runtime.settings import check, check_number, setting, settings_of, short


@dataclass(frozen=True)
class Recipe:
    """A record with a setting of every kind."""

    eggs: int = setting(2, help="How many eggs.", low=1, high=12, group="Dough", option="egg-count")
    heat: float = setting(180.0, help="How hot.", above=0, group="Oven")
    salt: float | None = setting(None, help="How salty.", low=0, below=1, group="Dough")
    grain: str = setting("rye", help="Of what.", choices=("rye", "oat", "wheat"), group="Dough")
    leavened: bool = setting(True, help="Whether it rises.", group="Dough")
    toppings: tuple[str, ...] = setting((), help="What goes on it.", metavar="TEXT")
    baker: str = "unknown"

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eggs": 13}, "eggs must be from 1 to 12, got 13"),
        ({"eggs": 2.0}, "eggs must be a whole number, got 2.0"),
        ({"eggs": "2"}, "eggs must be a whole number, got '2'"),
        ({"eggs": None}, "eggs must be a whole number, got None"),
        ({"eggs": True}, "eggs must be a whole number, got True"),
        ({"heat": 0}, "heat must be above 0, got 0"),
        ({"heat": math.inf}, "heat must be above 0, got inf"),
        ({"heat": math.nan}, "heat must be above 0, got nan"),
        ({"heat": 10**400}, f"heat must be above 0, got {short(10**400)}"),
        ({"salt": 1}, "salt must be at least 0 and below 1, got 1"),
        ({"grain": "rice"}, "grain must be rye, oat or wheat, got rice"),
        ({"grain": 5}, "grain must be a string, got 5"),
        ({"leavened": 1}, "leavened must be true or false, got 1"),
        ({"toppings": "salt"}, "toppings must be a sequence of strings, got 'salt'"),
        ({"toppings": ["a", 5]}, "toppings must be a sequence of strings, got ['a', 5]"),
        ({"toppings": [""]}, "a toppings string must not be empty"),
    ],
)
def test_a_wrong_value_is_named_with_its_bound(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe(**values)
    assert str(caught.value) == message


def test_right_values_are_kept_and_lists_become_tuples() -> None:
    recipe = Recipe(eggs=1, heat=1, salt=0, toppings=["seeds"])
    assert (recipe.toppings, recipe.salt) == (("seeds",), 0)
    assert list(settings_of(Recipe)) == ["eggs", "heat", "salt", "grain", "leavened", "toppings"]


def test_an_argument_is_checked_as_a_field_is() -> None:
    check_number("k", 3, int, low=1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        check_number("k", 0, int, low=1)
    with pytest.raises(ValueError, match="k must be a whole number, got '3'"):
        check_number("k", "3", int, low=1)


def test_a_long_value_is_cut() -> None:
    assert short("abc") == "'abc'"
    assert len(short("x" * 10_000_000)) < 100
    assert len(short(["x" * 10_000] * 3)) < 100


@click.command(cls=GroupedCommand)
@click.argument("tin", default="round")
@option("--verbose", is_flag=True, group="Oven", help="Say more.")
@settings_options(Recipe, defaults=lambda entry: "" if entry.default is None else "the cook's")
def bake(tin: str, verbose: bool, **given: Any) -> None:
    """Bake."""
    click.echo(repr({name: given[name] for name in sorted(given) if given[name] not in (None, ())}))


def test_every_setting_is_an_option_under_its_heading() -> None:
    text = CliRunner().invoke(bake, ["--help"]).output
    headings = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert headings == ["Usage: bake [OPTIONS] [TIN]", "Oven:", "Dough:", "Options:"]
    assert "How many eggs.  [from 1 to 12; default: the cook's]" in " ".join(text.split()).replace(
        "eggs. [", "eggs.  ["
    )
    assert "--leavened / --no-leavened" in text
    assert "What goes on it. Repeatable." in text
    assert "[TIN]" not in text.split("Oven:")[1]


def test_options_arrive_by_the_fields_names() -> None:
    arguments = ["--egg-count", "3", "--no-leavened", "--toppings", "a", "--toppings", "b", "--grain", "oat"]
    result = CliRunner().invoke(bake, arguments)
    assert result.output == "{'eggs': 3, 'grain': 'oat', 'leavened': False, 'toppings': ('a', 'b')}\n"
    assert CliRunner().invoke(bake, []).output == "{}\n"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (r"\nabla", "\n" + "abla"),
        (r"\\nabla", r"\nabla"),
        (r"\\\n", "\\\n"),
        (r"a\tb\"\/", 'a\tb"/'),
        (r"\u00e9\ud83d\ude42", "é🙂"),
        ("plain é🙂", "plain é🙂"),
        ("", ""),
    ],
)
def test_escapes_are_json_s(text: str, meaning: str) -> None:
    assert unescape(text) == meaning


@given(st.text())
def test_whatever_json_writes_is_read(text: str) -> None:
    assert unescape(json.dumps(text)[1:-1]) == text
    assert unescape(text.replace("\\", "\\\\")) == text


@pytest.mark.parametrize("text", [r"\d", "\\", r"\x41", r"\u12", r"\ud83d", r"\ude42\ud83d", "\\\n"])
def test_what_is_no_escape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no escape; a backslash is written \\\\|half a surrogate pair"):
        unescape(text)
