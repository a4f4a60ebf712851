"""Watts by architecture, and host time as data."""

from __future__ import annotations

import dataclasses
import math

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.step import StepShape
from plimsoll.perf.overheads import Overheads, list_overheads, load_overheads
from plimsoll.perf.power import busy_seconds, load_power, step_energy_j
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
    model = load_model("meta-llama/Llama-3.1-8B")
    for name, gpu in (("hopper", "H100-SXM"), ("blackwell", "B200")):
        card = load_accelerator(gpu)
        assert card.architecture == name
        steps = Roofline(model, card)
        compute_s, memory_s = busy_seconds(steps.operators, steps._pricing, BUSY)
        assert memory_s > compute_s > 0
        seconds = 10.0
        busy = table[name]["compute"] * math.sqrt(compute_s / seconds)
        busy += table[name]["memory"] * math.sqrt(memory_s / seconds)
        assert card.idle_w is not None
        assert card.tdp_w is not None
        assert _watts(gpu, BUSY, seconds) == pytest.approx(card.idle_w + (card.tdp_w - card.idle_w) * busy)
    assert load_accelerator("A100-SXM-80GB").architecture not in table


def test_a_sampler_that_sorts_keeps_the_memory_busy_and_no_longer_than_the_step() -> None:
    card, seconds = load_accelerator("H100-SXM"), 0.02
    steps = Roofline(load_model("meta-llama/Llama-3.1-8B"), card)
    args = (card, steps.operators, steps._parallelism, steps._pricing, (BUSY, seconds))
    joules = [step_energy_j(*args, sorting_s) for sorting_s in (0.0, 0.005, seconds, 1.0)]
    assert joules[0] == steps.energy_j(BUSY, seconds)
    assert joules[0] < joules[1] < joules[2] == joules[3]  # type: ignore[operator]


def test_coefficients_were_fitted_to_rows_and_left_out_models_say_how_well() -> None:
    table = load_power()
    assert table["source"].startswith("https://")
    for coefficients in (table, table["hopper"], table["blackwell"]):
        assert 0 < coefficients["compute"] < 2
        assert 0 < coefficients["memory"] < 1
        assert 0 < coefficients["median_abs_error_frac"] < 0.15


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
