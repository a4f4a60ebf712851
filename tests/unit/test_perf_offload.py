"""FlexGen's equations by hand, its search against a grid, and its published throughputs."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.core.step import StepShape
from plimsoll.core.units import GIB
from plimsoll.perf.offload.flexgen import COMPRESSED_FRAC, BlockWork, Placement, block_model, evaluate
from plimsoll.perf.offload.flexgen_search import SearchLimits, best_placement, gpu_batches, search
from plimsoll.perf.offload.hardware import load_machine
from plimsoll.perf.offload.layer import layer_shape
from plimsoll.perf.offload.steps import OffloadedSteps
from validation._papers import flexgen as flexgen_rows
from validation._papers import h2o as h2o_rows

OPT30 = layer_shape(load_model("facebook/opt-30b"))
T4 = load_machine()
CPU_CACHE = Placement.percent(20, 80, 0, 100, 0, 100)
WORK = BlockWork(prompt_tokens=512, output_tokens=32, gpu_batch=48, num_gpu_batches=3)


def test_the_layer_of_opt_is_flexgens():
    h1, h2 = 7168, 4 * 7168
    assert OPT30.plain_weight_bytes == 8 * h1**2 + 4 * h1 * h2
    assert OPT30.plain_kv_bytes == 4 * h1
    assert (OPT30.num_layers, OPT30.num_heads) == (48, 56)


def test_a_prefill_by_hand():
    h1, h2, s, block = 7168, 28672, 512, 144
    compute = block * (8 * s * h1**2 + 4 * s * h1 * h2) / 21.24e12 + 4 * block * s**2 * h1 / 9.97e12
    gtoc = 4 * (s + 1) * h1 * block / (0.97 * GIB) + 2 * s * h1 * block / (4.82 * GIB)
    cost = evaluate(block_model(OPT30, T4, WORK), CPU_CACHE)
    assert cost.prefill_parts_s["compute"] == pytest.approx(compute)
    assert cost.prefill_parts_s["gtoc"] == pytest.approx(gtoc)
    assert cost.prefill_s == pytest.approx(48 * max(compute, gtoc))


def test_a_decode_by_hand():
    h1, h2, block, tokens = 7168, 28672, 144, 528
    weights = 8 * h1**2 + 4 * h1 * h2
    ctog = (0.8 * weights + 2 * h1 * block) / (12.89 * GIB)
    share = 1 - 0.0328 * 0.4150374992788438  # log2(64 / 48); wider than 4096
    compute = block * weights / 4.3e12 + 4 * block * tokens * h1 / (0.0123e12 * share)
    cost = evaluate(block_model(OPT30, T4, WORK), CPU_CACHE)
    assert cost.decode_s == pytest.approx(48 * 31 * (ctog + compute))
    assert cost.throughput_tokens_per_s == pytest.approx(144 * 32 / (cost.prefill_s + cost.decode_s))
    text = evaluate(block_model(OPT30, T4, dataclasses.replace(WORK, combine="paper")), CPU_CACHE)
    assert text.decode_s == pytest.approx(48 * 31 * compute)
    serial = evaluate(block_model(OPT30, T4, dataclasses.replace(WORK, overlap=False)), CPU_CACHE)
    assert serial.decode_s == pytest.approx(48 * 31 * sum(cost.decode_parts_s.values()))


def test_peaks_by_hand():
    h1, h2, s, n, batch, block, layers = 7168, 28672, 512, 32, 48, 144, 48
    weights = 8 * h1**2 + 4 * h1 * h2
    inter = 8 * batch * s * h1 + batch * (2 * s * h1 + 2 * 56 * s**2) + 2 * batch * s * h1 + 4 * batch * s * h1
    inter += 2 * batch * s * h2 + 2 * batch * s * h1
    gpu = weights * layers * 0.2 + 2 * weights * 0.8 + 2 * s * h1 * batch + inter
    cpu = weights * layers * 0.8 + 2 * h1 * block + 4 * (s + n) * h1 * block * layers
    cpu += 2 * 56 * (s + n) * batch + 2 * h1 * batch
    cost = evaluate(block_model(OPT30, T4, WORK), CPU_CACHE)
    assert cost.gpu_peak_bytes == pytest.approx(gpu)
    assert cost.cpu_peak_bytes == pytest.approx(cpu)
    assert cost.disk_peak_bytes == pytest.approx(0)


def test_four_bits_shrink_what_moves_and_cost_unpacking():
    plain = dataclasses.replace(WORK, cpu_attention=False)
    small = dataclasses.replace(plain, compress_weights=True, compress_cache=True)
    a, b = (evaluate(block_model(OPT30, T4, work), CPU_CACHE) for work in (plain, small))
    assert b.decode_parts_s["ctog"] == pytest.approx(COMPRESSED_FRAC * a.decode_parts_s["ctog"], rel=0.01)
    assert b.decode_parts_s["compute"] > a.decode_parts_s["compute"]
    with pytest.raises(InputError, match="cpu_attention"):
        dataclasses.replace(WORK, compress_cache=True)


def test_the_search_is_at_least_as_good_as_a_grid():
    work = BlockWork(prompt_tokens=512, output_tokens=32, gpu_batch=32, num_gpu_batches=4)
    plan = best_placement(OPT30, T4, work)
    assert plan is not None
    model = block_model(OPT30, T4, work)
    assert plan.cost.gpu_peak_bytes <= T4.gpu_bytes * (1 + 1e-6)
    assert plan.cost.cpu_peak_bytes <= T4.cpu_bytes * (1 + 1e-6)
    assert plan.placement.hd == pytest.approx(0)
    best = 0.0
    for wg, wc, cg, cc, hg in itertools.product(range(0, 101, 20), repeat=5):
        if wg + wc > 100 or cg + cc > 100:
            continue
        cost = evaluate(model, Placement.percent(wg, wc, cg, cc, hg, 100 - hg))
        if (
            cost.gpu_peak_bytes <= T4.gpu_bytes
            and cost.cpu_peak_bytes <= T4.cpu_bytes
            and cost.disk_peak_bytes <= T4.disk_bytes
        ):
            best = max(best, cost.throughput_tokens_per_s)
    assert best > 0
    assert plan.cost.throughput_tokens_per_s >= best * (1 - 1e-9)


def test_the_whole_search_finds_larger_blocks():
    start = BlockWork(prompt_tokens=512, output_tokens=32, gpu_batch=1)
    small = search(OPT30, T4, start, SearchLimits(max_gpu_batch=4, max_num_gpu_batches=2))
    large = search(OPT30, T4, start)
    assert large.cost.throughput_tokens_per_s > 2 * small.cost.throughput_tokens_per_s
    assert gpu_batches(20) == [1, 2, 3, 4, 8, 16]
    assert gpu_batches(2) == [1, 2]


def test_tiers_too_small_are_refused():
    tiny = dataclasses.replace(T4, disk_bytes=1e9, cpu_bytes=1e9)
    with pytest.raises(InfeasibleError, match=r"weights do not fit.*larger tier") as error:
        search(OPT30, tiny, WORK)
    assert error.value.constraint == "memory"
    cramped = dataclasses.replace(T4, gpu_bytes=1e8)
    with pytest.raises(InfeasibleError, match="not one sequence"):
        search(OPT30, cramped, WORK)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gpu_batch": 0}, "gpu_batch"),
        ({"combine": "sum"}, "combine"),
        ({"output_tokens": 0}, "output_tokens"),
        ({"kept_frac": 0.0}, "kept_frac"),
        ({"cache_group": 0}, "cache_group"),
    ],
)
def test_bad_blocks_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(WORK, **change)


def test_bad_placements_models_and_machines_are_refused():
    with pytest.raises(InputError, match="placement of w"):
        Placement(wg=0.5, wc=0.2, wd=0.0, cg=1, cc=0, cd=0, hg=1, hc=0, hd=0)
    with pytest.raises(InputError, match="block schedule"):
        layer_shape(load_model("mistralai/Mixtral-8x7B-v0.1"))
    with pytest.raises(UnknownNameError, match="t4-gcp"):
        load_machine("t4-gpc")


@pytest.mark.parametrize(
    "work", [WORK, dataclasses.replace(WORK, combine="paper"), dataclasses.replace(WORK, overlap=False)]
)
def test_the_step_model_is_the_schedule(work):
    """A block's steps, one by one, take what the cost model says of the whole block at its mean length."""
    cost = evaluate(block_model(OPT30, T4, work), CPU_CACHE)
    model = OffloadedSteps(OPT30, T4, CPU_CACHE, work)
    read = 144 * 528
    base, slope, below = model.decode_line(144, read)
    assert base + slope * read == pytest.approx(cost.decode_s / 31)
    assert model.step_s(0, 0, 0, 0, 0, 144, read) == base + slope * read
    assert below > read
    pairs = 144 * 512 * 513 // 2
    assert model.step_s(144 * 512, 144, pairs, 0, 144, 0, 0) == pytest.approx(cost.prefill_s, rel=0.005)
    assert model.step(StepShape(num_decode=144, decode_read_tokens=read)).time_s == base + slope * read


@pytest.mark.parametrize("kept", [{"kept_frac": 0.3}, {"kept_tokens": 150}, {"kept_frac": 0.5, "kept_tokens": 150}])
def test_a_prefill_stores_what_is_kept(kept):
    """With the cache on a slow disk a prefill is bound by writing it: less is kept, less is written."""
    slow, disk = T4.with_disk(2e9, 1e8), Placement.percent(20, 80, 0, 0, 0, 100)
    work = dataclasses.replace(WORK, **kept)
    args = (144 * 512, 144, 144 * 512 * 513 // 2, 0, 144, 0, 0)
    seconds = OffloadedSteps(OPT30, slow, disk, work).step_s(*args)
    assert seconds == pytest.approx(evaluate(block_model(OPT30, slow, work), disk).prefill_s, rel=0.005)
    assert seconds < 0.6 * OffloadedSteps(OPT30, slow, disk, WORK).step_s(*args)


def test_what_is_kept_is_read_and_stored():
    work = dataclasses.replace(WORK, kept_frac=0.25)
    assert work.mean_decode_tokens == 0.25 * 528
    assert work.stored_tokens == 0.25 * 544
    assert dataclasses.replace(work, kept_tokens=100).stored_tokens == 100
    assert dataclasses.replace(work, kept_tokens=1000).stored_tokens == 136


@pytest.mark.parametrize("num", [1, 47, 48, 49, 500])
def test_the_step_model_bends_where_times_cross_and_never_falls(num):
    model = OffloadedSteps(OPT30, T4, CPU_CACHE, dataclasses.replace(WORK, combine="paper"))
    last, read = 0.0, 0
    for _ in range(8):
        base, slope, below = model.decode_line(num, read)
        assert base + slope * read >= last * (1 - 1e-12)
        last = base + slope * read
        read = min(below, read + 10**5)
    assert model.step_s(0, 0, 0, 0, 0, num + 1, 10**5) >= model.step_s(0, 0, 0, 0, 0, num, 10**5)


@pytest.mark.parametrize("table", [flexgen_rows, h2o_rows])
def test_what_the_published_tables_promise(table):
    """The rows that miss are known by name; a new miss, or one that went away, is news."""
    known = {"OPT-30b 256+32 160x2"}
    rows = table.rows()
    misses = {entry["figure"] for entry in rows if not entry["within"]}
    assert misses == known & {entry["figure"] for entry in rows}
