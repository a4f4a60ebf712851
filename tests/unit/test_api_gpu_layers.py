"""`llamacpp,gpu_layers=N`: memory of both, seconds of both, and the straight line of decodes."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.api.simulation import SimulationResult, simulate
from plimsoll.api.study import study_engines
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.counting import kv_bytes_per_token, weight_bytes_breakdown
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf.build import build_step_model
from plimsoll.perf.host_layers import OFFLOAD_TOKENS, Host, HostLayers, host_weight_bytes, layers_of, load_host
from plimsoll.perf.request import StepModelRequest

MODEL, GPU = load_model("Llama-3.1-8B"), load_accelerator("RTX-4090")
REQUEST = StepModelRequest(model=MODEL, gpu=GPU, precision="bf16", kv_precision="auto")
HOST = Host(memory_bytes_per_s=1e11, flop_per_s=1e12, memory_bytes=1e12, source=Source.ASSUMED, reference="a test")
CASE = {"model": "Llama-3.1-8B", "gpu": "RTX-4090", "workload": "chat", "rate_per_s": 0.05, "num_requests": 20}


def run(options: str = "", **fields: object) -> SimulationResult:
    return simulate(**{**CASE, **fields}, engine=f"llamacpp{options}")


def layered(gpu_layers: int, host: Host = HOST) -> HostLayers:
    part = dataclasses.replace(REQUEST, model=layers_of(MODEL, gpu_layers))
    return HostLayers(
        build_step_model("roofline", part), build_step_model("roofline", REQUEST), REQUEST, gpu_layers, host
    )


def test_a_decode_reads_the_hosts_weights_and_cache_at_the_hosts_speed() -> None:
    whole = build_step_model("roofline", dataclasses.replace(REQUEST, model=layers_of(MODEL, 16)))
    tokens = 1000
    host_s = layered(16).step_s(0, 0, 0, 0, 0, 1, tokens) - whole.step_s(0, 0, 0, 0, 0, 1, tokens)
    parts = weight_bytes_breakdown(MODEL, "bf16")
    weights = (parts.attention_bytes + parts.dense_mlp_bytes) / 2
    cache = tokens * kv_bytes_per_token(MODEL, 2) / 2
    moved_s = 2 * 4096 * 4 / GPU.pcie_bytes_per_s
    assert host_s == pytest.approx((weights + cache) / 1e11 + moved_s, rel=0.02)
    assert host_weight_bytes(MODEL, "bf16", 16) == pytest.approx(weights, rel=1e-3)


def test_a_few_tokens_are_computed_on_the_host_and_many_on_the_gpu() -> None:
    slow, fast = layered(16), layered(16, dataclasses.replace(HOST, flop_per_s=1e14))
    few, many = OFFLOAD_TOKENS - 1, 512
    assert slow.step_s(few, 1, few * few // 2, 0, 1, 0, 0) > 1.5 * fast.step_s(few, 1, few * few // 2, 0, 1, 0, 0)
    prompt = (many, 1, many * many // 2, 0, 1, 0, 0)
    assert slow.step_s(*prompt) == fast.step_s(*prompt), "the host only hands its weights over"
    added_s = slow.step_s(*prompt) - build_step_model("roofline", REQUEST).step_s(*prompt)
    moved_s = host_weight_bytes(MODEL, "bf16", 16) / GPU.pcie_bytes_per_s
    assert added_s == pytest.approx(moved_s + many * 2 * 4096 * 4 / GPU.pcie_bytes_per_s)


@pytest.mark.parametrize("num_decode", [1, 4, OFFLOAD_TOKENS - 1, OFFLOAD_TOKENS, 100])
def test_decodes_lie_on_a_straight_line_to_the_last_bit(num_decode: int) -> None:
    model = layered(20)
    base_s, slope_s, below = model.decode_line(num_decode, 500 * num_decode)
    for tokens in (500 * num_decode, 501 * num_decode, min(below - 1, 900 * num_decode)):
        assert model.step_s(0, 0, 0, 0, 0, num_decode, tokens) == base_s + slope_s * tokens
        shape = StepShape(num_decode=num_decode, decode_read_tokens=tokens)
        assert model.step(shape).time_s == base_s + slope_s * tokens


def test_an_empty_step_costs_what_the_gpu_alone_would() -> None:
    part = build_step_model("roofline", dataclasses.replace(REQUEST, model=layers_of(MODEL, 16)))
    assert layered(16).step_s(0, 0, 0, 0, 0, 0, 0) == part.step_s(0, 0, 0, 0, 0, 0, 0)


def test_kinds_of_layers_keep_their_mixture() -> None:
    mixed = load_model("gpt-oss-20b")
    half = layers_of(mixed, mixed.num_layers // 2)
    assert half.num_layers == mixed.num_layers // 2
    assert [group.count * 2 for group in half.groups] == [group.count for group in mixed.groups]
    for count in range(1, mixed.num_layers + 1):
        assert layers_of(mixed, count).num_layers == count


def test_fewer_layers_on_the_gpu_are_slower_and_leave_more_room_on_it() -> None:
    found = [run(option) for option in ("", ",gpu_layers=25", ",gpu_layers=9")]
    tpots = [one.metrics.tpot_s.mean for one in found]
    assert tpots == sorted(tpots)
    assert tpots[2] > 3 * tpots[0]
    weights = [one.resolved.memory.weight_bytes for one in found]
    assert weights == sorted(weights, reverse=True)
    assert found[1].resolved.memory.num_blocks > found[0].resolved.memory.num_blocks
    assert "8 of 32 layers on the host" in found[1].resolved.memory.breakdown
    sources = found[1].to_json_dict()["sources"]
    assert sources["step_cost"] == "assumed"
    assert sources["error_band"] is None, "no measured run has layers on the host"
    assert any("layers on the host run at 89.6 GB/s" in note for note in found[1].notes)


def test_what_does_not_fit_on_the_gpu_is_served_with_the_rest_on_the_host() -> None:
    large: dict[str, object] = {"model": "Qwen2.5-32B", "max_model_len": 8192, "rate_per_s": 0.001}
    with pytest.raises(InfeasibleError):
        run(**large)
    assert run(",gpu_layers=12,host_gib=128", **large).metrics.tpot_s.mean > 0


def test_all_layers_are_the_default_and_one_more_than_there_are_is_all() -> None:
    plain, every = run(), run(",gpu_layers=33")
    assert plain.metrics.e2e_s.mean == every.metrics.e2e_s.mean
    assert plain.resolved.memory == dataclasses.replace(every.resolved.memory, settings=plain.resolved.memory.settings)


def test_the_users_own_host_holds() -> None:
    usual, own = run(",gpu_layers=17"), run(",gpu_layers=17,host_gb_per_s=400,host_tflops=4")
    assert own.metrics.tpot_s.mean < usual.metrics.tpot_s.mean / 2
    assert own.to_json_dict()["sources"]["step_cost"] == "modelled"
    usual_host = load_host()
    assert usual_host.memory_bytes_per_s == 89.6e9
    assert usual_host.reference.startswith("https://")


def test_a_study_leaves_the_hosts_layers_to_the_engine_that_has_them() -> None:
    for engines in ("llamacpp,gpu_layers=9,orca", "orca,llamacpp,gpu_layers=9"):
        found = study_engines(**{**CASE, "engines": engines}).results
        kinds = {name: result.resolved.step_model_facts["step_model"] for name, result in found.items()}
        assert kinds == {"llamacpp,gpu_layers=9": "roofline with layers on the host", "orca": "roofline"}


def test_a_small_host_holds_fewer_blocks() -> None:
    roomy, tight = run(",gpu_layers=17"), run(",gpu_layers=17,host_gib=8")
    assert tight.resolved.memory.num_blocks < roomy.resolved.memory.num_blocks
    held = tight.resolved.memory.num_blocks * tight.resolved.memory.block_bytes  # as many bytes as on the GPU: half
    assert held <= 8 * 2**30 - host_weight_bytes(MODEL, "bf16", 16)


@pytest.mark.parametrize(
    ("options", "fields", "error", "message"),
    [
        (",gpu_layers=1", {}, InputError, "give 2 to 33"),
        (",gpu_layers=0", {}, InputError, "give 2 to 33"),
        (",gpu_layers=-2", {}, InputError, "give 2 to 33"),
        (",gpu_layers=17", {"tp": 2}, InputError, "one GPU"),
        (",gpu_layers=17", {"step_model": "vllm-roofline"}, InputError, "--step-model roofline"),
        (",gpu_layers=17,host_gb_per_s=-1", {}, InputError, "above zero"),
        (",gpu_layers=17,host_gib=4", {}, InfeasibleError, "the host has 4.0 GiB"),
    ],
)
def test_what_cannot_be_is_refused(
    options: str, fields: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(options, **fields)
