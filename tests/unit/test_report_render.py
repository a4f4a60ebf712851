"""What a person reads of each document: the verdict first, every figure of the document, nothing made up."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

import plimsoll
from plimsoll.report import capacity as capacity_report
from plimsoll.report import catalogue as catalogue_report
from plimsoll.report import plan as plan_report
from plimsoll.report import simulation as simulation_report


def rendered(render: Any, document: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    render(Console(file=stream, width=120, highlight=False), document)
    return stream.getvalue().splitlines()


@pytest.fixture(scope="module")
def simulation() -> dict[str, Any]:
    return plimsoll.simulate(
        model="Llama-3.1-8B", gpu="H100-SXM", prompt_tokens=64, output_tokens=16, rate_per_s=4, num_requests=30,
        ttft_ms=1000, seed=5,
    ).to_json_dict()  # fmt: skip


def test_a_simulation_opens_with_its_verdict(simulation: dict[str, Any]) -> None:
    lines = rendered(simulation_report.render, simulation)
    assert lines[0].startswith("meta-llama/Llama-3.1-8B on 1 H100-SXM = 1 replica × TP 1 meets its targets at ")
    text = "\n".join(lines)
    assert "requests: 30 finished, 0 unfinished, 0 rejected; 0 preemptions" in text
    assert "holds:  p99 TTFT" in text
    assert "seed 5" in text
    assert "* too few requests" in text, "30 requests are too few for a p99"


def test_a_simulation_without_any_token_has_dashes_and_no_error(simulation: dict[str, Any]) -> None:
    empty = {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None, "too_few_samples": [], "num_samples": 0}
    empty["interval"] = dict.fromkeys(("p50", "p90", "p95", "p99"))
    metrics = {
        name: empty if name in dict(simulation_report.LATENCIES) else value
        for name, value in simulation["metrics"].items()
    }
    lines = rendered(simulation_report.render, {**simulation, "metrics": metrics, "verdict": None})
    assert lines[2].split() == ["TTFT", *"–" * 6]


def test_overload_is_said_before_anything_else(simulation: dict[str, Any]) -> None:
    line = simulation_report.verdict_line({**simulation, "queue_grows": True})
    assert "overloaded, the queue keeps growing" in line


def test_a_miss_is_a_miss(simulation: dict[str, Any]) -> None:
    missed = plimsoll.simulate(
        model="Llama-3.1-8B", gpu="H100-SXM", prompt_tokens=64, output_tokens=16, concurrency=2, num_requests=10,
        ttft_ms=0.001,
    ).to_json_dict()  # fmt: skip
    text = "\n".join(rendered(simulation_report.render, missed))
    assert "misses its targets" in text
    assert "MISSES: p99 TTFT" in text
    assert "closed loop, 2 users" in text


def test_a_capacity_says_how_much_how_sure_and_what_gives_way() -> None:
    answer = plimsoll.capacity(
        model="Llama-3.1-8B", gpu="H100-SXM", prompt_tokens=64, output_tokens=16, tpot_ms=20, num_seeds=2,
        num_requests=200,
    )  # fmt: skip
    lines = rendered(capacity_report.render, answer.to_json_dict())
    assert "carries" in lines[0]
    assert "95 % interval" in lines[0]
    assert "above that, " in lines[0]
    text = "\n".join(lines)
    assert "targets: TPOT 20 ms at p99" in text
    assert "64 prompt and 16 output tokens each" in text
    assert "probes of 200 requests, the first 10 % or more left out as warm-up; seeds 0 to 1" in text


@pytest.mark.parametrize("limit", ["ttft", "tpot", "itl", "e2e", "stationarity", "none"])
def test_every_limit_has_its_words(limit: str) -> None:
    document = {
        "deployment": {"model": "m", "gpu": "g", "num_gpus": 2},
        "max_load": 3.0, "unit": "requests/s", "confidence": None, "interval": [2.0, None], "limited_by": limit,
    }  # fmt: skip
    line = capacity_report.verdict_line(document)
    assert line.startswith("m on 2 × g carries 3 requests/s, bracket 2–∞; above that, ")
    assert capacity_report.verdict_line({**document, "max_load": 0.0}).endswith("at any load")


def test_a_plan_that_fits_nothing_says_what_would_have_to_give() -> None:
    answer = plimsoll.plan(
        model="Llama-3.1-8B", prompt_tokens=64, output_tokens=16, gpus="L4:1", token_budgets="2048", ttft_ms=1000,
        budget_usd_per_hour=0.01,
    )  # fmt: skip
    lines = rendered(plan_report.render, answer.to_json_dict())
    assert "what would have to give" in "\n".join(lines)
    assert "over the budget" in "\n".join(lines)
    assert "start plan 1 with" not in "\n".join(lines)


def test_every_kind_of_rejection_has_words() -> None:
    from plimsoll.planner.results import Rejection

    documented = Rejection.__doc__ or ""
    for kind in plan_report.REJECTIONS:
        assert f"``{kind}``" in documented, f"the planner knows no kind {kind}"


def test_a_catalogue_table_keeps_long_names_whole_on_a_narrow_terminal() -> None:
    name = "an-organisation/A-Model-With-A-Very-Long-Name-" + "x" * 120
    document = {
        "kind": "models",
        "entries": [{"model": name, "params_billion": 8.03}, {"model": "b", "params_billion": None}],
    }
    lines = rendered(catalogue_report.render, document)
    assert any(name in line and "8.03" in line for line in lines)
    assert lines[-1].startswith("2 models; one with its sources")


def test_plans_of_several_engines_say_which() -> None:
    from rich.console import Console

    from plimsoll.api.planning import plan
    from plimsoll.report.plan import render as render_plan

    def shown(engines: str) -> str:
        answer = plan(
            model="Llama-3.1-8B", gpus="H100-SXM:1", prompt_tokens=200, output_tokens=30, ttft_ms=500.0, tpot_ms=30.0,
            tp="1", pp="1", token_budgets="2048", engines=engines,
        )  # fmt: skip
        console = Console(width=200, record=True, file=io.StringIO())
        render_plan(console, answer.to_json_dict())
        return console.export_text()

    both, one = shown("vllm-v1,trtllm").splitlines(), shown("vllm-v1").splitlines()
    assert "engine" in both[2].split()
    assert {row.split()[6] for row in both[3:5]} == {"vllm-v1", "trtllm"}
    assert "engine" not in one[2].split()
