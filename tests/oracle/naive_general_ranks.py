"""Data-parallel ranks that step together, the slow way: naive SGLang and TensorRT-LLM schedulers on one clock."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.requests import Requests
from tests.oracle.naive_general import NaiveReplica, Row, _facts
from tests.oracle.naive_radix import contents
from tests.oracle.naive_sglang import Req, Server


class AsIfAll:
    """A step model of one rank: a step in which every rank has its rows."""

    num_stages = 1

    def __init__(self, model: StepModel, ranks: int) -> None:
        self.model, self.ranks = model, ranks
        self.attention_layers = model.attention_layers
        self.needs_longest = getattr(model, "needs_longest", False)

    def step_s(self, *shape: int) -> float:
        return self.model.step_s(*(self.ranks * count for count in shape[:7]), *shape[7:])


def naive_sglang_ranks(
    workload: Workload, config: EngineConfig, model: StepModel
) -> tuple[list[Req | None], Counter[str]]:
    """What each request saw, None where it was rejected, and how often what happened. Open loop, all drained."""
    ranks = config.ranks
    options = dict(config.options)
    options["schedule_conservativeness"] = float(options.get("schedule_conservativeness", 1.0)) * 0.3
    chunk = int(options.get("chunked_prefill_size", 0))
    options["chunked_prefill_size"] = chunk // ranks if chunk > 0 else chunk
    own = dataclasses.replace(config, ranks=1, options=options)
    servers = [Server(workload, own, AsIfAll(model, ranks)) for _ in range(ranks)]  # type: ignore[arg-type]
    rows: list[Req | None] = []
    for number in range(len(workload)):
        prompt = int(workload.prompt_tokens[number])
        output = min(int(workload.output_tokens[number]), config.max_model_len - prompt)
        told = output if workload.max_output_tokens is None else int(workload.max_output_tokens[number])
        room = servers[0].capacity - servers[0].page - 1 - prompt
        told = max(min(told, config.max_model_len - prompt, room), output)
        fits = output >= 1 and prompt + output + servers[0].page < servers[0].capacity
        rows.append(Req(number, contents(workload, number), output, told) if fits else None)
    arriving = [req for req in rows if req is not None]
    for req in arriving:
        req.arrival_s = float(workload.arrival_s[req.number])
    now_s, turn = 0.0, 0
    events: Counter[str] = Counter()
    while True:
        while arriving and arriving[0].arrival_s <= now_s:
            servers[turn].everybody.append(arriving[0])
            servers[turn].waiting.append(arriving.pop(0))
            turn = (turn + 1) % ranks
        for server in servers:
            server.now_s = now_s
            server.last_batch = server.next_batch()
        if all(server.last_batch is None for server in servers):
            for server in servers:
                server.ratio = server.initial
            if all(server.idle() for server in servers):
                if not arriving:
                    break
                now_s = max(now_s, arriving[0].arrival_s)
            else:
                events["a round without work"] += 1
            continue
        events["one waits"] += any(server.last_batch is None and not server.idle() for server in servers)
        events["one has nothing"] += any(server.idle() for server in servers)
        seconds = [servers[0].model.step_s(0, 0, 0, 0, 0, 0, 0)] if None in [s.last_batch for s in servers] else []
        for server in servers:
            if server.last_batch is not None:
                server.chunks = server.chunks if server.last_batch.is_extend else []
                seconds.append(server.seconds(server.chunks, server.last_batch))
        modes = {server.last_batch.is_extend for server in servers if server.last_batch is not None}
        events["prompts beside decodes"] += len(modes) == 2
        now_s += max(seconds)
        for server in servers:
            if server.last_batch is not None:
                server.land(server.last_batch, server.chunks, now_s)
    for server in servers:
        events.update(server.events)
    return rows, events


def naive_trtllm_ranks(
    workload: Workload, config: EngineConfig, model: StepModel, kind: type[NaiveReplica]
) -> tuple[dict[int, dict[str, Any]], Counter[str]]:
    """Facts by request, and how often what happened. Open loop, all drained."""
    requests = Requests(workload, config.max_model_len)
    ranks = [kind(requests, config, AsIfAll(model, config.ranks)) for _ in range(config.ranks)]  # type: ignore[arg-type]
    welcome = ranks[0].policy.accepts(requests, config)
    rows: dict[int, Row] = {}
    for i in range(len(workload)):
        fits = requests.output[i] >= 1 and ranks[0].blocks(requests.final[i]) <= config.num_blocks and welcome[i]
        rows[i] = Row(i, requests.output[i] if fits else -1, arrival_s=float(workload.arrival_s[i]))
    arriving = [row for row in rows.values() if row.output >= 1]
    events: Counter[str] = Counter()
    queue: list[Row] = []
    now_s = 0.0
    while arriving or queue or any(rank.running or rank.waiting for rank in ranks):
        if not queue and not any(rank.running or rank.waiting for rank in ranks):
            now_s = max(now_s, arriving[0].arrival_s)
        while arriving and arriving[0].arrival_s <= now_s:
            queue.append(arriving.pop(0))
        deal(ranks, queue, config.max_num_seqs)
        events["before all ranks"] += bool(queue)
        begun = []
        for rank in ranks:
            rank.now_s = now_s
            begun.append(rank.begin() if rank.running or rank.waiting else None)
        events["one has nothing"] += None in begun
        idle_s = [ranks[0].model.step_s(0, 0, 0, 0, 0, 0, 0)] if None in begun else []
        seconds = max([*idle_s, *(step[2] for step in begun if step is not None)])
        for rank, step in zip(ranks, begun, strict=True):
            if step is not None:
                rank.end(step[0], step[1], seconds)
        now_s += seconds
    for rank in ranks:
        events.update(rank.events)
    return {i: _facts(rows[i], math.inf) for i in rows}, events


def deal(ranks: list[NaiveReplica], queue: list[Row], seats: int) -> None:
    """The longest first, each to whoever has the fewest prompt tokens, among those with fewer than their share."""
    held = [[*rank.waiting, *rank.running] for rank in ranks]
    active = sum(len(mine) for mine in held)
    new = queue[: len(ranks) * seats - active]
    del queue[: len(new)]
    share = max(math.ceil((active + len(new)) / len(ranks)), *(len(mine) for mine in held))
    prompt = ranks[0].requests.prompt
    for row in sorted(new, key=lambda row: -prompt[row.number]):
        _, k = min(((sum(prompt[i] for i in mine), len(mine)), k) for k, mine in enumerate(held) if len(mine) < share)
        held[k].append(row.number)
        ranks[k].rows[row.number] = row
        ranks[k].waiting.append(row.number)
