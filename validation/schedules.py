"""Suite `schedules`: does the `vllm-v1` policy schedule as vLLM's own scheduler did, step by step?

The data are per-step schedules recorded from the real scheduler (one JSON object a line, gzip or plain). A workload
matches when every step agrees: who got how many tokens, in which order, who was evicted, who finished, and how many
blocks were free. Steps take one second here, so that a request of `arrival_step` s arrives at second s.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepCost, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import INFINITE, Replica
from plimsoll.engine.requests import Requests

Row = dict[str, Any]

FORMAT = "give a file of recorded schedules (.jsonl or .jsonl.gz)"
SIZES = ("num_usable_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
CONFIG = {
    *SIZES, "enable_chunked_prefill", "long_prefill_token_threshold", "long_prefill_token_threshold_adaptive",
    "scheduler_reserve_full_isl", "watermark", "max_num_active_seqs", "enable_prefix_caching", "policy",
    "async_scheduling",
}  # fmt: skip
REQUEST = ("id", "arrival_step", "prompt_tokens", "output_tokens", "priority", "prefix_tokens")
STEP = ("scheduled", "preempted", "finished", "free_blocks")


class OneSecond:
    """A step model in which every step takes one second."""

    attention_layers: AttentionLayers = FULL_ATTENTION
    num_stages = 1

    def step_s(self, *_: int) -> float:
        """One second."""
        return 1.0

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> tuple[float, float, int]:
        """A flat line."""
        del num_decode, decode_read_tokens
        return 1.0, 0.0, 1 << 62

    def step(self, shape: StepShape, /) -> StepCost:
        """One second, by definition."""
        del shape
        return StepCost(time_s=1.0, energy_j=None, source=Source.ASSUMED)


class ScheduleRecorder:
    """Writes down what the data files hold of each step.

    Attributes:
        number: the step that is recorded, where the steps do not take one second each.
    """

    def __init__(self) -> None:
        self.steps: dict[int, Row] = {}
        self.admissions: list[list[int]] = []
        self.number: int | None = None
        self._order: list[int] = []
        self._last_order: list[int] = []

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """Note tokens in running order, admissions, evictions and free blocks of the step that begins now."""
        number = round(begin_s) if self.number is None else self.number
        prefilling, target = replica.prefilling, replica.requests.target
        tokens = dict(plan.chunks)
        for request, chunk in plan.chunks:
            if request not in self._order:
                self.admissions.append([number, request, prefilling.get(request, target[request]) - chunk])
        idle = {*replica.paused, *prefilling, *getattr(replica, "lingering", ())}
        self._last_order, self._order = self._order, list(replica.running)
        shares = [[request, tokens.get(request, 0 if request in idle else 1)] for request in self._order]
        self.steps[number] = {
            "scheduled": [share for share in shares if share[1]],
            "preempted": list(replica.preempted),
            "finished": [],
            "free_blocks": replica.free_blocks,
        }

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """Note who finished, in scheduling order."""
        del replica
        if self.number is None:
            self.steps[round(end_s) - 1]["finished"] = sorted(finished, key=self._order.index)

    def late_results(self, finished: Sequence[int]) -> None:
        """Note in this step who finished in the one before, in the order of that one."""
        assert self.number is not None
        self.steps[self.number]["finished"] = sorted(finished, key=self._last_order.index)


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Replay every workload of the files.

    Raises:
        InputError: no such file, another format, or no workloads in it.
    """
    total: Counter[str] = Counter()
    matching: Counter[str] = Counter()
    first: Row | None = None
    for row in _rows(paths):
        total[row["category"]] += 1
        disagreement = compare(row)
        if disagreement is None:
            matching[row["category"]] += 1
        elif first is None:
            first = disagreement
    num, same = sum(total.values()), sum(matching.values())
    return {
        "passed": num > 0 and num == same,
        "summary": f"{same} of {num} workloads reproduced step by step",
        "figures": {
            "num_workloads": num,
            "num_matching": same,
            "by_category": {name: [matching[name], total[name]] for name in sorted(total)},
            "first_disagreement": first,
        },
    }


def compare(row: Row) -> Row | None:
    """None where our schedule of one recorded workload is the real one, else the first step that differs."""
    recorder = ScheduleRecorder()
    if row["config"]["async_scheduling"]:
        _step_by_step(row, recorder)
    else:
        simulate(workload_of(row), config_of(row["config"]), OneSecond(), observer=recorder)
    where = {"id": row["id"], "category": row["category"]}
    for number, real in enumerate(row["steps"]):
        ours = recorder.steps.pop(number, None)
        expected = {key: real[key] for key in STEP}
        if ours is None and not any(expected[key] for key in ("scheduled", "preempted", "finished")):
            continue  # nothing to do in this step: the engine jumps over it
        if ours != expected:
            return {**where, "step": number, "real": expected, "ours": ours}
    if recorder.steps:
        number = min(recorder.steps)
        return {**where, "step": number, "real": None, "ours": recorder.steps[number]}
    for found, recorded in zip_longest(recorder.admissions, row["computed_at_admission"]):
        if found != recorded:
            step = (recorded or found)[0]
            return {**where, "step": step, "real": {"admitted": recorded}, "ours": {"admitted": found}}
    return None


def _step_by_step(row: Row, recorder: ScheduleRecorder) -> None:
    """Drive a replica with late results by hand.

    When the first step after a pause begins, two steps are planned in the same moment; what arrives between the two, as
    some recorded requests do, has no time of arrival that would say so.
    """
    config, workload = config_of(row["config"]), workload_of(row)
    requests = Requests(workload, config.max_model_len)
    policy = VllmV1(config, **config.options)  # type: ignore[arg-type]  # the policy checks them
    replica = policy.make_replica(requests, config, OneSecond(), 0, recorder)
    assert isinstance(replica, LateReplica)
    for number in range(len(row["steps"])):
        for request in row["requests"]:
            if request["arrival_step"] == number:
                replica.push([request["id"]], [replica.now_s])
        if replica.next_step_s() == INFINITE:
            continue
        recorder.number = number
        replica.run_steps()
        recorder.late_results(replica.last_finished)


def workload_of(row: Row) -> Workload:
    """The recorded requests, arriving at the second of their step; blocks within a shared prefix have content ids."""
    requests, size = row["requests"], row["config"]["block_size"]
    groups = sorted({request["prefix_group"] for request in requests if request["prefix_group"] is not None})
    ids: list[int] = []
    offsets = [0]
    for request in requests:
        if request["prefix_group"] is not None:
            first = groups.index(request["prefix_group"]) << 32
            ids += range(first, first + request["prefix_tokens"] // size)
        offsets.append(len(ids))
    return Workload(
        arrival_s=floats([request["arrival_step"] for request in requests]),
        prompt_tokens=ints([request["prompt_tokens"] for request in requests]),
        output_tokens=ints([request["output_tokens"] for request in requests]),
        priority=ints([request["priority"] for request in requests]),
        block_tokens=size,
        prompt_block_ids=ints(ids),
        prompt_block_offsets=ints(offsets),
        description=row["id"],
    )


def config_of(config: Row) -> EngineConfig:
    """The recorded engine settings."""
    return EngineConfig(
        num_blocks=config["num_usable_blocks"],
        block_size=config["block_size"],
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        policy="vllm-v1",
        options={
            "enable_chunked_prefill": config["enable_chunked_prefill"],
            "long_prefill_token_threshold": config["long_prefill_token_threshold"],
            "long_prefill_token_threshold_adaptive": config["long_prefill_token_threshold_adaptive"],
            "reserve_full_isl": config["scheduler_reserve_full_isl"],
            "watermark": config["watermark"],
            "max_num_active_seqs": config["max_num_active_seqs"] or 0,
            "enable_prefix_caching": config["enable_prefix_caching"],
            "scheduling_policy": config["policy"],
            "async_scheduling": config["async_scheduling"],
        },
    )


def _rows(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        if not path.is_file():
            raise InputError("--data", str(path), FORMAT)
        number = 0
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    yield _row(path, number, line)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            what = "is not readable gzip text" if path.suffix == ".gz" else "is not readable UTF-8 text"
            raise InputError("--data", str(path), f"it {what}; {FORMAT}") from error
        if not number:
            raise InputError("--data", str(path), f"it is empty; {FORMAT}")


def _row(path: Path, number: int, line: str) -> Row:
    """One recorded workload, with all that the comparison looks up."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        remedy = f"each line is a JSON object; {FORMAT}"
        raise InputError(f"{path.name} line {number}", line[:40], remedy) from error
    flaw = _flaw(row)
    if flaw:
        raise InputError(f"{path.name} line {number}", line[:40], f"{flaw}; {FORMAT}")
    return row  # type: ignore[no-any-return]


def _flaw(row: Any) -> str | None:
    """What keeps a line from being a recorded workload."""
    if not isinstance(row, dict):
        return "each line is a JSON object"
    kinds = {"id": str, "category": str, "config": dict, "requests": list, "steps": list, "computed_at_admission": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]
    if wrong:
        return f"it needs {', '.join(wrong)} as recorded schedules have them"
    config = row["config"]
    lacking = sorted(CONFIG - config.keys()) + [name for name in SIZES if not _is_whole(config.get(name), 1)]
    if lacking:
        return f"its config needs {', '.join(dict.fromkeys(lacking))}, sizes as whole numbers above 0"
    for place, request in enumerate(row["requests"]):
        if not isinstance(request, dict) or "prefix_group" not in request:
            return f"request {place} is no recorded request"
        unset = [name for name in REQUEST if not _is_whole(request.get(name), -(1 << 62) if name == "priority" else 0)]
        if unset or request["id"] != place:
            return f"request {place} needs whole numbers as {', '.join(unset) or 'id: its place in the list'}"
    for place, step in enumerate(row["steps"]):
        if not isinstance(step, dict) or not step.keys() >= set(STEP):
            return f"step {place} needs {', '.join(STEP)}"
    return None


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
