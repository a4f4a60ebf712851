"""S3: memory for a predicted output length, packed by decreasing first fit; who outgrows it is preempted and doubled.

A predictor puts each request into one of equal buckets of output length. A request's admission takes memory for its
prompt and the upper end of its bucket. Every iteration (as in Orca) takes all decodes and the whole prompts of those
who fit, largest first. A request that has filled its memory is moved to host memory; its output allocation is doubled,
and it comes back before anybody new is let in.

Source: https://arxiv.org/abs/2306.06000, sections 3 and 4 (10 buckets, DistilBERT classifier, scheduler, supervisor);
accuracies it reports: 98.6 % Alpaca, 77.1 % Natural Questions, 65.6 % Pile.

NOTE: where the workload predicts output lengths, their buckets are used. If not, each request's predicted bucket is
drawn: from the row of its own bucket in a confusion matrix, where one is given; else it is its own with the predictor's
accuracy, else one of its neighbours, since the paper prints no confusion matrix. The predictor is not retrained. As in
the paper nothing keeps a large request from being passed by smaller ones that fit.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import check_at_least, longest_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plimsoll.core.columns import Floats, Ints
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


ACCURACY: Final = 0.986
"""On Alpaca."""
SUM_TOLERANCE = 1e-3
"""By which a row of printed, rounded shares may miss 1."""


@mypyc_attr(allow_interpreted_subclasses=True)
class S3(GeneralPolicy):
    """Packing by predicted output length.

    Args:
        config: seats, longest sequence, block size.
        num_buckets: equal buckets of output length.
        max_output: upper end of the last bucket, in tokens; 0 is the longest sequence, 2048 at most.
        accuracy: share of requests that the predictor puts into their own bucket, where the workload predicts nothing.
        confusion: a CSV file in the place of `accuracy`: a row for each true bucket, shortest first, and in it the
            shares of its requests that are predicted to be in each bucket.
        predictor_seed: of what is drawn then.
        swap_block_s: seconds to move one block over the host link.

    Raises:
        InputError: an option out of range, or a file that holds no such matrix.
    """

    memory = "fixed"
    keyed = True
    numbered = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_buckets: int = 10,
        max_output: int = 0,
        accuracy: float = ACCURACY,
        confusion: str = "",
        predictor_seed: int = 0,
        swap_block_s: float = 0.0,
    ) -> None:
        check_at_least(1, num_buckets=num_buckets)
        check_at_least(0, max_output=max_output, predictor_seed=predictor_seed, swap_block_s=swap_block_s)
        if not 0 <= accuracy <= 1:
            raise InputError("accuracy", accuracy, "give a share from 0 to 1")
        if confusion and accuracy != ACCURACY:
            raise InputError("accuracy", accuracy, "the confusion matrix says how often the predictor is right")
        self.confusion = read_confusion(confusion, num_buckets) if confusion else None
        self.seats, self.longest = config.max_num_seqs, longest_sequence(config)
        self.block_size = config.block_size
        self.width = -(-(max_output or min(self.longest, 2048)) // num_buckets)
        self.num_buckets, self.accuracy, self.predictor_seed = num_buckets, accuracy, predictor_seed
        self.swap_block_s = swap_block_s
        self._bounds: list[int] | None = None
        self._keys: list[int] = []
        self._reserved: list[int] = []
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan()

    def predicted(self, requests: Requests) -> list[int]:
        """Upper end of each request's predicted bucket, in tokens."""
        if self._bounds is None:
            workload = requests.workload
            told = workload.predicted_output_tokens
            true_or_told = np.array(requests.output) if told is None else told
            bucket = np.clip((true_or_told - 1) // self.width, 0, self.num_buckets - 1)
            if told is None:
                bucket = self._drawn(bucket)
            self._bounds = ((bucket + 1) * self.width).tolist()
        return self._bounds

    def _drawn(self, bucket: Ints) -> Ints:
        """Predicted buckets of requests whose true ones these are."""
        rng = np.random.default_rng(self.predictor_seed)
        if self.confusion is None:
            wrong = rng.random(len(bucket)) >= self.accuracy
            return np.asarray(np.clip(bucket + wrong * rng.choice([-1, 1], len(bucket)), 0, self.num_buckets - 1))
        below = np.cumsum(self.confusion, axis=1)[bucket, :-1]
        return np.asarray(np.count_nonzero(below <= rng.random((len(bucket), 1)), axis=1))

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and the bucket's upper end, doubled for each time it was too little."""
        times = requests.preemptions[request]
        if not times and self._reserved:
            return self._reserved[request]
        output = self.predicted(requests)[request] << min(times, 40)
        return min(requests.prompt[request] + output, self.longest)

    def key(self, view: GeneralState, request: int, /) -> int:
        """Largest first; nobody who waits has been preempted, since those are swapped out."""
        if not self._keys:
            requests = view.requests
            predicted = zip(requests.prompt, self.predicted(requests), strict=True)
            self._reserved = [min(prompt + output, self.longest) for prompt, output in predicted]
            self._keys = [-tokens // self.block_size for tokens in self._reserved]
        return self._keys[request]

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Whoever outgrew its memory leaves; those who left come back; then the largest that fit."""
        if not view.outgrown and not view.swapped:
            seats = self.seats - len(view.running)
            if not view.waiting or seats <= 0:
                return self._until_fitting(view) if seats > 0 else self._until_finish
            chunks = self._largest_that_fit(view, view.free_blocks, seats)
            if not chunks:
                # NOTE: somebody small may arrive and fit, so unlike in first-come queues arrivals do count.
                return self._until_fitting(view)
            plan = self._chunks_plan
            plan.chunks = chunks
            return plan
        evict = tuple((request, "swap", "front") for request in view.outgrown)
        free = view.free_blocks + sum(view.held_blocks(request) for request in view.outgrown)
        seats = self.seats - len(view.running) + len(evict)
        back: list[int] = []
        for request in sorted(view.swapped):
            free -= self._blocks(view.requests, request)
            if free < 0 or not seats:
                break
            back.append(request)
            seats -= 1
        chunks = []
        if len(back) == len(view.swapped) and not evict:
            chunks = self._largest_that_fit(view, free, seats)
        if not evict and not back and not chunks:
            return self._until_finish
        return GeneralPlan(chunks, evict=evict, swap_in=tuple(back))

    def _until_fitting(self, view: GeneralState) -> GeneralPlan:
        plan = self._until_arrival
        plan.wakes_within = view.free_blocks
        return plan

    def _largest_that_fit(self, view: GeneralState, free: int, seats: int) -> list[Chunk]:
        """Decreasing first fit over the queue, which is sorted."""
        target, waiting, keys = view.requests.target, view.waiting, self._keys
        first_from = getattr(waiting, "first_from", None) or _first_from(waiting, keys)
        chunks: list[Chunk] = []
        at, num_waiting = 0, len(waiting)
        while seats and free > 0:
            at = first_from(-free, at)
            if at == num_waiting:
                break
            request = waiting[at]
            chunks.append((request, target[request]))
            free += keys[request]
            seats -= 1
            at += 1
        return chunks

    def _blocks(self, requests: Requests, request: int) -> int:
        return -(-self.reserve(requests, request) // self.block_size)


def read_confusion(path: str, num_buckets: int) -> Floats:
    """A predictor's confusion matrix from a CSV file, ``float64[num_buckets, num_buckets]``.

    Row: true bucket; column: predicted bucket; no header; lines that begin with # are skipped.

    Raises:
        InputError: no such file, or not a row of shares for each bucket, each with the sum 1.
    """
    field = "confusion"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, path, f"give a CSV file that can be read ({type(error).__name__})") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            shares = [float(cell) for cell in line.split(",")]
        except ValueError as error:
            raise InputError(f"{field} {path} line {number}", line, "write shares, separated by commas") from error
        if len(shares) != num_buckets:
            remedy = f"write {num_buckets} shares, one for each bucket, or give num_buckets={len(shares)}"
            raise InputError(f"{field} {path} line {number}", f"{len(shares)} values", remedy)
        if not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > SUM_TOLERANCE:
            remedy = "write shares from 0 to 1 of the requests of this true bucket, with the sum 1"
            raise InputError(f"{field} {path} line {number}", line, remedy)
        rows.append(shares)
    if len(rows) != num_buckets:
        raise InputError(f"{field} {path}", f"{len(rows)} rows", f"write {num_buckets} rows, one for each true bucket")
    matrix = np.array(rows)
    normalised: Floats = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised


def _first_from(waiting: Sequence[int], keys: Sequence[int]) -> Callable[[int, int], int]:
    """`NumberQueue.first_from` of a queue that is any sorted sequence."""
    return lambda key, low: bisect_left(waiting, key, lo=low, key=keys.__getitem__)
