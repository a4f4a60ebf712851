"""What every stage of one search shares: the request, its targets, its lengths and its parts."""

from __future__ import annotations

import dataclasses
import math

from plimsoll.catalog.counting import weight_bytes
from plimsoll.core.step import AttentionLayers, StepModel
from plimsoll.metrics import Targets
from plimsoll.planner.estimate import Estimate, LengthMeans, ReplicaEstimator, length_means
from plimsoll.planner.load import Loads
from plimsoll.planner.parts import Parts
from plimsoll.planner.prefix import SharedPrefix
from plimsoll.planner.request import PlanRequest

MAX_PROBE_REQUESTS = 20_000
MODEL_LEN_STEP = 1024
"""`max_model_len` is the longest request of the workload, rounded up to a multiple of this."""


class Context:
    """Derived once from a request; picklable, so that a worker process can be handed one.

    Attributes:
        targets: resolved.
        loads: the workload at any load.
        lengths: a sample of it.
        mean_prompt_tokens, mean_output_tokens: per request, cached prefix included.
        asked_rate_per_s: the rate to carry (a throughput requirement included), None without.
        asked_load: the rate, or the users, None without.
        whole: whether loads are users.
        unit: ``req/s`` or ``users``.
        max_model_len: for the engine.
    """

    def __init__(self, request: PlanRequest, parts: Parts | None = None) -> None:
        self.request = request
        self.parts = parts or Parts(request)
        self.targets: Targets = request.resolved_targets()
        spec = request.workload
        if spec.max_model_len is None:
            longest = min(request.settings.max_model_len or request.model.max_position, request.model.max_position)
            spec = dataclasses.replace(spec, max_model_len=longest, over_length=spec.over_length or "truncate")
        self.loads = Loads(spec, MAX_PROBE_REQUESTS, prefix_hit_frac=request.prefix_hit_frac, think_s=request.think_s)
        self.lengths = self.loads.lengths(request.seed)
        self._means: dict[tuple[AttentionLayers, int], LengthMeans] = {}
        self.mean_prompt_tokens = self.loads.mean_prompt_tokens(request.seed)
        self.mean_output_tokens = self.loads.mean_output_tokens(request.seed)
        self.asked_rate_per_s = self._asked_rate()
        self.whole = request.users is not None
        self.asked_load: float | None = float(request.users) if request.users is not None else self.asked_rate_per_s
        self.unit = "users" if self.whole else "req/s"
        longest_tokens = self.loads.longest_tokens(request.seed)
        rounded = math.ceil(longest_tokens / MODEL_LEN_STEP) * MODEL_LEN_STEP
        self.max_model_len = max(longest_tokens, min(rounded, request.model.max_position))
        self.expected_tokens = max(round(self.mean_prompt_tokens + self.mean_output_tokens), 1)

    @property
    def least_weight_bytes(self) -> float:
        """Bytes of all weights at the smallest precision that is allowed."""
        return min(weight_bytes(self.request.model, p) for p in self.request.resolved_precisions())

    def _asked_rate(self) -> float | None:
        wanted = [self.request.rate_per_s] if self.request.rate_per_s is not None else []
        if self.request.throughput_tokens_per_s is not None:
            wanted.append(self.request.throughput_tokens_per_s / self.mean_output_tokens)
        return max(wanted, default=None)

    def shared_prefix(self, model: StepModel) -> StepModel:
        """The step model with the cached part of every prompt read by everybody; itself without a prefix-hit share."""
        frac = self.request.prefix_hit_frac
        return SharedPrefix(model, frac * self.mean_prompt_tokens) if frac > 0 else model

    def length_means(self, attention_layers: AttentionLayers, budget: int) -> LengthMeans:
        """Means of the lengths for a model's attention windows and a token budget, which many configurations share."""
        key = (attention_layers, budget)
        if key not in self._means:
            self._means[key] = length_means(self.lengths, attention_layers, budget, self.targets.percentile)
        return self._means[key]

    def load_bound(self, estimator: ReplicaEstimator, estimate: Estimate) -> float:
        """The most that one replica could carry: in requests per second, or in users by Little's law."""
        if not self.whole:
            return estimate.bound_per_s
        if estimate.bound_per_s <= 0:
            return 0.0
        e2e_s = estimator.e2e_s(0.97 * estimate.bound_per_s)
        stay_s = e2e_s if math.isfinite(e2e_s) else 2.0 * estimate.unloaded_e2e_s
        return max(1.0, estimate.bound_per_s * (stay_s + self.request.think_s))

    def load_text(self, load: float) -> str:
        """``12.3 req/s`` or ``40 users``."""
        return f"{load:.4g} {self.unit}"
