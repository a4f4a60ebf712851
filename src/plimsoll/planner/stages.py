"""The stages of a search up to its first simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from plimsoll.core.errors import InputError
from plimsoll.planner.ahead import Ahead
from plimsoll.planner.branch import Race
from plimsoll.planner.context import Context
from plimsoll.planner.pool_estimate import balanced_prefill_frac
from plimsoll.planner.pools import Pools, splits_near
from plimsoll.planner.prune import Screened, counts_within, price, screen
from plimsoll.planner.results import Rejection
from plimsoll.planner.space import ReplicaConfig, SpaceOptions, enumerate_configs

OnProgress = Callable[[int, int, str], None]
EVERY_SIZE_UP_TO = 8
"""Machines up to which pools of every size are candidates."""


def silent(done: int, total: int, text: str) -> None:
    """Report progress to nobody."""


class Prepared(NamedTuple):
    """What is left to simulate, and what is out already."""

    race: Race
    rejected: list[Rejection]
    num_candidates: int
    num_configs: int


def prepare(context: Context, on_progress: OnProgress = silent, num_workers: int | None = 1) -> Prepared:
    """Enumerate, screen and price; with two processes where `num_workers` allows it and it pays (`planner.ahead`).

    Raises:
        InputError: not a single candidate exists.
    """
    configs = enumerate_space(context)
    if not _num_candidates(context, configs):
        raise _nothing_to_try(context)
    with Ahead(context, configs, num_workers) as ahead:
        step = lambda done: on_progress(done, len(configs), "screening")  # noqa: E731
        screened, rejected = screen(context, configs, step, ahead.order())
    if context.request.pool_engine is not None:
        pooled = pool_configs(context, screened)
        more, out = screen(context, pooled, lambda done: on_progress(done, len(pooled), "screening pools"))
        configs, screened, rejected = configs + pooled, screened + more, rejected + out
    priced, too_much = price(context, screened)
    return Prepared(Race(context, priced), rejected + too_much, _num_candidates(context, configs), len(configs))


def _nothing_to_try(context: Context) -> InputError:
    """No cut that was asked for fits into the GPUs that may be used: names the flag that asked."""
    request = context.request
    most = ", ".join(f"{limit.accelerator.id}:{limit.max_gpus}" for limit in request.gpus)
    for field, ways in (("--tp", request.tp), ("--pp", request.pp), ("--dp", request.dp)):
        if ways is not None and min(ways) > 1:
            shown = ",".join(map(str, ways))
            return InputError(field, shown, f"no such replica fits into --gpus {most}; ask for less or allow more")
    return InputError("--gpus", most, "no number of GPUs that was allowed makes a single replica; allow more")


def _num_candidates(context: Context, configs: list[ReplicaConfig]) -> int:
    return sum(len(counts_within(config, context.request.gpus)) for config in configs)


def enumerate_space(context: Context) -> list[ReplicaConfig]:
    """All replica configurations of a request.

    Tensor parallelism leaves its machine only for GPU types of which the machine cannot hold the weights at any
    precision that is allowed.
    """
    request = context.request
    configs: list[ReplicaConfig] = []
    precisions = request.resolved_precisions()
    for limit in request.gpus:
        domain = max(limit.accelerator.gpus_per_node, limit.accelerator.scale_up_size)
        holds = domain * limit.accelerator.memory_bytes
        options = SpaceOptions(
            precisions=precisions,
            engines=request.engines,
            token_budgets=request.token_budgets,
            tp=request.tp,
            pp=request.pp,
            dp=request.dp,
            across_nodes=holds < context.least_weight_bytes,
        )
        configs += enumerate_configs(request.model, [limit], options)
    return list({config.name: config for config in configs}.values())


def pool_configs(context: Context, screened: list[Screened]) -> list[ReplicaConfig]:
    """Prefill and decode pools of machines that could serve alone, with one token budget, in as many sizes as fit.

    For each number of machines (every one up to `EVERY_SIZE_UP_TO`, then four a doubling) the splits next to the
    balance, at which both pools are equally busy by the mean-value model; or the one that was asked for.
    """
    request = context.request
    budgets = sorted({one.settings.max_num_batched_tokens or 0 for one in screened})
    found: list[ReplicaConfig] = []
    for one in screened:
        cut = one.config.parallelism
        alone = cut.dp == 1 and cut.pp == 1
        if not alone or one.settings.max_num_batched_tokens != budgets[len(budgets) // 2]:
            continue
        most = max(limit.max_gpus for limit in request.gpus if limit.accelerator.id == one.config.accelerator.id)
        splits = _splits(one, most // cut.num_gpus, request.split)
        assert request.pool_engine is not None
        found += [
            dataclasses.replace(one.config, pools=Pools(prefill=prefill, decode=decode, engine=request.pool_engine))
            for prefill, decode in splits
        ]
    return found


def _splits(one: Screened, most: int, asked: tuple[int, int] | None) -> list[tuple[int, int]]:
    if asked is not None:
        return [asked] if sum(asked) <= most else []
    prefill_frac = balanced_prefill_frac(one.estimator)
    return [split for size in pool_sizes(most) for split in splits_near(size, prefill_frac)]


def pool_sizes(most: int) -> tuple[int, ...]:
    """Machines of both pools together that are tried, ascending, from 2 to `most`."""
    sizes = set(range(2, min(most, EVERY_SIZE_UP_TO) + 1))
    step = EVERY_SIZE_UP_TO
    while step < most:
        sizes.update(step + step * k // 4 for k in range(1, 5) if step + step * k // 4 <= most)
        step *= 2
    return tuple(sorted(sizes | ({most} if most >= 2 else set())))
