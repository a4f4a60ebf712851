"""TensorRT-LLM's block reuse, rule by rule, on cases to be done by hand: blocks of 4 tokens, steps of a second."""

from __future__ import annotations

from typing import Any

import pytest

from plimsoll.api.simulation import simulate as simulate_deployment
from plimsoll.core.columns import ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.prefix.contents import Chain
from plimsoll.engine.prefix.reuse_pool import Holding, ReusePool
from tests.unit.test_engine_policies import OneSecond, times, workload
from tests.unit.test_engine_sglang import with_ids

A, B, C = [1, 2], [3, 4], [5, 6]
"""Content ids of different prompts."""


def run(load: Workload, model: OneSecond | None = None, **fields: Any) -> Run:
    sizes = {key: fields.pop(key) for key in list(fields) if key in EngineConfig.__dataclass_fields__}
    config = EngineConfig(**{"num_blocks": 100, "block_size": 4, "policy": "trtllm", **sizes}, options=fields)
    return simulate(load, config, model or OneSecond())


def prompt_tokens(model: OneSecond) -> list[int]:
    """Prompt tokens of each step with any."""
    return [shape[0] for shape in model.passes if shape[0]]


# -- what is found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hit"),
    [
        ({}, 7),
        ({"enable_partial_reuse": False}, 4),
        ({"enable_block_reuse": False}, 0),
    ],
)
def test_a_prompt_is_found_but_for_its_last_token(options: dict[str, bool], hit: int) -> None:
    load = with_ids(workload((0, 8, 2), (5, 8, 2)), A, A, block_tokens=4)
    model = OneSecond()
    seen = run(load, model, **options)
    assert seen.cached_tokens.tolist() == [0, hit]
    assert prompt_tokens(model) == [8, 8 - hit]


def test_a_longer_prompt_computes_what_comes_after() -> None:
    load = with_ids(workload((0, 8, 2), (5, 15, 2)), A, [*A, 7], block_tokens=4)
    model = OneSecond()
    seen = run(load, model)
    assert seen.cached_tokens.tolist() == [0, 8]
    # seven new tokens at the positions 8 to 14, which attend to what is there
    assert model.passes[-1] == (7, 1, sum(range(9, 16)), 8, 1, 0, 0)


def test_a_shorter_prompt_is_found_in_a_longer_one() -> None:
    load = with_ids(workload((0, 16, 2), (5, 8, 1), (9, 8, 1)), [*A, *B], A, B, block_tokens=4)
    assert run(load).cached_tokens.tolist() == [0, 7, 0], "the last begins with what stood in the middle"


def test_a_prompt_is_found_while_its_request_still_decodes() -> None:
    load = with_ids(workload((0, 8, 20), (1.5, 8, 2)), A, A, block_tokens=4)
    seen = run(load)
    assert seen.cached_tokens.tolist() == [0, 7]
    assert times(seen, 1) == [3, 4]


def test_without_content_ids_blocks_are_only_counted() -> None:
    assert run(workload((0, 8, 2), (5, 8, 2))).cached_tokens.tolist() == [0, 0]


def test_content_ids_must_go_with_the_blocks() -> None:
    with pytest.raises(InputError, match="block_size"):
        run(with_ids(workload((0, 9, 2)), [1, 2, 3], block_tokens=3))


# -- whoever waits for others' blocks ------------------------------------------------------------------------------


def test_whoever_begins_alike_waits_a_step_and_others_overtake() -> None:
    load = with_ids(workload((0, 8, 3), (0, 8, 3), (0, 8, 3)), A, A, C, block_tokens=4)
    seen = run(load)
    assert times(seen, 0) == times(seen, 2) == [1, 2, 3]
    assert times(seen, 1) == [2, 3, 4]
    assert seen.cached_tokens.tolist() == [0, 7, 0]
    together = run(load, enable_block_reuse=False)
    assert times(together, 1) == [1, 2, 3]


def test_those_who_differ_in_the_first_new_block_run_together() -> None:
    load = with_ids(workload((0, 4, 1), (3, 8, 1), (3, 8, 1)), [1], [1, 2], [1, 9], block_tokens=4)
    seen = run(load)
    assert times(seen, 1) == times(seen, 2) == [4]
    assert seen.cached_tokens.tolist() == [0, 4, 4]


def test_a_prompt_under_way_in_chunks_is_waited_for() -> None:
    load = with_ids(workload((0, 12, 2), (0, 8, 2)), [1, 2, 3], A, block_tokens=4)
    model = OneSecond()
    options = {"enable_chunked_context": True, "max_num_batched_tokens": 8, "max_num_seqs": 4}
    seen = run(load, model, **options)
    assert prompt_tokens(model) == [8, 4, 1], "the second has room beside the last chunk of the first, and waits"
    assert times(seen, 1) == [3, 4]
    other = OneSecond()
    run(load, other, enable_block_reuse=False, **options)
    assert prompt_tokens(other) == [8, 8, 4]


def test_a_prompt_in_flight_is_waited_for() -> None:
    model = OneSecond()
    model.num_stages = 2
    seen = run(with_ids(workload((0, 8, 2), (0, 8, 2)), A, A, block_tokens=4), model)
    assert seen.cached_tokens.tolist() == [0, 7]
    assert times(seen, 0)[0] == 2
    assert times(seen, 1)[0] == 4, "two stages after the first is through"


def test_a_step_is_shared_out_before_anything_is_found() -> None:
    # a step of 12 tokens holds one prompt of 8, although all but one of the second's are there
    load = with_ids(workload((0, 8, 1), (3, 8, 1), (3, 8, 1)), A, A, A, block_tokens=4)
    seen = run(load, max_num_batched_tokens=12, max_num_seqs=8)
    assert times(seen, 1) == [4]
    assert times(seen, 2) == [5]


def test_a_cut_prompt_begins_with_what_is_found_and_a_whole_chunk() -> None:
    ids = [1, 2, 3, 4, 5, 6]
    load = with_ids(workload((0, 8, 1), (3, 24, 1)), A, ids, block_tokens=4)
    model = OneSecond()
    run(load, model, enable_chunked_context=True, max_num_batched_tokens=10, max_num_seqs=4)
    assert prompt_tokens(model) == [8, 8, 8], "10 tokens hold two blocks, after the two that were found"


# -- memory --------------------------------------------------------------------------------------------------------


def test_memory_is_promised_before_anything_is_found() -> None:
    load = with_ids(workload((0, 8, 8), (1.5, 8, 8)), A, A, block_tokens=4)
    seen = run(load, num_blocks=7)  # four blocks each, one of which they would share
    assert times(seen, 0)[-1] == 8
    assert times(seen, 1)[0] == 9


def test_shared_blocks_leave_room_for_others() -> None:
    load = with_ids(workload((0, 8, 8), (1.5, 8, 8), (3.5, 2, 2)), A, A, [9], block_tokens=4)
    seen = run(load, num_blocks=8)  # 4 and 3 more, and one for the last
    assert times(seen, 1)[0] == 3
    assert times(seen, 2) == [5, 6]
    assert run(load, num_blocks=8, enable_block_reuse=False).timeline.token_times_s(2).tolist() == [9, 10]  # type: ignore[union-attr]


def test_what_was_promised_comes_back_with_the_end() -> None:
    load = with_ids(workload((0, 8, 2), (1, 8, 2), max_output_tokens=ints([4, 4])), A, B, block_tokens=4)
    seen = run(load, num_blocks=3)  # three each; the third block of the first is never taken
    assert times(seen, 1) == [3, 4]
    assert seen.status.tolist() == [Status.FINISHED] * 2
    assert seen.cached_tokens.tolist() == [0, 0]


def test_a_paused_request_finds_what_is_left_of_its_own() -> None:
    load = workload((0, 4, 12), (0, 4, 12))
    model = OneSecond()
    options = {"capacity_scheduler_policy": "max-utilization", "num_blocks": 6}
    seen = run(load, model, cache_own_blocks=True, **options)
    # After step 9 both hold three full blocks; the second pauses, and the first takes the last of its blocks. The first
    # ends with step 12; 13 tokens of the second are to be computed, and 8 are still there.
    assert seen.preemptions.tolist() == [0, 1]
    assert times(seen, 0) == [*range(1, 13)]
    assert times(seen, 1) == [*range(1, 10), 13, 14, 15]
    assert prompt_tokens(model) == [8, 5]
    counted = OneSecond()
    run(load, counted, **options)
    assert prompt_tokens(counted) == [8, 13]


def test_pausing_frees_only_what_nobody_else_uses() -> None:
    # Step 10 lacks 6 of 10 blocks. The last request holds five, four of which the one before it uses too: both pause.
    first = [(0.0, 4, 30)] * 8
    load = with_ids(
        workload(*first, (0, 16, 30), (4.5, 17, 30)), *([10 + k] for k in range(8)), [1, 2, 3, 4], [1, 2, 3, 4],
        block_tokens=4,
    )  # fmt: skip
    seen = run(load, capacity_scheduler_policy="max-utilization", num_blocks=35)
    assert seen.cached_tokens[9] == 16
    assert times(seen, 8)[:10][-2:] == [9, times(seen, 8)[9]]
    assert times(seen, 8)[9] > 10
    assert times(seen, 9)[:4] == [6, 7, 8, 9]
    assert times(seen, 9)[4] > 10
    assert all(times(seen, k)[9] == 10 for k in range(8))


def test_the_prompt_let_go_of_longest_ago_is_forgotten_first() -> None:
    rows = workload((0, 8, 1), (2, 8, 1), (4, 8, 1), (6, 8, 1), (8, 8, 1))
    # four blocks, two for each prompt: the third takes those of the first, the fourth finds the second's
    seen = run(with_ids(rows, A, B, C, B, A, block_tokens=4), num_blocks=4)
    assert seen.cached_tokens.tolist() == [0, 0, 0, 7, 0]


# -- the pool ------------------------------------------------------------------------------------------------------


def chain(*ids: int, private: int = 0) -> Chain:
    return Chain(list(ids), len(ids), 1, private)


def held(pool: ReusePool, content: Chain, blocks: int, full: int) -> Holding:
    """A request that has found what there is, and stored its full blocks."""
    holding = Holding(content)
    pool.share(holding, pool.find(content, full))
    pool.take(blocks - holding.end)
    pool.store(holding, full)
    return holding


def test_the_end_of_a_prompt_is_taken_before_its_beginning() -> None:
    pool, content = ReusePool(10), chain(1, 2, 3, 4)
    holding = held(pool, content, 4, 4)
    assert pool.num_free == 6
    assert pool.release(holding, 4, 4) == 4
    pool.take(6)  # all that never held anything
    assert pool.num_found(content, 4) == 4
    pool.take(3)
    assert pool.num_found(content, 4) == 1
    pool.take(1)
    assert (pool.num_found(content, 4), pool.num_free) == (0, 0)


def test_blanks_wait_for_their_turn_as_all_blocks_do() -> None:
    pool, content, other = ReusePool(8), chain(1, 2), chain(5)
    pool.release(held(pool, content, 4, 2), 4, 2)  # two of them hold what nobody can find
    pool.release(held(pool, other, 4, 1), 4, 1)
    pool.take(2)  # the blanks of the first, let go of first
    assert pool.num_found(content, 2) == 2
    pool.take(1)  # its second block, not the blanks of the other
    assert pool.num_found(content, 2) == 1
    assert pool.num_found(other, 1) == 1


def test_what_is_used_again_is_let_go_of_anew() -> None:
    pool, first, second = ReusePool(4), chain(1, 2), chain(3, 4)
    pool.release(held(pool, first, 2, 2), 2, 2)
    pool.release(held(pool, second, 2, 2), 2, 2)
    pool.release(held(pool, first, 2, 2), 2, 2)
    pool.take(2)
    assert (pool.num_found(first, 2), pool.num_found(second, 2)) == (2, 0)


def test_a_copy_is_stored_when_the_first_is_forgotten() -> None:
    pool, content = ReusePool(4), chain(1)
    first = held(pool, content, 1, 0)
    second = held(pool, content, 1, 0)
    pool.store(first, 1)
    pool.store(second, 1)
    pool.release(first, 1, 1)
    pool.take(3)  # two new ones and the first's
    assert pool.num_found(content, 1) == 0, "the second's stands in no list of what is stored"
    assert pool.release(second, 1, 1) == 1
    assert pool.num_found(content, 1) == 1


def test_a_copy_is_let_go_of_as_a_blank_while_the_first_is_there() -> None:
    pool, content = ReusePool(2), chain(1)
    first, second = held(pool, content, 1, 0), held(pool, content, 1, 0)
    pool.store(first, 1)
    pool.store(second, 1)
    pool.release(second, 1, 1)
    pool.take(1)
    assert pool.num_found(content, 1) == 1, "what was taken was the copy"
    pool.release(first, 1, 1)
    assert pool.num_free == 1


def test_a_run_is_cut_where_contents_part_and_stays_in_order() -> None:
    pool, content = ReusePool(6), chain(1, 2, 3, 4)
    pool.release(held(pool, content, 4, 4), 4, 4)
    other = held(pool, chain(1, 2, 8), 3, 3)  # takes the two that were never used, but for one
    assert pool.num_found(content, 4) == 4
    assert pool.release(other, 3, 3) == 3
    pool.take(3)  # one blank, then the fourth and third block
    assert pool.num_found(content, 4) == 2
    assert pool.num_found(chain(1, 2, 8), 3) == 3


def test_a_find_that_nobody_takes_changes_nothing() -> None:
    pool, content = ReusePool(4), chain(1, 2, 3, 4)
    pool.release(held(pool, content, 4, 4), 4, 4)
    assert [run.high - run.low for run in pool.find(content, 1)] == [1]
    assert pool.num_found(content, 4) == 4
    pool.take(1)
    assert pool.num_found(content, 4) == 3, "still the end first"
    pool.take(2)
    assert pool.num_found(content, 4) == 1


def test_private_blocks_are_found_by_their_request_alone() -> None:
    pool, mine, yours = ReusePool(8), chain(1, private=7), chain(1, private=8)
    pool.release(held(pool, mine, 3, 3), 3, 3)
    assert pool.num_found(mine, 3) == 3
    assert pool.num_found(yours, 3) == 1


def test_more_than_there_is_cannot_be_taken() -> None:
    with pytest.raises(AssertionError, match="more blocks taken"):
        ReusePool(3).take(4)


# -- a real trace --------------------------------------------------------------------------------------------------


def test_mooncakes_published_hit_rate_with_unlimited_memory(shared_data) -> None:  # type: ignore[no-untyped-def]
    case = {
        "model": "Llama-3.1-8B", "gpu": "H100-SXM", "tp": 4, "block_size": 32, "max_model_len": 131072,
        "rate_per_s": 1.5, "kv_blocks": 2_000_000,
        "trace": str(shared_data / "traces" / "mooncake_conversation_trace.jsonl.gz"),
    }  # fmt: skip
    found = simulate_deployment(**case, engine="trtllm,enable_chunked_context=true").to_json_dict()["prefix_cache"]
    assert found["hit_frac"] == pytest.approx(0.374, abs=0.005)


# -- data-parallel ranks -------------------------------------------------------------------------------------------


def test_the_longest_prompt_goes_first_to_the_rank_with_the_fewest_tokens() -> None:
    # 20 to the first, 12 to the second, 8 to the second as it has fewer, 4 to the first, whose share is not full
    load = workload((0, 4, 2), (0, 8, 2), (0, 20, 2), (0, 12, 2))
    model = OneSecond()
    run(load, model, ranks=2)
    assert model.passes[0][:2] == (2 * 24, 2 * 2)
    assert model.passes[1][:2] == (2 * 20, 2 * 2)


def test_no_rank_gets_more_requests_than_its_share() -> None:
    load = workload((0, 40, 30), (1.5, 4, 30), (2.5, 4, 30), (3.5, 4, 30))
    model = OneSecond()
    run(load, model, ranks=2)
    # The second and third go to the other rank, which has fewer tokens; the fourth, of a share of two, to the first.
    decodes_beside = [shape[5] // 2 for shape in model.passes if shape[0]]
    assert decodes_beside == [0, 0, 1, 1]


def test_who_finds_no_seat_waits_before_all_ranks() -> None:
    seen = run(workload((0, 4, 9), (0, 4, 3), (0, 4, 2)), ranks=2, max_num_seqs=1)
    assert times(seen, 1) == [1, 2, 3]
    assert times(seen, 2) == [4, 5], "on the rank where the first seat is free"


def test_each_rank_finds_its_own_blocks_only() -> None:
    load = with_ids(workload((0, 8, 9), (3, 8, 2), (20, 8, 2)), A, A, A, block_tokens=4)
    seen = run(load, ranks=2)
    assert seen.cached_tokens.tolist() == [0, 0, 7]
