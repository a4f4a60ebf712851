"""A row whose prompts and answers have GPUs of their own, to be simulated again when steps turn out longer.

A factor on such a row's TTFT would be wrong: what a request waits for grows without bound where prompts come faster
than their workers take them, and with the length of an answer where seats are short. So factors go into the steps, and
the run is simulated with them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from validation._inferencex_pools import Pools, simulate_pools

TURNS = 10
MOST_REQUESTS, FEWEST_TURNS = 2000, 2
ENOUGH_REQUESTS, MOST_RUNS = 400, 8
SHORTEST = 0.8
ROUND = 0.02
MOST_LOG, CLOSE = 1.2, 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledRun:
    """Two pools under a closed loop.

    Attributes:
        pools: of first principles.
        users: of the loop.
        output_tokens: nominal; lengths are uniform from `shortest_frac` of it.
        shortest_frac: of the client.
        log_scale: how many times as long all steps are taken to be, as a logarithm.
        log_prompts: the same of the steps of prompts, beside `log_scale`.
    """

    pools: Pools
    users: int
    output_tokens: int
    shortest_frac: float = SHORTEST
    log_scale: float = 0.0
    log_prompts: float = 0.0
    _known: dict[tuple[int, int], tuple[float, float]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def means(self, prompts: float = 1.0) -> tuple[float, float]:
        """Mean TTFT and TPOT in seconds, where steps of prompts take so many times as long.

        Simulated for factors rounded to 2 %, whose rest scales the result.
        """
        log_prompts = self.log_scale + self.log_prompts + math.log(prompts)
        key = round(log_prompts / ROUND), round(self.log_scale / ROUND)
        if key not in self._known:
            self._known[key] = self._simulated(*(math.exp(number * ROUND) for number in key))
        ttft_s, tpot_s = self._known[key]
        return ttft_s * math.exp(log_prompts - key[0] * ROUND), tpot_s * math.exp(self.log_scale - key[1] * ROUND)

    def scaled(self, factor: float) -> PooledRun:
        """The same with all steps that many times as long."""
        return dataclasses.replace(self, log_scale=self.log_scale + math.log(factor))

    def slower_prompts(self, factor: float) -> PooledRun:
        """The same with steps of prompts that many times as long."""
        return dataclasses.replace(self, log_prompts=self.log_prompts + math.log(factor))

    def kernel_for(self, tpot_s: float, prompts: float = 1.0) -> float:
        """Logarithm of the factor of all steps with which the mean TPOT is this one, within `MOST_LOG`.

        Batches shrink as steps do, so it is looked for step by step; `prompts` is what prompts' steps take beside it.
        """
        found = 0.0
        for _ in range(4):
            error = math.log(tpot_s / self.scaled(math.exp(found)).means(prompts)[1])
            found = max(-MOST_LOG, min(MOST_LOG, found + error))
            if abs(error) < CLOSE:
                break
        return found

    def _simulated(self, prompts: float, tokens: float) -> tuple[float, float]:
        pools = self.pools.scaled(prompts, tokens)
        turns = max(FEWEST_TURNS, min(TURNS, -(-MOST_REQUESTS // self.users)))
        chance = pools.num_frontends > 1 and max(pools.num_prompt_workers, pools.num_answer_workers) > 1
        runs = max(1, min(MOST_RUNS, ENOUGH_REQUESTS // (turns * self.users))) if chance else 1
        found = np.array([self._one(pools, turns, seed) for seed in range(runs)]).mean(axis=0)
        return float(found[0]), float(found[1])

    def _one(self, pools: Pools, turns: int, seed: int) -> tuple[float, float]:
        """Means of one run; its last turns stand for those left out."""
        low, high = int(self.shortest_frac * self.output_tokens), self.output_tokens
        output = np.random.default_rng(seed).integers(low, high + 1, turns * self.users).tolist()
        ttft_s, tpot_s = simulate_pools(pools, output, self.users, seed)
        by_turn = ttft_s.reshape(turns, self.users).mean(axis=1)
        left_out = (TURNS - turns) * by_turn[1:].mean()
        return float((by_turn.sum() + left_out) / TURNS), float(tpot_s.mean())
