"""`roofline`: the seconds of a step from FLOPs, bytes and messages, for every model and every GPU of the catalogue.

An operator takes the larger of its compute and its memory time, blended as the GPU's measurements bend
(`efficiency`), plus its launch; operators run one after the other; collectives wait for what they sum. With
``combine="sum"`` the two times of an operator add instead, which is GUIDE's compute + read/write + transfer sum
(arXiv 2412.04788). ``ideal=True`` is the same step with every share at 100 % and without launches: never slower than
the estimate, in any argument.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from plimsoll.catalog import counting
from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.source import Source, weakest
from plimsoll.core.step import StepShape
from plimsoll.perf import kernels, power
from plimsoll.perf.efficiency import Efficiency, find_efficiency
from plimsoll.perf.operator_list import list_operators
from plimsoll.perf.operators import AttentionWork, Collective, StepOperators
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from plimsoll.perf.tabulated import UNBOUNDED, Line, PrefillRates, Tabulated


@dataclasses.dataclass(frozen=True, kw_only=True)
class RooflineOptions:
    """How the roofline is drawn.

    Attributes:
        combine: ``max`` or ``sum`` (see the module's text).
        ideal: a lower bound instead of an estimate; the host's `Overheads` stay what they are.
        expert_imbalance: rows of the busiest expert-parallel rank over the mean, 1 for perfect balance.
    """

    combine: str = "max"
    ideal: bool = False
    expert_imbalance: float = 1.0


class Roofline(Tabulated):
    """A `core.step.StepModel` from the datasheet and fitted efficiencies.

    Args:
        model: what is served.
        gpu: on what.
        parallelism: how one replica is cut.
        precision: of the weights, one of core.deployment.PRECISIONS.
        kv_precision: of the cache, one of core.deployment.KV_PRECISIONS.
        overheads: host time of the engine; none by default.
        options: see `RooflineOptions`.

    Raises:
        InputError: a precision or option that does not exist.
        InfeasibleError: heads or widths that the parallelism does not divide, or a type that the GPU lacks.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: Accelerator,
        parallelism: Parallelism | None = None,
        precision: str = "bf16",
        kv_precision: str = "auto",
        overheads: Overheads = NO_OVERHEADS,
        options: RooflineOptions | None = None,
    ) -> None:
        self._parallelism = parallelism = parallelism or Parallelism()
        self._options = options = options or RooflineOptions()
        kernels.check_combine(options.combine)
        self._model, self._gpu, self._overheads = model, gpu, overheads
        self._precision, self._kv_precision = precision, kv_precision
        self._efficiency: Efficiency = find_efficiency(gpu)
        self._operators: StepOperators = list_operators(model, parallelism, precision, kv_precision)
        self._pricing = kernels.Pricing(
            gpu=gpu,
            family=self._efficiency.family,
            plain=kernels.plain_type(gpu, precision),
            combine=options.combine,
            ideal=options.ideal,
            expert_imbalance=options.expert_imbalance,
        )
        self._price()
        super().__init__(counting.attention_layers(model), parallelism.pp)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its arguments: the tables are cheap to fill again, and closures do not travel."""
        return type(self), (
            self._model,
            self._gpu,
            self._parallelism,
            self._precision,
            self._kv_precision,
            self._overheads,
            self._options,
        )

    def _price(self) -> None:
        """Turn every operator into a function of its rows."""
        ops, pricing = self._operators, self._pricing
        self._token_costs = tuple(kernels.operator_seconds(op, pricing, self._span(op)) for op in ops.token_ops)
        self._sampled_costs = tuple(kernels.operator_seconds(op, pricing, self._span(op)) for op in ops.sampled_ops)
        self._state_launch_s = self._state_sequence_s = self._state_token_s = 0.0
        if ops.state is not None:
            shares = self._shares()
            bandwidth = self._gpu.memory_bandwidth_bytes_per_s
            compute = pricing.plain_flop_per_s * shares["prefill_compute"]
            self._state_launch_s = ops.state.num_layers * shares["elementwise_launch_s"]
            self._state_sequence_s = ops.state.sequence_bytes / bandwidth
            self._state_token_s = max(ops.state.token_bytes / bandwidth, ops.state.token_flop / compute)

    @property
    def operators(self) -> StepOperators:
        """The operators of a step on one GPU."""
        return self._operators

    @property
    def overheads(self) -> Overheads:
        """Host time of the engine."""
        return self._overheads

    @property
    def sequence_s(self) -> float:
        """Seconds of every scheduled sequence: host time, and the state of recurrent layers."""
        return self._overheads.per_sequence_s + self._state_sequence_s

    @property
    def state_launch_s(self) -> float:
        """Launches of the recurrent layers in a step."""
        return self._state_launch_s

    def operator_function(self, op: kernels.Operator) -> kernels.Seconds:
        """Seconds of one operator as a function of the step's rows."""
        return kernels.operator_seconds(op, self._pricing, self._span(op))

    def sampler_s(self, rows: int) -> float:
        """Seconds of the sampler on `rows` sequences: some passes over their fp32 logits."""
        shares = self._shares()
        walked = self._operators.sampler_bytes_per_row * shares["sampler_passes"] * rows
        return shares["sampler_launch_s"] + walked / self._gpu.memory_bandwidth_bytes_per_s

    def _span(self, op: object) -> int:
        """GPUs between the two ends of an operator's link: stages lie a tensor-parallel group apart."""
        if not isinstance(op, Collective):
            return 1
        return self._parallelism.num_gpus if op.kind == "p2p" else op.ranks

    def _shares(self) -> dict[str, float]:
        """The shares and launches of everything but matrix products; ones and zeros for a bound."""
        family = self._efficiency.family
        attention, elementwise = family.attention, family.elementwise
        if self._options.ideal:
            shares = dict.fromkeys(
                ("decode_memory", "decode_compute", "mixed_memory", "prefill_memory", "prefill_compute"), 1.0
            )
            launches = dict.fromkeys(("decode_launch_s", "prefill_launch_s", "sequence_s", "sampler_launch_s"), 0.0)
            rest = {"elementwise_launch_s": 0.0, "sampler_passes": 1.0, "context_compute": 1.0}
            return {**shares, **launches, **rest}
        return {
            "decode_memory": attention.decode_memory_frac,
            "decode_compute": attention.decode_compute_frac,
            "mixed_memory": min(attention.mixed_memory_frac, attention.decode_memory_frac),
            "prefill_memory": attention.prefill_memory_frac,
            "prefill_compute": attention.prefill_compute_frac,
            "decode_launch_s": attention.decode_launch_s,
            "prefill_launch_s": attention.prefill_launch_s,
            "sequence_s": attention.decode_sequence_s,
            "sampler_launch_s": elementwise.sampler_launch_s,
            "sampler_passes": max(1.0, elementwise.sampler_passes),
            "elementwise_launch_s": elementwise.launch_s,
            "context_compute": family.gemm_for("16bit").compute_frac,
        }

    # What `Tabulated` asks for ---------------------------------------------------------------------------------

    def _token_s(self, tokens: int) -> float:
        if not tokens:
            return self._overheads.per_step_s
        return self._overheads.per_step_s + self._state_launch_s + sum(cost(tokens) for cost in self._token_costs)

    def _sampled_s(self, rows: int) -> float:
        if not rows:
            return 0.0
        return self.sampler_s(rows) + sum(cost(rows) for cost in self._sampled_costs)

    def _decode_pieces(self, num_decode: int) -> tuple[Line, ...]:
        shares, work = self._shares(), self._operators.attention
        base = self.sequence_s * num_decode
        if work is None:
            return ((base, 0.0, UNBOUNDED),)
        base += work.num_layers * (shares["decode_launch_s"] + shares["sequence_s"] * num_decode / self._parallelism.dp)
        return ((base, self._read_slope(work, shares["decode_memory"]), UNBOUNDED),)

    def _mixed_pieces(self, num_decode: int) -> tuple[Line, ...]:
        shares, work = self._shares(), self._operators.attention
        base = self.sequence_s * num_decode
        if work is None:
            return ((base, 0.0, UNBOUNDED),)
        base += work.num_layers * shares["sequence_s"] * num_decode / self._parallelism.dp
        # Beside prompts the kernel no longer packs the query heads of one KV head, so that each reads the cache again;
        # the share was measured at four query heads a KV head, and more were not seen to cost more (L2).
        packed = 1.0 if work.latent else min(4.0, work.num_heads / work.num_kv_heads)
        lost = (shares["decode_memory"] / shares["mixed_memory"] - 1.0) * (packed - 1.0) / 3.0
        return ((base, self._read_slope(work, shares["decode_memory"] / (1.0 + max(0.0, lost))), UNBOUNDED),)

    def _read_slope(self, work: AttentionWork, memory_frac: float) -> float:
        """Seconds per read token of a decode: bytes or FLOPs, whichever binds."""
        memory = work.read_bytes / (self._gpu.memory_bandwidth_bytes_per_s * memory_frac)
        # All heads of a latent share one key: the only decode attention whose FLOPs reach the matrix units' limit.
        compute = work.decode_flop / (self._pricing.plain_flop_per_s * self._shares()["decode_compute"])
        return memory + compute if self._options.combine == "sum" else max(memory, compute)

    def _prefill_rates(self) -> PrefillRates:
        shares, work = self._shares(), self._operators.attention
        per_chunk = self.sequence_s
        per_token = self._overheads.per_prefill_token_s + self._state_token_s
        if work is None:
            return PrefillRates(0.0, per_chunk, per_token, 0.0, 0.0)
        peak, bandwidth = self._pricing.plain_flop_per_s, self._gpu.memory_bandwidth_bytes_per_s
        per_pair = work.pair_flop / (peak * shares["prefill_compute"])
        context = work.context_flop / (peak * shares["context_compute"])
        if self._options.ideal:  # FLOPs alone: bytes may hide behind them, and a bound has to be a straight line
            return PrefillRates(0.0, per_chunk, per_token, per_pair, context)
        memory = bandwidth * shares["prefill_memory"]
        launch = max(shares["prefill_launch_s"], shares["decode_launch_s"]) * work.num_layers
        return PrefillRates(
            launch,
            per_chunk,
            per_token + work.token_bytes / memory,
            per_pair,
            context + work.read_bytes / memory,
        )

    # Reports ---------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """`MODELLED`; `ASSUMED` where the coefficients are of another vendor's GPU."""
        return weakest((Source.MODELLED, self._efficiency.source))

    @property
    def error_frac(self) -> float:
        """Expected relative error of an operator's time: the median residual, wider for a borrowed family."""
        return self._efficiency.error_frac

    def limits(self) -> Roofline:
        """The same deployment at 100 % of every datasheet figure: never slower than this model, in any argument."""
        return Roofline(
            self._model,
            self._gpu,
            self._parallelism,
            self._precision,
            self._kv_precision,
            self._overheads,
            dataclasses.replace(self._options, ideal=True, combine="max"),
        )

    def operator_times(self, shape: StepShape) -> dict[str, float]:
        """Seconds by operator of one step, for reports and checks; the sum is `step_s` without host time."""
        times: dict[str, float] = {}
        tokens = shape.prefill_tokens + shape.num_decode
        rows = shape.num_prefill_done + shape.num_decode
        if tokens:
            for op, cost in zip(self._operators.token_ops, self._token_costs, strict=True):
                times[op.name] = times.get(op.name, 0.0) + cost(tokens)
        if rows:
            for sampled, cost in zip(self._operators.sampled_ops, self._sampled_costs, strict=True):
                times[sampled.name] = times.get(sampled.name, 0.0) + cost(rows)
            times["sampler"] = self.sampler_s(rows)
        whole = self.step(shape).time_s
        host = self._overheads.per_step_s
        host += self._overheads.per_sequence_s * (shape.num_decode + shape.num_prefill)
        host += self._overheads.per_prefill_token_s * shape.prefill_tokens
        times["attention and state"] = whole - host - sum(times.values())
        return times

    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        """Joules of all GPUs of the replica in a step of `time_s`; None where the accelerator has no TDP."""
        return power.step_energy_j(self._gpu, self._operators, self._parallelism, self._pricing, (shape, time_s))

    def describe(self) -> dict[str, Any]:
        """What this model is made of, for reports: plain values only."""
        family = self._efficiency.family
        return {
            "step_model": "roofline",
            "gpu": self._gpu.id,
            "efficiency": family.name,
            "efficiency_reason": self._efficiency.reason,
            "efficiency_source": family.source,
            "efficiency_date": family.date,
            "error_frac": self.error_frac,
            "borrowed_error_frac": self._efficiency.borrowed_error_frac,
            "combine": self._options.combine,
            "ideal": self._options.ideal,
            "overheads": self._overheads.source,
            "source": str(self.source),
        }
