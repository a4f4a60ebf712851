"""What is measured, in which order: operators over tokens and sequences, experts, attention, then checks off the grid.

Attention is measured once for every kind of layers, each to its own window.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Protocol, cast

from plimsoll.core.units import US_PER_S
from plimsoll.perf.overheads import NO_OVERHEADS
from plimsoll.perf.profiles.own_experts import OwnExperts, axis_bend, expected_experts, most_experts
from plimsoll.perf.profiles.own_format import ATTENTION, CHECKS, EXPERTS, SEQUENCES, TOKENS, WINDOWED, Row, Table
from plimsoll.perf.profiles.own_grids import pairs_of
from plimsoll.perf.profiles.own_layers import folding_of
from plimsoll.perf.profiles.own_model import OwnProfiled
from plimsoll.profiler.grid import Rules, geometric, refine, straight
from plimsoll.profiler.shapes import Limits, Shape, chunks, decodes
from plimsoll.profiler.store import Store

Progress = Callable[[int, int | None, str], None]
SHORTEST_LENGTH = 16
FIRST_CONTEXT = 64
MEASURED: tuple[Table, ...] = (TOKENS, SEQUENCES, EXPERTS, ATTENTION, WINDOWED)
UNKNOWN_US = 1.0
"""Stands in ``checks.csv`` until the grid is complete."""


class Backend(Protocol):
    """Whatever can measure operators. Rows are those of the profile's tables."""

    def tokens(self, size: int) -> list[Row]:
        """Every token operator, in a step of `size` tokens."""
        ...

    def sequences(self, size: int) -> list[Row]:
        """Head and sampler, of `size` sequences."""
        ...

    def attention(self, shape: Shape, window: int | None = None) -> Row:
        """Attention of one layer, behind its window."""
        ...

    def whole(self, shape: Shape) -> Row:
        """All operators of a step together: a row of ``checks.csv`` without its prediction."""
        ...


class ExpertBackend(Protocol):
    """What a backend has besides that measures models of experts."""

    def experts(self, tokens: int, activated: int) -> Row:
        """Routed experts of one layer, where `tokens` tokens use `activated` of them."""
        ...


class Survey:
    """One profile being measured into a store. Rows that are there already are not measured again.

    Args:
        store: where rows are kept.
        backend: who measures.
        limits: how far the grid reaches.
        rules: how fine the grid gets.
        progress: called before every measurement.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        limits: Limits,
        *,
        rules: Rules | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store, self._backend, self._limits, self._rules = store, backend, limits, rules or Rules()
        self._progress = progress or (lambda _done, _total, _text: None)
        self._sizes: dict[str, int] = {name: size for name, size in store.header["model"].items() if name != "id"}
        self._folding = folding_of(self._sizes)
        self.num_measured = 0

    def run(self) -> None:
        """Measure everything that is missing, then say in the header how well lines predict it."""
        limits = self._limits
        self._axis(geometric(1, limits.max_tokens), self.tokens_s)
        self._axis(geometric(1, limits.max_seqs), self.sequences_s)
        if "num_experts" in self._sizes:
            self._experts()
        for _, window in self._folding:
            self._decodes(window)
            self._chunks(window)
            for shape in self._together():
                self.attention_s(shape, window)
        self._checks()

    # What is measured, in seconds of a step ----------------------------------------------------------------------

    def tokens_s(self, size: int) -> float:
        """All token operators of a step of `size` tokens."""
        measure = functools.partial(self._say, f"{size} tokens", lambda: self._backend.tokens(size))
        return _total_s(self._store.keep(TOKENS, {"tokens": size}, measure))

    def sequences_s(self, size: int) -> float:
        """Head and sampler of `size` sequences."""
        measure = functools.partial(self._say, f"{size} sequences", lambda: self._backend.sequences(size))
        return _total_s(self._store.keep(SEQUENCES, {"sequences": size}, measure))

    def attention_s(self, shape: Shape, window: int | None = None) -> float:
        """Attention of all layers of one kind."""
        table, behind = (ATTENTION, "") if window is None else (WINDOWED, f" in a window of {window}")
        measure = functools.partial(
            self._say, f"attention of {shape}{behind}", lambda: [self._backend.attention(shape, window)]
        )
        return _total_s(self._store.keep(table, shape.row(), measure))

    def experts_s(self, tokens: int, activated: int) -> float:
        """Routed experts of all layers that have some."""
        backend = cast(ExpertBackend, self._backend)
        text = f"{activated} experts of {tokens} tokens"
        measure = functools.partial(self._say, text, lambda: [backend.experts(tokens, activated)])
        return _total_s(self._store.keep(EXPERTS, {"tokens": tokens, "activated_experts": activated}, measure))

    def _say(self, text: str, measure: Callable[[], list[Row]]) -> list[Row]:
        self._progress(self.num_measured, None, text)
        self.num_measured += 1
        return measure()

    # Grids -------------------------------------------------------------------------------------------------------

    def _axis(self, start: list[int], measure: Callable[[int], float]) -> list[int]:
        return refine(start, measure, straight(measure), self._rules)

    def _experts(self) -> None:
        """Over tokens, and over the experts that they use: the fewest, as many as uniform routing, the most."""
        bend, last = axis_bend(self._sizes), self._limits.max_tokens
        start = geometric(1, last)
        if 1 < bend < last:
            start = [*geometric(1, bend), *geometric(bend, last)[1:]]
        refine(start, self._expected_s, self._between_experts, self._rules)

    def _expected_s(self, tokens: int) -> float:
        expected = round(expected_experts(self._sizes, tokens))
        for activated in (self._sizes["experts_per_token"], most_experts(self._sizes, tokens)):
            self.experts_s(tokens, activated)
        return self.experts_s(tokens, expected)

    def _between_experts(self, low: int, high: int, tokens: int) -> float:
        """What the reader says of uniform routing between two rows of the table."""
        rows = [row for size in (low, high) for row in self._store.find(EXPERTS, tokens=size)]
        calls: int = rows[0]["calls_per_step"]
        return calls * OwnExperts(rows, self._sizes).at(tokens, round(expected_experts(self._sizes, tokens)))

    def _decodes(self, window: int | None) -> None:
        most, longest = self._limits.max_seqs, min(self._limits.max_length, window or self._limits.max_length)

        def measure(number: int, length: int) -> float:
            return self.attention_s(decodes(number, length), window)

        numbers = self._axis(geometric(1, most), lambda number: measure(number, longest))
        lengths = self._axis(geometric(min(SHORTEST_LENGTH, longest), longest), lambda length: measure(most, length))
        for number in numbers:
            for length in lengths:
                measure(number, length)

    def _chunks(self, window: int | None) -> None:
        longest, budget = self._limits.max_length, min(self._limits.max_tokens, self._limits.max_length)

        def measure(chunk: int, context: int = 0) -> float:
            return self.attention_s(chunks(1, chunk, context), window)

        by_pairs = straight(measure, lambda chunk: pairs_of(chunk, 0, window))
        sizes = refine(geometric(1, budget), measure, by_pairs, self._rules)
        middle = max(1, budget // 4)
        furthest = min(longest - middle, window or longest)
        start = [0, *geometric(min(FIRST_CONTEXT, furthest), furthest)] if furthest > 0 else [0]

        def seen(context: int) -> float:
            return context if window is None else pairs_of(middle, context, window)

        contexts = refine(
            start,
            lambda context: measure(middle, context),
            straight(lambda context: measure(middle, context), seen),
            self._rules,
        )
        for size in sizes:
            for context in contexts:
                if size + context <= longest:
                    measure(size, context)

    def _together(self) -> list[Shape]:
        """Several chunks in one step, and chunks beside decodes."""
        limits, budget = self._limits, min(self._limits.max_tokens, self._limits.max_length)
        found = []
        for number in geometric(2, min(limits.max_seqs, limits.max_tokens), 2.0)[: 1 if limits.max_seqs < 2 else None]:
            sizes = {budget // number, budget // number // 4}
            found += [chunks(number, size) for size in sizes if size >= 1 and number <= limits.max_seqs]
        quarter = max(SHORTEST_LENGTH, limits.max_length // 4)
        for number, size, context, beside in (
            (1, budget // 2, 0, limits.max_seqs // 2),
            (1, budget // 4, quarter, limits.max_seqs - 1),
            (2, budget // 8, 0, limits.max_seqs // 4),
        ):
            fits = number + beside <= limits.max_seqs and number * size + beside <= limits.max_tokens
            if size and beside and fits and size + context <= limits.max_length:
                found.append(
                    Shape(
                        num_prefill=number,
                        chunk_tokens=size,
                        context_tokens=context,
                        num_decode=beside,
                        decode_length_tokens=min(quarter, limits.max_length),
                    )
                )
        return sorted(found, key=str)

    # Checks ------------------------------------------------------------------------------------------------------

    def check_shapes(self) -> list[Shape]:
        """Steps between the points of the grid, alike on every machine."""
        most, budget = self._limits.max_seqs, min(self._limits.max_tokens, self._limits.max_length)
        longest = self._limits.max_length
        found = [
            decodes(max(1, round(most * share)), max(1, round(longest * length)))
            for share, length in ((0.16, 0.31), (0.45, 0.07), (0.7, 0.43), (0.9, 0.83))
        ]
        found += [
            chunks(1, max(1, round(budget * share)), round((longest - budget * share) * context))
            for share, context in ((0.18, 0.0), (0.4, 0.27), (0.66, 0.55), (0.93, 0.12))
        ]
        several = max(2, round(most * 0.15))
        if several <= most and budget // several >= 2:
            found.append(chunks(several, round(budget / several * 0.8)))
        beside = max(1, round(most * 0.4))
        if beside + 1 <= most and beside + budget // 3 <= self._limits.max_tokens:
            found.append(
                Shape(
                    num_prefill=1,
                    chunk_tokens=max(1, budget // 3),
                    num_decode=beside,
                    decode_length_tokens=max(1, round(longest * 0.2)),
                )
            )
        return found

    def _checks(self) -> None:
        """Measure the check shapes and compare. Predictions are made anew: the grid may have grown."""
        shapes = self.check_shapes()
        for shape in shapes:
            measure = functools.partial(self._say, f"check of {shape}", functools.partial(self._whole, shape))
            self._store.keep(CHECKS, shape.row(), measure)
        rows = [self._store.find(CHECKS, **shape.row())[0] for shape in shapes]
        model = OwnProfiled(self._store.profile(), NO_OVERHEADS, allow_extrapolation=True)
        for shape, row in zip(shapes, rows, strict=True):
            row["predicted_us"] = model.operators_s(shape.step_shape(self._folding)) * US_PER_S
        self._store.replace(CHECKS, rows)
        errors = [abs(row["predicted_us"] / row["measured_us"] - 1) for row in rows]
        measured = [row for table in MEASURED for row in self._store.find(table)]
        self._store.header["quality"] = {
            "interpolation_error_median_frac": statistics.median(errors),
            "interpolation_error_max_frac": max(errors),
            "num_checks": len(errors),
            "spread_median_frac": statistics.median(row["spread_frac"] for row in measured),
        }
        self._store.write_header()

    def _whole(self, shape: Shape) -> list[Row]:
        return [{**self._backend.whole(shape), "predicted_us": UNKNOWN_US}]


def _total_s(rows: list[Row]) -> float:
    return float(sum(row["calls_per_step"] * row["time_us"] for row in rows)) / US_PER_S
