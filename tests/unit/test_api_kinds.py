"""Replicas of several kinds behind one router."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import plimsoll
from plimsoll.api.kinds import kinds_of
from plimsoll.api.scenario import SimulateScenario
from plimsoll.api.simulation import SimulationResult
from plimsoll.core.errors import InputError

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
    with pytest.raises(InputError, match="only simulate"):
        plimsoll.capacity(model="Llama-3.1-8B", gpu="L40S,H100-SXM", workload="chat", ttft_ms=1000)


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
