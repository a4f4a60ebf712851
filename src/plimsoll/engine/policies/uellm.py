"""UELLM: static batches of requests with similar deadlines and predicted output lengths (SLO-ODBS).

The queue is sorted by deadline and predicted output. When no batch runs, requests join one from the head of the queue
as long as the batch's composite cost stays below a threshold:

    w_latency * T_l + w_output * T_o <= threshold,   where adding request i to a batch of n adds
    T_l += (slo_i + largest slo so far) * (n + 1) * l_latency,   T_o += (output_i + longest so far) * (n + 1) * l_output

so that long answers do not hold up short ones, nor loose deadlines urgent ones. A batch runs to its end, padded.

Source: https://arxiv.org/abs/2409.14961, section 4.2, algorithm 1.

NOTE: the paper prints no threshold and no weights; the defaults here let 15 requests of 200 output tokens with equal
deadlines into a batch. Deadlines are the workload's TTFT targets. A row holds memory for its prompt and all it may
generate, since predictions may fall short. The layer-placement deployer is no scheduling rule, and not in here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Uellm(GeneralPolicy):
    """Batches by predicted length and deadline.

    Args:
        config: seats and block size.
        threshold: most composite cost of a batch.
        w_latency, w_output: weights of its two parts.
        l_latency, l_output: overhead of running together, per second of deadline and per token of output.
        slo_s: deadline of a request without a target of its own.
        padding: whether prompts are padded to the longest of their batch.
    """

    memory = "fixed"
    static = True
    pads_rows = True
    keyed = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        threshold: float = 27200.0,
        w_latency: float = 0.5,
        w_output: float = 0.5,
        l_latency: float = 1.0,
        l_output: float = 1.0,
        slo_s: float = 10.0,
        padding: bool = True,
    ) -> None:
        weights = (threshold, w_latency, w_output, l_latency, l_output, slo_s)
        if not all(0 <= value < math.inf for value in weights):
            raise InputError("threshold, weights and slo_s", weights, "give finite values of zero or more")
        self.seats, self.block_size = config.max_num_seqs, config.block_size
        self.threshold = threshold
        self.per_slo, self.per_output = w_latency * l_latency, w_output * l_output
        self.slo_s, self.padding = slo_s, padding
        self._decode_plan = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all it may generate."""
        return requests.prompt[request] + requests.told_output[request]

    def key(self, view: GeneralState, request: int, /) -> tuple[float, int]:
        """Deadline, then predicted output."""
        return self._deadline_s(view.requests, request), self._output(view.requests, request)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """The running batch to its end, then the next one."""
        if view.running:
            return self._decode_plan
        requests, free = view.requests, view.free_blocks
        chunks: list[Chunk] = []
        cost = slowest_s = longest = 0.0
        for request in view.waiting:
            deadline_s, output = self.key(view, request)
            slowest_s, longest = max(slowest_s, deadline_s), max(longest, output)
            size = len(chunks) + 1
            cost += size * (self.per_slo * (deadline_s + slowest_s) + self.per_output * (output + longest))
            free -= -(-self.reserve(requests, request) // self.block_size)
            if free < 0 or size > self.seats or (chunks and cost > self.threshold):
                break
            chunks.append((request, requests.target[request]))
        return GeneralPlan(chunks, pad_prompt=max(chunk for _, chunk in chunks) if self.padding else 0)

    def _deadline_s(self, requests: Requests, request: int) -> float:
        targets = requests.workload.ttft_target_s
        deadline_s = self.slo_s if targets is None else float(targets[request])
        return deadline_s if math.isfinite(deadline_s) else self.slo_s

    def _output(self, requests: Requests, request: int) -> int:
        predicted = requests.workload.predicted_output_tokens
        return requests.told_output[request] if predicted is None else int(predicted[request])
