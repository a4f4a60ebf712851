"""What vLLM adds to a step: launches outside CUDA graphs, a sampler that sorts, busy expert ranks, larger tiles."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plimsoll
from plimsoll.api.calibrating import calibrate
from plimsoll.api.study import study_engines
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import PlimsollError
from plimsoll.core.step import StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.build import list_step_models
from plimsoll.perf.compositions import build_composed
from plimsoll.perf.factors import Factors
from plimsoll.perf.operators import Collective, GroupedGemm
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.roofline import Roofline
from plimsoll.perf.vllm_steps import BusiestRank, VllmRoofline, VllmSteps, load_vllm_steps

H100, B200 = load_accelerator("H100-SXM"), load_accelerator("B200")
DENSE, EXPERTS = load_model("meta-llama/Llama-3.1-8B"), load_model("Qwen/Qwen3-30B-A3B")
HYBRID, LATENT = load_model("nvidia/NVIDIA-Nemotron-Nano-12B-v2"), load_model("deepseek-ai/DeepSeek-V3.1")
NOTHING = {
    "expert_tile_s": 0.0, "two_stage_s": 0.0, "attention_layer_s": 0.0, "dense_layer_s": 0.0, "expert_layer_s": 0.0,
    "latent_layer_s": 0.0, "expert_rank_s": 0.0, "state_prompt_s": 0.0, "expert_launch_s": 1.0, "expert_skew": 0.0,
    "per_step_s": 0.0, "sampler_s_per_logit": 0.0,
}  # fmt: skip


def _without(**kept: float) -> VllmSteps:
    return dataclasses.replace(load_vllm_steps("hopper"), **{**NOTHING, **kept})  # type: ignore[arg-type]


def _decode_s(model: Roofline, num: int, read: int | None = None) -> float:
    return model.step_s(0, 0, 0, 0, 0, num, 512 * num if read is None else read)


def test_with_nothing_added_it_is_the_roofline_less_its_sampler() -> None:
    bare, plain = VllmRoofline(EXPERTS, H100, steps=_without()), Roofline(EXPERTS, H100)
    for num in (1, 7, 64, 600):
        assert _decode_s(bare, num) == pytest.approx(_decode_s(plain, num) - plain.sampler_s(num), rel=1e-12)
    mixed = (300, 2, 40_000, 0, 2, 16, 9_000)
    assert bare.step_s(*mixed) == pytest.approx(plain.step_s(*mixed) - plain.sampler_s(18), rel=1e-12)


def test_the_sampler_takes_time_for_every_logit() -> None:
    sorting = VllmRoofline(DENSE, H100, steps=_without(sampler_s_per_logit=1e-9))
    bare = VllmRoofline(DENSE, H100, steps=_without())
    for num in (1, 100):
        assert _decode_s(sorting, num) - _decode_s(bare, num) == pytest.approx(1e-9 * DENSE.vocab_size * num)
    halved = VllmRoofline(DENSE, H100, Parallelism(dp=2), steps=_without(sampler_s_per_logit=1e-9))
    assert halved.sampler_s(10) == pytest.approx(5 * 1e-9 * DENSE.vocab_size)


def test_steps_beyond_the_graphs_take_at_least_their_launches() -> None:
    launched = VllmRoofline(EXPERTS, B200, steps=_without(expert_layer_s=1e-3))
    bare = VllmRoofline(EXPERTS, B200, steps=_without())
    layers = EXPERTS.num_layers
    assert _decode_s(launched, 512) == _decode_s(bare, 512)
    assert launched.launched_s(512, mixed=False) == 0.0
    assert launched.launched_s(513, mixed=False) == pytest.approx(1e-3 * layers)
    assert _decode_s(launched, 513, 513) >= 1e-3 * layers > _decode_s(bare, 513, 513)
    prompt = (64, 1, 64 * 32, 0, 1, 8, 4_000)
    assert launched.step_s(*prompt) >= 1e-3 * layers > bare.step_s(*prompt)
    # so much to do that the host is ahead of the GPU
    huge = (60_000, 8, 60_000 * 30_000, 0, 8, 8, 4_000)
    assert launched.step_s(*huge) == bare.step_s(*huge)


def test_each_rank_has_graphs_of_its_own() -> None:
    ranks = VllmRoofline(EXPERTS, B200, Parallelism(dp=4, ep=4))
    assert ranks.launched_s(4 * 512, mixed=False) == 0.0
    assert ranks.launched_s(4 * 512 + 1, mixed=False) > 0.0


@pytest.mark.parametrize(("model", "parts"), [(DENSE, 2 * 32), (HYBRID, 62)])
def test_every_part_of_a_layer_is_launched(model: object, parts: int) -> None:
    steps = _without(attention_layer_s=1e-4, dense_layer_s=1e-4)
    built = VllmRoofline(model, H100, steps=steps)  # type: ignore[arg-type]
    assert built.launched_s(8, mixed=True) == pytest.approx(parts * 1e-4)


def test_latent_attention_is_launched_longer_and_pipeline_stages_share_layers() -> None:
    steps = load_vllm_steps("blackwell")
    whole = VllmRoofline(LATENT, B200, Parallelism(tp=8, ep=8), "fp8")
    wanted = 61 * (steps.latent_layer_s + steps.attention_layer_s) + 3 * steps.dense_layer_s + 58 * steps.expert_layer_s
    assert whole.launched_s(100, mixed=True) == pytest.approx(wanted + steps.per_step_s)
    stages = VllmRoofline(DENSE, B200, Parallelism(pp=2))
    one = VllmRoofline(DENSE, B200)
    fixed = steps.per_step_s
    assert stages.launched_s(600, mixed=False) - fixed == pytest.approx((one.launched_s(600, mixed=False) - fixed) / 2)


def test_recurrent_layers_take_gpu_time_in_steps_with_prompts_alone() -> None:
    slow, bare = (VllmRoofline(HYBRID, H100, steps=_without(state_prompt_s=s)) for s in (1e-3, 0.0))
    assert slow.operators.state is not None
    added = slow.step_s(200, 1, 20_000, 0, 1, 4, 900) - bare.step_s(200, 1, 20_000, 0, 1, 4, 900)
    assert added == pytest.approx(1e-3 * slow.operators.state.num_layers)
    assert _decode_s(slow, 4) == _decode_s(bare, 4)


def test_decode_lines_are_what_steps_cost_and_never_fall() -> None:
    steps = _without(expert_layer_s=1.2e-3, per_step_s=1e-3)
    model = VllmRoofline(EXPERTS, B200, steps=steps)
    for num in (8, 512, 700):
        reads = [num, 50_000, 400_000, 2_000_000, 9_000_000]
        times = [_decode_s(model, num, read) for read in reads]
        assert times == sorted(times)
        for read, seconds in zip(reads, times, strict=True):
            base_s, slope_s, below = model.decode_line(num, read)
            assert read < below
            assert base_s + slope_s * read == seconds
    flat = model.decode_line(700, 700)
    assert flat[1] == 0.0
    bent = model.decode_line(700, flat[2])
    assert bent[1] > 0.0
    assert bent[0] + bent[1] * flat[2] == pytest.approx(flat[0], rel=1e-4)  # they meet


def test_more_of_anything_never_takes_less() -> None:
    model = VllmRoofline(EXPERTS, B200, Parallelism(tp=4, ep=4))
    shapes = [(0, 0, 0, 0, 0, num, 1_000 * num) for num in (1, 8, 64, 256, 257, 512, 513, 1024)]
    times = [model.step_s(*shape) for shape in shapes]
    assert times == sorted(times)
    chunks = [(tokens, 1, tokens * tokens // 2, 0, 1, 8, 8_000) for tokens in (1, 100, 500, 2_000, 8_000)]
    times = [model.step_s(*shape) for shape in chunks]
    assert times == sorted(times)


def _experts(local: int) -> GroupedGemm:
    return GroupedGemm(
        name="experts", count=1, hidden=64, inter=64, matrices=3, num_experts=128, local_experts=local, top_k=8,
        moe_tp=1, weight_bits=16, precision="bf16",
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_busiest_rank_is_as_busy_as_random_routing_makes_it(ranks: int) -> None:
    """A thousand random routings of 24 tokens, experts of a token distinct: within 4 % of the formula."""
    tokens, rng = 24, np.random.default_rng(0)
    op = _experts(128 // ranks)
    fields = {field.name: getattr(op, field.name) for field in dataclasses.fields(op)}
    busiest = BusiestRank(**fields, skew=1.0)
    active, rows = [], []
    for _ in range(1000):
        chosen = np.argsort(rng.random((tokens, 128)), axis=1)[:, :8]
        by_rank = chosen // (128 // ranks)
        rows.append(max(int((by_rank == rank).sum()) for rank in range(ranks)))
        active.append(max(len(np.unique(chosen[by_rank == rank])) for rank in range(ranks)))
    assert busiest.expert_rows(tokens) == pytest.approx(float(np.mean(rows)), rel=0.04)
    assert busiest.active_experts(tokens) == pytest.approx(float(np.mean(active)), rel=0.04)
    assert op.active_experts(tokens) < busiest.active_experts(tokens) <= op.local_experts


def test_the_busiest_rank_never_has_more_experts_than_there_are() -> None:
    op = _experts(16)
    fields = {field.name: getattr(op, field.name) for field in dataclasses.fields(op)}
    for tokens in (1, 10, 100, 10_000):
        assert BusiestRank(**fields, skew=5.0).active_experts(tokens) <= 16


def test_experts_on_one_gpu_wait_for_nobody() -> None:
    even, skewed = (VllmRoofline(EXPERTS, H100, steps=_without(expert_skew=skew)) for skew in (0.0, 3.0))
    assert _decode_s(even, 16) == _decode_s(skewed, 16)
    cut = Parallelism(tp=4, ep=4)
    spread, bare = (VllmRoofline(EXPERTS, H100, cut, steps=_without(expert_rank_s=s)) for s in (1e-4, 0.0))
    assert _decode_s(spread, 16) - _decode_s(bare, 16) == pytest.approx(1e-4 * EXPERTS.num_layers)
    alone = VllmRoofline(EXPERTS, H100, steps=_without(expert_rank_s=1e-4))
    assert _decode_s(alone, 16) == _decode_s(VllmRoofline(EXPERTS, H100, steps=_without()), 16)
    even, skewed = (VllmRoofline(EXPERTS, H100, cut, steps=_without(expert_skew=skew)) for skew in (0.0, 3.0))
    assert _decode_s(even, 16) < _decode_s(skewed, 16)


def test_launching_experts_costs_at_most_what_a_graph_needs() -> None:
    dear, cheap = (VllmRoofline(EXPERTS, H100, steps=_without(expert_launch_s=s)) for s in (1.0, 1e-5))
    family = dear._pricing.family.experts_for("16bit").launch_s
    assert family > 1e-5
    assert _decode_s(dear, 8) - _decode_s(cheap, 8) == pytest.approx(EXPERTS.num_layers * (family - 1e-5))


def test_plain_experts_take_larger_tiles_with_more_tokens_than_there_are_of_them() -> None:
    for cut, local in ((Parallelism(), 128), (Parallelism(tp=4, ep=4), 32)):
        large = VllmRoofline(EXPERTS, H100, cut, steps=_without(expert_tile_s=1e-4))
        bare = VllmRoofline(EXPERTS, H100, cut, steps=_without())
        assert _decode_s(large, local) == _decode_s(bare, local)
        assert _decode_s(large, local + 1) - _decode_s(bare, local + 1) == pytest.approx(1e-4 * EXPERTS.num_layers)
    for model, precision in ((DENSE, "bf16"), (EXPERTS, "fp8")):
        large, bare = (VllmRoofline(model, H100, None, precision, steps=_without(expert_tile_s=s)) for s in (1e-4, 0.0))
        assert _decode_s(large, 400) == _decode_s(bare, 400)


def test_larger_all_reduces_of_more_than_two_gpus_take_longer() -> None:
    steps = _without(two_stage_s=1e-4)
    for cut, limit in ((Parallelism(tp=4), 512 * 1024), (Parallelism(tp=8), 256 * 1024)):
        rows = limit // (2 * DENSE.hidden_size)
        model, bare = VllmRoofline(DENSE, H100, cut, steps=steps), VllmRoofline(DENSE, H100, cut, steps=_without())
        count = sum(op.count for op in model.operators.token_ops if isinstance(op, Collective))
        assert _decode_s(model, rows - 1) == _decode_s(bare, rows - 1)
        assert _decode_s(model, rows) - _decode_s(bare, rows) == pytest.approx(1e-4 * count)
    two = VllmRoofline(DENSE, H100, Parallelism(tp=2), steps=steps)
    assert _decode_s(two, 400) == _decode_s(VllmRoofline(DENSE, H100, Parallelism(tp=2), steps=_without()), 400)


def test_sorting_keeps_the_memory_busy() -> None:
    shape, seconds = StepShape(num_decode=64, decode_read_tokens=64_000), 0.05
    sorting, quiet = VllmRoofline(DENSE, H100), VllmRoofline(DENSE, H100, steps=_without())
    watts = [model.energy_j(shape, seconds) for model in (sorting, quiet)]
    assert watts[0] is not None
    assert watts[1] is not None
    assert watts[0] > watts[1]


def test_an_engine_gives_the_same_run_in_lines_and_in_steps() -> None:
    """The engine adds decode stretches as lines; a copy without long stretches has to end at the same time."""
    model = VllmRoofline(EXPERTS, B200, Parallelism(tp=2, ep=2))
    num = 700
    load = Workload(arrival_s=np.zeros(num), prompt_tokens=np.full(num, 100), output_tokens=np.arange(num) % 40 + 5)
    config = EngineConfig(
        num_blocks=20_000, block_size=16, max_num_seqs=600, max_num_batched_tokens=8192, max_model_len=200,
        policy="vllm-v1",
    )  # fmt: skip
    run = simulate(load, config, model)
    assert run.timeline is not None
    took = np.diff(run.timeline.step_end_s)
    floor = model.launched_s(600, mixed=False)
    assert (took >= floor * 0.999).sum() > 10  # those beyond the graphs
    assert (took < floor).any()


def test_it_travels_as_its_arguments() -> None:
    model = VllmRoofline(EXPERTS, B200, Parallelism(tp=2, ep=2), steps=_without(per_step_s=2e-3))
    again = pickle.loads(pickle.dumps(model))
    for shape in itertools.product((0, 100), (8, 600)):
        args = (shape[0], int(shape[0] > 0), shape[0] ** 2 // 2, 0, int(shape[0] > 0), shape[1], 1_000 * shape[1])
        assert again.step_s(*args) == model.step_s(*args)


def test_constants_have_a_source_and_stay_plausible() -> None:
    for architecture in ("hopper", "blackwell", "ampere"):
        steps = load_vllm_steps(architecture)
        assert steps.source.startswith("https://")
        assert len(steps.date) == 10
        assert steps.graph_tokens == 512
        assert 1.0 <= steps.expert_skew < 5.0
        seconds = [getattr(steps, f.name) for f in dataclasses.fields(steps) if f.name.endswith("_s")]
        assert all(0.0 <= value < 5e-3 for value in seconds)
    assert load_vllm_steps("ampere") == load_vllm_steps("hopper")
    described = VllmRoofline(DENSE, H100).describe()
    assert described["step_model"] == "vllm-roofline"
    assert (described["sampler"], described["graph_tokens"], described["engine_measured"]) == ("sorts", 512, True)
    assert VllmRoofline(DENSE, load_accelerator("A100-SXM-80GB")).describe()["engine_measured"] is False
    assert described["engine_date"] == load_vllm_steps("hopper").date
    assert math.isclose(VllmRoofline(DENSE, H100).overheads.per_step_s, load_vllm_steps("hopper").per_step_s)


# By name: what users get ---------------------------------------------------------------------------------------------


def _built(name: str, model: Any = EXPERTS, **changes: Any) -> Any:
    return build_composed(name, StepModelRequest(**{"model": model, "gpu": H100, **changes}))


def _error(name: str, **changes: Any) -> str:
    with pytest.raises(PlimsollError) as refused:
        _built(name, **changes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_by_name_it_is_the_class_and_its_own_host() -> None:
    assert "vllm-roofline" in list_step_models()
    named, own = _built("vllm-roofline", overheads=load_overheads("vllm-v1-sync")), VllmRoofline(EXPERTS, H100)
    for shape in ((0, 0, 0, 0, 0, 64, 30_000), (300, 2, 40_000, 0, 2, 16, 9_000), (0, 0, 0, 0, 0, 600, 300_000)):
        assert named.step_s(*shape) == own.step_s(*shape)  # nothing of the engine asked for on top
    assert named.describe() == own.describe()
    spread = _built("vllm-roofline", parallelism=Parallelism(tp=2, ep=2), precision="fp8", kv_precision="fp8")
    cut = VllmRoofline(EXPERTS, H100, Parallelism(tp=2, ep=2), "fp8", "fp8")
    assert _decode_s(spread, 64) == _decode_s(cut, 64)


def test_greedy_requests_pass_over_their_logits_once() -> None:
    sorts, greedy = _built("vllm-roofline", DENSE), _built("vllm-roofline:sampler=greedy", DENSE)
    once_s = 4.0 * DENSE.vocab_size / H100.memory_bandwidth_bytes_per_s
    assert greedy.sampler_s(100) == pytest.approx(100 * once_s)
    assert _decode_s(sorts, 100) - _decode_s(greedy, 100) == pytest.approx(sorts.sampler_s(100) - 100 * once_s)
    assert greedy.sampler_s(100) < 0.01 * sorts.sampler_s(100)
    assert greedy.describe()["sampler"] == "greedy"
    shape, seconds = StepShape(num_decode=100, decode_read_tokens=100_000), 0.05
    assert greedy.energy_j(shape, seconds) < sorts.energy_j(shape, seconds)


def test_without_graphs_every_step_is_launched() -> None:
    eager, small = _built("vllm-roofline:graph_tokens=0"), _built("vllm-roofline:graph_tokens=8")
    plain = _built("vllm-roofline")
    least = plain.launched_s(1, mixed=True)
    assert _decode_s(eager, 1) >= least > _decode_s(plain, 1)
    assert _decode_s(small, 8) == _decode_s(plain, 8)
    assert _decode_s(small, 9, 9) >= least > _decode_s(plain, 9, 9)
    assert eager.step_s(0, 0, 0, 0, 0, 0, 0) == plain.step_s(0, 0, 0, 0, 0, 0, 0)  # nothing to launch
    assert eager.describe()["graph_tokens"] == 0


def test_options_come_from_the_name_or_the_request() -> None:
    both = _built("vllm-roofline: sampler=greedy, graph-tokens=16")
    asked = _built("vllm-roofline", options={"sampler": "greedy", "graph_tokens": 16})
    assert both.describe() == asked.describe()
    assert (both.describe()["sampler"], both.describe()["graph_tokens"]) == ("greedy", 16)
    written = _built("vllm-roofline:graph_tokens=4", options={"graph_tokens": 16})
    assert written.describe()["graph_tokens"] == 4


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("sampler=beam", ("sampler", "'beam'", "sorts, greedy")),
        ("sampler=", ("sampler=", "write every option once")),
        ("sampler", ("sampler", "write every option once")),
        ("=greedy", ("=greedy", "write every option once")),
        ("sampler=sorts,sampler=greedy", ("sampler=greedy", "once")),
        ("sampler=greedy,", ("write every option once",)),
        ("graph_tokens=-1", ("graph_tokens", "'-1'", "from 0")),
        ("graph_tokens=many", ("graph_tokens", "'many'", "from 0")),
        ("graph_tokens=1.5", ("graph_tokens", "'1.5'", "from 0")),
        ("grap_tokens=8", ("grap_tokens", "did you mean graph_tokens")),
        ("/tmp/profile", ("/tmp/profile", "write every option once")),
    ],
)
def test_what_is_no_option_is_refused(written: str, said: tuple[str, ...]) -> None:
    message = _error(f"vllm-roofline:{written}")
    assert all(part in message for part in said), message


@pytest.mark.parametrize("value", [True, 2.5, -3])
def test_graph_tokens_of_other_types_are_refused(value: Any) -> None:
    assert "graph_tokens" in _error("vllm-roofline", options={"graph_tokens": value})


def test_the_file_s_name_is_no_step_model() -> None:
    assert "did you mean vllm-roofline" in _error("vllm_roofline")


def test_compositions_overlap_what_vllm_runs() -> None:
    """Experts of the busiest rank, not of the mean: `operator_function` is the step's own."""
    model = VllmRoofline(EXPERTS, H100, Parallelism(tp=4, ep=4))
    op = next(op for op in model.operators.token_ops if isinstance(op, GroupedGemm))
    plain = Roofline(EXPERTS, H100, Parallelism(tp=4, ep=4)).operator_function(op)
    assert model.operator_function(op)(64) > plain(64)
    assert model.operator_times(StepShape(num_decode=64, decode_read_tokens=64))[op.name] == pytest.approx(
        model.operator_function(op)(64)
    )


def test_a_stack_saves_kernels_and_no_launches() -> None:
    prompt = (64, 1, 64 * 32, 0, 1, 8, 4_000)
    plain, quantised = _built("vllm-roofline"), _built("vllm-roofline+awq")
    assert quantised.step_s(*prompt) == plain.step_s(*prompt)  # launches, whatever the weights
    assert _decode_s(quantised, 8) < _decode_s(plain, 8)
    assert [each["name"] for each in quantised.describe()["compositions"]] == ["awq"]
    assert quantised.attention_layers == plain.attention_layers


def test_a_verified_step_is_launched_for_all_its_rows() -> None:
    """200 sequences with 2 drafts each are 600 rows: no graph, and its launches are shared by the tokens it yields."""
    single, drafting = _built("vllm-roofline"), _built("vllm-roofline+speculative,tokens=2,acceptance=0.5")
    whole = _built("vllm-roofline+speculative,tokens=2,acceptance=0.5,amortise=off")
    assert drafting.verified == (3, 1.75)
    assert whole.verified == (3, 1.0)
    least = single.launched_s(600, mixed=False) + single.sampled_s(600)
    assert _decode_s(whole, 200, 200) == pytest.approx(least)
    assert _decode_s(drafting, 200, 200) == pytest.approx(least / 1.75)
    assert _decode_s(whole, 170, 170) < least  # 510 rows: one graph
    assert drafting.draw_bursts is not None
    assert whole.draw_bursts is None


def test_a_calibration_goes_around_all_of_it() -> None:
    factors = Factors(compute=1.2, bandwidth=1.1, per_step_s=1e-3)
    for name in ("vllm-roofline", "vllm-roofline+awq"):
        plain, fitted = _built(name), _built(name, factors=factors)
        assert _decode_s(fitted, 600, 600) == pytest.approx(1.1 * _decode_s(plain, 600, 600) + 1e-3)
        base_s, slope_s, below = fitted.decode_line(600, 600)
        assert below > 600
        assert base_s + slope_s * 600 == _decode_s(fitted, 600, 600)
        assert fitted.describe()["calibration"]["compute"] == 1.2


def test_a_stack_travels() -> None:
    stack = _built("vllm-roofline:graph_tokens=8+awq+nanoflow")
    again = pickle.loads(pickle.dumps(stack))
    assert _decode_s(again, 20) == _decode_s(stack, 20)
    with pytest.raises(AttributeError):
        _ = stack._nothing
    with pytest.raises(AttributeError):
        _ = stack.nothing


DEPLOYED = {"model": "Qwen/Qwen3-30B-A3B", "gpu": "H100-SXM", "prompt_tokens": 300, "output_tokens": 30}
GREEDY = "vllm-roofline:sampler=greedy,graph_tokens=0"


@pytest.mark.parametrize("name", ["vllm-roofline", GREEDY, "vllm-roofline+nanoflow", f"{GREEDY}+h2o,ratio=0.5"])
@pytest.mark.parametrize("pp", [1, 2])
def test_simulate_answers_with_it(name: str, pp: int) -> None:
    result = plimsoll.simulate(**DEPLOYED, rate_per_s=4, num_requests=40, step_model=name, pp=pp)
    document = result.to_json_dict()
    said = document["sources"]["step_model"]
    assert said["step_model"] == "vllm-roofline"
    assert said["sampler"] == ("greedy" if "greedy" in name else "sorts")
    assert document["sources"]["error_band"]["high_frac"] > 0
    assert "vllm-roofline" in str(document["deployment"]["step_model"])
    eager = "graph_tokens=0" in name
    assert (result.run.finish_s - result.run.first_token_s > 29 * 0.03 / pp).all() == eager  # launched, or graphs


def test_capacity_and_plan_answer_with_it() -> None:
    targets = {"ttft_ms": 1500, "tpot_ms": 25, "num_requests": 100}
    found = [
        plimsoll.capacity(**DEPLOYED, **targets, step_model=name).to_json_dict()["max_load"]
        for name in ("vllm-roofline", "vllm-roofline:sampler=greedy")
    ]
    assert 0 < found[0] < 0.95 * found[1]
    asked = {"gpus": "H100-SXM", "tp": "1", "pp": "1", "dp": "1", "token_budgets": "2048", "rate_per_s": 5}
    asked |= {key: value for key, value in DEPLOYED.items() if key != "gpu"}
    eager = plimsoll.plan(**asked, ttft_ms=1500, tpot_ms=60, step_model=GREEDY).to_json_dict()
    assert eager["feasible"]
    assert eager["plans"][0]["error_band"]["basis"] == "82 measured vLLM runs on H100-SXM"
    # Launching 48 layers of experts takes 40 ms: a TPOT of 25 ms can be met with graphs, and not without.
    fast = {**asked, "ttft_ms": 1500, "tpot_ms": 25}
    assert plimsoll.plan(**fast, step_model="vllm-roofline").to_json_dict()["feasible"]
    assert not plimsoll.plan(**fast, step_model=GREEDY).to_json_dict()["feasible"]


def test_engines_are_compared_at_its_cost() -> None:
    study = study_engines(**DEPLOYED, engines="vllm-v1,orca", step_model="vllm-roofline", rate_per_s=4, num_requests=30)
    assert set(study.results) == {"vllm-v1", "orca"}
    for result in study.results.values():
        assert result.to_json_dict()["sources"]["step_model"]["step_model"] == "vllm-roofline"


def test_a_calibration_finds_what_was_slower(tmp_path: Path) -> None:
    """Runs "measured" on a server whose decodes take 1.4 times as long as said."""
    given = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "step_model": "vllm-roofline"}
    true = tmp_path / "true.json"
    document = {
        "kind": "plimsoll calibration", "version": 1, "model": "meta-llama/Llama-3.1-8B", "gpu": "H100-SXM",
        "step_model": "vllm-roofline", "circumstances": {}, "factors": {"bandwidth": 1.4}, "error_before": 0.3,
        "error_after": 0.02, "held_back": "1 of 2 runs",
    }  # fmt: skip
    true.write_text(json.dumps(document), encoding="utf-8")
    for k, rate in enumerate((2.0, 8.0)):
        asked = {"prompt_tokens": 200, "output_tokens": 40, "num_requests": 80, "rate_per_s": rate, "seed": k}
        run = plimsoll.simulate(**given, **asked, calibration=str(true)).run
        with (tmp_path / f"measured{k}.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s"])
            columns = (run.prompt_tokens, run.output_tokens, run.arrival_s, run.first_token_s, run.finish_s)
            writer.writerows(zip(*columns, strict=True))
    results = ",".join(str(tmp_path / f"measured{k}.csv") for k in range(2))
    answer = calibrate(results=results, **given, fit="bandwidth")
    assert answer.calibration.step_model == "vllm-roofline"
    assert answer.calibration.factors["bandwidth"] == pytest.approx(1.4, rel=0.03)
    with pytest.raises(PlimsollError, match="made for step model vllm-roofline"):
        plimsoll.simulate(**{**given, "step_model": "roofline"}, **asked, calibration=str(true))
