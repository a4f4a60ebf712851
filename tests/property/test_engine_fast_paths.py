"""Fast paths of the engine against the slow ones that they stand for."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

import plimsoll.engine.replicas.lane as lane_module
from plimsoll.core.run import Run
from plimsoll.engine import simulate
from plimsoll.engine.general.lane import NumberQueue, SortedQueue
from plimsoll.engine.prefix.contents import Chain
from plimsoll.engine.prefix.radix_tree import Node, RadixTree
from plimsoll.engine.replicas.lane import stretch_ends
from tests.property.test_engine_general_oracle import OPTIONS, random_case

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))


def same(one: Run, other: Run) -> bool:
    assert one.timeline is not None
    assert other.timeline is not None
    return one.timeline.equal(other.timeline) and np.array_equal(one.finish_s, other.finish_s, equal_nan=True)


def test_a_long_stretch_is_added_up_as_a_loop_does() -> None:
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        base_s, per_token_s = float(rng.uniform(0, 0.01)), float(rng.uniform(0, 1e-6))
        reads = range(int(rng.integers(1, 10**5)), 10**6, int(rng.integers(1, 200)))[: int(rng.integers(1, 400))]
        begin_s = float(rng.uniform(0, 1e4))
        stop_s = begin_s + float(rng.choice([1e-4, 0.5, 2.0, np.inf]))
        expected, now_s = [], begin_s
        for read in reads:
            now_s += base_s + per_token_s * read
            expected.append(now_s)
            if now_s >= stop_s:
                break
        got = stretch_ends((base_s, per_token_s), reads, begin_s, stop_s).tolist()
        assert got == expected[: len(got)]
        assert len(got) == len(expected) or got[-1] < stop_s
        assert len(got) >= min(len(expected), 1)


@pytest.mark.interpreted
@pytest.mark.parametrize("policy", ["vllm-v0", "orca", "uellm", "fastgen", "andes", "s3"])
def test_runs_do_not_depend_on_how_stretches_are_added_up(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(CASES // 6):
        workload, config, model, duration_s = random_case(policy, seed)
        runs = []
        for length in (2, 1 << 40):
            monkeypatch.setattr(lane_module, "LONG_STRETCH", length)
            runs.append(simulate(workload, config, model, duration_s=duration_s))
        assert same(*runs), seed


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_whoever_keeps_a_log_sees_the_same_run(policy: str) -> None:
    # With a log many plans are not merged, and each is asked for.
    for seed in range(CASES // 6):
        workload, config, model, duration_s = random_case(policy, seed)
        logged = dataclasses.replace(config, keep_step_log=True)
        runs = [simulate(workload, each, model, duration_s=duration_s) for each in (config, logged)]
        assert same(*runs), seed


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_a_router_sees_the_same_replicas_however_plans_are_merged(policy: str) -> None:
    for seed in range(CASES // 6):
        workload, config, model, duration_s = random_case(policy, seed)
        if workload.concurrency is not None:
            continue
        fleet = dataclasses.replace(config, replicas=3, router="least-loaded")
        logged = dataclasses.replace(fleet, keep_step_log=True)
        runs = [simulate(workload, each, model, duration_s=duration_s) for each in (fleet, logged)]
        assert same(*runs), seed
        assert runs[0].replica.tolist() == runs[1].replica.tolist(), seed


def test_a_queue_of_numbers_is_a_sorted_queue() -> None:
    rng = np.random.default_rng(4)
    for _ in range(CASES // 10):
        keys = rng.integers(-9, 9, 60).tolist()
        queues = NumberQueue(keys.__getitem__), SortedQueue(keys.__getitem__)
        inside: set[int] = set()
        for request in rng.permutation(60).tolist():
            for queue in queues:
                queue.append(request)
            inside.add(request)
            if rng.random() < 0.4:
                gone = int(rng.choice(sorted(inside)))
                inside.discard(gone)
                for queue in queues:
                    queue.remove(gone)
            assert list(queues[0]) == list(queues[1]) == sorted(inside, key=lambda one: (keys[one], one))
        low, key = int(rng.integers(0, len(inside))), int(rng.integers(-10, 10))
        expected = next((at for at, one in enumerate(queues[0]) if at >= low and keys[one] >= key), len(inside))
        assert queues[0].first_from(key, low) == expected


def outline(tree: RadixTree) -> list[tuple[int, int, int, int, int, int]]:
    """Every node below the root: pages, touched, locks, children, and its parent's end."""
    nodes: list[Node] = list(tree._first.values())
    return sorted(
        (node.low, node.high, node.touched, node.locks, node.num_children, node.parent.high if node.parent else -1)
        for node in nodes
    )


def test_extending_a_node_and_keeping_it_is_inserting() -> None:
    rng = np.random.default_rng(6)
    extended = 0
    for _ in range(CASES):
        ids = [tuple(rng.integers(0, 2, 6).tolist()) for _ in range(6)]
        names: dict[tuple[int, ...], int] = {}
        chains = []
        for request, row in enumerate(ids):  # chained: a number stands for all before it, too
            numbers = [names.setdefault(row[: end + 1], len(names)) for end in range(len(row))]
            chains.append(Chain(numbers, int(rng.integers(0, 7)), 1, request))
        trees = RadixTree(), RadixTree()
        for _ in range(8):
            at = int(rng.integers(0, len(chains)))
            begin = int(rng.integers(0, 8))
            end = begin + int(rng.integers(0, 5))
            held = [tree.insert(chains[at], begin)[0] for tree in trees]
            extended += not held[0].num_children and held[0].parent is not None and end > begin
            if rng.random() < 0.5:
                fast, slow = trees[0].extend(held[0], chains[at], end), trees[1].insert(chains[at], end)
            else:
                for tree, node in zip(trees, held, strict=True):
                    tree.lock(node, tree.root)
                fast, slow = trees[0].keep(held[0], chains[at], end), trees[1].insert(chains[at], end)
                trees[1].lock(slow[0], held[1], touch=True)
            assert (fast[0].low, fast[0].high, fast[1]) == (slow[0].low, slow[0].high, slow[1])
            assert outline(trees[0]) == outline(trees[1])
            assert trees[0].evictable == trees[1].evictable
    assert extended > CASES
