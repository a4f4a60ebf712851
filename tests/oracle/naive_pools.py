"""Prefill and decode on different machines, the slow way: single steps, every request by name, sums made afresh."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.models import with_longest
from tests.oracle.naive_vllm import Request, _facts


@dataclasses.dataclass
class Box:
    """One machine."""

    number: int
    pool: str = ""
    home: str = ""
    queue: list[Request] = dataclasses.field(default_factory=list)  # prompts
    batch: list[Request] = dataclasses.field(default_factory=list)  # decoding, or could
    coming: list[Request] = dataclasses.field(default_factory=list)  # accepted: KV on its way, or here and not begun
    here: list[Request] = dataclasses.field(default_factory=list)  # of those, KV is here
    swapped: list[Request] = dataclasses.field(default_factory=list)
    blocked: list[Request] = dataclasses.field(default_factory=list)
    kept: list[Request] = dataclasses.field(default_factory=list)  # computed here, KV not yet gone
    busy_until_s: float | None = None
    began_s: float = 0.0
    prompts: list[Request] = dataclasses.field(default_factory=list)  # of the step under way
    decodes: list[Request] = dataclasses.field(default_factory=list)
    link_free_s: float = 0.0


class Pools:
    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        self.workload, self.config, self.model = workload, config, model
        self.options: dict[str, Any] = dict(config.options)
        self.moves: list[tuple[float, int, Request, Box, Box]] = []
        self.count = 0
        self.boxes: list[Box] = []

    # -- arithmetic

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.config.block_size)

    def folded(self, position: int) -> int:
        return sum(w * (position if x is None else min(position, x)) for w, x in self.model.attention_layers)

    def seconds(self, prompts: list[Request], decodes: list[Request]) -> float:
        shape = (
            sum(r.prompt for r in prompts),
            len(prompts),
            sum(self.folded(i) for r in prompts for i in range(1, r.prompt + 1)),
            0,
            len(prompts),
            len(decodes),
            sum(self.folded(r.length) for r in decodes),
        )
        return self.model.step_s(*with_longest(self.model, shape, (r.length for r in decodes)))

    def rest_s(self, request: Request, computed_in_s: float) -> float:
        whole_s = request.prompt * self.options["transfer_s_per_token"]
        layers = self.options.get("transfer_layers", 1)
        if layers == 1 or request.prompt < self.options.get("overlap_min_tokens", 512):
            return whole_s
        return max(whole_s / layers, whole_s - computed_in_s * (layers - 1) / layers)

    def move(self, request: Request, source: Box, target: Box, now_s: float, computed_in_s: float) -> None:
        done_s = max(now_s, source.link_free_s, target.link_free_s) + self.rest_s(request, computed_in_s)
        source.link_free_s = target.link_free_s = done_s
        self.count += 1
        there_s = done_s + self.options.get("transfer_latency_s", 0.0)
        self.moves.append((there_s, self.count, request, source, target))

    def begin(
        self, box: Box, prompts: list[Request], decodes: list[Request], now_s: float, extra_s: float = 0.0
    ) -> None:
        for request in prompts:
            request.scheduled_s = now_s
        box.began_s = now_s
        box.prompts, box.decodes = prompts, decodes
        box.busy_until_s = now_s + (self.seconds(prompts, decodes) + extra_s)

    def end(self, box: Box, now_s: float) -> list[Request]:
        """Hand the tokens out; returns those who have all of theirs."""
        box.busy_until_s = None
        finished = []
        for request in (*box.decodes, *box.prompts):
            request.computed = request.length if request in box.decodes else request.prompt
            request.token_times_s.append(now_s)
            if len(request.token_times_s) == request.output:
                finished.append(request)
        return finished

    # -- the clock

    def run(self, duration_s: float) -> list[dict[str, Any]]:
        workload = self.workload
        requests = []
        self.upcoming: list[Request] = []
        for i in range(len(workload)):
            prompt = int(workload.prompt_tokens[i])
            output = min(int(workload.output_tokens[i]), self.config.max_model_len - prompt)
            request = Request(i, prompt, output, float(workload.arrival_s[i]))
            requests.append(request)
            if output >= 1 and self.blocks(prompt + output - 1) <= self.config.num_blocks:
                self.upcoming.append(request)
        self.earliest_s = [r.arrival_s for r in requests]
        users = workload.concurrency
        if users is not None:
            for request in self.upcoming:
                request.arrival_s = math.nan
        self.sends: list[tuple[float, int]] = []
        for _ in range(len(self.upcoming) if users is None else users):
            self.line_up(0.0)
        while True:
            times = [box.busy_until_s for box in self.boxes if box.busy_until_s is not None]
            times += [move[0] for move in self.moves] + [send[0] for send in self.sends]
            now_s = min(times, default=math.inf)
            if now_s >= duration_s:
                break
            self.tick(requests, now_s)
        for box in self.boxes:
            if box.busy_until_s == duration_s:
                self.end(box, duration_s)  # what comes at the very end still comes; nothing follows from it
        return [_facts(r, duration_s) for r in requests if r.arrival_s < duration_s]

    def line_up(self, free_s: float) -> None:
        if self.upcoming:
            following = self.upcoming.pop(0)
            self.sends.append((max(free_s, self.earliest_s[following.number]), following.number))

    def tick(self, requests: list[Request], now_s: float) -> None:
        """All that happens at one instant: results, transfers, arrivals, new steps."""
        for box in self.boxes:
            if box.busy_until_s == now_s:
                for _ in self.results(box, now_s):
                    if self.workload.concurrency is not None:
                        self.line_up(now_s + self.workload.think_s)
        for move in sorted(move for move in self.moves if move[0] == now_s):
            self.moves.remove(move)
            self.arrived(*move[2:])
        while self.sends and min(self.sends)[0] == now_s:
            _, number = min(self.sends)
            self.sends.remove((now_s, number))
            requests[number].arrival_s = now_s
            self.arrive(requests[number])
        for with_prompts in (True, False):
            for box in self.boxes:
                if box.busy_until_s is None and with_prompts == bool(box.queue):
                    self.launch(box, now_s)

    def results(self, box: Box, now_s: float) -> list[Request]:
        raise NotImplementedError

    def arrived(self, request: Request, source: Box, target: Box) -> None:
        raise NotImplementedError

    def arrive(self, request: Request) -> None:
        raise NotImplementedError

    def launch(self, box: Box, now_s: float) -> None:
        raise NotImplementedError


class NaiveDistserve(Pools):
    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        super().__init__(workload, config, model)
        kinds = ["prefill"] * self.options["prefill"] + ["decode"] * self.options["decode"]
        self.boxes = [Box(number, kind, kind) for number, kind in enumerate(kinds)]
        self.bridge: list[tuple[Request, Box]] = []

    def free(self, box: Box) -> int:
        if box.pool == "prefill":
            under_way = box.prompts if box.busy_until_s is not None else []
            used = sum(self.blocks(r.prompt) for r in (*under_way, *box.kept))
        else:
            used = sum(self.blocks(r.prompt) for r in box.coming) + sum(self.blocks(r.computed) for r in box.batch)
            if box.busy_until_s is not None:
                used += sum(self.blocks(r.length) - self.blocks(r.computed) for r in box.decodes)
        return self.config.num_blocks - used

    def arrive(self, request: Request) -> None:
        prefills = [box for box in self.boxes if box.pool == "prefill"]

        def pending(box: Box) -> int:
            under_way = box.prompts if box.busy_until_s is not None else []
            return sum(r.prompt for r in (*box.queue, *under_way))

        chosen = min(prefills, key=pending)
        request.replica = chosen.number
        chosen.queue.append(request)

    def launch(self, box: Box, now_s: float) -> None:
        if box.pool == "prefill":
            batch: list[Request] = []
            for request in box.queue:
                tokens = sum(r.prompt for r in batch) + request.prompt
                if len(batch) == self.config.max_num_seqs or (batch and tokens > self.config.max_num_batched_tokens):
                    break
                if sum(self.blocks(r.prompt) for r in (*batch, request)) > self.free(box):
                    break
                batch.append(request)
            if batch:
                box.queue = box.queue[len(batch) :]
                self.begin(box, batch, [], now_s)
            return
        moved = 0

        def growth(requests: list[Request]) -> int:
            return sum(self.blocks(r.length) - self.blocks(r.computed) for r in requests)

        while growth(box.batch) > self.free(box):
            victim = box.batch.pop()
            box.swapped.append(victim)
            victim.preemptions += 1
            moved += victim.computed
        while box.swapped and len(box.batch) < self.config.max_num_seqs:
            request = box.swapped[0]
            if self.blocks(request.length) + growth(box.batch) > self.free(box):
                break
            box.batch.append(box.swapped.pop(0))
            moved += request.computed
        while box.here and len(box.batch) < self.config.max_num_seqs and not (box.swapped and box.batch):
            request = box.here[0]
            if growth([*box.batch, request]) > self.free(box):
                break
            box.batch.append(box.here.pop(0))
            box.coming.remove(request)
        if box.batch:
            extra_s = moved * self.options.get("swap_s_per_token", 0.0)
            self.begin(box, [], list(box.batch), now_s, extra_s)

    def results(self, box: Box, now_s: float) -> list[Request]:
        finished = self.end(box, now_s)
        box.batch = [r for r in box.batch if r not in finished]
        for request in box.prompts:
            if request not in finished:
                box.kept.append(request)
                self.bridge.append((request, box))
        while self.bridge:
            request, source = self.bridge[0]
            takers = []
            for taker in self.boxes:
                waiting = sum(self.blocks(r.prompt) for r in taker.coming)
                little = waiting < self.options.get("waiting_frac", 0.05) * self.config.num_blocks
                fits = taker.pool == "decode" and self.blocks(request.prompt) <= self.free(taker)
                if fits and little and taker.busy_until_s is None and not taker.swapped:
                    takers.append(taker)
            if not takers:
                break
            taker = max(takers, key=lambda t: (self.free(t), -t.number))
            self.bridge.pop(0)
            taker.coming.append(request)
            self.move(request, source, taker, now_s, 0.0)
        return finished

    def arrived(self, request: Request, source: Box, target: Box) -> None:
        source.kept.remove(request)
        request.replica = target.number
        target.here.append(request)


class NaiveSplitwise(Pools):
    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        super().__init__(workload, config, model)
        kinds = ["prompt"] * self.options["prefill"] + ["token"] * self.options["decode"]
        kinds += ["mixed"] * self.options.get("mixed", 0)
        self.boxes = [Box(number, kind, kind) for number, kind in enumerate(kinds)]
        self.aside: list[dict[int, int]] = [{} for _ in kinds]  # machine: request: blocks
        self.pending: list[dict[tuple[str, int], int]] = [{} for _ in kinds]
        self.then: dict[int, Box] = {}
        self.left_out: dict[int, int] = {}

    def whole(self, request: Request) -> int:
        told = self.workload.predicted_output_tokens
        if told is None:
            told = self.workload.max_output_tokens
        output = request.output if told is None else max(request.output, int(told[request.number]))
        return min(self.blocks(request.prompt + output - 1), self.config.num_blocks)

    def used(self, box: Box) -> int:
        return sum(self.aside[box.number].values())

    def tokens_pending(self, box: Box) -> int:
        return sum(self.pending[box.number].values())

    def cost(self, box: Box, request: Request) -> int:
        """Tokens of a prompt for which it waits, were it sent there."""
        return request.prompt

    def arrive(self, request: Request) -> None:
        total = self.config.num_blocks
        at = then = None

        def pending(box: Box) -> int:
            return self.tokens_pending(box) + self.cost(box, request)

        for pool in ("prompt", "mixed"):
            members = [box for box in self.boxes if box.pool == pool]
            if members and at is None:
                best = min(members, key=pending)
                at = None if best.queue and pending(best) > self.options.get("max_pending_tokens", 8192) else best
        for pool in ("token", "mixed"):
            members = [box for box in self.boxes if box.pool == pool]
            if members and then is None:
                best = min(members, key=self.used)
                then = best if self.used(best) + self.whole(request) <= total else None
        if at is None:
            tokens = [box for box in self.boxes if box.pool == "token"]
            if tokens:
                at = min(tokens, key=self.tokens_pending)
                at.pool = "mixed"
        if then is None:
            prompts = [box for box in self.boxes if box.pool == "prompt"]
            if prompts:
                then = min(prompts, key=self.used)
                then.pool = "mixed"
        fits = at is not None and then is not None and self.used(then) + self.whole(request) <= total
        if fits and at is not then:
            assert at is not None
            fits = self.used(at) + self.blocks(request.prompt) <= total
        if not fits:
            at = then = min(self.boxes, key=self.tokens_pending)
        assert at is not None
        assert then is not None
        if fits:
            if at is not then:
                self.aside[at.number][request.number] = self.blocks(request.prompt)
            self.aside[then.number][request.number] = self.whole(request)
        self.then[request.number] = then
        self.pending[at.number]["prompt", request.number] = self.cost(at, request)
        self.pending[then.number]["token", request.number] = 1
        request.replica = at.number
        at.queue.append(request)

    def launch(self, box: Box, now_s: float) -> None:
        box.batch += box.here
        box.here = []
        if not self.pending[box.number]:
            box.pool = box.home
        seats, budget = self.config.max_num_seqs, self.config.max_num_batched_tokens
        decodes: list[Request] = []
        prompts: list[Request] = []
        for request in box.batch:
            starved = self.left_out.get(request.number, 0) >= self.options.get("max_preemptions", 4)
            if starved and len(decodes) < min(seats, budget):
                decodes.append(request)
        for request in list(box.queue):
            tokens = len(decodes) + sum(r.prompt for r in prompts)
            if len(decodes) + len(prompts) == seats or (tokens and tokens + request.prompt > budget):
                break
            mine = self.aside[box.number]
            if request.number not in mine:
                if self.used(box) + self.whole(request) > self.config.num_blocks:
                    continue
                mine[request.number] = self.whole(request)
            box.queue.remove(request)
            prompts.append(request)
        for request in (*box.blocked, *(r for r in box.batch if r not in box.blocked)):
            tokens = len(decodes) + sum(r.prompt for r in prompts)
            if request not in decodes and len(decodes) + len(prompts) < seats and tokens < budget:
                decodes.append(request)
        for request in box.batch:
            if request in decodes:
                if request in box.blocked:
                    box.blocked.remove(request)
            else:
                self.left_out[request.number] = self.left_out.get(request.number, 0) + 1
                if request in box.decodes or request in box.prompts:  # it ran in the last step
                    box.blocked.append(request)
        if prompts or decodes:
            self.begin(box, prompts, decodes, now_s)

    def results(self, box: Box, now_s: float) -> list[Request]:
        finished = self.end(box, now_s)
        for request in box.prompts:
            del self.pending[box.number]["prompt", request.number]
            if self.then[request.number] is box:
                box.batch.append(request)
            elif request not in finished:
                self.move(request, box, self.then[request.number], now_s, now_s - box.began_s)
        for request in finished:
            then = self.then[request.number]
            del self.pending[then.number]["token", request.number]
            del self.aside[then.number][request.number]
            self.aside[box.number].pop(request.number, None)
            if request in box.batch:
                box.batch.remove(request)
        return finished

    def arrived(self, request: Request, source: Box, target: Box) -> None:
        del self.aside[source.number][request.number]
        request.replica = target.number
        target.here.append(request)


def naive_pools(
    workload: Workload, config: EngineConfig, model: StepModel, duration_s: float = math.inf
) -> list[dict[str, Any]]:
    kind = {"distserve": NaiveDistserve, "splitwise": NaiveSplitwise}[config.policy]
    return kind(workload, config, model).run(duration_s)
