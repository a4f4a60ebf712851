"""SGLang's rules, each on a case small enough to do by hand. Every step takes one second here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from plimsoll.core.columns import ints
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policies.sglang import Sglang
from plimsoll.engine.sglang_rules import NewTokenRatio
from tests.unit.test_engine_policies import OneSecond, workload


def run(load: Workload, model: OneSecond | None = None, **fields: Any) -> Run:
    sizes = {key: fields.pop(key) for key in list(fields) if key in EngineConfig.__dataclass_fields__}
    config = EngineConfig(**{"num_blocks": 1000, "block_size": 1, "policy": "sglang", **sizes}, options=fields)
    return simulate(load, config, model or OneSecond())


def times(seen: Run, row: int) -> list[float]:
    assert seen.timeline is not None
    return seen.timeline.token_times_s(row).tolist()


def with_ids(load: Workload, *prompts: list[int], block_tokens: int = 1) -> Workload:
    """The same with content ids."""
    offsets = [sum(map(len, prompts[:k])) for k in range(len(prompts) + 1)]
    flat = ints([i for prompt in prompts for i in prompt])
    return dataclasses.replace(
        load, block_tokens=block_tokens, prompt_block_ids=flat, prompt_block_offsets=ints(offsets)
    )


def test_prompts_run_alone_and_decodes_wait() -> None:
    load = workload((0.0, 5, 4), (1.5, 5, 2))
    seen = run(load)
    assert times(seen, 0) == [1.0, 2.0, 4.0, 5.0]
    assert times(seen, 1) == [3.0, 4.0]


def test_a_mixed_step_takes_them_along() -> None:
    model = OneSecond()
    seen = run(workload((0.0, 5, 4), (1.5, 5, 2)), model, enable_mixed_chunk=True)
    assert times(seen, 0) == [1.0, 2.0, 3.0, 4.0]
    assert times(seen, 1) == [3.0, 4.0]
    assert model.passes[1] == (5, 1, 15, 0, 1, 1, 7)


def test_chunks_of_a_long_prompt_come_one_after_another_and_others_fill_the_last() -> None:
    model = OneSecond()
    seen = run(workload((0.0, 5, 9), (0.5, 20, 1), (0.5, 4, 1)), model, chunked_prefill_size=8)
    assert [shape[0] for shape in model.passes] == [5, 8, 8, 8]  # the last: 4 of the long one and 4 of the short one
    assert times(seen, 0)[:2] == [1.0, 5.0]
    assert times(seen, 1) == times(seen, 2) == [4.0]


def test_whole_prompts_end_a_step_at_max_prefill_tokens() -> None:
    model = OneSecond()
    load = workload((0.0, 30, 1), (0.0, 5, 1), (0.0, 6, 1))
    run(load, model, chunked_prefill_size=-1, max_prefill_tokens=12)
    assert [shape[0] for shape in model.passes] == [30, 11]


def test_what_others_may_generate_is_set_aside_at_the_new_token_ratio() -> None:
    """After the prompt of 10, 70 % of 89 tokens to come are 62.3; the second request wants 24, 5 and a page."""
    load = workload((0.0, 10, 90), (0.5, 24, 5))
    assert times(run(load, num_blocks=103), 1)[0] == 2.0  # 30 < 93 - 62.3
    assert times(run(load, num_blocks=102), 1)[0] == 91.0  # the batch counts as full until the first one ends
    assert times(run(load, num_blocks=102, schedule_conservativeness=0.9), 1)[0] == 2.0


def test_an_ended_request_keeps_its_seat_for_one_decode_step() -> None:
    """Two seats. The first request ends at 2; the third is let in after the next decode step, not before."""
    load = workload((0.0, 5, 2), (0.0, 5, 9), (0.5, 5, 1))
    seen = run(load, max_num_seqs=2)
    assert times(seen, 0) == [1.0, 2.0]
    assert times(seen, 2) == [4.0]
    assert times(seen, 1)[:4] == [1.0, 2.0, 3.0, 5.0]


CROWDED = ((0.0, 10, 30), (0.5, 12, 15))
"""Too much for 45 tokens, if nothing is set aside for what they generate."""


def test_memory_that_runs_out_is_taken_from_who_has_generated_least() -> None:
    """Beside prompts of 22 there is room for 11 steps of both; then both have 12 tokens, and the longer prompt goes."""
    seen = run(workload(*CROWDED), num_blocks=45, schedule_conservativeness=0.0)
    assert seen.preemptions.tolist() == [0, 1]
    assert (seen.status == Status.FINISHED).all()
    assert times(seen, 1)[:12] == [2.0 + k for k in range(12)]
    assert times(seen, 1)[12] > 14.0


def test_without_content_ids_blocks_are_only_counted() -> None:
    """With a cache, the second request finds its prompt again: what it had generated was room enough for 20 steps."""
    settings = {"num_blocks": 75, "schedule_conservativeness": 0.0}
    models = [OneSecond() for _ in range(3)]
    load = workload((0.0, 10, 50), (0.5, 12, 30))
    counted = run(load, models[0], **settings)
    found = run(load, models[1], **settings, cache_own_blocks=True)
    off = run(load, models[2], **settings, cache_own_blocks=True, disable_radix_cache=True)
    assert times(counted, 1) == times(off, 1)
    assert found.preemptions.tolist() == [0, 1]
    again = [max(shape[3] for shape in model.passes) for model in models]
    assert again == [0, 12, 0]


def test_cached_tokens_are_not_computed_again() -> None:
    model = OneSecond()
    load = with_ids(
        workload((0.0, 6, 2), (5.0, 8, 1), (9.0, 6, 1)),
        [1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 7, 8, 9, 10],
        [1, 2, 3, 4, 5, 6],
    )
    seen = run(load, model)
    assert seen.cached_tokens.tolist() == [0, 4, 5]  # of a prompt that is cached whole, the last token is computed
    assert [shape[:4] for shape in model.passes if shape[0]] == [(6, 1, 21, 0), (4, 1, 26, 4), (1, 1, 6, 5)]


def test_prompts_of_one_step_do_not_find_each_other_and_free_what_both_computed() -> None:
    ids = [list(range(8))] * 2
    seen = run(with_ids(workload((0.0, 8, 3), (0.0, 8, 3)), *ids), num_blocks=26)
    assert seen.cached_tokens.tolist() == [0, 0]
    assert times(seen, 0) == times(seen, 1) == [1.0, 2.0, 3.0]


def test_the_longest_prefix_goes_first() -> None:
    """One seat: while the first runs, two come; the second of them finds more."""
    one, two = [1] * 1, [2]
    load = with_ids(workload((0.0, 40, 1), (0.1, 40, 1), (0.2, 40, 1)), one, two, one, block_tokens=40)
    assert [times(run(load, max_num_seqs=1), row)[0] for row in range(3)] == [1.0, 2.0, 3.0]
    seen = run(load, max_num_seqs=1, schedule_policy="lpm")
    assert [times(seen, row)[0] for row in range(3)] == [1.0, 3.0, 2.0]
    assert seen.cached_tokens.tolist() == [0, 0, 39]


def test_of_those_with_the_same_new_beginning_one_goes_first() -> None:
    """Three seats, but the third request waits for the second's cache, behind the fourth."""
    load = with_ids(
        workload((0.0, 3, 1), (0.1, 40, 1), (0.2, 40, 1), (0.3, 40, 1)), [], [1, 2], [1, 3], [4, 5], block_tokens=32
    )
    seen = run(load, schedule_policy="lpm", max_num_seqs=2)
    assert [times(seen, row)[0] for row in range(4)] == [1.0, 2.0, 3.0, 2.0]
    assert seen.cached_tokens.tolist() == [0, 0, 32, 0]


@pytest.mark.parametrize(("policy", "order"), [("lof", [1, 4, 2]), ("dfs-weight", [1, 2, 3])])
def test_other_orders(policy: str, order: list[int]) -> None:
    load = with_ids(workload((0.0, 4, 1), (0.1, 4, 1), (0.2, 4, 2)), *[[k] for k in range(3)], block_tokens=4)
    seen = run(load, max_num_seqs=1, schedule_policy=policy)
    assert [times(seen, row)[0] for row in range(3)] == order


def test_the_heaviest_branch_goes_first() -> None:
    """Two of the last three go on where the first request ended; the one before them does not."""
    a, b = [1], [2]
    load = with_ids(workload((0.0, 8, 1), (0.1, 8, 1), (0.2, 8, 1), (0.3, 8, 1)), a, b, a, a, block_tokens=8)
    seen = run(load, max_num_seqs=1, schedule_policy="dfs-weight")
    assert [times(seen, row)[0] for row in range(4)] == [1.0, 4.0, 2.0, 3.0]


def test_the_ratio_falls_step_by_step_and_starts_again() -> None:
    ratio = NewTokenRatio(0.7, 0.1, 6)
    ratio.decay(2)
    assert ratio.now == pytest.approx(0.5)
    ratio.decay(100)
    assert ratio.now == 0.1
    ratio.start(0.05)
    ratio.decay(1)
    assert ratio.now == 0.1
    ratio.reset()
    assert ratio.now == 0.7
    for _ in range(3):
        ratio.decay(1)
    whole = NewTokenRatio(0.7, 0.1, 6)
    whole.decay(3)
    assert ratio.now == whole.now


def test_who_does_not_fit_beside_a_page_is_rejected() -> None:
    seen = run(workload((0.0, 10, 8), (0.0, 10, 9)), num_blocks=20)
    assert seen.status.tolist() == [Status.FINISHED, Status.REJECTED]


def test_who_could_generate_more_than_fits_is_told_less() -> None:
    load = workload((0.0, 10, 5), max_output_tokens=ints([10_000]))
    assert run(load, num_blocks=20).status.tolist() == [Status.FINISHED]


@pytest.mark.parametrize("size", [1, 4])
def test_the_chunk_is_that_of_the_machine_unless_asked_for(size: int) -> None:
    config = EngineConfig(num_blocks=10, block_size=size, max_num_batched_tokens=8190)
    assert Sglang(config).chunk_size == 8190 // size * size
    assert Sglang(config, chunked_prefill_size=16).chunk_size == 16
    assert Sglang(config, chunked_prefill_size=-1).chunk_size > 1 << 20


def test_wrong_options_are_refused() -> None:
    config = EngineConfig(num_blocks=10, block_size=4)
    with pytest.raises(UnknownNameError, match="did you mean lpm"):
        Sglang(config, schedule_policy="lpx")
    with pytest.raises(InputError, match="multiple of the block size"):
        Sglang(config, chunked_prefill_size=6)
    with pytest.raises(InputError, match="schedule_conservativeness"):
        Sglang(config, schedule_conservativeness=-1.0)
    with pytest.raises(InputError, match="at least 1 token"):
        Sglang(config, max_prefill_tokens=0)
    with pytest.raises(InputError, match="its options are: schedule_policy"):
        run(workload((0.0, 1, 1)), schedule_polcy="fcfs")


def test_whoever_watches_sees_who_gave_way() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.gone: list[int] = []

        def scheduled(self, replica: Any, plan: Any, begin_s: float) -> None:
            del plan, begin_s
            self.gone += replica.preempted

        def stepped(self, replica: Any, finished: list[int], end_s: float) -> None:
            pass

    config = EngineConfig(
        num_blocks=45,
        block_size=1,
        policy="sglang",
        options={"schedule_conservativeness": 0.0, "cache_own_blocks": True},
    )
    watcher = Watcher()
    seen = simulate(workload(*CROWDED), config, OneSecond(), observer=watcher)
    assert watcher.gone == [1]
    assert seen.preemptions.tolist() == [0, 1]


# -- data-parallel ranks -------------------------------------------------------------------------------------------


def test_requests_go_to_the_ranks_in_turn_and_the_slowest_counts_for_all() -> None:
    model = OneSecond()
    seen = run(workload((0.0, 5, 3), (0.0, 7, 2), (1.5, 4, 2)), model, ranks=2)
    assert times(seen, 0) == [1.0, 2.0, 4.0]  # the third is in its rank, and its prompt runs alone
    assert times(seen, 1) == [1.0, 2.0]
    assert times(seen, 2) == [3.0, 4.0]
    assert (10, 2, 30, 0, 2, 0, 0) in model.passes, "a step of the first rank costs as if both had its rows"


def test_decodes_of_one_rank_go_on_beside_prompts_of_another() -> None:
    seen = run(workload((0.0, 5, 5), (1.5, 5, 2)), ranks=2)
    assert times(seen, 0) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert times(seen, 1) == [3.0, 4.0]


def test_ranks_share_a_chunk_that_is_asked_for() -> None:
    seen = run(workload((0.0, 8, 1)), ranks=2, chunked_prefill_size=8)
    assert times(seen, 0) == [2.0]
    with pytest.raises(InputError, match="each of the 2 ranks"):
        run(workload((0.0, 8, 1)), ranks=2, block_size=4, chunked_prefill_size=12)
    assert times(run(workload((0.0, 8, 1)), chunked_prefill_size=8), 0) == [1.0]


def test_the_first_ratio_of_ranks_is_lower() -> None:
    config = EngineConfig(num_blocks=10, policy="sglang")
    assert Sglang(config).ratio.now == pytest.approx(0.7)
    assert Sglang(dataclasses.replace(config, ranks=4)).ratio.now == pytest.approx(0.21)


def test_a_full_rank_whose_requests_all_ended_waits_a_step_for_the_others() -> None:
    # one seat each: after the first request of rank 0 its scheduler learns in an empty round that the seat is free
    seen = run(workload((0.0, 4, 2), (0.0, 4, 9), (0.0, 4, 2)), ranks=2, max_num_seqs=1)
    assert times(seen, 0) == [1.0, 2.0]
    assert times(seen, 2) == [4.0, 5.0]
    alone = run(workload((0.0, 4, 2), (0.0, 4, 2)), max_num_seqs=1)
    assert times(alone, 1) == [3.0, 4.0]


@pytest.mark.parametrize(("other_output", "waits"), [(1, True), (690, False)])
def test_the_ratio_of_a_rank_starts_again_only_when_all_ranks_are_idle(other_output: int, waits: bool) -> None:
    # The first request brings its rank's ratio down to 0.1176. At that, 390 tokens and a page fit beside the third
    # request, of which 378 are to come, into the 688 that are free; at the first ratio, 0.84, they do not.
    load = workload((0, 2, 600), (0, 1, other_output), (640, 10, 380), (640, 1, 1), (642.5, 10, 380))
    seen = run(load, ranks=2, num_blocks=700, schedule_conservativeness=4.0)
    assert times(seen, 2)[0] == 641.0
    assert (times(seen, 4)[0] > 644.0) is waits
