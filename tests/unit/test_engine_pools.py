"""Machines that run their decodes ahead: how far, what is taken back, and that nobody sees it."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.run import StepLog
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, plugins, simulate
from plimsoll.engine.cluster import CLUSTERS
from plimsoll.engine.clusters.splitwise import Splitwise
from plimsoll.engine.pools.bridge import Bridge
from plimsoll.engine.pools.decode_instance import DecodeInstance
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.pools.pooled import PooledEngine
from plimsoll.engine.pools.prompts_ahead import PromptsAhead
from plimsoll.engine.pools.split_machine import NEVER_STUCK, Needs, SplitMachine
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel, SkewedModel
from tests.single_steps import Silent, counted_calls, same_as_single_steps
from validation.schedules import OneSecond

ENGINES = list(plugins.list_plugins(CLUSTERS))
LINK = {"transfer_s_per_token": 1e-5, "transfer_latency_s": 2e-3}


def load(num: int, gap_s: float, prompt: int = 60, output: int = 60, seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=floats(np.cumsum(rng.exponential(gap_s, num))),
        prompt_tokens=ints(rng.integers(1, prompt + 1, num)),
        output_tokens=ints(rng.integers(1, output + 1, num)),
    )


def engine(name: str, prefill: int = 2, decode: int = 2, **changes: Any) -> EngineConfig:
    options = {"prefill": prefill, "decode": decode, **LINK, **changes.pop("options", {})}
    given: dict[str, Any] = {"num_blocks": 400, "block_size": 4, "max_num_seqs": 16, "max_num_batched_tokens": 128}
    total = sum(int(options.get(pool, 0)) for pool in ("prefill", "decode", "mixed"))
    return EngineConfig(policy=name, options=options, replicas=total, **{**given, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often machines begin, and how often what they ran ahead is taken back."""
    return counted_calls(monkeypatch, (Machine, "begin_decodes"), (Machine, "cut"), (Bridge, "_ask_all"))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("gap_s", [0.003, 0.02, 0.2])
def test_nobody_sees_that_decodes_are_run_ahead(name: str, gap_s: float) -> None:
    same_as_single_steps(load(150, gap_s), engine(name), KinkedModel())


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("layers", [((1, None), (3, 25)), ((1, 10),)])
def test_nor_across_steps_in_which_an_attention_window_is_full(name: str, layers: Any) -> None:
    same_as_single_steps(load(120, 0.01), engine(name), KinkedModel(layers=layers))


@pytest.mark.parametrize("name", ENGINES)
def test_nor_where_steps_wait_for_the_longest_decode(name: str) -> None:
    same_as_single_steps(load(120, 0.01), engine(name), SkewedModel())


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("duration_s", [0.05, 0.4, 1.0])
def test_a_cut_run_ends_where_it_should(name: str, duration_s: float) -> None:
    run = same_as_single_steps(load(150, 0.01), engine(name), KinkedModel(), duration_s=duration_s)
    assert np.nanmax(run.timeline.step_end_s) <= duration_s  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ENGINES)
def test_nor_do_users_who_wait_for_their_answers(name: str) -> None:
    closed = dataclasses.replace(load(120, 0.0), arrival_s=floats(np.zeros(120)), concurrency=7, think_s=0.01)
    same_as_single_steps(closed, engine(name), KinkedModel())


@pytest.mark.parametrize("frac", [0.02, 0.3, 1.0])
def test_who_takes_a_prompt_between_steps_that_it_runs_ahead_has_room_for_it(frac: float) -> None:
    """Blocks for a prompt are taken in the midst of a stretch that counted on them."""
    preemptions = 0
    for seed in range(12):
        config = engine("distserve", decode=3, num_blocks=45, options={"waiting_frac": frac, "swap_s_per_token": 1e-5})
        preemptions += int(same_as_single_steps(load(60, 0.004, seed=seed), config, KinkedModel()).preemptions.sum())
    assert preemptions > 12


def test_prompts_that_wait_for_room_begin_when_it_comes() -> None:
    """Little memory, few pending tokens allowed: machines change pools, prompts are stuck, decodes are left out."""
    for seed in range(12):
        options = {"mixed": 1, "max_pending_tokens": 60, "max_preemptions": 1}
        config = engine("splitwise", num_blocks=40, max_num_seqs=4, options=options)
        same_as_single_steps(load(60, 0.004, seed=seed), config, KinkedModel())


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ENGINES)
def test_a_request_costs_what_happens_to_it(name: str, calls: Counter[str]) -> None:
    """Its KV comes and it ends: two stretches, however many machines there are and however many steps it takes."""
    num = 300
    for machines in (2, 6):
        calls.clear()
        run = simulate(load(num, 0.05, output=200), engine(name, machines, machines), KinkedModel())
        assert run.num_steps > 20 * num
        assert num < calls["begin_decodes"] < 2.2 * num
        assert calls["cut"] < 3.2 * num


@pytest.mark.interpreted
def test_a_token_machine_in_the_mixed_pool_is_left_behind_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """It joins when prompts come in a burst, and has decodes all the time, so it does not go home."""
    asked: list[int] = []
    find = Splitwise._find

    def counted(self: Splitwise, request: int, now_s: float) -> Any:
        asked.append(request)
        return find(self, request, now_s)

    monkeypatch.setattr(Splitwise, "_find", counted)
    options = {"max_pending_tokens": 100}
    config = engine("splitwise", 1, 1, num_blocks=4000, max_num_seqs=64, options=options)
    workload = load(300, 0.02, output=200)
    burst = dataclasses.replace(workload, arrival_s=floats(np.concatenate([np.zeros(20), workload.arrival_s[:-20]])))
    same_as_single_steps(burst, config, KinkedModel())
    asked.clear()
    simulate(burst, config, KinkedModel())
    assert 0 < len(asked) < 60, "a burst has to be shared, and later arrivals find the prompt machine with room"


def split_machine(num: int, *, prompt: int, room: bool = True, **sizes: int) -> SplitMachine:
    """A prompt machine where so many prompts wait."""
    config = EngineConfig(**{"num_blocks": 100, "block_size": 4, "max_num_batched_tokens": 20, **sizes})
    lengths = ints([prompt] * num)
    workload = Workload(arrival_s=floats([0.0] * num), prompt_tokens=lengths, output_tokens=lengths + 5)
    machine = SplitMachine(Requests(workload, 1 << 20), config, OneSecond(), 0, None)
    machine.needs = Needs(whole_blocks=[10] * num, has_room=bytearray([room] * num), max_preemptions=4)
    machine.waiting.extend(range(num))
    machine.pending_tokens = num * prompt
    return machine


@pytest.mark.parametrize(
    ("prompt", "sizes", "together"),
    [(30, {}, 1), (20, {}, 1), (11, {}, 1), (10, {}, 2), (4, {}, 3), (4, {"max_num_seqs": 1}, 1)],
)
def test_prompts_that_fit_into_a_step_go_together(prompt: int, sizes: dict[str, int], together: int) -> None:
    machine = split_machine(3, prompt=prompt, **sizes)
    machine.stuck_at = machine.free_blocks, 2, 0
    assert machine.begin(2.0, 100.0)
    assert machine.computing == list(range(together))
    assert list(machine.waiting) == list(range(together, 3))
    assert (machine.began_s, machine.now_s, machine.busy) == (2.0, 3.0, True)
    assert machine.stuck_at == NEVER_STUCK, "what was found before these began says nothing any more"


def test_a_prompt_alone_begins_when_there_is_room() -> None:
    machine = split_machine(1, prompt=4, room=False, num_blocks=9)
    assert not machine.begin(0.0, 100.0)
    machine.releases.append((1.5, 1))
    assert not machine.begin(1.0, 100.0), "ten blocks are needed, and the tenth leaves later"
    assert machine.begin(2.0, 100.0)
    assert (machine.computing, machine.free_blocks) == ([0], 0)


@pytest.mark.parametrize(("seats", "at_once"), [(3, True), (2, False)])
def test_kv_that_comes_decodes_at_once_where_there_are_seats(seats: int, *, at_once: bool) -> None:
    machine = split_machine(3, prompt=4, max_num_seqs=seats)
    machine.waiting.clear()
    machine.coming.extend([(1.0, 0), (2.0, 1), (5.5, 2)])
    assert machine.begin(2.0, 100.0)
    assert (machine.lane.num, list(machine.running), machine.paused_at) == (2, [0, 1], {})
    assert list(machine.lane.ends) == [3.0, 4.0, 5.0, 6.0], "up to the KV that comes next"
    machine.busy = False
    assert machine.begin(6.0, 100.0)
    assert (machine.lane.num, list(machine.running)) == (2 + at_once, [0, 1, 2])
    assert list(machine.paused_at) == ([] if at_once else [2])


def test_nobody_looks_at_the_bridge_without_room(calls: Counter[str]) -> None:
    """Far too much load: prompts wait at the bridge all the time, and decode instances still run ahead."""
    num = 300
    config = engine("distserve", num_blocks=100, options={"swap_s_per_token": 1e-5})
    run = simulate(load(num, 0.001), config, KinkedModel())
    assert run.num_steps > 5 * num
    assert calls["_ask_all"] < 2.2 * num, "once for a prompt that is taken, once for one that is refused"
    assert calls["begin_decodes"] < 3 * num


def test_steps_that_are_taken_back_leave_no_trace() -> None:
    workload = Workload(arrival_s=floats([0.0, 0.0]), prompt_tokens=ints([6, 9]), output_tokens=ints([20, 30]))
    config = EngineConfig(num_blocks=100, block_size=4)
    requests = Requests(workload, 1 << 20)
    machine = DecodeInstance(requests, config, KinkedModel(), 0, None)
    for request in (0, 1):
        machine.lane.resume(request, requests.prompt[request], requests.output[request] - 1)
    before = (machine.free_blocks, machine.lane.read, machine.lane.due)
    machine.begin_decodes(0.0, 1000, float("inf"))
    ends = list(machine.lane.ends)
    assert len(ends) == 19, "up to the first last token"
    assert machine.runs_ahead()
    middle_s = (ends[4] + ends[5]) / 2
    assert machine.next_end(middle_s) == 5
    machine.cut(middle_s)
    assert list(machine.lane.ends) == ends[:6], "the step under way stays"
    assert machine.now_s == ends[5]
    machine.cut(ends[2])
    assert list(machine.lane.ends) == ends[:3], "one that ends just then is the last"
    machine.cut(0.0)
    assert list(machine.lane.ends) == ends[:1], "and one that has begun cannot be taken back"
    del machine.lane.ends[:]
    machine.lane.read -= machine.lane.grow
    machine.free_blocks += machine.lane.blocks_for(0, 1)
    assert (machine.free_blocks, machine.lane.read, machine.lane.due) == before


def test_a_step_of_prompts_is_never_taken_back() -> None:
    workload = Workload(arrival_s=floats([0.0]), prompt_tokens=ints([6]), output_tokens=ints([20]))
    machine = Machine(Requests(workload, 1 << 20), EngineConfig(num_blocks=100), KinkedModel(), 0, None)
    machine.begin_mixed([0], 1.0)
    end_s = machine.now_s
    machine.cut(1.0)
    assert (machine.now_s, len(machine.lane.ends)) == (end_s, 1)
    assert not machine.runs_ahead()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("gap_s", [0.002, 0.05])
def test_what_the_step_log_says_holds_at_its_instants(name: str, gap_s: float) -> None:
    """Entries are fewer where steps are run ahead, and each of them is one of those of single steps."""
    for prefill, decode in ((1, 1), (2, 3)):
        config = engine(name, prefill, decode, keep_step_log=True, num_blocks=150)
        workload = load(120, gap_s)
        ahead = simulate(workload, config, KinkedModel()).step_log
        single = simulate(workload, config, KinkedModel(), observer=Silent()).step_log
        assert ahead is not None
        assert single is not None

        def rows(log: StepLog) -> set[tuple[float, ...]]:
            columns = (log.time_s, log.replica, log.num_running, log.num_waiting, log.used_blocks)
            return set(zip(*(column.tolist() for column in columns), strict=True))

        assert rows(ahead) <= rows(single)
        assert len(ahead.time_s) < len(single.time_s)


def prompts_ahead(num_blocks: int, *rows: tuple[float, int, int], until_s: float = 1e9) -> PromptsAhead:
    arrival_s, prompt, output = (list(column) for column in zip(*rows, strict=True))
    workload = Workload(arrival_s=floats(arrival_s), prompt_tokens=ints(prompt), output_tokens=ints(output))
    config = EngineConfig(num_blocks=num_blocks, block_size=4, max_num_seqs=3, max_num_batched_tokens=10)
    machine = Machine(Requests(workload, 1 << 20), config, OneSecond(), 0, None)
    return PromptsAhead(machine, list(range(len(rows))), [*arrival_s, float("inf")], until_s)


def test_prompts_are_computed_ahead_in_batches_of_those_who_have_come() -> None:
    ahead = prompts_ahead(100, (0.0, 4, 2), (0.5, 5, 2), (0.6, 5, 2), (0.7, 1, 2), (9.0, 30, 2))
    ahead.run()
    assert list(ahead.done) == [(1.0, 0), (2.0, 1), (2.0, 2), (3.0, 3), (10.0, 4)], "ten tokens, or a longer one alone"
    assert ahead.next_s() == float("inf")
    assert ahead.machine.requests.scheduled_s == [0.0, 1.0, 1.0, 2.0, 9.0]


def test_prompts_wait_for_room_that_is_known_of() -> None:
    ahead = prompts_ahead(4, (0.0, 8, 2), (0.0, 8, 2), (0.0, 4, 2), (0.0, 4, 2))
    ahead.run()
    assert list(ahead.done) == [(1.0, 0), (2.0, 1)]
    assert ahead.next_s() == 2.0, "at that time somebody may have left, and then there is room"
    ahead.done.clear()
    ahead.machine.releases.append((3.5, 1))
    ahead.run()
    assert not ahead.done, "nobody had"
    assert ahead.next_s() == 3.5
    ahead.run()
    assert list(ahead.done) == [(4.5, 2)], "one block, one prompt"
    ahead.done.clear()
    ahead.machine.releases.extend([(4.2, 1), (7.0, 2)])
    ahead.run()
    assert list(ahead.done) == [(5.5, 3)]


def test_a_prompt_that_needs_no_more_than_a_token_keeps_no_room() -> None:
    ahead = prompts_ahead(2, (0.0, 8, 1), (0.0, 8, 1), (0.0, 8, 2), until_s=2.5)
    ahead.run()
    assert (list(ahead.done), ahead.machine.free_blocks) == ([], 0), "the third is not computed when the run is cut"
    assert ahead.machine.requests.last_step == [0, 1, -1]
    assert ahead.machine.now_s == 3.0


@pytest.mark.parametrize("name", ENGINES)
def test_pools_share_their_options_and_have_some_of_their_own(name: str) -> None:
    shared = list(plugins.option_defaults(PooledEngine))
    caches = ["prefix_cache", "decode_prefix_cache", "prefix_aware"]
    assert shared == ["prefill", "decode", "transfer_s_per_token", "transfer_latency_s", *caches]
    own = list(plugins.option_defaults(plugins.load_plugin(CLUSTERS, name, "--engine")))
    assert own[: len(shared)] == shared
    assert len(own) > len(shared)
    with pytest.raises(InputError, match=", ".join(own)):
        simulate(load(1, 1.0), engine(name, options={"prefil": 3}), KinkedModel())
    parameters = inspect.signature(plugins.load_plugin(CLUSTERS, name, "--engine")).parameters
    assert next(iter(parameters)) == "config"


@pytest.mark.parametrize("name", ENGINES)
def test_pools_with_pipeline_stages_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InfeasibleError, match="without pipeline stages") as raised:
        simulate(load(1, 1.0), engine(name), KinkedModel(num_stages=2))
    assert "\n" not in str(raised.value)
