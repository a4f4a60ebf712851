"""Replicas of several kinds behind one router."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import plimsoll
from plimsoll.api.capacity import CapacityAnswer
from plimsoll.api.capacity_probes import search_options, searched_load
from plimsoll.api.kinds import kinds_of
from plimsoll.api.scenario import CapacityScenario, SimulateScenario
from plimsoll.api.simulation import SimulationResult
from plimsoll.cli import main
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.report.capacity import render

ASKED = SimulateScenario(model="Llama-3.1-8B", workload="chat", rate_per_s=6, num_requests=120)


def asked(gpu: str, **fields: object) -> SimulateScenario:
    """What is asked, of these GPUs."""
    return dataclasses.replace(ASKED, gpu=gpu, **fields)  # type: ignore[arg-type]


def test_one_kind_is_no_list() -> None:
    assert kinds_of(asked("H100-SXM")) == []
    assert kinds_of(asked("./my/device.toml")) == []


def test_counts_are_gpus_of_replicas_that_are_cut_alike() -> None:
    kinds = kinds_of(asked("L40S:4, H100-SXM", tp=2))
    assert [(kind.gpu, kind.replicas, kind.tp) for kind in kinds] == [("L40S", 2, 2), ("H100-SXM", 1, 2)]


@pytest.mark.parametrize(
    ("gpu", "fields", "said"),
    [
        ("L40S:3,H100-SXM:2", {"tp": 2}, "multiple of the GPUs of a replica, 2"),
        ("L40S:0,H100-SXM:1", {}, "multiple"),
        ("L40S:-2,H100-SXM:1", {}, "multiple"),
        ("L40S,L40S:2", {}, "twice"),
        ("L40S:x,H100-SXM", {}, "L40S:2,H100-SXM:1"),
        ("L40S,,H100-SXM", {}, "L40S:2,H100-SXM:1"),
        ("L40S,H100-SXM", {"replicas": 2}, "leave it out"),
        ("L40S,H100-SXM", {"engine": "splitwise"}, "one kind"),
        ("L40S,H100-SXM", {"engine": "flexgen"}, "one kind"),
        ("L40S,nonsense", {}, "nonsense"),
    ],
)
def test_what_cannot_be_is_named(gpu: str, fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plimsoll.simulate(asked(gpu, **fields))


def test_other_verbs_say_who_takes_several() -> None:
    with pytest.raises(InputError, match="simulate and capacity take several"):
        plimsoll.study(engines="vllm-v1", model="Llama-3.1-8B", gpu="L40S,H100-SXM", workload="chat", rate_per_s=1)


def lone(gpu: str, result: SimulationResult, replica: int) -> SimulationResult:
    """The same GPU alone, at the load that it got."""
    share = float((result.run.replica == replica).mean())
    return plimsoll.simulate(asked(gpu, rate_per_s=6 * share))


def test_a_mixed_fleet_serves_everything_and_each_kind_at_its_own_speed() -> None:
    result = plimsoll.simulate(asked("L40S:2,H100-SXM:1", router="round-robin"))
    assert [kind.gpu.id for kind in result.kinds] == ["L40S", "H100-SXM"]
    document = result.to_json_dict()
    slow, fast = document["kinds"]
    assert (slow["num_requests"], fast["num_requests"]) == (80, 40)
    assert result.run.finished.all()
    assert fast["ttft_p50_s"] < slow["ttft_p50_s"]
    tpot_s = (result.run.finish_s - result.run.first_token_s) / np.maximum(result.run.output_tokens - 1, 1)
    for gpu, replica in (("L40S", 0), ("L40S", 1), ("H100-SXM", 2)):
        alone = lone(gpu, result, replica).metrics.tpot_s.mean
        assert alone is not None
        assert float(tpot_s[result.run.replica == replica].mean()) == pytest.approx(alone, rel=0.25)


def test_a_fleet_of_one_kind_is_that_kind() -> None:
    mixed = plimsoll.simulate(asked("H100-SXM:2", router="least-loaded"))
    plain = plimsoll.simulate(asked("H100-SXM", replicas=2, router="least-loaded"))
    np.testing.assert_array_equal(mixed.run.finish_s, plain.run.finish_s)
    np.testing.assert_array_equal(mixed.run.replica, plain.run.replica)


def test_requests_fit_on_every_kind() -> None:
    """Drawn lengths are cut to what the smallest kind takes; those that were asked for are rejected there."""
    drawn = plimsoll.simulate(asked("L4,H100-SXM", workload="long-context", num_requests=40, rate_per_s=1))
    smallest = min(kind.memory.max_model_len for kind in drawn.kinds)
    assert smallest < 131_072
    assert drawn.run.finished.all()
    assert int((drawn.run.prompt_tokens + drawn.run.output_tokens).max()) <= smallest
    fixed = plimsoll.simulate(asked("L4,H100-SXM", workload=None, prompt_tokens=100_000, output_tokens=9))
    assert not fixed.run.finished.any()
    assert f"longer than the server takes ({smallest} tokens)" in fixed.notes[-1]


def test_ranks_in_lockstep_are_one_replica_of_a_kind() -> None:
    result = plimsoll.simulate(
        asked("H100-SXM:4,H200:2", model="Qwen3-30B-A3B", dp=2, ep=2, num_requests=60, router="round-robin")
    )
    first, second = result.to_json_dict()["kinds"]
    assert (first["num_requests"], second["num_requests"]) == (40, 20)


# How much a mixed fleet carries ---------------------------------------------------------------------------------------

SEARCH = {"model": "Llama-3.1-8B", "prompt_tokens": 500, "output_tokens": 60, "ttft_ms": 1500.0, "tpot_ms": 50.0,
          "max_num_batched_tokens": 2048, "num_requests": 500, "num_seeds": 2, "router": "least-loaded"}  # fmt: skip


def carried(gpu: str, **fields: object) -> CapacityAnswer:
    return plimsoll.capacity(**{**SEARCH, "gpu": gpu, **fields})  # type: ignore[arg-type]


def test_a_fleet_of_one_kind_carries_what_its_replicas_do() -> None:
    counted, plain = carried("H100-SXM:2"), carried("H100-SXM", replicas=2)
    assert counted.result == plain.result
    assert [kind.gpu.id for kind in counted.kinds] == ["H100-SXM"]
    assert (plain.kinds, plain.held) == ((), None)


@pytest.mark.parametrize(("tpot_ms", "kept_frac"), [(50.0, (0.8, 1.1)), (30.0, (0.3, 0.7))])
def test_a_slow_kind_adds_less_than_it_carries_and_may_spoil_the_p99(
    tpot_ms: float, kept_frac: tuple[float, float]
) -> None:
    """A router that counts requests fills the slow GPU too, and a p99 over all of them feels it."""
    mixed = carried("L40S:1,H100-SXM:1", tpot_ms=tpot_ms)
    low, high = mixed.result.interval
    assert low < mixed.result.max_load < high
    assert mixed.result.confidence == 0.95
    assert len(mixed.result.by_seed) == 2
    slow, fast = (carried(gpu, tpot_ms=tpot_ms).result.max_load for gpu in ("L40S", "H100-SXM"))
    assert 1.5 * slow < mixed.result.max_load < 1.05 * (slow + fast)
    assert kept_frac[0] < mixed.result.max_load / fast < kept_frac[1]


def test_what_each_kind_did_at_the_highest_load_that_held() -> None:
    mixed = carried("L40S:1,H100-SXM:1")
    document = mixed.to_json_dict()
    slow, fast = document["kinds"]
    assert mixed.held is not None
    assert slow["num_requests"] + fast["num_requests"] == len(mixed.held) == 500
    assert 0 < slow["num_requests"] < fast["num_requests"]
    held = [p for p in mixed.result.probes if p.load == mixed.result.by_seed[0].highest_pass and p.seed == 0]
    ttft_s = np.sort((mixed.held.first_token_s - mixed.held.arrival_s)[-450:])  # the first tenth is warm-up
    assert held[0].figures["ttft_s"] <= ttft_s[-1]
    text = capacity_text(document)
    assert text.startswith("meta-llama/Llama-3.1-8B on 1 × L40S + 1 × H100-SXM carries ")
    lines = [f"{kind['deployment']['gpu']}: {kind['num_requests']} of the requests at the highest load that held"
             for kind in (slow, fast)]  # fmt: skip
    assert all(line in text for line in lines)


def capacity_text(document: dict[str, Any]) -> str:
    console = Console(width=200, highlight=False, file=io.StringIO())
    render(console, document)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_where_nothing_holds_the_kinds_are_named_all_the_same() -> None:
    nothing = carried("L40S:1,H100-SXM:1", ttft_ms=0.5)
    assert nothing.result.max_load == 0
    document = nothing.to_json_dict()
    assert [kind["num_requests"] for kind in document["kinds"]] == [None, None]
    assert "of the requests" not in capacity_text(document)
    assert "L40S: vllm-v1, bf16 weights" in capacity_text(document)


@pytest.mark.parametrize("fields", [{"users": 8}, {"concurrency": 8}, {"at_once": True, "num_requests": None}])
def test_other_loads_than_rates_are_searched_on_them_too(fields: dict[str, object]) -> None:
    answer = carried("L40S:1,H100-SXM:1", num_seeds=1, **fields)
    assert answer.result.max_load >= 1
    assert answer.held is not None
    assert set(answer.held.replica.tolist()) == {0, 1}


def test_a_horizon_cuts_what_they_did() -> None:
    answer = carried("L40S:1,H100-SXM:1", num_seeds=1, num_requests=None, duration_s=20.0)
    assert answer.held is not None
    assert sum(kind["num_requests"] for kind in answer.to_json_dict()["kinds"]) == len(answer.held)


@pytest.mark.parametrize(
    ("gpu", "fields", "said"),
    [
        ("L40S:1,H100-SXM:1", {"split": "1:1"}, "pools take GPUs of one kind, not L40S:1,H100-SXM:1"),
        ("L40S:1,H100-SXM:1", {"engine": "distserve,prefill=1,decode=1"}, "takes GPUs of one kind"),
        ("L40S:1,H100-SXM:1", {"replicas": 2}, "leave it out"),
        ("L40S:1,L40S:1", {}, "there twice"),
    ],
)
def test_fleets_that_cannot_be_searched(gpu: str, fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        carried(gpu, **fields)


def test_the_command_line_gives_what_python_gives(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "Llama-3.1-8B", "--gpu", "L40S:1,H100-SXM:1", "--prompt-tokens", "500", "--output-tokens", "60",
             "--ttft-ms", "1500", "--tpot-ms", "50", "--num-requests", "500", "--max-num-batched-tokens", "2048",
             "--num-seeds", "2", "--router", "least-loaded", "--json"]  # fmt: skip
    assert main(["capacity", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    ours = json.loads(json.dumps(carried("L40S:1,H100-SXM:1").to_json_dict()))
    assert {**printed, "wall_s": 0} == {**ours, "wall_s": 0}


def test_probes_of_a_large_fleet_are_long_enough_for_what_is_in_flight() -> None:
    asked = CapacityScenario(model="Llama-3.1-8B", gpu="H100-SXM", workload="chat", tpot_ms=30.0)
    few = search_options(asked, searched_load(asked)).length.max_requests
    many = dataclasses.replace(asked, replicas=300)
    assert search_options(many, searched_load(many)).length.max_requests == few * 300 // 8
    mixed = dataclasses.replace(asked, gpu="L40S:200,H100-SXM:100")
    assert search_options(mixed, searched_load(mixed)).length.max_requests == few * 300 // 8
    given = dataclasses.replace(many, num_requests=700)
    assert search_options(given, searched_load(given)).length.max_requests == 700


def test_a_misspelt_router_is_refused_though_pools_use_none() -> None:
    fields = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 2.0, "num_requests": 10}
    with pytest.raises(UnknownNameError, match="router"):
        plimsoll.simulate(**fields, engine="distserve,prefill=1,decode=1", router="nope")


def test_ranks_in_one_pool_are_not_said_to_have_pools_of_their_own_and_experts_are_named() -> None:
    fields = {"model": "Qwen3-30B-A3B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 2.0, "num_requests": 10}
    pooled = plimsoll.simulate(**fields, engine="tgi", dp=2, ep=2).to_json_dict()
    assert any("simulated as one pool" in note for note in pooled["notes"])
    assert not any("a pool of its own" in note for note in pooled["notes"])
    own = plimsoll.simulate(**fields, dp=2, ep=2)
    assert any("a pool of its own" in note for note in own.to_json_dict()["notes"])
    assert own.resolved.arithmetic.endswith("(experts over EP 2)")
