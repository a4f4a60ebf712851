"""The roofline with what vLLM itself adds to a step: launches outside CUDA graphs, a sampler that sorts, busy ranks.

    seconds = max(kernels, launches) + sampler + per_step

*Launches.* A step that only decodes replays one CUDA graph. A step with prompt tokens, or with more tokens than graphs
were captured for, has its layers launched from Python: layers with experts, latent attention or recurrent states take
the host longer than many GPUs need for them, whatever the batch.
*Sampler.* Top-p and top-k sampling sorts the logits of every row: seconds in proportion to rows times vocabulary.
*Experts.* Ranks with experts of their own wait for the busiest. With random routing the experts (and rows) that a rank
is asked for scatter; the busiest of n ranks lies about ``Φ⁻¹((n − 0.375)/(n + 0.25))`` standard deviations above the
mean (Blom 1958), times `expert_skew` because real routing is less even than random.
*All-reduces* among more than two GPUs are one shot for small messages only, and on some GPUs much slower beyond.
*Tiles.* Grouped products in 16 bit without a tuned configuration take larger tiles once a step has more tokens than the
GPU has experts, and each layer then takes longer, whatever the batch.

Constants and their sources: ``data/vllm_steps.toml``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from importlib import resources
from statistics import NormalDist
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import Attention, DenseMlp, LatentAttention, ModelSpec, Moe, StateSpace
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import ChunkLine, StepShape
from plimsoll.perf import kernels, power
from plimsoll.perf.operators import Collective, GroupedGemm
from plimsoll.perf.overheads import Overheads
from plimsoll.perf.roofline import Roofline, RooflineOptions
from plimsoll.perf.tabulated import UNBOUNDED, Line, PrefillRates

SAMPLERS = ("sorts", "greedy")
"""Requests with top-p or top-k, which sort every row's logits; requests that take the likeliest token."""

MEASURED = ("hopper", "blackwell")
"""GPU architectures whose constants were fitted; others get those of the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VllmSteps:
    """What vLLM adds to a step on one GPU architecture.

    Attributes:
        graph_tokens: tokens of one rank up to which CUDA graphs are captured.
        one_shot_bytes: ``(ranks at most, bytes)`` below which an all-reduce is one shot, ascending in ranks.
        two_stage_s: what an all-reduce of more takes longer.
        attention_layer_s, dense_layer_s, expert_layer_s, latent_layer_s: host time of launching such a part of a
            layer outside a graph.
        state_prompt_s: GPU time of a recurrent layer in a step with prompts, whatever their length.
        expert_launch_s: most that launching the kernels of one layer's experts costs inside a graph.
        expert_tile_s: what larger tiles add to a layer's 16-bit experts, with more tokens than experts on the GPU.
        expert_rank_s: what spreading a layer's experts over ranks adds: each sorts out its own.
        expert_skew: spread of the ranks' load over that of random routing.
        per_step_s: of every step.
        sampler_s_per_logit: of sorting and sampling.
        sampler: which requests that stands for, one of `SAMPLERS`.
        source, date: of all this.
    """

    graph_tokens: int
    one_shot_bytes: tuple[tuple[int, int], ...]
    two_stage_s: float
    attention_layer_s: float
    dense_layer_s: float
    expert_layer_s: float
    latent_layer_s: float
    state_prompt_s: float
    expert_launch_s: float
    expert_tile_s: float
    expert_rank_s: float
    expert_skew: float
    per_step_s: float
    sampler_s_per_logit: float
    source: str
    date: str
    sampler: str = "sorts"


@functools.cache
def load_vllm_steps(architecture: str) -> VllmSteps:
    """The constants of vLLM 0.11 on a GPU architecture; those of Hopper where it was not measured."""
    text = (resources.files("plimsoll.perf") / "data" / "vllm_steps.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    table["one_shot_bytes"] = tuple((ranks, size) for ranks, size in table["one_shot_bytes"])
    measured = {name: table.pop(name) for name in MEASURED}
    return VllmSteps(**table, **measured.get(architecture, measured["hopper"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BusiestRank(GroupedGemm):
    """Experts as the busiest of the ranks that share them sees them.

    Attributes:
        skew: standard deviations, in those of random routing.
    """

    skew: float

    def active_experts(self, tokens: float) -> float:
        """Experts that the busiest rank is asked for: the mean, and what chance and skew add."""
        mean = super().active_experts(tokens)
        spread = math.sqrt(max(0.0, mean * (1.0 - mean / self.local_experts) * (1.0 - 1.0 / self._ranks)))
        return min(float(self.local_experts), mean + self._deviations * spread)

    def expert_rows(self, tokens: float) -> float:
        """Rows that it gets."""
        mean = super().expert_rows(tokens)
        return mean + self._deviations * math.sqrt(mean * (1.0 - 1.0 / self._ranks))

    @property
    def _ranks(self) -> int:
        return self.num_experts // self.local_experts

    @property
    def _deviations(self) -> float:
        return self.skew * NormalDist().inv_cdf((self._ranks - 0.375) / (self._ranks + 0.25))


class VllmRoofline(Roofline):
    """A `Roofline` as vLLM runs it (see the module's text).

    Args:
        model, gpu, parallelism, precision, kv_precision: as in `Roofline`.
        steps: what vLLM adds; that of the GPU's architecture by default.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: Accelerator,
        parallelism: Parallelism | None = None,
        precision: str = "bf16",
        kv_precision: str = "auto",
        steps: VllmSteps | None = None,
    ) -> None:
        self._vllm = steps or load_vllm_steps(gpu.architecture)
        self._launches_s = _launches_s(model, parallelism or Parallelism(), self._vllm)
        self._launched_s = self._launches_s + self._vllm.per_step_s
        host = Overheads(per_step_s=self._vllm.per_step_s, source=self._vllm.source, date=self._vllm.date)
        super().__init__(model, gpu, parallelism, precision, kv_precision, host, RooflineOptions())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its arguments."""
        arguments = (self._model, self._gpu, self._parallelism, self._precision, self._kv_precision, self._vllm)
        return type(self), arguments

    def _price(self) -> None:
        """As the roofline, with the busiest rank's experts and all-reduces of two sizes."""
        super()._price()
        costs = zip(self._operators.token_ops, self._token_costs, strict=True)
        self._token_costs = tuple(self._as_vllm(op, cost) for op, cost in costs)

    def _as_vllm(self, op: kernels.Operator, cost: kernels.Seconds) -> kernels.Seconds:
        if isinstance(op, GroupedGemm):
            return self._experts(op)
        if isinstance(op, Collective) and op.kind == "all_reduce" and op.ranks > 2:
            return self._all_reduce(op, cost)
        return cost

    def _experts(self, op: GroupedGemm) -> kernels.Seconds:
        family, most = self._pricing.family, self._vllm.expert_launch_s
        experts = {
            kind: dataclasses.replace(each, launch_s=min(each.launch_s, most)) for kind, each in family.experts.items()
        }
        pricing = dataclasses.replace(self._pricing, family=dataclasses.replace(family, experts=experts))
        plain = kernels.kernel_class(self._gpu, op.precision)[0] == "16bit"
        own, tiles = op.local_experts, op.count * self._vllm.expert_tile_s if plain else 0.0
        shared = 0.0
        if own < op.num_experts:
            fields = {field.name: getattr(op, field.name) for field in dataclasses.fields(op)}
            op, shared = BusiestRank(**fields, skew=self._vllm.expert_skew), op.count * self._vllm.expert_rank_s
        cost = kernels.matrix_seconds(op, pricing)
        return lambda rows: cost(rows) + shared + (tiles if rows > own else 0.0)

    def _all_reduce(self, op: Collective, cost: kernels.Seconds) -> kernels.Seconds:
        limits = [size for ranks, size in self._vllm.one_shot_bytes if op.ranks <= ranks]
        limit, per_row = (limits or [0])[0], op.bytes_per_row * op.rows_share
        added = op.count * self._vllm.two_stage_s
        return lambda rows: cost(rows) + (added if per_row * rows >= limit else 0.0)

    def sampler_s(self, rows: int) -> float:
        """Seconds of the sampler on `rows` sequences: it sorts the logits of each."""
        logits_per_row = self._operators.sampler_bytes_per_row / 4.0
        return self._vllm.sampler_s_per_logit * logits_per_row * rows

    def launched_s(self, tokens: int, *, mixed: bool) -> float:
        """Host time of launching a step of `tokens` tokens; 0 where one CUDA graph does it."""
        if not mixed and tokens <= self._vllm.graph_tokens * self._parallelism.dp:
            return 0.0
        return self._launched_s

    def sampled_s(self, rows: int) -> float:
        """Seconds of head and sampler on `rows` sequences."""
        return self._fixed_s(0, rows)[1]

    def without_launches(self) -> VllmRoofline:
        """The same deployment with a host that launches in no time, for compositions to build on."""
        layers = ("attention_layer_s", "dense_layer_s", "expert_layer_s", "latent_layer_s")
        steps = dataclasses.replace(self._vllm, **dict.fromkeys(layers, 0.0))  # type: ignore[arg-type]
        return type(self)(self._model, self._gpu, self._parallelism, self._precision, self._kv_precision, steps)

    def operator_function(self, op: kernels.Operator) -> kernels.Seconds:
        """Seconds of one operator as a function of the step's rows, as vLLM runs it."""
        return self._as_vllm(op, super().operator_function(op))

    def _decode_pieces(self, num_decode: int) -> tuple[Line, ...]:
        ((base, slope, _),) = super()._decode_pieces(num_decode)
        least = self.launched_s(num_decode, mixed=False) - self._token_s(num_decode)
        if least <= base:
            return ((base, slope, UNBOUNDED),)
        if slope <= 0:
            return ((least, 0.0, UNBOUNDED),)
        return ((least, 0.0, math.ceil((least - base) / slope)), (base, slope, UNBOUNDED))

    def _prefill_rates(self) -> PrefillRates:
        rates, state = super()._prefill_rates(), self._operators.state
        if state is None:
            return rates
        return rates._replace(fixed_s=rates.fixed_s + state.num_layers * self._vllm.state_prompt_s)

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        /,
    ) -> float:
        """Seconds of one step of one stage; see `core.step.StepModel`."""
        seconds = super().step_s(
            prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done, num_decode,
            decode_read_tokens,
        )  # fmt: skip
        if not prefill_tokens and not num_prefill:
            return seconds
        launched = self._sampled[num_prefill_done + num_decode] + self._launched_s
        return seconds if seconds >= launched else launched

    def chunk_line(self, chunk_tokens: int, num_decode: int, decode_read_tokens: int, /) -> ChunkLine:
        """As the roofline's where kernels outlast launches in any such step; else one that holds nowhere.

        Kernels only get longer with context, pairs and read tokens, so the shortest step tells.
        """
        line = super().chunk_line(chunk_tokens, num_decode, decode_read_tokens)
        fixed_s, chunk_s, _, _, base_s, slope_s, _ = line
        least = fixed_s + chunk_s + (base_s + slope_s * decode_read_tokens)
        if least >= self._sampled[num_decode] + self._launched_s:
            return line
        return *line[:-1], decode_read_tokens

    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        """Joules of all GPUs of the replica in a step of `time_s`, the sampler's among them; None without a TDP."""
        sorting_s = self.sampler_s(shape.num_prefill_done + shape.num_decode)
        step = (shape, time_s)
        return power.step_energy_j(self._gpu, self._operators, self._parallelism, self._pricing, step, sorting_s)

    def describe(self) -> dict[str, Any]:
        """What this model is made of, for reports: plain values only."""
        return {
            **super().describe(),
            "step_model": "vllm-roofline",
            "sampler": self._vllm.sampler,
            "graph_tokens": self._vllm.graph_tokens,
            "engine": self._vllm.source,
            "engine_date": self._vllm.date,
            "engine_measured": self._gpu.architecture in MEASURED,
        }


def _launches_s(model: ModelSpec, parallelism: Parallelism, steps: VllmSteps) -> float:
    """Host time of launching every layer of the busiest stage outside a graph."""
    per_part: dict[type, float] = {
        Attention: steps.attention_layer_s,
        LatentAttention: steps.latent_layer_s + steps.attention_layer_s,
        StateSpace: steps.attention_layer_s,
        DenseMlp: steps.dense_layer_s,
        Moe: steps.expert_layer_s,
    }
    share = math.ceil(model.num_layers / parallelism.pp) / model.num_layers
    parts = [(group.count, part) for group in model.groups for part in (group.mixer, group.mlp) if part is not None]
    return share * sum(count * per_part[type(part)] for count, part in parts)
