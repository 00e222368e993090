"""What a call of lm-train does follows from what was given, without doing any of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lm_runtime.settings import settings_of
from lm_runtime.texts.reading import ReadingOptions
from lm_trainer.config import ModelConfig, TokenizerConfig, TrainingConfig, recipe_settings
from lm_trainer.config_file import by_fields
from lm_trainer.families import FAMILIES, Family
from lm_trainer.plan import ALL_SETTINGS, Action, Call, CallError, Plan, RunSettings, plan
from lm_trainer.presets import PRESETS, Preset


def planned(*, has_run: bool = False, file: dict[str, Any] | None = None, **given: Any) -> Plan:
    """The plan of a call; what is no setting says what to do."""
    actions = ("resume", "force", "dry_run", "find_lr")
    what = {name: given.pop(name) for name in actions if name in given}
    return plan(Call(given, file or {}, **what), has_run=has_run)


def test_an_empty_call_starts_the_default_run() -> None:
    found = planned()
    assert found.action is Action.START
    assert found.run == RunSettings()
    assert found.out == Path("artifacts/run")
    assert found.recipe == dataclasses.replace(PRESETS["small"], model=found.recipe.model)
    assert ModelConfig(**found.recipe.model) == ModelConfig(2048, 256, 256, 1, True, "lstm")
    assert (found.held, found.notes, found.replaces, found.expects_run) == ({}, (), False, False)
    assert found.picks_precision


@pytest.mark.parametrize(
    ("given", "has_run", "action"),
    [
        ({}, True, Action.START),  # which then refuses the folder
        ({"force": True}, True, Action.START),
        ({"resume": True}, False, Action.START),
        ({"resume": True}, True, Action.RESUME),
        ({"dry_run": True}, True, Action.DRY_RUN),
        ({"dry_run": True, "force": True}, True, Action.DRY_RUN),
        ({"find_lr": Path("lr.png")}, True, Action.FIND_LR),
    ],
)
def test_what_a_call_does(given: dict[str, Any], has_run: bool, action: Action) -> None:
    found = planned(has_run=has_run, **given)
    assert found.action is action
    assert found.is_trial == (action in (Action.DRY_RUN, Action.FIND_LR))
    assert found.replaces == given.get("force", False)
    assert found.expects_run == ("resume" in given and not has_run)
    assert found.picture == given.get("find_lr")


def test_the_call_comes_before_the_file_and_the_file_before_the_preset() -> None:
    file = {"preset": "tutorial", "lr": 0.5, "num_layers": 2, "out": "here", "corpus": "ptb"}
    found = planned(file=file, lr=0.25, corpus="text8")
    assert (found.run.preset, found.run.out, found.run.corpus) == ("tutorial", "here", "text8")
    assert (found.recipe.training.lr, found.recipe.model["num_layers"]) == (0.25, 2)
    assert found.recipe.training.clip_norm == PRESETS["tutorial"].training.clip_norm
    assert Call({"out": "there"}, file).out == Path("there")


def test_a_run_that_is_resumed_is_held_to_what_was_given_alone() -> None:
    """The preset's own values would refuse a run that was made with others."""
    assert planned(has_run=True, resume=True).held == {}
    found = planned(has_run=True, resume=True, file={"lr": 0.1}, hidden_size=48, corpus="ptb", out="run")
    assert found.held == {"lr": 0.1, "hidden_size": 48, "corpus": "ptb"}
    assert planned(has_run=True, resume=True, init="tuned", lr=0.1).held == {"lr": 0.1, "init": "tuned"}


def test_a_preset_that_is_given_is_held_against_the_run_but_for_its_length_and_precision() -> None:
    own = PRESETS["quick"].with_options({"lr": 0.1}).settings
    found = planned(has_run=True, resume=True, preset="quick", lr=0.1)
    assert found.held == {n: v for n, v in own.items() if n not in ("precision", "epochs", "patience")}
    assert planned(has_run=True, resume=True, preset="quick", epochs=3).held["epochs"] == 3
    tuned = planned(has_run=True, resume=True, preset="quick", init="run").held
    assert tuned["lr"] == pytest.approx(PRESETS["quick"].training.lr / 10)
    assert not tuned.keys() & {"hidden_size", "model_type", "tokenizer", "vocab_size"}


def test_the_machine_decides_on_a_precision_that_is_not_given() -> None:
    assert planned(hidden_size=512).picks_precision
    assert not planned(precision="fp32").picks_precision
    assert not planned(file={"precision": "bf16"}).picks_precision


@pytest.mark.parametrize(
    ("preset", "given", "projection"),
    [
        ("small", {"hidden_size": 512}, 256),
        ("small", {"embedding_dim": 128}, 128),
        ("small", {"tokenizer": "word", "hidden_size": 512}, 256),
        ("small", {"embedding_dim": 128, "hidden_size": 512}, 128),
        ("small", {"tied": True, "hidden_size": 512}, 256),
        ("small", {"hidden_size": 512, "model_type": "gru"}, 256),
        ("quick", {"embedding_dim": 300}, 300),
        ("quick", {"embedding_dim": 512}, 0),
    ],
)
def test_tied_weights_of_unlike_sizes_get_their_projection_and_it_is_said(
    preset: str, given: dict[str, Any], projection: int
) -> None:
    found = planned(preset=preset, **given)
    model = ModelConfig(**found.recipe.model)
    assert (model.tied, model.projection) == (True, projection)
    assert {name: getattr(model, name) for name in given if name != "tokenizer"} == {
        name: value for name, value in given.items() if name != "tokenizer"
    }
    (note,) = found.notes
    sizes = f"embedding-dim is {model.embedding_dim} and hidden-size {model.hidden_size}"
    end = f"added --projection {projection}" if projection else "no projection is needed"
    assert note == f"note: the weights are tied, {sizes}: {end}"


@pytest.mark.parametrize(
    ("preset", "given"),
    [
        ("small", {}),
        ("small", {"hidden_size": 512, "embedding_dim": 512}),
        ("small", {"hidden_size": 512, "tied": False}),
        ("small", {"hidden_size": 512, "projection": 256}),
        ("small", {"hidden_size": 512, "model_type": "window"}),
        ("quick", {"hidden_size": 640}),
        ("awd-lstm", {"model_type": "window"}),
        ("awd-lstm", {"model_type": "ngram"}),
        ("tutorial", {"hidden_size": 512}),
    ],
)
def test_nothing_is_said_where_nothing_is_added(preset: str, given: dict[str, Any]) -> None:
    assert planned(preset=preset, **given).notes == ()


@pytest.mark.parametrize(
    "given",
    [
        {"tied": True, "hidden_size": 512, "projection": 128},
        {"hidden_size": 512, "projection": 0},
        {"tied": True, "hidden_size": 512, "embedding_dim": 256},
    ],
)
def test_sizes_that_are_given_in_full_are_not_changed(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tied weights need embedding_dim equal to "):
        planned(**given)


def test_a_presets_own_family_stays_with_its_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"model_type": "window", "embedding_dim": 8, "hidden_size": 16, "window": 7, "tied": False}
    monkeypatch.setitem(
        PRESETS, "wide", Preset("a window of seven", TokenizerConfig("char"), model, TrainingConfig())
    )
    found = planned(preset="wide").recipe
    assert (found.model_type, found.model["window"]) == ("window", 7)
    assert planned(preset="wide", window=3).recipe.model["window"] == 3
    other = planned(preset="wide", model_type="gru").recipe
    assert (other.model_type, other.model["window"], other.model["hidden_size"]) == ("gru", 0, 16)
    with pytest.raises(ValueError, match="locked_dropout must be False with window"):
        planned(preset="wide", locked_dropout=True)


def test_a_family_that_is_added_later_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"model_type must be lstm, .* or ngram, got toy"):
        planned(model_type="toy")
    monkeypatch.setitem(
        FAMILIES, "toy", Family("a toy", "toys", {"order": (0, "none"), "window": (0, "none")})
    )
    assert planned(model_type="toy").recipe.model_type == "toy"


@pytest.mark.parametrize("name", recipe_settings())
def test_every_setting_of_a_recipe_reaches_it(name: str) -> None:
    entry = ALL_SETTINGS[name]
    values: dict[type, Any] = {int: 8, float: 0.25, bool: True, str: (*entry.choices, "char")[0]}
    given = {name: "0 1" if name == "prune" else values[entry.kind]}
    beside: dict[str, dict[str, Any]] = {
        "accumulate": {"batch_size": 8},
        "projection": {"tied": False},
        "replay": {"init": "run"},
    }
    given |= beside.get(name, {})
    family = {"window": "window", "order": "ngram", "prune": "ngram", "locked_dropout": "lstm"}.get(name)
    found = planned(**given, **({"model_type": family} if family else {})).recipe
    assert found.settings[name] == given[name] or name == "model_type"


def test_settings_have_one_name_each() -> None:
    options = [entry.option for entry in ALL_SETTINGS.values()]
    others = len(settings_of(RunSettings)) + len(settings_of(ReadingOptions))
    assert len(set(options)) == len(options) == len(recipe_settings()) + others
    assert {
        entry.name: entry.option
        for entry in ALL_SETTINGS.values()
        if entry.option.replace("-", "_") != entry.name
    } == {
        "model_type": "model",
        "num_layers": "layers",
    }


def test_a_file_has_the_options_names_and_the_plan_the_fields() -> None:
    found = by_fields({"layers": 2, "model": "gru", "lr": 1, "out": "here"}, ALL_SETTINGS, Path("run.toml"))
    assert found == {"num_layers": 2, "model_type": "gru", "lr": 1.0, "out": "here"}
    assert type(found["lr"]) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": True, "force": True}, "give --resume or --force, not both"),
        ({"resume": True, "dry_run": True}, "give --resume or --dry-run, not both"),
        ({"find_lr": Path("a.png"), "dry_run": True}, "give --dry-run or --find-lr, not both"),
        ({"find_lr": Path("a.png"), "force": True}, "--find-lr begins anew and touches no run"),
        ({"find_lr": Path("ptb")}, "takes a picture's path, which ends in .png, got ptb"),
        ({"find_lr": Path("a.png"), "model_type": "ngram"}, "--find-lr does not apply to ngram"),
        ({"init": "run", "num_layers": 2}, "--init gives the network and its vocabulary; leave out --layers"),
        ({"init": "run", "initial_weights": "torch"}, "leave out --initial-weights"),
        ({"tokenizer": "a.json", "vocab_size": 9}, "leave out --vocab-size and --min-frequency"),
        ({"tokenizer": "a.json", "lowercase": True}, "leave out --lowercase"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as error:
        planned(**given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be at least 0, got -1.0"),
        ({"sample_tokens": -1}, "sample_tokens must be at least 0, got -1"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda, got tpu"),
        ({"preset": "huge"}, "preset must be small, "),
        ({"optimizer": "lion"}, "optimizer must be adam, adamw or sgd, got lion"),
        ({"model_type": "ngram", "lr": 0.1}, "lr does not apply to ngram: it is estimated in one pass"),
        ({"lr": float("inf")}, "lr must be above 0, got inf"),
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        planned(**given)
    assert message in str(error.value)
