"""Routers on clusters small enough to work out by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.fleets.counting import TooPatientError
from plimsoll.engine.routers.prefix_aware import Memory
from tests.oracle.models import KinkedModel
from tests.single_steps import Silent
from validation.schedules import OneSecond


def workload(*rows: tuple[float, int, int], **columns: object) -> Workload:
    arrival, prompt, output = zip(*rows, strict=True)
    return Workload(
        arrival_s=floats(arrival), prompt_tokens=ints(prompt), output_tokens=ints(output),
        **columns,  # type: ignore[arg-type]
    )  # fmt: skip


def choices(load: Workload, router: str, replicas: int = 2, seed: int = 0, **changes: object) -> list[int]:
    config = EngineConfig(
        num_blocks=100, block_size=4, replicas=replicas, router=router,
        options={"enable_prefix_caching": False}, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    return simulate(load, config, OneSecond(), seed=seed).replica.tolist()  # type: ignore[no-any-return]


def test_least_loaded_counts_requests_and_least_pending_tokens_counts_work() -> None:
    load = workload((0.0, 40, 20), (0.5, 2, 2), (1.0, 2, 2), (1.2, 2, 2))
    assert choices(load, "least-loaded") == [0, 1, 0, 1]
    assert choices(load, "least-pending-tokens") == [0, 1, 1, 1]


def test_pending_tokens_are_those_a_router_can_know() -> None:
    """The first request is expected to be short and turns out long, the second the other way round."""
    load = workload((0.0, 4, 30), (0.1, 4, 2), (0.2, 4, 2), predicted_output_tokens=ints([2, 30, 2]))
    assert choices(load, "least-pending-tokens") == [0, 1, 0]
    told = dataclasses.replace(load, predicted_output_tokens=None)
    assert choices(told, "least-pending-tokens") == [0, 1, 1]


def test_an_answer_that_is_over_at_the_arrival_no_longer_counts() -> None:
    load = workload((0.0, 4, 2), (0.0, 4, 9), (2.0, 4, 1), (2.5, 4, 1))
    assert choices(load, "least-loaded") == [0, 1, 0, 0], "the third arrives as the first ends, its own ends at 3.0"


def test_random_and_power_of_two_depend_on_the_seed_only() -> None:
    load = workload(*[(0.1 * k, 4, 3) for k in range(200)])
    for router in ("random", "power-of-two"):
        one = choices(load, router, replicas=4, seed=1)
        assert one == choices(load, router, replicas=4, seed=1)
        assert one != choices(load, router, replicas=4, seed=2)
        assert set(one) == {0, 1, 2, 3}
    counts = Counter(choices(load, "random", replicas=4, seed=3))
    assert max(counts.values()) < 80  # 50 expected, 6.1 standard deviation


def test_two_choices_balance_better_than_one() -> None:
    rng = np.random.default_rng(0)
    gaps, output = rng.exponential(0.45, 400), rng.geometric(0.1, 400)
    load = workload(*zip(np.cumsum(gaps).tolist(), [4] * 400, output.tolist(), strict=True))

    # Four seats a replica, ten seconds an answer: the load is 0.7 of what all seats carry.
    def waits(router: str) -> float:
        config = EngineConfig(num_blocks=100, block_size=4, max_num_seqs=4, replicas=8, router=router)
        run = simulate(load, config, OneSecond(), seed=5)
        return float(np.mean(run.scheduled_s - run.arrival_s))

    assert max(waits("least-loaded"), waits("power-of-two")) < 0.7 * waits("random")


def test_a_session_stays_where_it_began() -> None:
    load = workload(*[(float(k), 4, 1) for k in range(6)], session=ints([7, 8, 7, 9, 8, 7]))
    assert choices(load, "session-sticky") == [0, 1, 0, 0, 1, 0]
    assert choices(dataclasses.replace(load, session=None), "session-sticky") == [0, 1, 0, 1, 0, 1]


def content(rows: list[list[int]], arrivals: list[float], output: int = 1) -> Workload:
    return workload(
        *[(at, 4 * max(len(row), 1), output) for at, row in zip(arrivals, rows, strict=True)],
        block_tokens=4,
        prompt_block_ids=ints([x for row in rows for x in row]),
        prompt_block_offsets=ints(np.concatenate([[0], np.cumsum([len(row) for row in rows])])),
    )


def test_a_prompt_goes_where_its_beginning_is_remembered() -> None:
    rows = [[1, 2, 3], [8, 9], [1, 2, 4], [8, 7, 6, 5], [50]]
    arrivals = [0.0, 0.1, 5.0, 10.0, 15.0]
    assert choices(content(rows, arrivals), "prefix-aware") == [0, 1, 0, 0, 0]  # a quarter of [8, …] is too little
    assert choices(content(rows, arrivals), "prefix-aware,min_match=0.2") == [0, 1, 0, 1, 0]


def test_a_busy_replica_does_not_get_more_for_its_memory() -> None:
    rows = [[1, 2, 3]] * 6
    load = content(rows, [0.1 * k for k in range(6)], output=50)
    assert choices(load, "prefix-aware") == [0] * 6
    # At the fourth one leads by three. From then on both remember the prompt, and the less loaded gets it.
    assert choices(load, "prefix-aware,max_lead=2") == [0, 0, 0, 1, 1, 1]


def test_the_memory_is_as_long_as_a_replicas_cache() -> None:
    rows = [[k * 10 + j for j in range(5)] for k in range(30)]
    load = content([*rows, rows[29], rows[0]], [2.0 * k for k in range(32)])
    told = choices(load, "prefix-aware,max_lead=0", replicas=1)
    assert told == [0] * 32
    last = choices(load, "prefix-aware", replicas=2)
    assert last == [0] * 32, "with nothing running the lowest number is the least loaded"


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ("prefix-aware,max_leed=2", "its options are: min_match, max_lead, max_ratio"),
        ("prefix-aware,max_lead=two", "give a value like 64"),
        ("round-robin,turn=1", "its options are: none"),
    ],
)
def test_a_wrong_option_lists_the_right_ones(router: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choices(workload((0.0, 1, 1)), router)


def test_an_unknown_router_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="power-of-two"):
        choices(workload((0.0, 1, 1)), "power-of-too")


def test_a_users_router_sees_the_replicas_as_they_are(tmp_path: object) -> None:
    """A router in a file of the user's own, which looks at queues rather than at what the fleet counts."""
    from pathlib import Path

    file = Path(str(tmp_path)) / "shortest_queue.py"
    file.write_text(
        "class ShortestQueue:\n"
        "    needs_state = True\n"
        "    def choose(self, fleet, request, now_s):\n"
        "        return min(range(len(fleet)), key=lambda k: len(fleet[k].waiting) + len(fleet[k].running))\n"
    )
    load = workload((0.0, 4, 9), (0.1, 4, 1), (1.5, 4, 9), (1.6, 4, 9))
    # At 1.5 the second is over (0.1 to 1.1); at 1.6 both replicas have one running.
    assert choices(load, str(file)) == [0, 1, 1, 0]


def test_a_promise_that_does_not_hold_is_found_and_the_run_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bigger batches are faster, a request may end before the router was told it could."""
    raised = []
    init = TooPatientError.__init__

    def noted(self: TooPatientError) -> None:
        raised.append(1)
        init(self)

    class Falling(KinkedModel):
        def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
            return 10.0 / max(num_decode, 1) ** 2, 0.0, 1 << 60

    monkeypatch.setattr(TooPatientError, "__init__", noted)
    load = workload(*[(3.0 * k, 4, 30) for k in range(20)])
    config = EngineConfig(num_blocks=400, block_size=4, replicas=3, router="least-loaded")
    run = simulate(load, config, Falling())
    assert raised, "the case must reach the check"
    watched = simulate(load, config, Falling(), observer=Silent())  # an observer sees single steps: nothing is put off
    assert run.equal(watched)


@pytest.mark.parametrize("capacity", [1, 3, 20, 500])
def test_a_memory_forgets_what_was_sent_longest_ago(capacity: int) -> None:
    """Beside a list that is searched from end to end; often sent ids leave many places behind, which are tidied up."""
    rng = np.random.default_rng(capacity)
    memory, plain = Memory(capacity), list[int]()
    for _ in range(400):
        ids = rng.integers(0, 30, int(rng.integers(0, 12))).tolist()
        expected = next((count for count, content in enumerate(ids) if content not in plain), len(ids))
        assert memory.match(ids) == expected
        memory.remember(ids)
        for content in reversed(ids):
            if content in plain:
                plain.remove(content)
            plain.append(content)
        del plain[: max(0, len(plain) - capacity)]
        assert sorted(memory.last, key=memory.last.__getitem__) == plain
    assert len(memory._queue) <= 4 * capacity + 1000 + 12
