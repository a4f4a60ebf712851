"""ML.ENERGY's load on a server, and what its client makes of the answers.

All requests of a run are sent at once; the server runs `max_num_seqs` of them and queues the rest. The data set is
repeated where there would be too few, so that later copies find their prompts in the prefix cache. Power and throughput
are of the time from the first token of request `max_num_seqs` to the end of the last but `max_num_seqs + 1`; latencies
between tokens are of the whole run. The facts are in ``ml_energy_runs.toml``.

Assumed: lengths are gamma distributed around their means. Runs of many more requests than seats are cut to
`MOST_TURNOVERS` requests a seat, which changes no steady state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import UnknownNameError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload

FACTS = Path(__file__).with_name("ml_energy_runs.toml")
BLOCK = 16
MOST_TURNOVERS, FEWEST = 16, 96
Numbers = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task's requests.

    Attributes:
        num_requests: of the data set.
        repeats_per_seat: how often it is repeated (see the file).
        prompt_tokens: mean.
        prompt_spread, output_spread: standard deviation over mean.
        max_output_tokens: cap of an answer.
    """

    num_requests: int
    repeats_per_seat: float
    prompt_tokens: int
    prompt_spread: float
    output_spread: float
    max_output_tokens: int


@functools.cache
def facts() -> Mapping[str, Any]:
    """``ml_energy_runs.toml``."""
    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        UnknownNameError: no such task.
    """
    known = tuple(key for key, value in facts().items() if isinstance(value, dict))
    if name not in known:
        raise UnknownNameError("task", name, known)
    return Task(**facts()[name])


def requests(task: Task, seats: int, output_tokens: float, *, contents: bool = True) -> Workload:
    """The requests of a run with `seats` running and `output_tokens` on average, all sent at once.

    Without `contents` the engine does not know which prompts are copies.
    """
    repeats = max(1, math.ceil(task.repeats_per_seat * seats / task.num_requests))
    num = min(task.num_requests * repeats, max(MOST_TURNOVERS * seats, FEWEST))
    rng = np.random.default_rng(0)
    prompts = np.maximum(8, _lengths(rng, task.prompt_tokens, task.prompt_spread, min(num, task.num_requests)))
    outputs = np.clip(_lengths(rng, output_tokens, task.output_spread, num), 2, task.max_output_tokens)
    load = Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=ints(np.resize(prompts, num)), output_tokens=ints(outputs)
    )
    return _with_contents(load, len(prompts)) if contents and num > task.num_requests else load


def _lengths(rng: np.random.Generator, mean: float, spread: float, num: int) -> NDArray[np.int64]:
    shape = 1.0 / spread**2
    return rng.gamma(shape, mean / shape, num).astype(np.int64)


def _with_contents(load: Workload, distinct: int) -> Workload:
    """Copies of a prompt have the same blocks."""
    blocks = load.prompt_tokens // BLOCK
    first = np.concatenate(([0], np.cumsum(blocks[:distinct])))[:-1]
    ids = np.concatenate([np.arange(first[i % distinct], first[i % distinct] + blocks[i]) for i in range(len(load))])
    return dataclasses.replace(
        load,
        block_tokens=BLOCK,
        prompt_block_ids=ints(ids),
        prompt_block_offsets=ints(np.concatenate(([0], np.cumsum(blocks)))),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a run, one after another on each lane.

    Attributes:
        took_s, end_s: ``float64[steps]``.
        tokens: ``float64[steps]`` tokens handed out at their ends.
        decoding: ``float64[steps]`` of them, those that are no first tokens.
    """

    took_s: Numbers
    end_s: Numbers
    tokens: Numbers
    decoding: Numbers

    def median_latency_s(self) -> float:
        """Median time between two tokens of a request, over all of them."""
        order = np.argsort(self.took_s)
        share = np.cumsum(self.decoding[order])
        return float(self.took_s[order][np.searchsorted(share, share[-1] / 2)])


def steps_of(run: Run) -> Steps:
    """The steps of `run`, whose engine kept a timeline."""
    line = run.timeline
    assert line is not None  # nobody asked the engine to leave token times out
    ends = line.step_end_s
    running, began = np.zeros(len(ends) + 1), np.zeros(len(ends) + 1)
    np.add.at(running, line.slice_begin, 1)
    np.add.at(running, line.slice_end, -1)
    np.add.at(began, line.slice_begin, 1)
    tokens = np.cumsum(running)[:-1]
    starts = np.concatenate(([0.0], ends[:-1]))
    starts[line.lane_offsets[:-1][line.lane_offsets[:-1] < len(ends)]] = 0.0
    return Steps(took_s=ends - starts, end_s=ends, tokens=tokens, decoding=tokens - began[:-1])


def window(run: Run, seats: int) -> tuple[float, float]:
    """Begin and end of what the benchmark calls the steady state."""
    begin = float(np.sort(run.first_token_s)[min(seats, len(run)) - 1])
    end = float(np.sort(run.finish_s)[max(0, len(run) - seats - 2)])
    return (begin, end) if end > begin else (0.0, float(run.end_s))
