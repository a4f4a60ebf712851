"""Scenarios: one list of fields for flags, files and keywords; what is given wins; wrong types are named by flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plimsoll.api.scenario import (
    CapacityScenario,
    PlanScenario,
    SimulateScenario,
    build,
    flag_name,
    read_scenario,
    to_yaml,
)
from plimsoll.core.errors import InputError, UnknownNameError


def test_what_is_given_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("model: a\ngpu: b\nrate_per_s: 3\ntp: null\n")
    built = build(SimulateScenario, {"gpu": "c", "model": None}, str(file))
    assert (built.model, built.gpu, built.rate_per_s, built.tp) == ("a", "c", 3.0, 1)


def test_a_file_may_use_the_names_of_flags(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("rate: 3\nprefix-hit: 0.5\ntoken-budgets: [512, 2048]\n")
    assert read_scenario(str(file)) == {"rate_per_s": 3, "prefix_hit_frac": 0.5, "token_budgets": [512, 2048]}
    assert build(PlanScenario, {}, str(file)).token_budgets == "512,2048"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rate_per_s", 3, 3.0),
        ("tp", 2.0, 2),
        ("model", 7, "7"),
        ("num_requests", None, None),
        ("at_once", True, True),
    ],
)
def test_a_value_of_a_kindred_type_is_taken(field: str, value: Any, expected: Any) -> None:
    found = getattr(build(SimulateScenario, {field: value}), field)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rate_per_s", "fast", "--rate: 'fast' cannot be used; give a number"),
        ("rate_per_s", True, "--rate: True cannot be used; give a number"),
        ("tp", 1.5, "--tp: 1.5 cannot be used; give a whole number"),
        ("tp", True, "--tp: True cannot be used; give a whole number"),
        ("model", {"a": 1}, "--model: {'a': 1} cannot be used; give a text"),
        ("at_once", 1, "--at-once: 1 cannot be used; give true or false"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_its_flag(field: str, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        build(SimulateScenario, {field: value})
    assert str(caught.value) == words


def test_a_field_that_the_verb_does_not_have_shows_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean model"):
        build(SimulateScenario, {"modle": "x"})
    with pytest.raises(UnknownNameError):
        build(CapacityScenario, {"spare": 1})


@pytest.mark.parametrize("kind", [SimulateScenario, CapacityScenario, PlanScenario])
def test_a_scenario_survives_its_file(tmp_path: Path, kind: type) -> None:
    asked = build(kind, {"model": "m", "rate_per_s": 2.5, "seed": 9, "router": "least-loaded"})
    file = tmp_path / "s.yaml"
    file.write_text(to_yaml(asked))
    assert build(kind, {}, str(file)) == asked
    assert set(yaml.safe_load(file.read_text())) == {"model", "rate_per_s", "seed", "router"}


def test_an_untouched_scenario_is_an_empty_mapping() -> None:
    assert yaml.safe_load(to_yaml(SimulateScenario())) == {}


def test_flags_are_the_fields_names_but_for_two() -> None:
    assert [flag_name(name) for name in ("rate_per_s", "prefix_hit_frac", "max_num_seqs")] == [
        "--rate",
        "--prefix-hit",
        "--max-num-seqs",
    ]
