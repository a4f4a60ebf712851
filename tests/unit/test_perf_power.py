"""Watts by architecture, and host time as data."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.step import StepShape
from plimsoll.perf.overheads import Overheads, list_overheads, load_overheads
from plimsoll.perf.power import load_power
from plimsoll.perf.roofline import Roofline

BUSY = StepShape(num_decode=64, decode_read_tokens=64_000)


def _watts(gpu: str, shape: StepShape, seconds: float) -> float:
    joules = Roofline(load_model("meta-llama/Llama-3.1-8B"), load_accelerator(gpu)).energy_j(shape, seconds)
    assert joules is not None
    return joules / seconds


@pytest.mark.parametrize("gpu", ["H100-SXM", "B200", "A100-SXM-80GB", "L40S"])
def test_watts_lie_between_idle_and_tdp_and_fall_with_the_share_that_is_busy(gpu: str) -> None:
    card = load_accelerator(gpu)
    assert card.tdp_w
    idle = card.idle_w if card.idle_w is not None else load_power()["idle_frac"] * card.tdp_w
    watts = [_watts(gpu, BUSY, seconds) for seconds in (1e-9, 5e-3, 2e-2, 1.0)]
    assert watts == sorted(watts, reverse=True)
    assert watts[0] == pytest.approx(card.tdp_w)  # never above, however short the step
    assert idle < watts[-1] < card.tdp_w
    assert _watts(gpu, StepShape(), 1.0) == pytest.approx(idle)


def test_an_architecture_has_its_own_coefficients_where_they_were_measured() -> None:
    table = load_power()
    for name, gpu in (("hopper", "H100-SXM"), ("blackwell", "B200")):
        card = load_accelerator(gpu)
        assert card.architecture == name
        idle = card.idle_w if card.idle_w is not None else table["idle_frac"] * card.tdp_w
        # so long a step that only the base is left
        expected = idle + (card.tdp_w - idle) * table[name]["base"]
        assert _watts(gpu, BUSY, 1e3) == pytest.approx(expected, rel=1e-3)
    assert load_accelerator("A100-SXM-80GB").architecture not in table


def test_every_host_time_has_a_source_and_a_date() -> None:
    for name in list_overheads():
        host = load_overheads(name)
        assert host.source.startswith("https://"), name
        assert len(host.date) == 10, name


def test_expert_parallelism_and_api_servers_cost_host_time() -> None:
    for generation in ("hopper", "blackwell"):
        plain, experts = (load_overheads(f"vllm-0.11-{generation}{part}") for part in ("", "-ep"))
        assert experts.per_step_s > plain.per_step_s
    for engine in ("vllm", "sglang", "trtllm"):
        server = load_overheads(f"api-server-{engine}")
        assert server.per_request_s > 0
        assert server.per_step_s == 0


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Overheads) if f.name.endswith("_s")])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_impossible_host_times_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Overheads(**{field: value})


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="vllm-v1"):
        load_overheads("vllm-v2")
