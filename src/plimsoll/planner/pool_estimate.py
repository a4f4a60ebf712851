"""What prefill and decode pools can do, from the step model alone.

The two pools are two stages in a row, so the slower one bounds the rate. With P and D machines, prompts that take
``t`` seconds on an idle machine, and ``d`` sequences decoding over all decode machines,

    x(d) = min(P / t,  d / (O · T(d / D)))

requests a second, O decode steps of T seconds each. Nothing stretches a decode step: prompts are elsewhere. The KV of a
prompt crosses the link between its first token and its second; the transfer counts in the time per output token and
end to end, not in the bound.
"""

from __future__ import annotations

import dataclasses
import math

from plimsoll.core.step import StepModel
from plimsoll.planner.estimate import KV_FILL_FRAC, Estimate, LengthMeans, Limits, ReplicaEstimator
from plimsoll.planner.pools import Pools

BUSIEST = 0.97
"""Share of the time that a prefill pool is taken to be busy at most: its queue at the very bound is infinite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkCost:
    """Seconds of KV on its way: per token, and before the first byte."""

    s_per_token: float
    latency_s: float


class PoolEstimator(ReplicaEstimator):
    """The mean-value model of two pools; `limits` are those of one machine, batches those of all decode machines."""

    def __init__(self, model: StepModel, means: LengthMeans, limits: Limits, pools: Pools, link: LinkCost) -> None:
        super().__init__(model, means, limits)
        self.pools, self.link = pools, link
        self.machine = ReplicaEstimator(model, means, limits)
        self.prefill_price_frac = pools.prefill / pools.num_machines

    @property
    def transfer_s(self) -> float:
        """Seconds that a mean prompt's KV is on its way."""
        return self.means.prompt_tokens * self.link.s_per_token + self.link.latency_s

    def prefill_bound_per_s(self) -> float:
        """Requests a second whose prompts the prefill pool can compute."""
        prompt_s = min(self.machine.prefill_s(0.0, packed=False), self.machine.prefill_s(0.0, packed=True))
        return self.pools.prefill / prompt_s

    def decode_step_s(self, batch: float) -> float:
        """Seconds of a decode step with `batch` sequences over all decode machines."""
        return super().decode_step_s(batch / self.pools.decode)

    def prefill_s(self, batch: float, *, packed: bool) -> float:  # noqa: ARG002
        """Seconds of a mean prompt on a prefill machine, whatever decodes elsewhere."""
        return self.machine.prefill_s(0.0, packed=packed)

    def rate_per_s(self, batch: float, *, packed: bool = True) -> float:  # noqa: ARG002
        """Requests a second with `batch` sequences decoding, as far as the prefill pool keeps up."""
        steps = max(self.means.output_tokens - 1.0, 1e-9)
        return min(self.prefill_bound_per_s(), batch / (steps * self.decode_step_s(batch)))

    def tpot_s(self, batch: float, *, packed: bool = True) -> float:  # noqa: ARG002
        """Mean seconds between tokens: decode steps alone."""
        return self.decode_step_s(batch)

    def tail_tpot_s(self, batch: float) -> float:
        """The judged percentile of TPOT, about: a machine that is busier than the mean, and the transfer."""
        steps = max(self.means.output_tokens - 1.0, 1.0)
        return self.decode_step_s(batch + math.sqrt(batch * self.pools.decode)) + self.transfer_s / steps

    def largest_batch(self) -> tuple[float, str]:
        """What memory and seats of the decode machines hold."""
        return min(
            (self.pools.decode * KV_FILL_FRAC * self.limits.kv_tokens / self.means.kv_tokens, "kv memory"),
            (float(self.pools.decode * self.limits.max_num_seqs), "seats"),
        )

    def e2e_s(self, rate_per_s: float) -> float:
        """Mean seconds from arrival to last token at `rate_per_s`; infinite beyond saturation."""
        batch = self.batch_at(rate_per_s)
        if batch is None:
            return math.inf
        prompt_s = self.machine.prefill_s(0.0, packed=False)
        busy = min(rate_per_s / self.prefill_bound_per_s(), BUSIEST)
        waiting_s = busy * prompt_s / (2.0 * (1.0 - busy)) / self.pools.prefill
        steps = max(self.means.output_tokens - 1.0, 0.0)
        return prompt_s + waiting_s + self.transfer_s + steps * self.decode_step_s(max(batch, 1.0))

    def estimate(self) -> Estimate:
        """As of one replica, with the prefill pool named where it is the slower one."""
        found = super().estimate()
        bound_per_s = self.prefill_bound_per_s()
        if found.bound_per_s > 0.0 and found.bound_per_s >= bound_per_s * (1.0 - 1e-9):
            found = dataclasses.replace(found, limited_by="prefill pool")
        return dataclasses.replace(found, prefill_frac=self.pools.prefill / self.pools.num_machines)


def balanced_prefill_frac(machine: ReplicaEstimator) -> float:
    """The share of machines that should compute prompts so that both pools are equally busy, in (0, 1).

    Decode machines run the largest batch that memory, seats and the time-per-token targets allow.
    """
    means, limits = machine.means, machine.limits
    link = LinkCost(s_per_token=0.0, latency_s=0.0)
    alone = PoolEstimator(machine.model, means, limits, Pools(prefill=1_000_000, decode=1), link)
    decode_per_s = alone.estimate().bound_per_s
    prefill_per_s = PoolEstimator(machine.model, means, limits, Pools(prefill=1, decode=1), link).prefill_bound_per_s()
    if decode_per_s <= 0:
        return 0.5
    return decode_per_s / (decode_per_s + prefill_per_s)
