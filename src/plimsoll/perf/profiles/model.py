"""`profile`: the step cost of a machine as it was measured there, operator by operator.

    step = tokens(T) + experts(T) + head(sampled rows) + attention(prompts, decodes) + messages(T) [+ host time]

A layer's measured times, times the layers of the model. Matrix products cost the next larger measured size (they fill
whole tiles), attention is read by straight lines in a grid with holes (`profiles.grids`).

Prompts. The grid was measured with one chunk; a step may have several, of which the port gives the sums of tokens and
of attention pairs. They cost what one chunk of the same tokens and pairs costs: behind a context of
``pairs/tokens - (tokens + 1)/2``, and where that is below zero (many short prompts) the chunk's cost above that of
the shortest one shrinks with the pairs.

Decodes. The grid was measured with equal lengths. Where the bundle knows α (`profiles.bundle`) and the engine gives
the longest decode, attention is ``(1 - α)·t(mean) + α·t(longest)``. While n sequences decode, ``n·longest - Σ lengths``
does not change, so that a run of steps still lies on one straight line (`decode_line`).

Data-parallel ranks share a step evenly, except in `lockstep_s`, and pad one another's batches (`profiles.graphs`);
alone, rounding up to the next measured size stands for that. Experts are used uniformly: with E experts of which a
token takes k, a rank that holds ``E/ep`` of them uses ``E/ep·(1 - (1 - k/E)^T)``; trained gates use up to 13 % fewer
(LLMServingSim, ``bench/core/runner.py``).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.catalog.counting import attention_layers
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError
from plimsoll.core.source import Source, weakest
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepCost, StepShape
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from plimsoll.perf.profiles.bundle import Bundle
from plimsoll.perf.profiles.curves import Curve, total
from plimsoll.perf.profiles.elsewhere import elsewhere_s
from plimsoll.perf.profiles.graphs import DEFAULT_LIMIT_TOKENS, padded_tokens
from plimsoll.perf.profiles.links import Machine, Messages
from plimsoll.perf.profiles.outside import DECODES_FLAG, LENGTH_FLAG, TOKENS_FLAG, refuse_above
from plimsoll.perf.tabulated import UNBOUNDED, Line

ONCE_PER_STEP = ("embedding", "final_layernorm")
CALLS_PER_LAYER = {"layernorm": 2}  # before attention and before the MLP; all others once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """How a profile is used.

    Attributes:
        allow_extrapolation: let the last straight line go on beyond what was measured instead of refusing.
        use_skew: apply the bundle's α; needs an engine that gives the longest decode.
        machine: the links between the cards; None takes the catalogue's.
        custom_all_reduce: whether two cards sum short messages by vLLM's own kernel (`profiles.links`).
        graph_tokens: largest CUDA graph of the server, to which its data-parallel ranks pad (`profiles.graphs`).
        overheads: host time of the engine; the profile holds kernels only.
    """

    allow_extrapolation: bool = False
    use_skew: bool = True
    machine: Machine | None = None
    custom_all_reduce: bool = True
    graph_tokens: int = DEFAULT_LIMIT_TOKENS
    overheads: Overheads = NO_OVERHEADS


class Profiled:
    """A `core.step.StepModel` over one bundle.

    Raises:
        InputError: sliding windows or states, which a bundle does not hold.
        InfeasibleError: pipeline stages, which nobody measured.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: ModelSpec,
        gpu: Accelerator,
        parallelism: Parallelism,
        options: ProfileOptions | None = None,
    ) -> None:
        if attention_layers(model) != FULL_ATTENTION:
            raise InputError("--model", model.id, "a profile's attention sees every token; take the roofline")
        if parallelism.pp > 1:
            raise InfeasibleError("a profile holds no pipeline stages: use --pp 1 or the roofline", "topology")
        self._options = options or ProfileOptions()
        self._bundle, self._model, self._parallelism = bundle, model, parallelism
        self._alpha = bundle.skew_alpha if self._options.use_skew else 0.0
        self._attention = bundle.attention
        layers = model.num_layers
        self._layers = layers
        self._dense = total(
            curve.times(1 if name in ONCE_PER_STEP else layers * CALLS_PER_LAYER.get(name, 1))
            for name, curve in bundle.dense.items()
        )
        self._head = total(bundle.per_sequence.values())
        self._moe_layers = [(group.count, group.mlp) for group in model.groups if isinstance(group.mlp, Moe)]
        if self._moe_layers and bundle.experts is None:
            raise InputError("--step-model profile", str(bundle.folder), f"{model.id} needs a moe.csv in its profile")
        custom = self._options.custom_all_reduce
        self._messages = Messages(model, gpu, parallelism, self._options.machine, custom_all_reduce=custom)
        self._memory_bytes_per_s = gpu.memory_bandwidth_bytes_per_s
        self._curves: dict[int, Curve] = {}
        self._recent: dict[int, tuple[int, int, Line]] = {}
        self._fixed: dict[tuple[int, int], float] = {}
        self._shared_of: dict[tuple[int, ...], tuple[Sequence[int], float]] = {}

    # The port ----------------------------------------------------------------------------------------------------

    @property
    def attention_layers(self) -> AttentionLayers:
        """Everything sees everything."""
        return FULL_ATTENTION

    @property
    def num_stages(self) -> int:
        """One: a profile has no pipeline stages."""
        return 1

    @property
    def needs_longest(self) -> bool:
        """Whether the engine is to tell the longest decode; see `core.step.LongestStepModel`."""
        return self._alpha > 0

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        longest_decode: int = 0,
        /,
    ) -> float:
        """Seconds of one step; see `core.step.StepModel`. `longest_decode` 0 stands for equal lengths.

        Raises:
            OutOfRangeError: the step lies outside what was measured, and extrapolation was not allowed.
        """
        del prefill_read_tokens  # it follows from tokens and pairs
        if not prefill_tokens and not num_prefill:
            base_s, slope_s, _ = self.decode_line(num_decode, decode_read_tokens, longest_decode)
            return base_s + slope_s * decode_read_tokens
        if not self._options.allow_extrapolation:
            self._check(
                StepShape(
                    prefill_tokens=prefill_tokens,
                    prefill_pairs=prefill_pairs,
                    num_decode=num_decode,
                    decode_read_tokens=decode_read_tokens,
                    longest_decode=longest_decode,
                ),
                self._parallelism.dp,
            )
        ranks = self._parallelism.dp
        mean = decode_read_tokens / num_decode if num_decode else 0.0
        attention_s = self._attention_s(
            prefill_tokens / ranks, prefill_pairs / ranks, math.ceil(num_decode / ranks), mean, longest_decode
        )
        fixed_s = self._fixed_s(prefill_tokens + num_decode, num_prefill_done + num_decode)
        return fixed_s + self._host_s(num_prefill + num_decode, prefill_tokens) + self._layers * attention_s

    def lockstep_s(self, ranks: Sequence[StepShape]) -> float:
        """Seconds of a step that data-parallel ranks take together, each with its own share of the work.

        All wait for the slowest rank's attention and matrix products; the experts see the tokens of all of them.

        Raises:
            OutOfRangeError: as `step_s`.
        """
        slowest_s = 0.0
        tokens, shared_s = self._shared(tuple([rank.prefill_tokens + rank.num_decode for rank in ranks]))
        for rank, rows in zip(ranks, tokens, strict=True):
            if not self._options.allow_extrapolation:
                self._check(rank, 1)
            mean = rank.decode_read_tokens / rank.num_decode if rank.num_decode else 0.0
            attention_s = self._attention_s(
                rank.prefill_tokens, rank.prefill_pairs, rank.num_decode, mean, rank.longest_decode
            )
            rank_s = self._host_s(rank.num_prefill + rank.num_decode, rank.prefill_tokens)
            rank_s += self._layers * attention_s
            rank_s += self._dense.at_next(rows) if rows else 0.0
            rank_s += self._head_s(rank.num_prefill_done + rank.num_decode)
            slowest_s = max(slowest_s, rank_s)
        return self._options.overheads.per_step_s + slowest_s + shared_s

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """The straight line of decode-only steps; see `core.step.StepModel`.

        With `longest_decode` the line holds as long as the same sequences decode: each step adds `num_decode` to the
        read tokens and one to the longest.

        Raises:
            OutOfRangeError: as `step_s`.
        """
        gap = num_decode * longest_decode - decode_read_tokens if self._alpha and longest_decode else 0
        recent = self._recent.get(num_decode)
        if recent is not None and recent[0] == gap and recent[1] <= decode_read_tokens < recent[2][2]:
            return recent[2]
        start, line = self._new_line(num_decode, decode_read_tokens, gap)
        self._recent[num_decode] = (gap, start, line)
        return line

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with its source; a profile knows no power."""
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
            shape.longest_decode,
        )
        source = self.source if self.covers(shape) else Source.ASSUMED
        return StepCost(time_s=time_s, energy_j=None, source=source)

    # Range -------------------------------------------------------------------------------------------------------

    def covers(self, shape: StepShape, ranks: int | None = None) -> bool:
        """Whether the step lies inside what was measured; `ranks` share it, by default all data-parallel ones."""
        try:
            self._check(shape, ranks or self._parallelism.dp)
        except OutOfRangeError:
            return False
        return True

    def _check(self, shape: StepShape, ranks: int) -> None:
        grid = self._attention
        tokens = math.ceil((shape.prefill_tokens + shape.num_decode) / ranks)
        decodes = math.ceil(shape.num_decode / ranks)
        folder = self._bundle.folder
        refuse_above(folder, "tokens in a step", tokens, self._dense.last, TOKENS_FLAG)
        refuse_above(folder, "prompt tokens in a step", shape.prefill_tokens / ranks, grid.prefill.last, TOKENS_FLAG)
        refuse_above(folder, "decodes in a step", decodes, grid.decode.last, DECODES_FLAG)
        if shape.prefill_pairs:
            chunk, pairs = shape.prefill_tokens / ranks, shape.prefill_pairs / ranks
            context = pairs / chunk - (chunk + 1) / 2
            furthest = grid.prefill.items[grid.prefill.last].last
            refuse_above(folder, "tokens of context before the prompts", context, furthest, LENGTH_FLAG)
        if decodes:
            lengths = self._decode_curve(decodes).last
            mean, longest = shape.decode_read_tokens / shape.num_decode, shape.longest_decode if self._alpha else 0
            refuse_above(folder, "tokens in a decoding sequence", mean, lengths, LENGTH_FLAG)
            refuse_above(folder, "tokens in the longest decoding sequence", longest, lengths, LENGTH_FLAG)

    # Parts -------------------------------------------------------------------------------------------------------

    def _fixed_s(self, tokens: int, sampled: int) -> float:
        """All that depends on tokens and sampled rows only, and the engine's time per step."""
        key = (tokens, sampled)
        if key not in self._fixed:
            ranks = self._parallelism.dp
            seconds = self._options.overheads.per_step_s
            if tokens:
                shares = self._run_tokens([tokens // ranks + (rank < tokens % ranks) for rank in range(ranks)])
                seconds += self._dense.at_next(shares[0]) + self._experts_s(sum(shares))
                seconds += self._messages.of(shares[0], sum(shares))
            self._fixed[key] = seconds + self._head_s(math.ceil(sampled / ranks))
        return self._fixed[key]

    def _shared(self, asked: tuple[int, ...]) -> tuple[Sequence[int], float]:
        """What ranks that were asked for these tokens run, and the seconds of experts and messages, which all share."""
        if asked not in self._shared_of:
            tokens = self._run_tokens(asked)
            all_tokens = sum(tokens)
            seconds = self._experts_s(all_tokens) + self._messages.of(max(tokens), all_tokens) if all_tokens else 0.0
            self._shared_of[asked] = (tokens, seconds)
        return self._shared_of[asked]

    def _run_tokens(self, asked: Sequence[int]) -> Sequence[int]:
        """Tokens that the data-parallel ranks run together; those of dense models do not wait for one another."""
        if len(asked) == 1 or not self._moe_layers or not any(asked):
            return asked
        return padded_tokens(asked, self._options.graph_tokens)

    def _head_s(self, rows: int) -> float:
        return self._head.at_next(rows) + self._messages.of_logits(rows) if rows else 0.0

    def _host_s(self, sequences: int, prompt_tokens: int) -> float:
        overheads = self._options.overheads
        return overheads.per_sequence_s * sequences + overheads.per_prefill_token_s * prompt_tokens

    def _experts_s(self, tokens: int) -> float:
        """Experts of all layers on one rank, where `tokens` of all data-parallel ranks meet."""
        if self._bundle.experts is None:
            return 0.0
        ways = self._parallelism.ep
        seconds = 0.0
        for count, moe in self._moe_layers:
            activated = moe.num_experts / ways * (1 - (1 - moe.top_k / moe.num_experts) ** tokens)
            here_s = self._bundle.experts.at(tokens / ways, activated)
            seconds += count * (
                here_s + elsewhere_s(moe, self._model.hidden_size, ways, tokens, self._memory_bytes_per_s)
            )
        return seconds

    def _attention_s(self, chunk: float, pairs: float, decodes: int, mean: float, longest: float) -> float:
        """One layer's attention on one rank, uneven lengths included."""
        seconds = self._even_attention_s(chunk, pairs, decodes, mean)
        if self._alpha and decodes > 1 and longest > mean:
            seconds += self._alpha * (self._even_attention_s(chunk, pairs, decodes, longest) - seconds)
        return seconds

    def _even_attention_s(self, chunk: float, pairs: float, num_decode: int, length: float) -> float:
        """The same, all decodes being of one length."""
        if not chunk:
            return self._decode_curve(num_decode).at(length) / self._layers if num_decode else 0.0
        context = pairs / chunk - (chunk + 1) / 2
        grid = self._attention
        if context >= 0:
            return grid.mixed_s(chunk, context, num_decode, length) if num_decode else grid.prefill_s(chunk, context)
        alone_s = grid.prefill_s(chunk, 0)
        shortest_s = min(alone_s, grid.prefill_s(0, 0))
        share = pairs / (chunk * (chunk + 1) / 2)
        seconds = grid.mixed_s(chunk, 0, num_decode, length) if num_decode else alone_s
        return seconds - (1 - share) * (alone_s - shortest_s)

    def _decode_curve(self, decodes: int) -> Curve:
        """Attention of all layers over the mean length of the decodes on one rank."""
        if decodes not in self._curves:
            self._curves[decodes] = self._attention.decode_curve(decodes).times(self._layers)
        return self._curves[decodes]

    def _new_line(self, num_decode: int, read_tokens: int, gap: int) -> tuple[int, Line]:
        """First read token and line of the piece around `read_tokens`, at ``gap = n·longest - read tokens``."""
        if not num_decode:
            return 0, (self._options.overheads.per_step_s, 0.0, UNBOUNDED)
        longest = (gap + read_tokens) // num_decode if gap else 0
        if not self._options.allow_extrapolation:
            shape = StepShape(num_decode=num_decode, decode_read_tokens=read_tokens, longest_decode=longest)
            self._check(shape, self._parallelism.dp)
        curve = self._decode_curve(math.ceil(num_decode / self._parallelism.dp))
        base_s, slope_s, start, end = _piece(curve, read_tokens // num_decode)
        start, end = num_decode * start, _times(num_decode, end)
        if gap:
            base2_s, slope2_s, start2, end2 = _piece(curve, longest)
            alpha = self._alpha
            base_s += alpha * (base2_s + slope2_s * gap / num_decode - base_s)
            slope_s += alpha * (slope2_s - slope_s)
            start, end = max(start, num_decode * start2 - gap), min(end, _times(num_decode, end2) - gap)
        if not self._options.allow_extrapolation:
            end = min(end, num_decode * int(curve.last) + 1)
        base_s += self._fixed_s(num_decode, num_decode) + self._host_s(num_decode, 0)
        return start, (base_s, slope_s / num_decode, end)

    # Reports -----------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Interpolated between measurements; modelled where cards exchange messages."""
        exchanges = self._messages.any
        return weakest([Source.INTERPOLATED, Source.MODELLED if exchanges else Source.INTERPOLATED])

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        machine = self._options.machine
        return {
            "step_model": "profile",
            "profile": f"{self._bundle.hardware}, {self._bundle.model}, tp{self._bundle.tp}",
            "versions": dict(self._bundle.versions),
            "skew_alpha": self._alpha,
            "links": (machine.origin if machine else "catalogue") if self._messages.any else "none",
            "overheads": self._options.overheads.source,
            "extrapolates": self._options.allow_extrapolation,
            "source": str(self.source),
        }


def _times(count: int, end: int) -> int:
    return UNBOUNDED if end == UNBOUNDED else count * end


def _piece(curve: Curve, length: int) -> tuple[float, float, int, int]:
    """The piece of `curve` around `length`: value at 0, slope, first length, and the length at which it ends."""
    points = curve.points
    right = bisect.bisect_right(points, length)
    if right == 0 or len(points) == 1:
        return curve.values[0], 0.0, 0, int(points[0]) if right == 0 else UNBOUNDED
    left = min(right, len(points) - 1) - 1
    x0, x1 = points[left], points[left + 1]
    y0, y1 = curve.values[left], curve.values[left + 1]
    slope = (y1 - y0) / (x1 - x0)
    return y0 - slope * x0, slope, int(x0), int(x1) if right < len(points) else UNBOUNDED
