"""Compositions by hand: what each changes in a step and in memory, how they are written, what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.counting import num_params, weight_bytes
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.build import build_step_model
from plimsoll.perf.compositions import (
    build_composed,
    combined_memory_effect,
    list_compositions,
    load_composition,
    parse_compositions,
    parse_step_model,
)
from plimsoll.perf.compositions._acceptance import draw_tokens, expected_tokens, parse_acceptance
from plimsoll.perf.compositions._lines import lower_of, upper
from plimsoll.perf.compositions._overlap import corners, load_interference, overlapped_s
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import UNBOUNDED
from validation._papers import nanoflow as nanoflow_rows


def request(model="meta-llama/Llama-3.1-8B", gpu="A100-SXM-80GB", **changes) -> StepModelRequest:
    return StepModelRequest(model=load_model(model), gpu=load_accelerator(gpu), **changes)


def built(stack: str, **changes):
    return build_composed(f"roofline+{stack}", request(**changes))


def effect(stack: str, **changes):
    return combined_memory_effect(request(**changes), parse_compositions(stack))[1]


PLAIN = build_step_model("roofline", request())


# How they are written ------------------------------------------------------------------------------------------------


def test_a_stack_is_parsed():
    name, choices = parse_step_model("roofline+nanoflow,nano=4+h2o, ratio=0.1")
    assert name == "roofline"
    assert [str(choice) for choice in choices] == ["nanoflow,nano=4", "h2o,ratio=0.1"]
    assert parse_compositions("") == ()
    assert parse_step_model("silicon") == ("silicon", ())
    assert [choice.name for choice in parse_compositions("No-Flash-Attention")] == ["no_flash_attention"]


@pytest.mark.parametrize("name", list_compositions())
def test_every_file_documents_itself(name):
    module = load_composition(name)
    assert module.SUMMARY
    assert not module.SUMMARY.endswith(".")
    assert all(option.meaning for option in module.OPTIONS.values())


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("nanoflo", UnknownNameError, "nanoflow"),
        ("h2o,ration=0.2", UnknownNameError, r"it has: ratio, max_tokens"),
        ("h2o,ratio", InputError, "name=value"),
        ("h2o,ratio=0.1,ratio=0.2", InputError, "once"),
        ("h2o,ratio=much", InputError, "number"),
        ("nanoflow,nano=2.5", InputError, "whole number"),
        ("kv_offload,overlap=maybe", InputError, "on or off"),
        ("h2o,ratio=nan", InputError, "finite"),
        ("h2o+", InputError, "behind every"),
        ("h2o+nanoflow+H2O", InputError, "write h2o once"),
    ],
)
def test_what_cannot_be_parsed_is_refused(text, error, match):
    with pytest.raises(error, match=match):
        parse_compositions(text)


@pytest.mark.parametrize(
    ("stack", "changes", "match"),
    [
        ("h2o,ratio=0", {}, "above 0"),
        ("h2o,ratio=1.2", {}, "up to 1"),
        ("nanoflow,nano=0", {}, "nano"),
        ("razor_attention,buffer_divisor=1", {}, "keeps everything"),
        ("kv_quantisation,bits=3", {}, "8, 4 or 2"),
        ("kv_quantisation,bits=8", {"kv_precision": "fp8"}, "has 8 bits already"),
        ("kv_offload,tier=tape", {}, "cpu, disk"),
        ("h2o", {"model": "deepseek-ai/DeepSeek-V2-Lite"}, "keys and values by head"),
        ("speculative,method=draft", {}, "draft=NAME"),
        ("speculative,draft=x", {}, "method=draft"),
        ("speculative,method=tree", {}, "draft, ngram, mtp"),
        ("speculative,acceptance=1.2", {}, "from 0 to 1"),
        ("h2o,ratio=0.0004", {}, "from 0.001"),
        ("kv_offload,gb_per_s=-1", {}, "above 0"),
        ("sparsity,speedup=3", {}, "1 to 2"),
    ],
)
def test_bad_options_are_refused(stack, changes, match):
    with pytest.raises(InputError, match=match):
        built(stack, **changes)


@pytest.mark.parametrize(
    ("stack", "changes", "match"),
    [
        ("speculative,method=draft,draft=meta-llama/Llama-3.1-70B", {}, "not smaller than the target"),
        ("sparsity", {"gpu": "T4", "precision": "fp16"}, "Ampere"),
        ("sparsity", {"precision": "int4"}, "2:4 sparsity needs"),
        ("llm_int8", {"precision": "fp8", "gpu": "H100-SXM"}, "these are fp8"),
        ("awq", {"precision": "fp8", "gpu": "H100-SXM"}, "awq quantises fp16 or bf16"),
        ("awq+smoothquant", {}, "smoothquant quantises fp16 or bf16 weights, and these are int4"),
        ("smoothquant+awq", {}, "awq quantises fp16 or bf16 weights, and these are int8"),
    ],
)
def test_what_a_gpu_or_a_model_cannot_do_is_infeasible(stack, changes, match):
    with pytest.raises(InfeasibleError, match=match):
        built(stack, **changes)


@pytest.mark.parametrize("stack", ["smoothquant", "llm_int8"])
def test_int8_needs_int8_units(stack):
    rates = {name: rate for name, rate in load_accelerator("A100-SXM-80GB").dense_flop_per_s.items() if name != "int8"}
    gpu = dataclasses.replace(load_accelerator("A100-SXM-80GB"), dense_flop_per_s=rates)
    with pytest.raises(InfeasibleError, match="no int8 matrix units"):
        build_composed(f"roofline+{stack}", dataclasses.replace(request(), gpu=gpu))


def test_operators_are_needed_to_overlap_them():
    class Bare:
        attention_layers, num_stages = ((1, None),), 1

    with pytest.raises(InputError, match=r"roofline\+"):
        load_composition("nanoflow").build(Bare(), request(), {"nano": 2})


def test_two_that_choose_the_same_are_refused():
    with pytest.raises(InputError, match="which tokens are kept"):
        effect("h2o+razor_attention")
    with pytest.raises(InputError, match="where the cache lies"):
        effect("infinigen+kv_offload")


def test_reports_name_the_stack():
    model = built("h2o,ratio=0.3+nanoflow")
    described = model.describe()
    assert described["step_model"] == "roofline"
    assert described["compositions"] == [
        {"name": "h2o", "ratio": 0.3, "max_tokens": 0},
        {"name": "nanoflow", "nano": 2},
    ]
    assert str(built("awq,overhead=0.1").source) == "assumed"


# Lines ---------------------------------------------------------------------------------------------------------------


def test_the_larger_of_lines():
    lines = [(10.0, 1.0), (0.0, 2.0), (4.0, 1.875)]
    assert upper(lines, 0, UNBOUNDED) == (10.0, 1.0, 7)  # 4 + 1.875 r passes 10 + r at 6.86
    assert upper(lines, 7, UNBOUNDED) == (4.0, 1.875, 33)  # and 2 r passes it at 32
    assert upper(lines, 33, UNBOUNDED) == (0.0, 2.0, UNBOUNDED)
    assert upper(lines, 0, 5) == (10.0, 1.0, 5)


def test_the_smaller_of_a_steep_line_and_the_larger_of_flat_ones():
    flat, steep = [(10.0, 0.5), (8.0, 1.0)], (0.0, 2.0)
    assert lower_of(flat, steep, 0, UNBOUNDED) == (0.0, 2.0, 9)  # 2 r passes 8 + r at 8, after 10 + r/2 at 6.67
    assert lower_of(flat, steep, 9, UNBOUNDED)[:2] == (8.0, 1.0)
    assert lower_of([(10.0, 2.0)], steep, 0, UNBOUNDED) == (0.0, 2.0, UNBOUNDED)


# What is kept --------------------------------------------------------------------------------------------------------


def test_h2o_reads_its_share():
    model = built("h2o,ratio=0.2")
    base, slope, _ = PLAIN.decode_line(16, 16 * 5000)
    assert model.decode_line(16, 16 * 5000)[:2] == (base, pytest.approx(0.2 * slope))
    assert model.step_s(512, 1, 512 * 256, 0, 1, 0, 0) == PLAIN.step_s(512, 1, 512 * 256, 0, 1, 0, 0)
    assert effect("h2o,ratio=0.2").kept_tokens(5000) == 1000
    fixed = built("h2o,ratio=0.2,max_tokens=4096")
    assert fixed.attention_layers == ((1, 819),)
    assert fixed.prefill_attention_layers == ((1, None),)
    assert effect("h2o,ratio=0.2,max_tokens=4096").kept_tokens(10_000) == 819


def razor_kept(length: int) -> float:
    """The paper's formula, straight."""
    return 0.15 * length + 0.85 * min(length, 4 + max(4000, length / 5) + 1)


@pytest.mark.parametrize("length", [1, 3999, 4005, 4006, 12_000, 19_999, 20_000, 20_001, 131_072])
def test_razor_attention_folds_exactly(length):
    assert effect("razor_attention").kept_tokens(length) == pytest.approx(razor_kept(length))
    model = built("razor_attention")
    read = sum(w * (length if window is None else min(length, window)) for w, window in model.attention_layers)
    base, slope, _ = model.decode_line(1, read)
    plain_base, plain_slope, _ = PLAIN.decode_line(1, length)
    assert base + slope * read == pytest.approx(plain_base + plain_slope * razor_kept(length))


def test_the_engine_counts_windows_with_negative_weights():
    """A request that grows through both bends of the fold takes the sum of its steps."""
    model = built("razor_attention,buffer=100")
    prompt, output = 90, 600
    workload = Workload(arrival_s=np.zeros(1), prompt_tokens=np.array([prompt]), output_tokens=np.array([output]))
    run = simulate(workload, EngineConfig(num_blocks=100), model)
    expected = float(run.first_token_s[0])
    for length in range(prompt + 1, prompt + output):
        kept = 0.15 * length + 0.85 * min(length, 4 + max(100, length / 5) + 1)
        base, slope, _ = PLAIN.decode_line(1, 1)
        expected += base + slope * kept
    assert run.finish_s[0] == pytest.approx(expected, rel=1e-12)


# Smaller and farther caches ------------------------------------------------------------------------------------------


def test_a_quantised_cache():
    kept = effect("kv_quantisation,bits=4,group=128")
    assert kept.kv_bytes_factor == (4 + 32 / 128) / 16
    base, slope, _ = PLAIN.decode_line(32, 10**5)
    # One read token is 32 layers x 8 heads x 2 x 128 elements; five operations each on half of 19.5 TFLOP/s.
    unpack = 32 * 8 * 2 * 128 * 5 / (19.5e12 / 2)
    assert built("kv_quantisation,bits=4").decode_line(32, 10**5)[:2] == (
        base,
        pytest.approx(max(unpack, 4.25 / 16 * slope)),
    )


def test_an_offloaded_cache_hides_behind_compute_until_it_does_not():
    model = built("kv_offload,share=0.5,gb_per_s=20")
    per_token = 0.5 * 32 * 8 * 2 * 128 * 2 / 20e9
    for read in (0, 100, 10**4, 10**6):
        compute = PLAIN.step_s(0, 0, 0, 0, 0, 8, read)
        moved = per_token * (8 + read)
        expected = (31 * max(compute, moved) + compute + moved) / 32
        assert model.step_s(0, 0, 0, 0, 0, 8, read) == pytest.approx(expected)
    serial = built("kv_offload,share=0.5,gb_per_s=20,overlap=off").step_s(0, 0, 0, 0, 0, 8, 10**4)
    assert serial == pytest.approx(PLAIN.step_s(0, 0, 0, 0, 0, 8, 10**4) + per_token * 10_008)
    away = effect("kv_offload,share=0.75,tier=disk")
    assert (away.gpu_kv_share, away.kv_tier) == (pytest.approx(0.25 + 0.75 * 2 / 32), "disk")
    assert (away.tier_tokens(1000), away.tier_bytes) == (750, 931 * 2**30)


def test_the_disk_is_shared_by_the_gpus():
    one = built("kv_offload,tier=disk", gpu="H100-SXM").decode_line(1, 10**6)[1]
    two = built("kv_offload,tier=disk", gpu="H100-SXM", parallelism=Parallelism(tp=2)).decode_line(1, 10**6)[1]
    assert two == pytest.approx(one, rel=0.01)  # half of the bytes at half of the rate


def test_infinigen_keeps_partial_keys():
    kept = effect("infinigen")
    assert kept.gpu_kv_share == pytest.approx(0.15 + 0.1 * 2 / 32)
    assert kept.tier_tokens(1000) == 1000
    assert kept.kv_tier == "cpu"
    assert kept.extra_bytes == pytest.approx(0.025 * weight_bytes(load_model("meta-llama/Llama-3.1-8B"), "bf16"))
    far, near = built("kv_offload").decode_line(1, 10**6)[1], built("infinigen").decode_line(1, 10**6)[1]
    assert near == pytest.approx(0.1 * far, rel=0.1)


def test_scores_through_memory():
    model = built("no_flash_attention")
    score = 4 * 2 * 32 * 32 / 2.039e12  # passes, bytes, heads, layers
    base, slope, _ = PLAIN.decode_line(4, 1000)
    assert model.decode_line(4, 1000)[:2] == (base, pytest.approx(slope + score))
    args = (2048, 1, 2048 * 2049 // 2, 0, 1, 0, 0)
    doubled = (2048, 1, 2048 * 2049, 0, 1, 0, 0)
    assert model.step_s(*args) == pytest.approx(PLAIN.step_s(*doubled) + score * 2048 * 2049)
    assert effect("no_flash_attention,chunk=1024,context=1024").extra_bytes == 2 * 2 * 32 * 1024 * 2048


# Matrices ------------------------------------------------------------------------------------------------------------


def test_quantised_weights_change_the_precision():
    for stack, precision in (("smoothquant", "int8"), ("awq", "int4")):
        changed, _ = combined_memory_effect(request(), parse_compositions(stack))
        assert changed.precision == precision
        plain = build_step_model("roofline", request(precision=precision))
        assert built(stack).step_s(0, 0, 0, 0, 0, 8, 8000) == plain.step_s(0, 0, 0, 0, 0, 8, 8000)
        assert built(f"{stack},overhead=0.2").step_s(0, 0, 0, 0, 0, 8, 8000) > plain.step_s(0, 0, 0, 0, 0, 8, 8000)


def test_llm_int8_is_smaller_and_slower():
    slower = built("llm_int8,slowdown=0.5").step_s(0, 0, 0, 0, 0, 8, 8000)
    plain = PLAIN.step_s(0, 0, 0, 0, 0, 8, 8000)
    assert plain < slower < 1.5 * plain
    assert 0.5 < effect("llm_int8").weight_bytes_factor < 0.6


def test_sparsity_helps_where_weights_or_flops_bind():
    model = built("sparsity,speedup=2")
    for args in ((0, 0, 0, 0, 0, 1, 100), (8192, 4, 10**6, 0, 4, 0, 0)):
        assert 0.5 < model.step_s(*args) / PLAIN.step_s(*args) < 0.8
    dense = built("sparsity,speedup=1").step_s(8192, 4, 10**6, 0, 4, 0, 0)
    assert dense == pytest.approx(PLAIN.step_s(8192, 4, 10**6, 0, 4, 0, 0), rel=0.05)
    assert effect("sparsity").weight_bytes_factor == pytest.approx(0.5625 + 0.4375 * 0.13, abs=0.02)


# Overlap -------------------------------------------------------------------------------------------------------------


def test_the_overlap_is_the_linear_program():
    from scipy.optimize import linprog

    memory, network, _ = load_interference()
    rates = np.array([((10 - m - n) / 10, memory[m], network[n]) for m in range(11) for n in range(11 - m)])
    rng = np.random.default_rng(1)
    for work in rng.random((20, 3)) * (1, 1, 1):
        answer = linprog(np.ones(len(rates)), A_ub=-rates.T, b_ub=-work)
        assert overlapped_s(*work) == pytest.approx(answer.fun, rel=1e-7)


def test_the_overlap_lies_between_the_longest_and_the_sum():
    for work in ((3.0, 1.0, 2.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 4.0), (1.0, 1.0, 1.0)):
        assert max(work) * (1 - 1e-9) <= overlapped_s(*work) <= sum(work) * (1 + 1e-9)
    assert len(corners()) > 3


def test_nano_batches_gain_on_full_steps_and_do_no_harm_on_small_ones():
    cut = Parallelism(tp=8)
    changes = {"model": "meta-llama/Llama-2-70b-hf", "parallelism": cut}
    plain, model = build_step_model("roofline", request(**changes)), built("nanoflow", **changes)
    small = (0, 0, 0, 0, 0, 4, 4000)
    assert model.step_s(*small) == plain.step_s(*small)
    full = (683, 2, 683 * 256, 0, 2, 1365, 1365 * 1024)
    assert 0.5 < model.step_s(*full) / plain.step_s(*full) < 0.9
    assert built("nanoflow,nano=1", **changes).step_s(*full) <= model.step_s(*full)


def test_what_the_published_table_promises():
    misses = {entry["figure"] for entry in nanoflow_rows.rows() if entry["bound"] and not entry["within"]}
    assert misses == {"measured prefill attention", "measured network"}


# Speculation ---------------------------------------------------------------------------------------------------------


def test_expected_tokens():
    assert expected_tokens(parse_acceptance("0.8", 3)) == pytest.approx((1 - 0.8**4) / 0.2)
    assert expected_tokens(parse_acceptance("0.9/0.5", 3)) == pytest.approx(1 + 0.9 + 0.45 + 0.225)
    assert expected_tokens(parse_acceptance("0", 4)) == 1
    assert expected_tokens(parse_acceptance("1", 4)) == 5


def test_draws_follow_the_generator_and_the_mean():
    acceptance = parse_acceptance("0.8/0.6/0.4", 3)
    draws = draw_tokens(acceptance, 20_000, np.random.default_rng(7))
    assert np.array_equal(draws, draw_tokens(acceptance, 20_000, np.random.default_rng(7)))
    assert set(np.unique(draws)) == {1, 2, 3, 4}
    assert draws.mean() == pytest.approx(expected_tokens(acceptance), abs=4 * draws.std() / 20_000**0.5)
    assert (draws == 1).mean() == pytest.approx(0.2, abs=0.015)


def test_a_verify_step_by_hand():
    model = built("speculative,tokens=3,amortise=off,host_ms=2")
    assert model.step_s(0, 0, 0, 0, 0, 8, 8000) == pytest.approx(0.002 + PLAIN.step_s(0, 0, 0, 0, 0, 32, 8000 + 24))
    shared = built("speculative,tokens=3,host_ms=2,acceptance=0.5")
    assert shared.expected_tokens_per_step == 1.875
    assert shared.step_s(0, 0, 0, 0, 0, 8, 8000) == pytest.approx(model.step_s(0, 0, 0, 0, 0, 8, 8000) / 1.875)


def test_a_draft_model_costs_its_steps_and_its_memory():
    name = "Qwen/Qwen3-0.6B"
    draft = build_step_model("roofline", request(model=name))
    model = built(f"speculative,method=draft,draft={name},tokens=2,amortise=off")
    # 28 layers of 8 heads of the draft count as one read token, as 32 of the target do: the folds are both of weight 1.
    expected = PLAIN.step_s(0, 0, 0, 0, 0, 12, 4008) + 2 * draft.step_s(0, 0, 0, 0, 0, 4, 4000)
    assert model.step_s(0, 0, 0, 0, 0, 4, 4000) == pytest.approx(expected)
    memory = effect(f"speculative,method=draft,draft={name}")
    assert memory.extra_bytes == weight_bytes(load_model(name), "bf16")
    assert memory.kv_bytes_factor == pytest.approx(1 + 28 / 32)


def test_a_prediction_layer_holds_one_layer():
    spec = load_model("meta-llama/Llama-3.1-8B")
    layer = dataclasses.replace(spec, groups=(dataclasses.replace(spec.groups[-1], count=1),))
    added = 2 * (num_params(layer) - num_params(dataclasses.replace(spec, groups=())))
    assert effect("speculative,method=mtp,tokens=1").extra_bytes == pytest.approx(added)
