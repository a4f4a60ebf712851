"""`profile` over Plimsoll's own form: what `plimsoll profile` measured, put together to the cost of a step.

    step = tokens(T) + experts(T) + head(sampled rows) + Σ kinds of layers · attention(chunks, decodes) + host time

Token and sequence operators are straight lines between measured sizes, which the profiler places where lines fit;
attention is `own_grids` for one layer and `own_layers` for all of them, experts are `own_experts`. Host time is the
profile's own where it was measured beside the operators, else that of the engine's catalogue entry.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from plimsoll.core.errors import InputError, OutOfRangeError
from plimsoll.core.source import Source
from plimsoll.core.step import AttentionLayers, StepCost, StepShape
from plimsoll.core.units import US_PER_S
from plimsoll.perf.overheads import Overheads
from plimsoll.perf.profiles.curves import Curve, total
from plimsoll.perf.profiles.outside import DECODES_FLAG, LENGTH_FLAG, TOKENS_FLAG, refuse_above
from plimsoll.perf.profiles.own_checks import FAMILIES, by_operator, check_deployment, check_plausible, check_whole
from plimsoll.perf.profiles.own_experts import OwnExperts
from plimsoll.perf.profiles.own_format import (
    AGAIN,
    ATTENTION,
    COLLECTIVES,
    EXPERTS,
    POWER,
    SEQUENCES,
    TOKENS,
    WINDOWED,
    OwnProfile,
    Table,
    read_own,
)
from plimsoll.perf.profiles.own_grids import attention_of
from plimsoll.perf.profiles.own_layers import LayerKind, Layers, folding_of, unfolded_length
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import UNBOUNDED, Line

ELEMENT_BYTES = 2


def build_own(request: StepModelRequest) -> OwnProfiled:
    """The step model of a deployment from the folder that `request.argument` names.

    Raises:
        InputError: the profile cannot be read, has holes, is not plausible, or is of another model, device or
            cut; an unknown option.
        InfeasibleError: pipeline stages, data-parallel ranks, experts spread over ranks, another precision.
    """
    request.check_options("allow_extrapolation")
    profile = read_own(request.argument)
    check_deployment(profile, request)
    check_whole(profile)
    check_plausible(profile, request.gpu, request.precision)
    allowed = bool(request.options.get("allow_extrapolation", False))
    return OwnProfiled(profile, host_time(profile) or request.overheads, allow_extrapolation=allowed)


def host_time(profile: OwnProfile) -> Overheads | None:
    """The host time of a step as it was measured beside the operators; None where it was not."""
    host = profile.section("host")
    if not host:
        return None
    return Overheads(
        per_step_s=profile.number("host", "per_step_us") / US_PER_S,
        per_sequence_s=profile.number("host", "per_sequence_us") / US_PER_S,
        per_prefill_token_s=profile.number("host", "per_prefill_token_us") / US_PER_S,
        source=str(host.get("source", "measured with the profile")),
    )


class OwnProfiled:
    """A `core.step.StepModel` over one profile."""

    def __init__(self, profile: OwnProfile, overheads: Overheads, *, allow_extrapolation: bool = False) -> None:
        self._profile, self._overheads, self._allowed = profile, overheads, allow_extrapolation
        self._tokens = _sum(profile, TOKENS)
        self._rows = _sum(profile, SEQUENCES)
        self._message_s = _messages(profile)
        self.attention = layers_of(profile)
        experts = profile.tables[EXPERTS]
        self._experts = OwnExperts(experts, profile.section("model")) if experts else None
        self._moe_layers = int(experts[0]["calls_per_step"]) if experts else 0
        self._fixed: dict[tuple[int, int], float] = {}
        self._recent: dict[int, tuple[int, Line]] = {}
        busy = [row["power_w"] for row in profile.tables[POWER] if row["load"] == "busy"]
        self._busy_w = busy[0] if busy else None

    # The port ----------------------------------------------------------------------------------------------------

    @property
    def attention_layers(self) -> AttentionLayers:
        """The windows of the kinds of layers that were measured."""
        return self.attention.folding

    @property
    def num_stages(self) -> int:
        """One: a profile has no pipeline stages."""
        return 1

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
        """Seconds of one step; see `core.step.StepModel`.

        Raises:
            OutOfRangeError: the step lies outside what was measured, and extrapolation was not allowed.
        """
        del prefill_read_tokens  # it follows from tokens and pairs
        if not prefill_tokens and not num_prefill:
            base_s, slope_s, _ = self.decode_line(num_decode, decode_read_tokens)
            return base_s + slope_s * decode_read_tokens
        if not self._allowed:
            self._check(prefill_tokens, num_prefill, prefill_pairs, num_decode, decode_read_tokens)
        attention_s = 0.0
        if prefill_tokens:
            attention_s += self.attention.prefill_s(max(num_prefill, 1), prefill_tokens, prefill_pairs)
        if num_decode:
            curve = self.attention.decode_curve(num_decode, beside=True)
            attention_s += curve.at(decode_read_tokens / num_decode)
        host_s = self._overheads.per_sequence_s * (num_prefill + num_decode)
        host_s += self._overheads.per_prefill_token_s * prefill_tokens
        fixed_s = self._fixed_s(prefill_tokens + num_decode, num_prefill_done + num_decode)
        return fixed_s + host_s + attention_s

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The straight line of decode-only steps; see `core.step.StepModel`.

        Raises:
            OutOfRangeError: as `step_s`.
        """
        recent = self._recent.get(num_decode)
        if recent is not None and recent[0] <= decode_read_tokens < recent[1][2]:
            return recent[1]
        if not num_decode:
            return self._overheads.per_step_s, 0.0, UNBOUNDED
        if not self._allowed:
            self._check(0, 0, 0, num_decode, decode_read_tokens)
        curve = self.attention.decode_curve(num_decode)
        base_s, slope_s, start, end = piece(curve, decode_read_tokens / num_decode)
        # A step at length x has read tokens n·x; the first one at or behind the piece's end belongs to the next piece.
        below = UNBOUNDED if end is None else _ceil(num_decode * end)
        if not self._allowed:
            below = min(below, num_decode * int(self.attention.longest_of(num_decode)) + 1)
        base_s += self._fixed_s(num_decode, num_decode) + self._overheads.per_sequence_s * num_decode
        line = (base_s, slope_s / num_decode, below)
        self._recent[num_decode] = (_ceil(num_decode * start), line)
        return line

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with joules where the device told its watts."""
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        source = self.source if self.covers(shape) else Source.ASSUMED
        return StepCost(time_s=time_s, energy_j=None if self._busy_w is None else self._busy_w * time_s, source=source)

    # Range -------------------------------------------------------------------------------------------------------

    def covers(self, shape: StepShape) -> bool:
        """Whether the step lies inside what was measured."""
        try:
            self._check(
                shape.prefill_tokens,
                shape.num_prefill,
                shape.prefill_pairs,
                shape.num_decode,
                shape.decode_read_tokens,
            )
        except OutOfRangeError:
            return False
        return True

    def _check(self, prefill_tokens: int, num_prefill: int, pairs: int, num_decode: int, read_tokens: int) -> None:
        layers, grid, folder = self.attention, self.attention.kinds[0].grid, self._profile.folder
        refuse_above(folder, "tokens in a step", prefill_tokens + num_decode, self._tokens.last, TOKENS_FLAG)
        refuse_above(folder, "decodes in a step", num_decode, grid.decodes.last, DECODES_FLAG)
        if num_decode:
            length = unfolded_length(layers.folding, read_tokens / num_decode)
            refuse_above(folder, "tokens in a decoding sequence", length, layers.longest, LENGTH_FLAG)
            folded, longest = read_tokens / num_decode, layers.longest_of(num_decode)
            refuse_above(folder, "tokens in a decoding sequence", folded, longest, LENGTH_FLAG)
        if prefill_tokens:
            number = max(num_prefill, 1)
            refuse_above(folder, "tokens in a prompt chunk", prefill_tokens / number, grid.chunks.last, TOKENS_FLAG)
            context = round(layers.context_of(number, prefill_tokens, pairs), 6)  # a root's last digits
            refuse_above(folder, "tokens of context before a chunk", context, layers.furthest, LENGTH_FLAG)

    # Parts -------------------------------------------------------------------------------------------------------

    def operators_s(self, shape: StepShape) -> float:
        """Seconds of a step without its host time: what the profile's own checks compare."""
        host_s = self._overheads.per_step_s
        host_s += self._overheads.per_sequence_s * (shape.num_prefill + shape.num_decode)
        host_s += self._overheads.per_prefill_token_s * shape.prefill_tokens
        return self.step(shape).time_s - host_s

    def _fixed_s(self, tokens: int, sampled: int) -> float:
        """All that depends on tokens and sampled rows only, and the engine's time per step."""
        key = (tokens, sampled)
        if key not in self._fixed:
            seconds = self._overheads.per_step_s + self._tokens.at(tokens) + self._message_s(tokens)
            if self._experts is not None and tokens:
                seconds += self._moe_layers * self._experts.expected_s(tokens)
            self._fixed[key] = seconds + (self._rows.at(sampled) if sampled else 0.0)
        return self._fixed[key]

    # Reports -----------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Straight lines between measurements."""
        return Source.INTERPOLATED

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        header = self._profile
        device, model, run = header.section("device"), header.section("model"), header.section("run")
        quality = header.section("quality")
        return {
            "step_model": "profile",
            "profile": ", ".join(str(part) for part in (device.get("name"), model.get("id"), run.get("backend"))),
            "versions": {key: str(run[key]) for key in ("torch", "vllm", "date", "threads") if key in run},
            "interpolation_error_frac": quality.get("interpolation_error_median_frac"),
            "beside": self.attention.kinds[0].grid.beside,
            "overheads": self._overheads.source,
            "extrapolates": self._allowed,
            **({"experts": "uniform routing"} if self._experts is not None else {}),
            "source": str(self.source),
        }


def layers_of(profile: OwnProfile) -> Layers:
    """The attention of all layers, kind by kind."""
    sizes = profile.section("model")
    weights = {window: weight for weight, window in folding_of(sizes)}
    found = []
    for table, window in ((ATTENTION, None), (WINDOWED, sizes.get("window"))):
        rows = profile.tables[table]
        if rows:
            count, grid = int(rows[0]["calls_per_step"]), attention_of(rows, window)
            found.append(LayerKind(count=count, weight=weights[window], grid=grid))
    return Layers(tuple(found))


def _sum(profile: OwnProfile, table: Table) -> Curve:
    """Seconds of all calls of all operators of a table in a step, over their size."""
    _, size = FAMILIES[table]
    return total(
        Curve.of({row[size]: row["calls_per_step"] * row["time_us"] / US_PER_S for row in rows})
        for rows in by_operator(profile, table).values()
    )


def _messages(profile: OwnProfile) -> Callable[[int], float]:
    """Seconds of the sums that devices exchange in a step, by its tokens: after attention and MLP, and the embedding.

    Raises:
        InputError: a profile of several devices without their messages.
    """
    tp = profile.section("run").get("tp", 1)
    if tp == 1:
        return lambda _: 0.0
    rows = [row for row in profile.tables[COLLECTIVES] if row["operation"] == "all_reduce" and row["ranks"] == tp]
    if not rows:
        raise InputError(str(profile.folder / COLLECTIVES.file), "no all_reduce", f"TP {tp} exchanges sums; {AGAIN}")
    curve = Curve.of({row["message_bytes"]: row["time_us"] / US_PER_S for row in rows})
    model = profile.section("model")
    return lambda tokens: (2 * model["num_layers"] + 1) * curve.at(tokens * model["hidden_size"] * ELEMENT_BYTES)


def piece(curve: Curve, length: float) -> tuple[float, float, float, float | None]:
    """The piece of `curve` around `length`: value at 0, slope, first length, and the length at which it ends."""
    points = curve.points
    right = bisect.bisect_right(points, length)
    if right == 0 or len(points) == 1:
        return curve.values[0], 0.0, 0.0, points[0] if right == 0 else None
    left = min(right, len(points) - 1) - 1
    x0, x1 = points[left], points[left + 1]
    y0, y1 = curve.values[left], curve.values[left + 1]
    slope = (y1 - y0) / (x1 - x0)
    return y0 - slope * x0, slope, x0, x1 if right < len(points) else None


def _ceil(value: float) -> int:
    whole = int(value)
    return whole if whole == value else whole + 1
