"""Flags, scenario fields, help and the reference page are one list."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.scenario import CapacityScenario, PlanScenario, SimulateScenario, flag_name
from plimsoll.cli import running
from plimsoll.cli.app import app
from tests.e2e.commands import run

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {"simulate": SimulateScenario, "capacity": CapacityScenario, "plan": PlanScenario}
PROMISED = {
    "simulate": "model gpu tp pp dp ep replicas router engine precision kv-precision step-model workload trace "
    "trace-format rate arrivals burstiness concurrency at-once num-requests duration-s max-num-seqs "
    "max-num-batched-tokens max-model-len gpu-memory-utilization kv-blocks block-size seed out json",
    "capacity": "model gpu tp pp dp ep replicas router engine precision kv-precision step-model workload trace "
    "trace-format rate arrivals burstiness concurrency at-once num-requests duration-s split max-num-seqs "
    "max-num-batched-tokens max-model-len "
    "gpu-memory-utilization kv-blocks block-size seed out json ttft-ms tpot-ms e2e-ms percentile",
    "plan": "model workload trace prompt-tokens output-tokens rate users budget-usd-per-hour gpus engines step-model "
    "ttft-ms tpot-ms percentile throughput-tokens-per-s latency-preference precisions precision-tolerance prefix-hit "
    "spare optimize top seed json out dp disaggregated split placement",
}


def declared() -> dict[str, dict[str, Any]]:
    """For each verb its parameters with what Typer was told of them."""
    found = {}
    for verb in app.registered_commands:
        assert verb.callback is not None
        hints = typing.get_type_hints(verb.callback, include_extras=True)
        found[str(verb.name)] = {name: typing.get_args(hint) for name, hint in hints.items() if name != "return"}
    return found


def flag_of(parameter: Any) -> str:
    _, declaration = parameter
    words = (declaration.default, *(declaration.param_decls or ()))
    return next(word for word in words if isinstance(word, str) and word.startswith("--"))


@pytest.mark.parametrize("verb", SCENARIOS)
def test_every_field_of_a_scenario_is_a_flag_and_the_other_way_round(verb: str) -> None:
    flags = {name: flag_of(p) for name, p in declared()[verb].items() if name not in running.NOT_FIELDS}
    fields = {field.name: flag_name(field.name) for field in dataclasses.fields(SCENARIOS[verb])}
    assert flags == fields


@pytest.mark.parametrize("verb", SCENARIOS)
def test_a_flag_has_the_type_of_its_field_and_no_default_of_its_own(verb: str) -> None:
    """The scenario's defaults are the only ones: None means that a flag was not given."""
    hints = typing.get_type_hints(SCENARIOS[verb])
    command = next(item.callback for item in app.registered_commands if item.name == verb)
    assert command is not None
    defaults = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    for name, (kind, _) in declared()[verb].items():
        if name in running.NOT_FIELDS:
            continue
        assert set(typing.get_args(kind)) == set(typing.get_args(hints[name]) or (hints[name],)) | {type(None)}
        assert defaults[name] is None


@pytest.mark.parametrize("verb", PROMISED)
def test_the_promised_flags_are_there(verb: str) -> None:
    flags = {flag_of(p) for p in declared()[verb].values()}
    assert {f"--{word}" for word in PROMISED[verb].split()} <= flags


@pytest.mark.parametrize("verb", [*SCENARIOS, "catalog"])
def test_help_shows_every_flag_with_its_text_and_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run(capsys, verb, "--help").stdout).split())
    page = " ".join((ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split())
    for name, parameter in declared()[verb].items():
        help_text = parameter[1].help.replace("\\[", "[")
        assert help_text, f"{verb} {name} has no help"
        assert len(help_text) > 10
        assert help_text in text, "rich took a part of it for markup, or it is cut"
        assert help_text in page


def test_every_default_in_a_help_text_is_the_scenarios() -> None:
    for verb, kind in SCENARIOS.items():
        for field in dataclasses.fields(kind):
            shown = re.search(r"\\\[([^]]*)\]$", declared()[verb][field.name][1].help)
            if field.default is None or field.default is False:
                continue
            assert shown, f"{verb} {field.name}: a default that is not shown"
            wanted = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            assert shown.group(1) == wanted


def test_the_reference_page_is_what_the_program_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_cli_docs.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), "run make docs"
