"""The roofline against figures worked out by hand, and the promises of the port."""

from __future__ import annotations

import pickle

import pytest

from plimsoll.catalog import counting
from plimsoll.catalog.accelerators import list_accelerators, load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf.overheads import Overheads, list_overheads, load_overheads
from plimsoll.perf.roofline import Roofline, RooflineOptions

A100 = load_accelerator("A100-SXM-80GB")
H100 = load_accelerator("H100-SXM")
LLAMA7B = load_model("meta-llama/Llama-2-7b-hf")
LLAMA8B = load_model("meta-llama/Llama-3.1-8B")
HOST = Overheads(per_step_s=1e-3, per_sequence_s=1e-5, per_prefill_token_s=1e-7)


def prompt(tokens: int) -> StepShape:
    pairs = tokens * (tokens + 1) // 2
    return StepShape(prefill_tokens=tokens, num_prefill=1, prefill_pairs=pairs, num_prefill_done=1)


def test_the_bound_of_one_decode_is_reading_every_matrix_once():
    bound = Roofline(LLAMA7B, A100).limits()
    matrices = counting.num_params(LLAMA7B) - 32000 * 4096 - 65 * 4096  # no embedding look-up, no norms
    activations = 2 * (32 * (4096 + 12288 + 2 * 4096 + 4096 + 22016 + 11008 + 4096) + 4096 + 32000)
    logits = 4 * 32000
    cache = 1000 * 2 * 32 * 4096 * 2
    expected = (2 * matrices + activations + logits + cache) / A100.memory_bandwidth_bytes_per_s
    assert bound.step_s(0, 0, 0, 0, 0, 1, 1000) == pytest.approx(expected, rel=1e-9)


def test_the_bound_of_a_long_prompt_is_its_flops():
    bound = Roofline(LLAMA7B, A100).limits()
    matrices = counting.num_params(LLAMA7B) - 2 * 32000 * 4096 - 65 * 4096
    shape = prompt(4096)
    flop = 2 * matrices * 4096 + 4 * 4096 * 32 * shape.prefill_pairs
    assert bound.step(shape).time_s == pytest.approx(flop / 312e12, rel=0.01)


def test_an_empty_step_costs_the_host_time():
    model = Roofline(LLAMA7B, A100, overheads=HOST)
    assert model.step_s(0, 0, 0, 0, 0, 0, 0) == 1e-3
    assert model.decode_line(0, 0)[0] == 1e-3


def test_host_time_is_added_per_sequence_and_prompt_token():
    bare, hosted = Roofline(LLAMA7B, A100), Roofline(LLAMA7B, A100, overheads=HOST)
    mixed = (500, 2, 80_000, 100, 1, 30, 20_000)
    assert hosted.step_s(*mixed) - bare.step_s(*mixed) == pytest.approx(1e-3 + 32e-5 + 500e-7)
    assert hosted.step_s(0, 0, 0, 0, 0, 30, 9000) - bare.step_s(0, 0, 0, 0, 0, 30, 9000) == pytest.approx(1.3e-3)


def test_a_decode_step_is_its_line_to_the_last_bit():
    model = Roofline(LLAMA8B, H100, overheads=HOST)
    for num, read in ((1, 1), (7, 1234), (256, 999_999), (1024, 3_000_001)):
        base, slope, below = model.decode_line(num, read)
        assert read < below
        assert model.step_s(0, 0, 0, 0, 0, num, read) == base + slope * read


def test_operator_times_add_up_to_the_step():
    model = Roofline(load_model("mistralai/Mixtral-8x7B-v0.1"), H100, Parallelism(tp=2), overheads=HOST)
    for shape in (prompt(777), StepShape(num_decode=33, decode_read_tokens=40_000)):
        times = model.operator_times(shape)
        host = 1e-3 + 1e-5 * (shape.num_decode + shape.num_prefill) + 1e-7 * shape.prefill_tokens
        assert sum(times.values()) + host == pytest.approx(model.step(shape).time_s)
        assert min(times.values()) >= 0


def test_the_serial_sum_is_never_faster_than_the_overlap():
    overlap = Roofline(LLAMA8B, H100)
    serial = Roofline(LLAMA8B, H100, options=RooflineOptions(combine="sum"))
    for args in ((0, 0, 0, 0, 0, 64, 64_000), (512, 1, 131_328, 0, 1, 0, 0), (512, 1, 131_328, 0, 1, 64, 64_000)):
        assert serial.step_s(*args) > overlap.step_s(*args)


def test_more_gpus_are_faster_but_not_for_free():
    one, two, eight = (Roofline(LLAMA8B, H100, Parallelism(tp=tp)).step(prompt(4096)).time_s for tp in (1, 2, 8))
    assert one > two > one / 2
    assert two > eight > one / 8


def test_cards_on_pcie_pay_more_for_their_all_reduce():
    l40s = load_accelerator("L40S")
    shape = prompt(2048)
    pcie = Roofline(LLAMA8B, l40s, Parallelism(tp=4)).operator_times(shape)["mlp all-reduce"]
    nvlink = Roofline(LLAMA8B, H100, Parallelism(tp=4)).operator_times(shape)["mlp all-reduce"]
    assert pcie > 10 * nvlink


def test_fewer_bits_read_faster():
    decode = (0, 0, 0, 0, 0, 4, 2000)
    bf16, fp8, int4 = (Roofline(LLAMA8B, H100, None, p).step_s(*decode) for p in ("bf16", "fp8", "int4"))
    assert bf16 > fp8 > int4
    assert Roofline(LLAMA8B, H100, None, "bf16", "fp8").decode_line(8, 1)[1] == pytest.approx(
        Roofline(LLAMA8B, H100).decode_line(8, 1)[1] / 2
    )


def test_a_type_that_the_card_lacks_is_refused():
    with pytest.raises(InfeasibleError, match="fp16") as caught:
        Roofline(LLAMA7B, load_accelerator("V100-SXM2-32GB"), None, "bf16")
    assert caught.value.constraint == "precision"
    assert Roofline(LLAMA7B, load_accelerator("V100-SXM2-32GB"), None, "fp16").step_s(0, 0, 0, 0, 0, 1, 10) > 0


def test_fp8_weights_run_in_16_bit_where_the_card_has_no_fp8():
    fp8, bf16 = (Roofline(LLAMA8B, A100, None, precision) for precision in ("fp8", "bf16"))
    long = prompt(8192)
    assert fp8.step(long).time_s == pytest.approx(bf16.step(long).time_s, rel=0.05)  # same arithmetic
    assert fp8.step_s(0, 0, 0, 0, 0, 1, 10) < 0.7 * bf16.step_s(0, 0, 0, 0, 0, 1, 10)  # half the bytes


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="combine"):
        Roofline(LLAMA7B, A100, options=RooflineOptions(combine="mean"))


def test_windows_come_from_the_catalogue():
    gemma = load_model("google/gemma-3-27b-it")
    assert Roofline(gemma, H100).attention_layers == counting.attention_layers(gemma)
    assert Roofline(LLAMA7B, A100, Parallelism(pp=4)).num_stages == 4


def test_models_without_a_cache_have_a_flat_line():
    nemotron = load_model("nvidia/Nemotron-H-8B-Base-8K")
    model = Roofline(nemotron, H100)
    small, large = model.step_s(0, 0, 0, 0, 0, 8, 8000), model.step_s(0, 0, 0, 0, 0, 64, 8000)
    assert large > small  # the state of 56 more sequences


@pytest.mark.parametrize("gpu", list_accelerators())
def test_every_accelerator_of_the_catalogue_runs_a_step_between_bound_and_crawl(gpu):
    card = load_accelerator(gpu)
    precision = "bf16" if "bf16" in card.dense_flop_per_s else "fp16"
    model = Roofline(LLAMA8B, card, None, precision, overheads=load_overheads())
    for shape in (StepShape(num_decode=16, decode_read_tokens=16_000), prompt(1024)):
        cost = model.step(shape)
        bound = model.limits().step(shape).time_s
        assert bound < cost.time_s < 25 * bound  # TPU prompts are the slowest: measured at 5 % of their peak
        assert cost.source in (Source.MODELLED, Source.ASSUMED)
        assert card.tdp_w * 0.05 < cost.energy_j / cost.time_s <= card.tdp_w * 1.0001


def test_a_borrowed_family_says_so():
    own, near, other = (Roofline(LLAMA8B, load_accelerator(gpu)) for gpu in ("H100-SXM", "A10", "MI300X"))
    assert own.error_frac < near.error_frac + 0.2 < other.error_frac + 0.2
    assert own.source is Source.MODELLED
    assert other.source is Source.ASSUMED
    assert "MI300X" in other.describe()["efficiency_reason"]


def test_it_travels_to_other_processes():
    model = Roofline(LLAMA8B, H100, Parallelism(tp=2), overheads=HOST)
    model.step_s(100, 1, 5050, 0, 1, 10, 1000)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.step_s(100, 1, 5050, 0, 1, 10, 1000) == model.step_s(100, 1, 5050, 0, 1, 10, 1000)


def test_overheads_are_data_with_a_source():
    for name in list_overheads():
        overheads = load_overheads(name)
        assert overheads.source
        assert overheads.date
        assert 0 <= overheads.per_step_s < 0.01
        assert overheads.per_step_s > 0 or name.startswith("api-server-"), "an API server has no steps"
        assert any(value > 0 for value in vars(overheads).values() if isinstance(value, float))
    with pytest.raises(UnknownNameError, match="vllm-v1"):
        load_overheads("vlm-v1")
    with pytest.raises(InputError, match="per_step_s"):
        Overheads(per_step_s=-1.0)
