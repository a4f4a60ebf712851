"""The pool of runs against a pool of single blocks, and what stands in the blocks of a workload."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.prefix.contents import Chain, Contents
from plimsoll.engine.prefix.prefix_pool import Holding, PrefixPool
from plimsoll.engine.queues import PriorityQueue
from tests.oracle.models import KinkedModel
from tests.oracle.naive_vllm_full import BlockPool


class Pair:
    """The same requests on both pools: every operation on one is done on the other."""

    def __init__(self, num_blocks: int) -> None:
        self.pool, self.naive = PrefixPool(num_blocks), BlockPool(num_blocks)
        self.held: dict[int, tuple[Holding, list[int]]] = {}

    def find(self, chain: Chain, most: int) -> list[int]:
        """The naive pool's blocks; both must agree on how many there are, and on how many of them are free."""
        found = self.pool.find(chain, most)
        blocks: list[int] = []
        while len(blocks) < most and (block := self.naive.find(chain.key(len(blocks)))) is not None:
            blocks.append(block)
        assert (found[-1].high if found else 0) == len(blocks)
        assert sum(run.high - run.low for run in found if not run.users) == self.naive.num_free_of(blocks)
        return blocks

    def admit(self, number: int, chain: Chain, most: int, more: int) -> None:
        blocks = self.find(chain, most)
        if self.naive.num_free_of(blocks) + more > self.pool.num_free:
            return
        holding = Holding(chain)
        self.pool.share(holding, self.pool.find(chain, most))
        self.naive.share(blocks)
        self.pool.take(more)
        self.held[number] = (holding, blocks + self.naive.take(more))

    def fill(self, number: int, end: int) -> None:
        holding, blocks = self.held[number]
        for block in range(holding.num_filled, end):
            self.naive.remember(blocks[block], holding.chain.key(block))
        self.pool.fill(holding, end)

    def release(self, number: int) -> None:
        holding, blocks = self.held.pop(number)
        self.pool.release(holding, len(blocks))
        self.naive.release(blocks)


def tree_of_chains(rng: np.random.Generator, parts: int) -> list[Chain]:
    """Chains that branch off each other at random places."""
    paths: list[list[int]] = []
    fresh = 0
    for _ in range(12):
        path: list[int] = []
        if paths and rng.random() < 0.8:
            other = paths[int(rng.integers(len(paths)))]
            path = other[: int(rng.integers(len(other) + 1))]
        for _ in range(int(rng.integers(0, 6))):
            path = [*path, fresh]
            fresh += 1
        paths.append(path)
    return [Chain(path, len(path) * parts, parts, number) for number, path in enumerate(paths)]


@pytest.mark.parametrize("seed", range(150))
def test_runs_of_blocks_behave_like_single_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chains = tree_of_chains(rng, int(rng.choice([1, 2, 5])))
    pair = Pair(int(rng.integers(5, 60)))
    for _ in range(150):
        number = int(rng.integers(len(chains)))
        if number not in pair.held:
            pair.admit(number, chains[number], int(rng.integers(0, 40)), int(rng.integers(0, 8)))
        elif rng.random() < 0.5:
            holding, blocks = pair.held[number]
            pair.fill(number, int(rng.integers(holding.num_filled, len(blocks) + 1)))
        elif rng.random() < 0.5:
            more = int(rng.integers(0, min(4, pair.pool.num_free) + 1))
            pair.pool.take(more)
            pair.held[number][1].extend(pair.naive.take(more))
        else:
            pair.release(number)
        assert pair.pool.num_free == len(pair.naive.free)
        for chain in chains:
            pair.find(chain, 60)


def test_the_deepest_block_of_the_least_recently_freed_goes_first() -> None:
    pool = PrefixPool(10)
    chains = [Chain([10 * k + i for i in range(4)], 4, 1, k) for k in range(2)]
    for chain in chains:
        holding = Holding(chain)
        pool.take(4)
        pool.fill(holding, 4)
        pool.release(holding, 4)
    pool.take(3)  # two that never held anything, then block 3 of chain 0
    assert [pool.find(chain, 9)[-1].high for chain in chains] == [3, 4]
    pool.take(4)
    assert not pool.find(chains[0], 9)
    assert pool.find(chains[1], 9)[-1].high == 3


def test_memory_without_end_costs_nothing() -> None:
    pool = PrefixPool(1 << 60)
    holding = Holding(Chain([], 0, 1, 0))
    pool.take(1 << 50)
    pool.fill(holding, 1 << 20)
    pool.release(holding, 1 << 50)
    assert pool.num_free == 1 << 60
    assert pool.num_empty == (1 << 60) - (1 << 20)


def workload(ids: list[list[int]], prompt: list[int], id_tokens: int) -> Workload:
    return Workload(
        arrival_s=floats(range(0, 100 * len(ids), 100)),
        prompt_tokens=ints(prompt),
        output_tokens=ints([3] * len(ids)),
        block_tokens=id_tokens,
        prompt_block_ids=ints([one for row in ids for one in row]),
        prompt_block_offsets=ints(np.cumsum([0, *map(len, ids)])),
    )


def test_blocks_smaller_and_bigger_than_an_id() -> None:
    rows = workload([[7, 8, 9], [7, 8, 4]], [24, 24], 8)
    smaller = Contents(rows, 2)
    first, second = smaller.chain(0), smaller.chain(1)
    assert first.num_shared == 12
    assert first.common(second, 12) == 8
    assert [first.key(k) for k in range(8)] == [second.key(k) for k in range(8)]
    assert len({first.key(k) for k in range(12)} | {second.key(k) for k in range(12)}) == 16
    bigger = Contents(rows, 16)
    assert bigger.chain(0).num_shared == 1
    assert bigger.chain(0).key(0) == bigger.chain(1).key(0)
    assert bigger.chain(0).key(1) != bigger.chain(1).key(1)  # partly without an id of its own: private


def test_a_block_size_that_does_not_go_with_the_ids_is_refused() -> None:
    rows = workload([[7, 8, 9]], [24], 8)
    with pytest.raises(InputError, match=r"block_size: 6 .* cover 8 tokens"):
        simulate(rows, EngineConfig(num_blocks=100, block_size=6), KinkedModel())
    off = EngineConfig(num_blocks=100, block_size=6, options={"enable_prefix_caching": False})
    assert simulate(rows, off, KinkedModel()).cached_tokens.tolist() == [0]


def test_ids_that_are_not_chained_become_so() -> None:
    contents = Contents(workload([[1, 5], [2, 5], [1, 5, 5]], [8, 8, 12], 4), 4)
    first, second, third = (contents.chain(k) for k in range(3))
    assert first.key(1) != second.key(1)
    assert first.key(1) == third.key(1)
    assert third.key(1) != third.key(2)


def test_a_hit_shortens_the_prefill_by_whole_blocks_and_leaves_a_token() -> None:
    rows = workload([[1, 2, 3], [1, 2, 3], [1, 2, 4]], [24, 24, 23], 8)
    run = simulate(rows, EngineConfig(num_blocks=100, block_size=4), KinkedModel())
    assert run.cached_tokens.tolist() == [0, 20, 16]
    ttft_s = run.first_token_s - run.arrival_s
    assert ttft_s[1] < ttft_s[2] < ttft_s[0]
    cold = simulate(
        rows, EngineConfig(num_blocks=100, block_size=4, options={"enable_prefix_caching": False}), KinkedModel()
    )
    assert cold.cached_tokens.tolist() == [0, 0, 0]
    assert (cold.first_token_s - cold.arrival_s)[1] == pytest.approx(ttft_s[0])


def test_late_results_cost_an_arrival_a_step_but_no_decode_anything() -> None:
    rows = Workload(arrival_s=floats([0.0, 0.001]), prompt_tokens=ints([8, 8]), output_tokens=ints([20, 2]))
    model = KinkedModel()
    late = EngineConfig(num_blocks=100, options={"async_scheduling": True})
    on_time = simulate(rows, EngineConfig(num_blocks=100), model)
    run = simulate(rows, late, model)
    assert run.first_token_s[0] == on_time.first_token_s[0]
    assert on_time.scheduled_s[1] == on_time.first_token_s[0]
    assert run.timeline is not None
    assert run.scheduled_s[1] == run.timeline.token_times_s(0)[1]  # one step was planned before it came


@pytest.mark.parametrize("option", ["async_scheduling", "scheduling_policy"])
def test_what_is_not_simulated_with_pipeline_stages_is_refused(option: str) -> None:
    rows = Workload(arrival_s=floats([0.0]), prompt_tokens=ints([8]), output_tokens=ints([2]))
    config = EngineConfig(num_blocks=100, options={option: "priority" if option == "scheduling_policy" else True})
    with pytest.raises(
        InputError, match=rf"^{option}: '(true|priority)' cannot be used; with pipeline stages .* leave it"
    ):
        simulate(rows, config, KinkedModel(num_stages=2))
    unknown = dataclasses.replace(config, options={"scheduling_policy": "lifo"})
    with pytest.raises(InputError, match="fcfs or priority"):
        simulate(rows, unknown, KinkedModel())


def test_the_queue_is_by_priority_then_arrival() -> None:
    rng = np.random.default_rng(3)
    priority = rng.integers(0, 4, 60).tolist()
    queue = PriorityQueue(priority)
    order = rng.permutation(60).tolist()
    queue.extend(order)
    wanted = sorted(order, key=lambda request: (priority[request], order.index(request)))
    assert list(queue) == wanted
    assert queue[0] == wanted[0]
    taken = [queue.popleft() for _ in range(30)]
    assert taken == wanted[:30]
    queue.appendleft(taken[4])
    assert len(queue) == 31
    assert next(iter(queue)) == taken[4]
