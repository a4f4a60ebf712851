"""Data-parallel ranks of a profiled machine: padding to one another's graphs, experts elsewhere, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import Moe
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.core.step import StepShape
from plimsoll.perf.build import build_step_model
from plimsoll.perf.profiles.curves import Curve
from plimsoll.perf.profiles.elsewhere import elsewhere_s
from plimsoll.perf.profiles.graphs import DEFAULT_LIMIT_TOKENS, captured_tokens, padded_tokens
from plimsoll.perf.profiles.links import Cost, Machine, Measured, Messages, cost_of, find_machine
from plimsoll.perf.request import StepModelRequest
from tests.unit.test_perf_profile import US, write_bundle
from validation.real_vllm import _graph_tokens

CARD = load_accelerator("RTX-4090")
MIXTRAL = load_model("mistralai/Mixtral-8x7B-Instruct-v0.1")
TWO = Parallelism(dp=2, ep=2)


def captured_by_vllm(limit: int) -> list[int]:
    """vLLM v0.19.0's own list: 1, 2, 4, then by eights below 256, then by sixteens."""
    sizes = [size for size in (1, 2, 4) if size <= limit]
    sizes += range(8, min(limit + 1, 256), 8)
    return sizes + list(range(256, limit + 1, 16))


@given(st.integers(1, 700), st.integers(0, 600))
def test_a_rank_replays_the_next_larger_captured_graph(tokens: int, limit: int) -> None:
    larger = [size for size in captured_by_vllm(limit) if size >= tokens]
    assert captured_tokens(tokens, limit) == (min(larger) if larger else None)


@pytest.mark.parametrize(
    ("asked", "limit", "run"),
    [
        ([100, 30], 256, [104, 104]),
        ([1, 0], 256, [1, 1]),
        ([3, 9], 256, [16, 16]),
        ([6, 900], 256, [8, 900]),
        ([0, 900], 256, [1, 900]),
        ([300, 260], 256, [300, 260]),
        ([300, 260], 512, [304, 304]),
        ([98, 30], 100, [98, 32]),
        ([98, 30], 0, [98, 30]),
        ([7, 3, 0, 30], 512, [32, 32, 32, 32]),
    ],
)
def test_ranks_pad_to_one_another_unless_one_of_them_has_no_graph(asked: list[int], limit: int, run: list[int]) -> None:
    assert padded_tokens(asked, limit) == run


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=8), st.sampled_from([0, 100, 256, 512]))
def test_padding_never_takes_rows_away_and_is_done_once(asked: list[int], limit: int) -> None:
    run = padded_tokens(asked, limit)
    assert all(after >= max(1, before) for before, after in zip(asked, run, strict=True))
    assert padded_tokens(run, limit) == run
    assert padded_tokens(asked[::-1], limit) == run[::-1]


def test_rows_of_experts_elsewhere_agree_with_the_published_measurement() -> None:
    """Microseconds of one of two ranks of Qwen3-30B-A3B on an RTX PRO 6000, by tokens: with less without such rows."""
    (moe,) = {group.mlp for group in load_model("Qwen/Qwen3-30B-A3B-Instruct-2507").groups}
    assert isinstance(moe, Moe)
    for tokens, measured_us in ((256, 2.3), (512, 8.8), (1024, 31), (2048, 51), (4096, 113)):
        ours_us = elsewhere_s(moe, 2048, 2, tokens, 1.597e12) / US
        assert ours_us == pytest.approx(measured_us, rel=0.25)
    assert elsewhere_s(moe, 2048, 1, 4096, 1.597e12) == 0
    assert elsewhere_s(moe, 2048, 8, 4096, 1.597e12) == pytest.approx(7 / 4 * 114e-6, rel=0.01)


def write_moe_bundle(folder: Path) -> Path:
    """The small bundle with experts: 1 ms, 300 us an expert, 3 us a token."""
    write_bundle(folder, meta="model: mistralai/Mixtral-8x7B-Instruct-v0.1\ngpu: NVIDIA GeForce RTX 4090\n")
    rows = [f"{tokens},{used},{1000 + 300 * used + 3 * tokens}" for tokens in (1, 64, 2048) for used in (2, 4, 8)]
    (folder / "tp1" / "moe.csv").write_text("\n".join(["tokens,activated_experts,time_us", *rows]) + "\n")
    return folder


def build(folder: Path, **options: Any) -> Any:
    request = StepModelRequest(model=MIXTRAL, gpu=CARD, parallelism=TWO, options=options)
    return build_step_model(f"profile:{folder}", request)


def decodes(count: int) -> StepShape:
    return StepShape(num_decode=count, decode_read_tokens=16 * count, longest_decode=16 if count else 0)


def test_a_light_rank_costs_what_the_heavy_one_makes_it_run(tmp_path: Path) -> None:
    model = build(write_moe_bundle(tmp_path / "bf16"))
    alone = model.lockstep_s([decodes(33), decodes(0)])
    assert alone == model.lockstep_s([decodes(33), decodes(33)]), "both run 40 rows either way"
    assert alone == model.lockstep_s([decodes(0), decodes(33)])
    eager = build(tmp_path / "bf16", graph_tokens=0)
    assert eager.lockstep_s([decodes(33), decodes(0)]) < eager.lockstep_s([decodes(33), decodes(33)]) < alone


def test_a_chunk_too_long_for_a_graph_leaves_the_other_rank_its_own_rows(tmp_path: Path) -> None:
    chunk = StepShape(prefill_tokens=600, num_prefill=1, prefill_pairs=600 * 601 // 2, num_prefill_done=1)
    model = build(write_moe_bundle(tmp_path / "bf16"))
    with_five, with_eight = (model.lockstep_s([chunk, decodes(count)]) for count in (5, 8))
    assert with_five == pytest.approx(with_eight, rel=1e-12), "five decodes run eight rows"
    assert model.lockstep_s([chunk, decodes(9)]) > with_eight
    assert model.lockstep_s([chunk, decodes(0)]) < with_eight


def test_ranks_with_equal_work_cost_the_same_by_either_question(tmp_path: Path) -> None:
    model = build(write_moe_bundle(tmp_path / "bf16"))
    for count in (1, 5, 33, 64):
        together = model.lockstep_s([decodes(count), decodes(count)])
        assert model.step_s(0, 0, 0, 0, 0, 2 * count, 32 * count) == pytest.approx(together, rel=1e-12)
    assert model.lockstep_s([decodes(0), decodes(0)]) == model.step_s(0, 0, 0, 0, 0, 0, 0) == 0


def test_an_option_names_the_largest_graph(tmp_path: Path) -> None:
    folder = write_moe_bundle(tmp_path / "bf16")
    request = StepModelRequest(model=MIXTRAL, gpu=CARD, parallelism=TWO)
    written = build_step_model(f"profile:{folder},graph_tokens=0", request)
    shapes = [decodes(33), decodes(0)]
    assert written.lockstep_s(shapes) == build(folder, graph_tokens=0).lockstep_s(shapes)  # type: ignore[attr-defined]
    for wrong in (-1, True, "many"):
        with pytest.raises(InputError, match="graph_tokens"):
            build(folder, graph_tokens=wrong)
        with pytest.raises(InputError, match="graph_tokens"):
            build_step_model(f"profile:{folder},graph_tokens={wrong}", request)
    both = build_step_model(f"profile:{folder},graph_tokens=0,allow_extrapolation=true", request)
    assert both.step_s(0, 0, 0, 0, 0, 2, 2 * 9000) > 0


def test_the_suite_takes_the_largest_graph_from_the_servers_arguments() -> None:
    assert _graph_tokens({}) == DEFAULT_LIMIT_TOKENS == 512
    assert _graph_tokens({"max_num_seqs": 128, "max_num_batched_tokens": 2048}) == 256
    assert _graph_tokens({"max_num_seqs": 1024, "max_num_batched_tokens": 300}) == 300
    assert _graph_tokens({"max_num_seqs": None, "max_num_batched_tokens": None}) == 512
    assert _graph_tokens({"max_num_seqs": 128, "enforce_eager": True}) == 0


RING = Machine(bytes_per_s=1e10, latency_s=1e-5, origin="a test")


def test_rows_are_gathered_with_their_experts_and_summed_without() -> None:
    messages = Messages(MIXTRAL, CARD, TWO, RING)
    row_bytes, routing_bytes = 2 * MIXTRAL.hidden_size, 2 * 8
    per_layer_s = 2e-5 + 100 * (2 * row_bytes + routing_bytes) / 2 / 1e10
    assert messages.of(50, 100) == pytest.approx(MIXTRAL.num_layers * per_layer_s)


def machines(folder: Path, collectives: Any) -> Machine | None:
    entry = {"link_bandwidth_bytes_per_s": 1e10, "link_latency_s": 1e-5, "collectives": collectives}
    (folder / "machines.json").write_text(json.dumps({"RTX-4090": entry}))
    return find_machine(folder, CARD)


def test_measured_messages_take_the_rings_place_among_as_many_cards(tmp_path: Path) -> None:
    table = {"ranks": 2, "all_gather": {"1000": 1e-5, "2000": 3e-5}, "all_reduce": {"1000": 2e-5, "2000": 4e-5}}
    machine = machines(tmp_path, table)
    gather = cost_of("all_gather", 2, CARD, machine)
    assert isinstance(gather, Measured)
    assert gather.curve == Curve((1000, 2000), (1e-5, 3e-5))
    assert gather.of(3000) == pytest.approx(2e-5), "1,500 bytes of each rank"
    assert gather.of(100) == 1e-5, "short messages cost what the shortest measured one does"
    assert gather.of(8000) == pytest.approx(7e-5)
    assert cost_of("all_reduce", 2, CARD, machine).of(1500) == pytest.approx(3e-5), "a sum is named by all of it"
    assert cost_of("reduce_scatter", 2, CARD, machine) == Cost(fixed_s=1e-5, s_per_byte=0.5e-10), "not measured"
    assert isinstance(cost_of("all_gather", 4, CARD, machine), Cost), "not among four"
    assert cost_of("all_gather", 1, CARD, machine).of(1e6) == 0


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ([1], "collectives"),
        ({"all_gather": {"1": 1e-6}}, "ranks"),
        ({"ranks": 1, "all_gather": {"1": 1e-6}}, "ranks"),
        ({"ranks": 2, "all_gather": [1, 2]}, "all_gather"),
        ({"ranks": 2, "all_gather": {}}, "all_gather"),
        ({"ranks": 2, "all_reduce": {"many": 1e-6}}, "all_reduce"),
        ({"ranks": 2, "reduce_scatter": {"10": 0}}, "reduce_scatter"),
        ({"ranks": 2, "reduce_scatter": {"-10": 1e-6}}, "reduce_scatter"),
    ],
)
def test_measurements_that_are_none_are_named(tmp_path: Path, table: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        machines(tmp_path, table)


def described(folder: Path, **entry: object) -> Machine:
    """The machine of two RTX PRO 6000 that a ``machines.json`` with `entry` describes."""
    document = {"RTX-PRO-6000": {"link_bandwidth_bytes_per_s": 16e9, "link_latency_s": 2e-5, **entry}}
    (folder / "machines.json").write_text(json.dumps(document))
    machine = find_machine(folder, load_accelerator("RTX-PRO-6000"))
    assert machine is not None
    return machine


def test_a_described_pair_takes_what_was_measured_between_such_cards(tmp_path: Path) -> None:
    pro = load_accelerator("RTX-PRO-6000")
    machine = described(tmp_path)
    assert "measured between 2 RTX-PRO-6000" in machine.origin
    assert cost_of("all_reduce", 2, pro, machine).of(10240) == pytest.approx(16.24e-6)
    assert cost_of("all_gather", 2, pro, machine).of(2 * 40960) == pytest.approx(16.44e-6), "one rank's share"
    long_bytes = 16_777_216
    assert long_bytes / cost_of("all_reduce", 2, pro, machine).of(long_bytes) == pytest.approx(16e9, rel=0.01)
    four = cost_of("all_reduce", 4, pro, machine)
    assert isinstance(four, Cost), "among four cards nobody measured"
    assert four.fixed_s == pytest.approx(6 * 2e-5)


def test_another_bandwidth_or_a_file_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    pro = load_accelerator("RTX-PRO-6000")
    for bandwidth in (14e9, 32e9):
        other = described(tmp_path, link_bandwidth_bytes_per_s=bandwidth)
        assert other.origin == "machines.json"
        assert cost_of("all_reduce", 2, pro, other) == Cost(fixed_s=4e-5, s_per_byte=1 / bandwidth)
    own = described(tmp_path, collectives={"ranks": 2, "all_reduce": {"1000": 1e-3}})
    assert own.origin == "machines.json"
    assert cost_of("all_reduce", 2, pro, own).of(1000) == 1e-3
