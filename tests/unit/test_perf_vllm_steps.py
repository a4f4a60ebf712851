"""What vLLM adds to a step: launches outside CUDA graphs, a sampler that sorts, busy expert ranks, larger tiles."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import StepShape, chunk_line_of
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.operators import Collective, GroupedGemm
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


def test_steps_with_a_chunk_are_no_lines() -> None:
    assert chunk_line_of(VllmRoofline(DENSE, H100)) is None
    assert chunk_line_of(Roofline(DENSE, H100)) is not None


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
    assert described["step_model"] == "roofline"
    assert described["engine_date"] == load_vllm_steps("hopper").date
    assert math.isclose(VllmRoofline(DENSE, H100).overheads.per_step_s, load_vllm_steps("hopper").per_step_s)
