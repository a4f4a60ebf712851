"""Replicas behind a router: who gets which request, and in what order the replicas advance.

Requests enter at one place. Open loop: by their arrival times. Closed loop: a user sends the next request of the list
`think_s` after the last one was answered. A router that looks at its replicas sees them as they are at the arrival.

Replicas share nothing but the router and the users, so each may run ahead to the next arrival (open loop), or to the
start of the other replicas' next step (closed loop: no answer can come before a step that has not started). Where
replicas do share something, as prefill and decode pools do, an engine of ``engine/clusters`` is in charge instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.run import Run
from plimsoll.core.step import ChunkLine, StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import plugins
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.bursts import burst_draw, with_bursts
from plimsoll.engine.config import EngineConfig, Option
from plimsoll.engine.fleets.counting import CountingFleet, TooPatientError
from plimsoll.engine.fleets.fleet import Fleet
from plimsoll.engine.fleets.following import FollowingFleet, followed
from plimsoll.engine.fleets.late_outlook import can_be_counted
from plimsoll.engine.frontend import as_sent, as_sent_to_server, delayed, served_one_by_one
from plimsoll.engine.general.ranks import GeneralRankGroup
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.policy import Policy
from plimsoll.engine.replicas.lockstep import LockstepGroup
from plimsoll.engine.replicas.lookahead import LookaheadReplica, can_look_ahead
from plimsoll.engine.replicas.pipeline import PipelineReplica
from plimsoll.engine.replicas.planned import PlannedReplica
from plimsoll.engine.replicas.rank_group import RankGroup
from plimsoll.engine.replicas.replica import INFINITE, Observer, Replica
from plimsoll.engine.requests import Requests
from plimsoll.engine.result import build_run

POLICIES, ROUTERS, CLUSTERS = "plimsoll.engine.policies", "plimsoll.engine.routers", "plimsoll.engine.clusters"

Member = tuple[EngineConfig, StepModel]
"""A kind of replica: what it is told, and seconds of its steps; ``config.replicas`` says how many there are."""


class Router(Protocol):
    """Chooses a replica for a request that arrives.

    The constructor takes by keyword what it names of `config`, `workload` and `seed`, and the router's own options.

    Attributes:
        needs_state: false where the choice depends on no replica: then they are simulated one after another.
        counts_requests: optional; true where only `Fleet.loads`, `load` and `fewer` are looked at, which is faster.
        counts_tokens: optional; true where only `Fleet.least_pending` and `pending_tokens` are, which is faster.

    A router that counts may have a method ``pick(loads)`` besides, which says the same from `Fleet.loads` alone, or a
    true `takes_least_pending`, if it says what `Fleet.least_pending` does.
    """

    needs_state: bool

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The number of the replica that gets `request`."""
        ...


class ClusterEngine(Protocol):
    """An engine in which replicas hand requests over to each other, in one file of ``engine/clusters``.

    The constructor takes the `EngineConfig` and the engine's own options as keywords.
    """

    def replicas(self, requests: Requests, model: StepModel, observer: Observer | None, /) -> Sequence[Replica]:
        """Make the replicas of all pools."""
        ...

    def run(self, arrivals: Arrivals, until_s: float, /) -> None:
        """Serve every request that arrives, in steps that begin before `until_s`."""
        ...


def simulate(
    workload: Workload,
    config: EngineConfig,
    model: StepModel,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    observer: Observer | None = None,
    members: Sequence[Member] | None = None,
) -> Run:
    """What every request of `workload` would see.

    Args:
        workload: the requests, open or closed loop.
        config: engine sizes, policy and router.
        model: seconds of a step on one replica.
        seed: of whatever a router draws.
        duration_s: cut the run here; what is not answered by then is unfinished. None drains every request.
        observer: watches every single step, at the price of speed.
        members: kinds of replicas behind the router, where they differ; then `config` only names the router, and
            `model` is not asked. A request that does not fit on the smallest is rejected, as any of them may get it.

    Returns:
        A run with every token's time. The same arguments give the same bits, in any process.

    Raises:
        UnknownNameError, InputError: the policy, the router or one of their options does not exist.
    """
    if config.api_server_s or config.api_server_token_s:
        behind = dataclasses.replace(config, api_server_s=0.0, api_server_token_s=0.0)
        served = served_one_by_one(workload, config.api_server_s, config.api_server_token_s)
        run = simulate(served, behind, model, seed=seed, duration_s=duration_s, observer=observer, members=members)
        return as_sent_to_server(run, workload, served)
    if config.frontend_s:
        behind = dataclasses.replace(config, frontend_s=0.0)
        seen = delayed(workload, config.frontend_s)
        run = simulate(seen, behind, model, seed=seed, duration_s=duration_s, observer=observer, members=members)
        return as_sent(run, config.frontend_s)
    try:
        run = _simulate(workload, config, model, seed, duration_s, observer, members, patient=True)
    except TooPatientError:
        run = _simulate(workload, config, model, seed, duration_s, observer, members, patient=False)
    kinds: Sequence[Member] = members or ((config, model),)
    return with_bursts(run, [burst_draw(one) for kind, one in kinds for _ in range(kind.replicas)], seed)


def serve_arrivals(
    workload: Workload, config: EngineConfig, model: StepModel, make_arrivals: Callable[[Workload, list[int]], Arrivals]
) -> Run:
    """`simulate` of one replica whose closed-loop users reach it in a way of the caller's own.

    Args:
        workload: the requests of a closed loop.
        config: engine sizes and policy of the one replica.
        model: seconds of a step on it.
        make_arrivals: makes the `Arrivals` of a workload from the numbers of the requests that can run at all.

    Raises:
        ValueError: not a closed loop.
    """
    if workload.concurrency is None:
        raise ValueError("serve_arrivals() is for closed loops")
    requests = Requests(workload, config.max_model_len)
    arrivals = make_arrivals(workload, _accepted(workload, requests, [config]))
    replica = _build_replica(requests, config, model, 0, None, False)
    for number, lane in enumerate(replica.lanes):
        lane.number = number
    _closed_loop(arrivals, [replica], _build_router(config, workload, 0), requests, INFINITE)
    return build_run(workload, requests, [replica], arrivals.sent_s, None)


def _simulate(
    workload: Workload,
    config: EngineConfig,
    model: StepModel,
    seed: int,
    duration_s: float | None,
    observer: Observer | None,
    members: Sequence[Member] | None,
    *,
    patient: bool,
) -> Run:
    until_s = INFINITE if duration_s is None else duration_s
    kinds: Sequence[Member] = members or ((config, model),)
    _check_policies(kinds)
    requests = Requests(workload, min(kind.max_model_len for kind, _ in kinds))
    arrivals = Arrivals(workload, _accepted(workload, requests, [kind for kind, _ in kinds]))
    if config.policy in plugins.list_plugins(CLUSTERS):
        if members is not None:
            raise InputError("members", config.policy, "an engine that has pools of its own makes its own replicas")
        engine_class = plugins.load_plugin(CLUSTERS, config.policy, "--engine")
        engine = cast(ClusterEngine, plugins.construct(engine_class, config.policy, config, config.options))
        machines = engine.replicas(requests, model, observer)
        engine.run(arrivals, until_s)
        return build_run(workload, requests, machines, arrivals.sent_s, duration_s)
    router = _build_router(config, workload, seed)
    count = sum(kind.replicas for kind, _ in kinds)
    counts = patient and not arrivals.closed and getattr(router, "counts_requests", False)
    eager = count > 1 and (router.needs_state or arrivals.closed) and not counts
    known: list[int] | None = None
    if eager and patient and not arrivals.closed and getattr(router, "counts_tokens", False):
        replicas = _build_replicas(requests, kinds, observer, eager=False)
        known = followed(replicas, requests)
    if known is None:
        replicas = _build_replicas(requests, kinds, observer, eager=eager)
    for number, lane in enumerate(lane for replica in replicas for lane in replica.lanes):
        lane.number = number
    _share_lines(replicas)
    if arrivals.closed:
        _closed_loop(arrivals, replicas, router, requests, until_s)
    elif counts and all(can_be_counted(replica) for replica in replicas):
        _open_loop(arrivals, CountingFleet(replicas, requests, until_s), router, until_s)
    elif known is not None:
        _open_loop(arrivals, FollowingFleet(replicas, requests, known, until_s), router, until_s)
    else:
        _open_loop(arrivals, Fleet(replicas, requests), router, until_s)
    return _shared_scale(build_run(workload, requests, replicas, arrivals.sent_s, duration_s), replicas)


def _share_lines(replicas: list[Replica]) -> None:
    """Let replicas of one step model look its lines up in one table."""
    lines: dict[int, dict[tuple[int, int], ChunkLine]] = {}
    for replica in replicas:
        replica.chunk_lines = lines.setdefault(id(replica.model), replica.chunk_lines)


def _check_policies(kinds: Sequence[Member]) -> None:
    """Whether there are such engines; the error lists those with pools of their own too."""
    known = (*plugins.list_plugins(POLICIES), *plugins.list_plugins(CLUSTERS))
    for kind, _ in kinds:
        if kind.policy not in known and not kind.policy.endswith(".py"):
            raise UnknownNameError("--engine", kind.policy, known, "or give the path of a .py file")


def _build_replicas(
    requests: Requests, kinds: Sequence[Member], observer: Observer | None, *, eager: bool
) -> list[Replica]:
    replicas: list[Replica] = []
    for kind, kind_model in kinds:
        for _ in range(kind.replicas):
            replicas.append(_build_replica(requests, kind, kind_model, len(replicas), observer, eager))
    return replicas


def _build_replica(
    requests: Requests,
    config: EngineConfig,
    model: StepModel,
    number: int,
    observer: Observer | None,
    eager: bool,
) -> Replica:
    policy_class = plugins.load_plugin(POLICIES, config.policy, "--engine")

    def policy() -> Policy:
        return cast(Policy, plugins.construct(policy_class, config.policy, config, config.options))

    if config.ranks > 1:
        policies = [policy() for _ in range(config.ranks)]
        own = _own_replica(policies[0], requests, config, model, number)
        if model.num_stages > 1 or not _steps_together(own):
            remedy = "ranks that step together run vllm-v1, sglang or trtllm, or engines like them, on one stage"
            raise InputError("--dp", config.ranks, remedy)
        kind = LockstepGroup if own is None else GeneralRankGroup if isinstance(own, GeneralReplica) else RankGroup
        return kind(requests, config, model, policies, number, observer)
    replica = _one_engine(requests, config, model, policy(), number, observer)
    if eager and can_look_ahead(replica):
        return LookaheadReplica(requests, config, model, replica.policy, number)
    return replica


def can_step_together(config: EngineConfig, workload: Workload, model: StepModel) -> bool:
    """Whether ``config.ranks`` ranks of this engine can be simulated step by step together (see `lockstep`)."""
    if model.num_stages > 1 or config.policy in plugins.list_plugins(CLUSTERS):
        return False
    policy_class = plugins.load_plugin(POLICIES, config.policy, "--engine")
    policy = cast(Policy, plugins.construct(policy_class, config.policy, config, config.options))
    return _steps_together(_own_replica(policy, Requests(workload, config.max_model_len), config, model, 0))


def _steps_together(own: Replica | None) -> bool:
    """Whether such replicas can be ranks; None is the usual kind."""
    return own is None or isinstance(own, PlannedReplica) or (isinstance(own, GeneralReplica) and own.steps_together)


def _one_engine(
    requests: Requests, config: EngineConfig, model: StepModel, policy: Policy, number: int, observer: Observer | None
) -> Replica:
    made = _own_replica(policy, requests, config, model, number, observer)
    if made is not None:
        return made
    kind = PipelineReplica if model.num_stages > 1 else Replica
    return kind(requests, config, model, policy, number, observer)


def _own_replica(
    policy: Policy,
    requests: Requests,
    config: EngineConfig,
    model: StepModel,
    number: int,
    observer: Observer | None = None,
) -> Replica | None:
    """The kind of replica that a policy brings along, if it does."""
    if not hasattr(policy, "make_replica"):
        return None
    made: Replica | None = policy.make_replica(requests, config, model, number, observer)
    return made


def _build_router(config: EngineConfig, workload: Workload, seed: int) -> Router:
    """A router by its text: a name, and options after it."""
    name, *pairs = config.router.split(",")
    router_class = plugins.load_plugin(ROUTERS, name, "--router")
    parameters = plugins.parameters_of(router_class)
    given = {"config": config, "workload": workload, "seed": seed}
    values: dict[str, Any] = {key: value for key, value in given.items() if key in parameters}
    own = {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key not in given}
    for pair in pairs:
        key, _, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if key not in own:
            raise InputError(f"option of router {name}", key, f"its options are: {', '.join(own) or 'none'}")
        values[key] = _option(f"option {key} of router {name}", text, own[key])
    with plugins.policy_named(name, "--router", "while its class was made"):
        return cast(Router, router_class(**values))


def _option(field: str, text: str, default: Option) -> Option:
    """A text as a value of its default's kind."""
    try:
        value = type(default)(text)
    except ValueError as error:
        raise InputError(field, text, f"give a value like {default!r}") from error
    plugins.check_size(field, value)
    return value


def _accepted(workload: Workload, requests: Requests, kinds: Sequence[EngineConfig]) -> list[int]:
    """Request numbers that can run at all; the others are rejected, as a server would at their arrival."""
    longest = min(kind.max_model_len for kind in kinds)
    output = np.minimum(workload.output_tokens, longest - workload.prompt_tokens)
    fits = output >= 1
    for kind in kinds:
        fits &= -(-(workload.prompt_tokens + output - 1) // kind.block_size) <= kind.num_blocks
        fits &= _policy_accepts(requests, kind)
    requests.rejected = np.flatnonzero(~fits).tolist()
    return np.flatnonzero(fits).tolist()


def _policy_accepts(requests: Requests, config: EngineConfig) -> Any:
    """Which requests a policy that reserves memory could ever run; all, if it has no such rule."""
    if config.policy in plugins.list_plugins(CLUSTERS):
        return True
    policy_class = plugins.load_plugin(POLICIES, config.policy, "--engine")
    if not hasattr(policy_class, "accepts"):
        return True
    policy: Any = plugins.construct(policy_class, config.policy, config, config.options)
    return policy.accepts(requests, config)


def _open_loop(arrivals: Arrivals, fleet: Fleet, router: Router, until_s: float) -> None:
    replicas = fleet.replicas
    sent, times = arrivals.all_before(until_s)
    if len(replicas) == 1:
        replicas[0].push(sent, times)
    elif router.needs_state:
        fleet.serve(router, sent, times)
    else:
        shares: list[tuple[list[int], list[float]]] = [([], []) for _ in replicas]
        for request, now_s in zip(sent, times, strict=True):
            mine, mine_s = shares[router.choose(fleet, request, now_s)]
            mine.append(request)
            mine_s.append(now_s)
        for replica, (mine, mine_s) in zip(replicas, shares, strict=True):
            replica.push(mine, mine_s)
    fleet.finish(until_s)


def _closed_loop(
    arrivals: Arrivals, replicas: list[Replica], router: Router, requests: Requests, until_s: float
) -> None:
    """Users take the accepted requests in order."""
    fleet = Fleet(replicas, requests)
    while True:
        replica = min(replicas, key=lambda one: one.next_step_s())
        step_s = replica.next_step_s()
        if arrivals.next_s <= step_s and arrivals.next_s < until_s:
            fleet.now_s, request = arrivals.take()
            fleet.send(router.choose(fleet, request, fleet.now_s), request)
            continue
        if step_s >= until_s:
            return
        turn_s = min((_its_turn_s(replica, other) for other in replicas if other is not replica), default=INFINITE)
        before = replica.last_finished
        replica.advance(min(until_s, arrivals.next_s, turn_s), stop_at_finish=True)
        fleet.advanced(replica.number)
        if replica.last_finished is not before:
            for _ in replica.last_finished:
                arrivals.answered(replica.now_s)


def _its_turn_s(replica: Replica, other: Replica) -> float:
    """Until when `replica` may start steps before `other` is due. At a tie the lower number goes first."""
    step_s = other.next_step_s()
    return step_s if other.number < replica.number else float(np.nextafter(step_s, INFINITE))


def _shared_scale(run: Run, replicas: Sequence[Replica]) -> Run:
    """Where replicas differ in size, their KV use in blocks of the first one."""
    sizes = np.array([replica.num_blocks for replica in replicas], dtype=np.float64)
    if run.step_log is None or bool(np.all(sizes == sizes[0])):
        return run
    used = np.rint(run.step_log.used_blocks * (sizes[0] / sizes)[run.step_log.replica]).astype(np.int64)
    return dataclasses.replace(run, step_log=dataclasses.replace(run.step_log, used_blocks=used))
