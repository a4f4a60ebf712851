"""Prefix caches of prefill and decode machines: small runs worked out by hand, and one machine's blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, plugins, simulate
from plimsoll.engine.cluster import CLUSTERS
from plimsoll.engine.clusters.distserve import Distserve
from plimsoll.engine.clusters.splitwise import Splitwise
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.pools.split_machine import SplitMachine
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel
from validation.schedules import OneSecond

ENGINES = list(plugins.list_plugins(CLUSTERS))
Row = tuple[float, int, int, list[int]]


def workload(*rows: Row) -> Workload:
    """Arrival, prompt, output, and an id for each four tokens."""
    arrival, prompt, output, ids = zip(*rows, strict=True)
    offsets = [0]
    for row in ids:
        offsets.append(offsets[-1] + len(row))
    return Workload(
        arrival_s=floats(arrival),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        block_tokens=4,
        prompt_block_ids=ints([x for row in ids for x in row]),
        prompt_block_offsets=ints(offsets),
    )


def run(engine: str, load: Workload, num_blocks: int = 100, budget: int = 64, **options: Any) -> Run:
    pools = {"prefill": 1, "decode": 1, **options}
    total = max(1, sum(int(pools.get(name, 0)) for name in ("prefill", "decode", "mixed")))
    link = {"transfer_s_per_token": 0.01, "transfer_latency_s": 0.5}
    config = EngineConfig(
        num_blocks=num_blocks, block_size=4, max_num_batched_tokens=budget, policy=engine, replicas=total,
        options={**link, **pools},
    )  # fmt: skip
    return simulate(load, config, OneSecond())


def tokens(result: Run) -> list[list[float]]:
    assert result.timeline is not None
    return [[round(t, 9) for t in result.timeline.token_times_s(k).tolist()] for k in range(len(result))]


TWICE = workload((0.0, 10, 2, [1, 2]), (5.0, 10, 2, [1, 2]))
"""The same prompt of ten tokens: its first two blocks can be found again."""


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_found_is_not_computed_and_does_not_cross_the_link_again(engine: str) -> None:
    result = run(engine, TWICE)
    assert result.cached_tokens.tolist() == [0, 8]
    # Ten tokens cross in 0.1 s, after 0.5 s of latency; then two, in 0.02 s.
    assert tokens(result) == [[1.0, 2.6], [6.0, 7.52]]


@pytest.mark.parametrize("engine", ENGINES)
def test_where_decode_machines_keep_nothing_all_of_it_crosses(engine: str) -> None:
    result = run(engine, TWICE, decode_prefix_cache=False)
    assert result.cached_tokens.tolist() == [0, 8]
    assert tokens(result) == [[1.0, 2.6], [6.0, 7.6]]


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_cache_everything_is_computed(engine: str) -> None:
    result = run(engine, TWICE, prefix_cache=False)
    assert result.cached_tokens.tolist() == [0, 0]
    assert tokens(result) == [[1.0, 2.6], [6.0, 7.6]]


@pytest.mark.parametrize("engine", ENGINES)
def test_kv_is_not_found_where_it_goes_before_it_is_there(engine: str) -> None:
    """Two prompts of twelve tokens are done at once: all of the second crosses too, from 2.2 to 3.4, and is there 0.5 s
    later. The first is there at 2.7. The third comes when both are there: four tokens, in 0.4 s."""
    load = workload((0.0, 12, 2, [1, 2, 3]), (0.0, 12, 2, [1, 2, 3]), (7.0, 12, 2, [1, 2, 3]))
    result = run(engine, load, transfer_s_per_token=0.1)
    assert result.cached_tokens.tolist() == [0, 8, 8]
    assert tokens(result) == [[1.0, 3.7], [1.0, 4.9], [8.0, 9.9]]


@pytest.mark.parametrize("engine", ENGINES)
def test_prompts_of_one_step_find_each_other(engine: str) -> None:
    result = run(engine, workload(*[(0.0, 10, 1, [1, 2])] * 3))
    assert result.cached_tokens.tolist() == [0, 8, 8]
    assert tokens(result) == [[1.0]] * 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("budget", "ends"), [(14, [1.0, 1.0, 1.0]), (13, [1.0, 1.0, 2.0]), (11, [1.0, 2.0, 2.0])])
def test_only_what_is_computed_counts_against_the_tokens_of_a_step(engine: str, budget: int, ends: list[float]) -> None:
    result = run(engine, workload(*[(0.0, 10, 1, [1, 2])] * 3), budget=budget)
    assert [times[0] for times in tokens(result)] == ends


def test_a_step_costs_what_is_computed_and_what_is_read() -> None:
    """Ten tokens; then two that attend to eight which are read, and to each other."""
    model = KinkedModel()
    config = EngineConfig(
        num_blocks=50, block_size=4, policy="distserve", replicas=2, options={"transfer_s_per_token": 1e-5}
    )
    result = simulate(TWICE, config, model)
    whole, rest = model.step_s(10, 1, 55, 0, 1, 0, 0), model.step_s(2, 1, 9 + 10, 8, 1, 0, 0)
    assert result.first_token_s.tolist() == [whole, 5.0 + rest]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_whole_prompt_that_is_known_leaves_its_last_block_to_compute(engine: str) -> None:
    result = run(engine, workload((0.0, 8, 2, [1, 2]), (5.0, 8, 2, [1, 2])))
    assert result.cached_tokens.tolist() == [0, 4]
    assert tokens(result)[1] == [6.0, 7.54], "four tokens cross"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_let_go_of_longest_ago_is_forgotten_first(engine: str) -> None:
    """Eight blocks: three prompts of three took one of the first, its last. Of the next, two are found, and for the
    third the first loses one more: one is left of it. Had its first gone first, nothing would be found."""
    rows = [(10.0 * k, 12, 2, [10 * k, 10 * k + 1, 10 * k + 2]) for k in range(3)]
    again = [(30.0, 12, 2, rows[2][3]), (40.0, 12, 2, rows[0][3])]
    result = run(engine, workload(*rows, *again), num_blocks=8)
    assert result.cached_tokens.tolist() == [0, 0, 0, 8, 4]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_goes_where_it_is_known(engine: str) -> None:
    load = workload((0.0, 40, 2, [*range(10)]), (0.0, 40, 2, [*range(20, 30)]), (9.0, 40, 2, [*range(20, 30)]))
    aware = run(engine, load, prefill=2)
    assert aware.scheduled_s.tolist() == [0.0, 0.0, 9.0]
    assert aware.cached_tokens.tolist() == [0, 0, 36]
    assert run(engine, load, prefill=2, prefix_aware=False).cached_tokens.tolist() == [0, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_unless_more_tokens_wait_there_than_it_saves(engine: str) -> None:
    """The first machine knows 36 of 40 tokens, and has 60 to compute."""
    known = (0.0, 40, 2, [*range(10)])
    busy = (5.0, 60, 2, [*range(10), *range(40, 45)])
    free = run(engine, workload(known, (5.0, 40, 2, [*range(10)])), prefill=2)
    assert free.cached_tokens.tolist() == [0, 36]
    held = run(
        engine, workload(known, (5.0, 100, 2, [*range(50, 75)]), (5.0, 100, 2, [*range(80, 105)]), busy), prefill=2
    )
    # Both have 100 tokens to compute; the first knows 40 of the last one's sixty, so that goes there.
    assert held.cached_tokens.tolist() == [0, 0, 0, 40]
    full = run(engine, workload(known, (5.0, 100, 2, [*range(50, 75)]), (5.0, 40, 2, [*range(10)])), prefill=2)
    assert full.cached_tokens.tolist() == [0, 0, 0], "100 tokens wait where it is known, none elsewhere"


def test_mixed_machines_find_what_they_computed_and_what_came() -> None:
    load = workload((0.0, 12, 3, [1, 2, 3]), (9.0, 16, 3, [1, 2, 3, 4]))
    result = run("splitwise", load, prefill=0, decode=0, mixed=1)
    assert result.cached_tokens.tolist() == [0, 12]
    assert tokens(result) == [[1.0, 2.0, 3.0], [10.0, 11.0, 12.0]]


@pytest.mark.parametrize("name", ENGINES)
def test_a_block_size_that_does_not_go_with_the_content_is_refused(name: str) -> None:
    load = dataclasses.replace(TWICE, block_tokens=6)
    with pytest.raises(InputError, match="content ids cover 6 tokens"):
        run(name, load)
    assert run(name, load, prefix_cache=False).cached_tokens.tolist() == [0, 0]


@pytest.mark.parametrize("name", ENGINES)
def test_nobody_finds_kv_again_where_none_is_kept(name: str) -> None:
    words = rf"option decode_prefix_cache of {name}: 'true' .* leave it out, or prefix_cache=false"
    with pytest.raises(InputError, match=words):
        run(name, TWICE, prefix_cache=False, decode_prefix_cache=True)
    off = run(name, TWICE, prefix_cache=False, decode_prefix_cache=False)
    assert off.equal(run(name, TWICE, prefix_cache=False))


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [Distserve, Splitwise])
def test_an_engine_has_no_more_attributes_than_python_reads_quickly(kind: Any) -> None:
    made: list[Any] = []
    original = kind.__post_init__

    class Watched(kind):  # type: ignore[misc]
        def __post_init__(self) -> None:
            original(self)
            made.append(self)

    load, config = TWICE, EngineConfig(num_blocks=50, block_size=4, policy=kind.__name__.lower(), replicas=2)
    watched = Watched(config, transfer_s_per_token=1e-5)
    requests = Requests(load, 1 << 20)
    watched.replicas(requests, OneSecond(), None)
    assert 20 < len(vars(made[0])) <= 28, "`arrivals` and a bridge come with the run"


# -- one machine ---------------------------------------------------------------------------------------------------


def cache_of(load: Workload, num_blocks: int = 10, *, keeps: bool = True) -> MachineCache:
    config = EngineConfig(num_blocks=num_blocks, block_size=4)
    return MachineCache(Requests(load, 1 << 20), config, keeps=keeps)


SAME = workload(*[(0.0, 10, 3, [1, 2])] * 3)


def test_blocks_in_use_are_shared_and_counted_once() -> None:
    cache = cache_of(SAME)
    assert cache.compute(0, 3) == 0
    assert cache.num_free == 7
    assert cache.compute(1, 3) == 8
    assert cache.num_free == 6, "one block of its own"
    assert cache.let_go(0, 3, 10) == 1
    assert cache.let_go(1, 3, 10) == 3
    assert cache.num_free == 10
    assert cache.found_tokens(2) == 8


def test_no_room_is_said_before_anything_is_taken() -> None:
    load = workload((0.0, 10, 3, [1, 2]), (0.0, 10, 3, [1, 2]), (0.0, 10, 3, [8, 9]))
    cache = cache_of(load, num_blocks=4)
    assert cache.compute(0, 3, if_room=True) == 0
    assert cache.compute(2, 3, if_room=True) == -1
    assert cache.num_free == 1
    assert cache.compute(1, 3, if_room=True) == 8, "of its three blocks two are there"
    assert cache.num_free == 0
    cache.let_go(0, 3, 10)
    assert cache.compute(2, 3, if_room=True) == -1


def test_what_comes_is_found_once_it_is_there_and_not_just_then() -> None:
    cache = cache_of(SAME)
    assert cache.accept(0, 3) == 10
    cache.expect(0, 2.0)
    cache.receive(2.0, including=False)
    assert cache.accept(1, 3) == 10
    cache.expect(1, 3.0)
    cache.receive(2.0, including=True)
    assert cache.accept(2, 3) == 2
    assert cache.num_free == 10 - 3 - 3 - 1


def test_what_is_not_kept_is_not_found_even_when_it_is_let_go_of() -> None:
    cache = cache_of(SAME, keeps=False)
    assert cache.accept(0, 3) == 10
    cache.expect(0, 1.0)
    assert not cache.coming
    assert cache.let_go(0, 3, 12) == 3
    assert cache.found_tokens(1) == 0
    assert cache.compute(1, 3) == 0
    cache.let_go(1, 3, 10)
    assert cache.found_tokens(2) == 8, "what is computed here is kept"


def test_decodes_take_their_blocks_all_at_once_afterwards() -> None:
    cache = cache_of(SAME)
    cache.compute(0, 3)
    cache.level(4)
    assert cache.num_free == 4
    cache.level(4)
    assert cache.let_go(0, 6, 22) == 6


def test_kv_leaves_in_the_order_in_which_it_was_sent_away() -> None:
    cache = cache_of(workload((0.0, 10, 3, [1, 2]), (0.0, 6, 3, [5])))
    cache.compute(0, 3)
    cache.compute(1, 2)
    cache.leaving.extend([1, 0])
    assert [cache.leave(), cache.leave()] == [2, 3]


@pytest.mark.parametrize(("kind", "sets_aside"), [(Machine, False), (SplitMachine, True)])
def test_a_machine_that_sets_memory_aside_has_as_much_room_as_it_set_aside(
    kind: type[Machine], sets_aside: bool
) -> None:
    requests = Requests(SAME, 1 << 20)
    config = EngineConfig(num_blocks=10, block_size=4)
    machine = kind(requests, config, OneSecond(), 0, None)
    assert machine.sets_aside is sets_aside
    machine.cache = MachineCache(requests, config, keeps=False)
    for request in (0, 1):
        machine.cache.compute(request, 3)
        machine.cache.leaving.append(request)
        machine.releases.append((1.0 + request, 3))
    machine.free_blocks = 4 if sets_aside else machine.cache.num_free
    assert machine.free_blocks == (4 if sets_aside else 6), "they share two blocks"
    machine.take_releases(1.0)
    assert machine.free_blocks == 7
    machine.take_releases(2.0)
    assert machine.free_blocks == 10
