"""The search of one seed: which loads to ask, how long each probe has to be, and where the threshold lies."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.planner.probes import Judge, Judgement, ProbeLength

Probe = Callable[[float, int, int], Run]
"""``probe(load, seed, num_requests)``: load is requests per second, or how many users or requests (a whole number)."""

InFlight = Callable[[float], float]

IDLE_IN_FLIGHT = 0.02
"""Mean requests in the system below which a request is as good as alone."""

MIN_SHORT_PROBE = 50
"""Requests below which a short probe says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityOptions:
    """How hard to look.

    Attributes:
        seeds: one search each; the interval comes from their spread.
        rel_tolerance: a search stops when the lowest failing rate is at most this share above the highest passing one.
        length: how long a probe is.
        first_ratio: first geometric step of the bracketing; it grows with every step in the same direction.
        next_ratio: first step of the seeds after the first, which start at the first one's capacity.
        clear_failure: a short probe settles a failure where a figure exceeds its target by this factor.
        min_load, max_load: no probe outside; a capacity at `max_load` is a lower bound and says so.
        look_again: after bisection, probe on both sides of the threshold, because verdicts close to it are noisy.
        short_probes: whether short probes go first while the search is far from its answer.
        lenient: where a TPOT or end-to-end target is met and only the number of requests in service still grows, call
            it a pass instead of looking longer: quicker, and a few per cent too high at times.
        max_probes: of one seed, short ones included; then the bracket stands as it is.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rel_tolerance: float = 0.02
    length: ProbeLength = dataclasses.field(default_factory=ProbeLength)
    first_ratio: float = 1.5
    next_ratio: float = 1.06
    clear_failure: float = 2.0
    min_load: float = 1e-5
    max_load: float = 1e6
    max_probes: int = 60
    look_again: bool = True
    short_probes: bool = True
    lenient: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError("capacity seeds", self.seeds, "give at least one seed, and each once")
        if not 0 < self.rel_tolerance < 1:
            raise InputError("capacity rel_tolerance", self.rel_tolerance, "give a share between 0 and 1")
        if not (self.first_ratio > 1 and self.next_ratio > 1 and self.clear_failure >= 1):
            raise InputError("capacity ratios", (self.first_ratio, self.next_ratio), "give factors above 1")
        if not 0 < self.min_load < self.max_load < math.inf:
            raise InputError("capacity loads", (self.min_load, self.max_load), "give 0 < min_load < max_load")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """One probe: what was asked, what was seen, what was concluded.

    Attributes:
        load: that was offered, in the unit of the search.
        seed: of the workload and the run.
        num_requests: of the whole probe; `num_measured` of them count, the rest is warm-up.
        short: whether this was a short probe that could only settle a clear failure.
        passed: the verdict; a short probe that settled nothing is recorded with None.
        failed_by: ``ttft``, ``tpot``, ``itl``, ``e2e`` or ``stationarity``; None on a pass.
        figures: the judged percentiles in seconds, by metric, infinite where too much is unfinished.
        num_censored: by metric: requests of a probe with a horizon whose deadline lies beyond it (`planner.horizon`).
    """

    load: float
    seed: int
    num_requests: int
    num_measured: int
    short: bool
    passed: bool | None
    failed_by: str | None
    figures: dict[str, float]
    num_censored: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedCapacity:
    """What one seed's search found: the highest passing and the lowest failing load, and the fitted threshold."""

    seed: int
    highest_pass: float
    lowest_fail: float
    load: float
    limited_by: str


def fit_threshold(passing: Sequence[float], failing: Sequence[float]) -> float:
    """The load that the fewest verdicts speak against: a pass above it or a failure below it.

    It is where monotone (isotonic) least squares on the verdicts has its step. Of equally good gaps between two loads
    the widest counts, and its middle (in logarithms) is the answer. Zero where nothing passes, infinite where nothing
    fails.
    """
    if not passing or not failing:
        return math.inf if passing else 0.0
    edges = sorted({*passing, *failing})

    def errors(threshold: float) -> int:
        return sum(load > threshold for load in passing) + sum(load <= threshold for load in failing)

    gaps = [(errors(low), -math.log(high / low), math.sqrt(low * high)) for low, high in itertools.pairwise(edges)]
    # Beside the outermost loads there is no gap to be in the middle of: they count with no width.
    return min([*gaps, (errors(edges[0] / 2), 0.0, edges[0]), (errors(edges[-1]), 0.0, edges[-1])])[2]


class Asker:
    """Asks probes, remembers them, and knows how long the next one has to be. One per capacity search."""

    def __init__(
        self, probe: Probe, judge: Judge, options: CapacityOptions, *, whole: bool, in_flight: InFlight | None = None
    ) -> None:
        self.probe, self.judge, self.options, self.whole = probe, judge, options, whole
        self.estimated_in_flight = in_flight
        self.records: list[ProbeRecord] = []
        self.residence_s: float | None = None

    def ask(self, load: float, seed: int, *, far: bool) -> Judgement:
        """The verdict at `load`. `far`: let a short probe settle a clear failure first."""
        length = self.options.length
        full = length.num_requests(self._in_flight(load))
        short = full // 4
        if far and self.options.short_probes and short >= MIN_SHORT_PROBE and not length.fixed:
            verdict = self._ask(load, seed, short, short=True)
            if self._settles(verdict):
                return verdict
            full = length.num_requests(self._in_flight(load))
        verdict, longest = (
            self._ask(load, seed, full, short=False),
            min(full * length.most_lengthening, length.max_requests),
        )
        while not verdict.conclusive and not length.fixed and full < longest:
            full = min(2 * full, longest)
            verdict = self._ask(load, seed, full, short=False)
        return verdict

    def _in_flight(self, load: float) -> float | None:
        if self.whole:
            return load
        if self.estimated_in_flight is not None:
            estimate = self.estimated_in_flight(load)
            if math.isfinite(estimate):
                return estimate
        return None if self.residence_s is None else load * self.residence_s

    def is_idle(self, load: float) -> bool:
        """Whether `load` is so low that requests hardly meet: a target missed there is missed at any load."""
        in_flight = self._in_flight(load)
        return not self.whole and in_flight is not None and in_flight < IDLE_IN_FLIGHT

    def _settles(self, verdict: Judgement) -> bool:
        """Whether a short probe's failure needs no longer one."""
        if verdict.failed_by == "stationarity":
            return verdict.conclusive
        return not verdict.passed and verdict.worst_ratio >= self.options.clear_failure

    def _ask(self, load: float, seed: int, num_requests: int, *, short: bool) -> Judgement:
        run = self.probe(load, seed, num_requests)
        verdict = self.judge(run, self.options.length)
        if not verdict.conclusive and self.options.lenient and {"tpot_s", "e2e_s"} & set(verdict.figures):
            verdict = dataclasses.replace(verdict, passed=True, failed_by="", conclusive=True)
        self.records.append(
            ProbeRecord(
                load=load,
                seed=seed,
                num_requests=len(run),
                num_measured=verdict.num_measured,
                short=short,
                passed=(False if self._settles(verdict) else None) if short else verdict.passed,
                failed_by=verdict.failed_by or None,
                figures=verdict.figures,
                num_censored=verdict.num_censored,
            )
        )
        shorter = self.residence_s is None or verdict.residence_s < self.residence_s
        if math.isfinite(verdict.residence_s) and (verdict.passed or shorter):
            self.residence_s = verdict.residence_s
        return verdict


class SeedSearch:
    """The search of one seed: bracket, bisect, then look again on both sides."""

    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker, self.seed = asker, seed
        self.options, self.whole = asker.options, asker.whole
        self.passing: list[float] = []
        self.failing: dict[float, str] = {}
        self.ratios: dict[float, float] = {}
        self.first_record = len(asker.records)

    def run(self, guess: float, ratio: float) -> SeedCapacity:
        """Start at `guess` and step by `ratio` until both a pass and a failure are known."""
        self._bracket(guess, ratio)
        self._bisect()
        if self.options.look_again and self.passing and self.failing and not self.whole:
            self._look_again()
        threshold = fit_threshold(self.passing, list(self.failing))
        low, high = self._gap()
        if low < threshold < high:
            threshold = self._crossing(low, high)
        above = [load for load in self.failing if load >= threshold]
        return SeedCapacity(
            seed=self.seed,
            highest_pass=low,
            lowest_fail=high,
            load=low if self.whole and self.passing and self.failing else threshold,
            limited_by=self.failing[min(above or self.failing)] if self.failing else "none",
        )

    def _ask(self, load: float, *, far: bool = False) -> bool:
        verdict = self.asker.ask(load, self.seed, far=far)
        self.ratios[load] = verdict.worst_ratio
        if verdict.passed:
            self.passing.append(load)
        else:
            self.failing[load] = verdict.failed_by
        return verdict.passed

    def _has_probes(self) -> bool:
        return len(self.asker.records) - self.first_record < self.options.max_probes

    def _bracket(self, guess: float, ratio: float) -> None:
        options = self.options
        load, step = _clip(guess, options, whole=self.whole), ratio
        while self._has_probes() and not (self.passing and self.failing):
            passed = self._ask(load, far=ratio >= options.first_ratio)
            if load >= options.max_load if passed else load <= options.min_load or self.asker.is_idle(load):
                return
            following = _clip(load * step if passed else load / step, options, whole=self.whole)
            load = following if following != load else load + (1.0 if passed else -1.0)
            step = step**1.6

    def _bisect(self) -> None:
        while self.passing and self.failing and self._has_probes():
            low, high = self._gap()
            if high <= low * (1 + self.options.rel_tolerance) or (self.whole and high - low <= 1):
                return
            middle = self._between(low, high)
            self._ask(min(max(float(round(middle)), low + 1), high - 1) if self.whole else middle)

    def _between(self, low: float, high: float) -> float:
        """The next load: half a tolerance to the far side of `_crossing`, so that two probes close the bracket."""
        place, width = math.log(self._crossing(low, high) / low), math.log(high / low)
        aside = 0.45 * math.log(1 + self.options.rel_tolerance)
        place += -aside if place > width / 2 else aside
        return low * math.exp(min(max(place, 0.1 * width), 0.9 * width))

    def _crossing(self, low: float, high: float) -> float:
        """Where the worst figure reaches its target, on a straight line in logarithms; without one, the middle."""
        below, above = self.ratios[low], self.ratios[high]
        if not (0.0 < below < 1.0 < above < math.inf):
            return math.sqrt(low * high)
        part = -math.log(below) / (math.log(above) - math.log(below))
        return low * math.exp(part * math.log(high / low))

    def _look_again(self) -> None:
        """Verdicts near the threshold are noisy: ask beside it, and further out as long as they contradict."""
        aside = 1.0 + 3.0 * self.options.rel_tolerance
        below, above = self._gap()
        for _ in range(4):
            if not self._has_probes():
                return
            below /= aside
            if self._ask(below):
                break
        for _ in range(4):
            if not self._has_probes():
                return
            above *= aside
            if not self._ask(above):
                break

    def _gap(self) -> tuple[float, float]:
        """The highest load to pass and the lowest to fail, as far as the verdicts agree."""
        if not self.passing or not self.failing:
            return max(self.passing, default=0.0), min(self.failing, default=math.inf)
        threshold = fit_threshold(self.passing, list(self.failing))
        loads = [*self.passing, *self.failing]
        return max(load for load in loads if load <= threshold), min(load for load in loads if load >= threshold)


def _clip(load: float, options: CapacityOptions, *, whole: bool) -> float:
    load = min(max(load, options.min_load), options.max_load)
    return float(max(round(load), 1)) if whole else load
