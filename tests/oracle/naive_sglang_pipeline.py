"""SGLang with pipeline stages the slow way, and the runs of all naive servers of SGLang's."""

from __future__ import annotations

import math
from collections import Counter

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.naive_radix import contents
from tests.oracle.naive_sglang import Batch, Chunk, Req, Server


class PipelinedServer(Server):
    """``event_loop_pp``: a running batch for each stage; the queue, the tree and the chunk under way are shared.

    `groups[k]` are a running batch and its last batch; of those not in flight, the one with most decodes is next.
    """

    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        super().__init__(workload, config, model)
        self.groups: list[tuple[Batch, Batch | None, Req | None]] = [
            (Batch(), None, None) for _ in range(model.num_stages)
        ]
        self.stage_free_s = [0.0] * model.num_stages
        self.flights: list[tuple[float, int, Batch, list[Chunk]]] = []

    def alive(self, index: int) -> list[Req]:
        """Who decodes in a group, or is in flight with it."""
        running, last, part = self.groups[index]
        reqs = running.reqs + (last.reqs if last is not None and last.is_extend else [])
        return [req for req in reqs if not req.finished and req is not part]

    def idle(self) -> bool:
        return not (any(map(self.alive, range(len(self.groups)))) or self.waiting or self.chunked or self.flights)

    def forget_ghosts(self) -> None:
        self.ratio = self.initial
        for running, _, _ in self.groups:
            running.reqs = [req for req in running.reqs if not req.finished]
            running.is_full = False

    def enter(self, index: int) -> None:
        self.running, self.last_batch, self.last_chunked = self.groups[index]

    def launch(self) -> bool:
        busy = {index for _, index, _, _ in self.flights}
        index = max(set(range(len(self.groups))) - busy, key=lambda k: (len(self.alive(k)), -k))
        self.enter(index)
        before = self.events["retracted"]
        batch = self.next_batch()
        self.groups[index] = (self.running, None, None)
        self.last_batch = None
        if batch is None:
            self.running.is_full = False
            if not any(map(self.alive, range(len(self.groups)))):
                self.forget_ghosts()
            batch = self.next_batch()
            self.running.is_full = self.running.is_full and batch is not None
        if batch is None:
            if self.events["retracted"] > before:
                self.flights.append((self.now_s + self.model.step_s(0, 0, 0, 0, 0, 0, 0), index, Batch(), []))
            return self.events["retracted"] > before
        chunks = self.chunks if batch.is_extend else []
        seconds = self.seconds(chunks, batch)
        end_s = self.now_s
        for stage in range(len(self.stage_free_s)):
            end_s = self.stage_free_s[stage] = max(end_s, self.stage_free_s[stage]) + seconds
        self.flights.append((end_s, index, batch, chunks))
        self.groups[index] = (self.running, batch, self.last_chunked)
        self.events["in flight together"] += len(self.flights) > 1
        return True

    def round(self) -> list[Req]:
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            self.waiting.append(self.arriving.pop(0))
        if self.idle():
            self.forget_ghosts()
            return []
        if len(self.flights) < len(self.groups) and self.launch():
            return []
        end_s, _, batch, chunks = self.flights.pop(0)
        self.now_s = max(self.now_s, end_s)
        return self.land(batch, chunks, end_s)


def naive_sglang(
    workload: Workload, config: EngineConfig, model: StepModel, duration_s: float = math.inf
) -> tuple[list[Req | None], Counter[str]]:
    """What each request saw, None where it was rejected, and how often what happened. One replica."""
    server = (Server if model.num_stages == 1 else PipelinedServer)(workload, config, model)
    rows: list[Req | None] = []
    for number in range(len(workload)):
        prompt = int(workload.prompt_tokens[number])
        output = min(int(workload.output_tokens[number]), config.max_model_len - prompt)
        told = output if workload.max_output_tokens is None else int(workload.max_output_tokens[number])
        told = max(min(told, config.max_model_len - prompt, server.capacity - server.page - 1 - prompt), output)
        fits = output >= 1 and prompt + output + server.page < server.capacity
        rows.append(Req(number, contents(workload, number), output, told) if fits else None)
    server.everybody = upcoming = [req for req in rows if req is not None]
    users = len(rows) if workload.concurrency is None else workload.concurrency
    for req in upcoming[:users]:
        req.arrival_s = float(workload.arrival_s[req.number])
    server.arriving = [req for req in upcoming[:users] if req.arrival_s < duration_s]
    upcoming = upcoming[users:]
    while server.now_s < duration_s:
        if server.idle() and not (server.arriving and server.arriving[0].arrival_s <= server.now_s):
            server.round()
            if not server.arriving:
                break
            server.now_s = server.arriving[0].arrival_s
            continue
        for _ in server.round():
            if upcoming:
                req = upcoming.pop(0)
                req.arrival_s = max(server.now_s + workload.think_s, float(workload.arrival_s[req.number]))
                server.arriving.append(req)
                server.arriving.sort(key=lambda req: (req.arrival_s, req.number))
    return rows, server.events
