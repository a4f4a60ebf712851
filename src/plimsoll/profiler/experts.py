"""The routed experts of one layer as torch executes them: gather by expert, grouped products, weighted sum.

Routing is given: `tokens` tokens use exactly `activated` experts, evenly and in turn, as the table's key says. Which
experts these are changes from call to call until all of all layers had their turn, so that weights are as cold as in a
model. Products are one `grouped_mm` where this torch and device have it, else one product an expert; engines have fused
kernels of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from plimsoll.profiler.attend import COLD_BYTES, ELEMENT_BYTES
from plimsoll.profiler.clock import Copied

MOST_LAYERS = 8
MOST_CALLS = 64
"""Copies of one measurement: further ones would find the caches no colder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """Who computes what, on the device.

    Attributes:
        chosen: experts of every token, ``[tokens, experts per token]``.
        shares: their weights, likewise.
        counts: rows of every expert, on the host; what a loop over experts needs.
    """

    chosen: Any
    shares: Any
    counts: list[int]


class Experts:
    """Makes calls of the experts of one layer.

    Args:
        torch: the module.
        shape: the model's sizes (`own_shape.shape_of`).
        tp: devices that cut every expert.
        random: makes random tensors of the profile's type on its device.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, torch: Any, shape: Mapping[str, int], tp: int, random: Any, device: str) -> None:
        self._torch, self._shape, self._random, self._device = torch, shape, random, device
        self._inner, self._gated = shape["expert_size"] // tp, shape["mlp_matrices"] == 3
        self._expert_bytes = ELEMENT_BYTES * shape["mlp_matrices"] * shape["hidden_size"] * self._inner
        self._weights: list[tuple[Any, Any]] = []
        self._numbers = torch.arange(shape["num_experts"], device=device)
        self.grouped = has_grouped(torch, device, random(1).dtype)

    @property
    def weights(self) -> list[tuple[Any, Any]]:
        """Of some layers: ``[experts, ups · inner, hidden]`` and ``[experts, hidden, inner]``."""
        if not self._weights:
            experts, hidden, ups = self._shape["num_experts"], self._shape["hidden_size"], 1 + self._gated
            fits = COLD_BYTES // (experts * self._expert_bytes)
            layers = max(1, min(self._shape["num_moe_layers"], fits, MOST_LAYERS))
            self._weights = [
                (self._random(experts, ups * self._inner, hidden), self._random(experts, hidden, self._inner))
                for _ in range(layers)
            ]
        return self._weights

    def call(self, tokens: int, activated: int) -> Copied:
        """All experts of one layer.

        Args:
            tokens: of the step.
            activated: experts that any of them uses: from the experts of one token to all, or to `tokens` times them.
        """
        experts, layers = self._shape["num_experts"], len(self.weights)
        turns = math.ceil(experts / activated)
        routings = [self.routing(tokens, activated, turn * activated) for turn in range(min(turns, MOST_CALLS))]
        used = activated * self._expert_bytes
        copies = min(layers * len(routings), max(1, math.ceil(COLD_BYTES / used)), MOST_CALLS)
        inputs = self._random(tokens, self._shape["hidden_size"])

        def call(copy: int) -> Any:
            up, down = self.weights[copy % layers]
            return self.forward(inputs, routings[copy // layers], up, down)

        return call, copies

    def routing(self, tokens: int, activated: int, first: int = 0) -> Routing:
        """Experts ``first, first + 1, …`` in turn; counted on from the last to the first."""
        torch, per_token = self._torch, self._shape["experts_per_token"]
        turns = torch.arange(tokens * per_token) % activated
        chosen = (turns + first) % self._shape["num_experts"]
        counts = torch.bincount(chosen, minlength=self._shape["num_experts"]).tolist()
        shares = torch.full((tokens, per_token), 1 / per_token)
        return Routing(
            chosen=chosen.view(tokens, per_token).to(self._device),
            shares=shares.to(self._device, self._random(1).dtype),
            counts=[int(count) for count in counts],
        )

    def forward(self, inputs: Any, routing: Routing, up: Any, down: Any) -> Any:
        """``[tokens, hidden]``, as `inputs` is."""
        torch, silu = self._torch, self._torch.nn.functional.silu
        tokens, per_token = routing.chosen.shape
        # Nothing here asks the device for a number, as counting would: launches must not wait.
        sorted_experts, order = torch.sort(routing.chosen.view(-1))
        rows = inputs[order // per_token]
        ends = torch.searchsorted(sorted_experts, self._numbers, right=True, out_int32=True)
        inner = self._product(rows, up, ends, routing.counts)
        if self._gated:
            first, second = inner.chunk(2, dim=-1)
            inner = silu(first) * second
        else:
            inner = silu(inner)
        outputs = self._product(inner, down, ends, routing.counts)
        back = torch.empty_like(outputs).index_copy_(0, order, outputs)
        return (back.view(tokens, per_token, -1) * routing.shares[..., None]).sum(dim=1)

    def _product(self, rows: Any, weights: Any, ends: Any, counts: list[int]) -> Any:
        """``rows[e's] · weights[e]ᵀ`` for every expert e."""
        if self.grouped:
            return self._torch.nn.functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends)
        found, start = [], 0
        for expert, count in enumerate(counts):
            if count:
                found.append(rows[start : start + count] @ weights[expert].t())
                start += count
        return self._torch.cat(found)


def has_grouped(torch: Any, device: str, dtype: Any) -> bool:
    """Whether one call does all products; on CUDA its documentation asks for bfloat16 and compute capability 8.0."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    return device == "cpu" or (dtype == torch.bfloat16 and torch.cuda.get_device_capability() >= (8, 0))
