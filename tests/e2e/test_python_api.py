"""The calls of docs/python.md: they are there, they run as written, and what they return is frozen."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import plimsoll

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
CASE: dict[str, Any] = {"model": "Llama-3.1-8B", "prompt_tokens": 200, "output_tokens": 20, "ttft_ms": 1000.0}


@pytest.mark.parametrize("example", EXAMPLES, ids=["simulate", "study", "capacity", "plan", "place"])
def test_the_examples_of_the_page_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_public_name_is_importable_and_documented() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in plimsoll.__all__:
        assert getattr(plimsoll, name)
    for name in ("simulate", "study", "capacity", "plan"):
        assert f"plimsoll.{name}(" in text
        assert getattr(plimsoll, name).__doc__


def test_a_simulation_is_frozen() -> None:
    result = plimsoll.simulate(**CASE, gpu="H100-SXM", rate_per_s=2.0, num_requests=20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.wall_s = 0.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        result.run.finish_s[0] = 0.0
    assert {field.name for field in dataclasses.fields(result)} <= _documented("SimulationResult")


def test_a_capacity_is_frozen() -> None:
    answer = plimsoll.capacity(**CASE, gpu="H100-SXM", num_seeds=1, num_requests=100)
    for frozen in (answer, answer.result, answer.result.probes[0], answer.load):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.unit = frozen.load = frozen.notes = ()  # type: ignore
    assert {field.name for field in dataclasses.fields(answer)} <= _documented("CapacityAnswer")
    assert {field.name for field in dataclasses.fields(answer.result)} <= _documented("CapacityAnswer") | {"note"}


def test_a_plan_is_frozen() -> None:
    answer = plimsoll.plan(**CASE, gpus="L40S:1", token_budgets="2048", tpot_ms=100.0)
    for frozen in (answer, answer.result, answer.result.plans[0], answer.result.plans[0].deployment):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.replicas = frozen.rank = frozen.result = ()  # type: ignore
    assert {field.name for field in dataclasses.fields(answer)} <= _documented("PlanAnswer")


def _documented(kind: str) -> set[str]:
    """The words in backticks of the paragraph that describes a result."""
    text = PAGE.read_text(encoding="utf-8")
    (paragraph,) = (part for part in text.split("\n\n") if part.startswith(f"`{kind}`"))
    return set(re.findall(r"`(\w+)", paragraph))
