"""Factors by maximum a posteriori: few, physical, drawn towards "the model is right", and only those the data carries.

A run is summarised by a handful of figures (means and quantiles of TTFT, TPOT and end-to-end latency). With
``r = log(predicted / measured)`` and factors θ (the logarithms of ratios; seconds as they are), Gauss-Newton steps
minimise

    Σ (r / NOISE)²  +  Σ ((θ - prior) / spread)²

The posterior's covariance ``(JᵀJ/NOISE² + P)⁻¹`` says what was learnt: a factor whose standard deviation stays above
`LEARNT` of its prior spread is not carried by the data, and is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from plimsoll.calibration.measured import MeasuredRun
from plimsoll.core.columns import Floats
from plimsoll.core.errors import InputError, UnknownNameError

NOISE = 0.05
"""Relative scatter of one figure between repeated measurements (InferenceX's repeats differ by about 5 %)."""
LEARNT = 0.7
"""A factor is carried by the data if its standard deviation falls below this share of its prior's."""
MAX_STEPS = 8
STOP = 2e-3
QUANTILES = (0.5, 0.9)

Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """A quantity that may be fitted.

    Attributes:
        prior: where it is drawn to: 0, in its own unit (ratios: the logarithm).
        spread: standard deviation of the prior, in that unit.
        step: of the finite difference.
        is_ratio: whether the unit is a logarithm.
    """

    spread: float
    step: float
    is_ratio: bool
    prior: float = 0.0

    def value(self, theta: float) -> float:
        """The quantity itself: a ratio, or seconds of at least 0."""
        return math.exp(theta) if self.is_ratio else max(0.0, float(theta))


FACTORS: Mapping[str, Factor] = {
    "compute": Factor(spread=0.4, step=0.05, is_ratio=True),
    "bandwidth": Factor(spread=0.4, step=0.05, is_ratio=True),
    "per_step_s": Factor(spread=2e-3, step=3e-4, is_ratio=False),
    "per_request_s": Factor(spread=5e-2, step=5e-3, is_ratio=False),
}


def flag_name(factor: str) -> str:
    """A factor as people write it: ``per-step`` of ``per_step_s``."""
    return factor.removesuffix("_s").replace("_", "-")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a run's requests saw, in the order of the run; NaN where it never came.

    Attributes:
        ttft_s, tpot_s, e2e_s: ``float64[n]``.
    """

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


Simulate = Callable[[MeasuredRun, Mapping[str, float]], Seen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What came out.

    Attributes:
        values: the fitted factors.
        deviations: their posterior standard deviations (of ratios: relative).
        not_carried: factors that were left at their prior, with the reason.
        fitted_on, held_back: what was fitted, what was judged.
        before, after: signed relative errors of every figure of the part held back, ``{run: {figure: error}}``.
    """

    values: Mapping[str, float]
    deviations: Mapping[str, float]
    not_carried: Mapping[str, str]
    fitted_on: str
    held_back: str
    before: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]

    @property
    def error_before(self) -> float:
        """Median absolute error of the figures held back, without factors."""
        return _median(self.before)

    @property
    def error_after(self) -> float:
        """Median absolute error of the figures held back, with the factors."""
        return _median(self.after)


def fit(runs: Sequence[MeasuredRun], simulate: Simulate, wanted: Sequence[str] | None = None) -> Fit:
    """Fit factors to a part of the measurements and judge them on the rest.

    Args:
        runs: one run is split into its earlier and its later requests; of several, every second one is held back.
        simulate: what the requests of a run would see under given factors, beside those not given.
        wanted: factors that must be fitted; None takes those that the data carries.

    Raises:
        UnknownNameError: a factor that there is not.
        InputError: a wanted factor that the data does not carry, or too few requests.
    """
    for name in wanted or ():
        if name not in FACTORS:
            raise UnknownNameError("--fit", flag_name(name), map(flag_name, FACTORS))
    parts = _split(runs)
    problem = _Problem([run for run, part in parts if part.is_fitted.any()], parts, simulate)
    names = list(FACTORS) if wanted is None else list(dict.fromkeys(wanted))
    names, refused = problem.carried(names)
    if wanted is not None and refused:
        name, reason = next(iter(refused.items()))
        raise InputError("--fit", flag_name(name), f"{reason}; leave it out, or measure more loads")
    theta = problem.solve(names)
    deviations = problem.deviations(names, theta)
    values = {name: FACTORS[name].value(value) for name, value in zip(names, theta, strict=True)}
    several = len(runs) > 1
    return Fit(
        values=values,
        deviations=dict(zip(names, map(float, deviations), strict=True)),
        not_carried=refused,
        fitted_on=f"{(len(runs) + 1) // 2} of {len(runs)} runs" if several else "the earlier half of the requests",
        held_back=f"{len(runs) // 2} of {len(runs)} runs" if several else "the later half of the requests",
        before=problem.errors_held_back({}),
        after=problem.errors_held_back(values),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    is_fitted: npt.NDArray[np.bool_]
    is_held_back: npt.NDArray[np.bool_]


LEAST_REQUESTS = 20


def _split(runs: Sequence[MeasuredRun]) -> list[tuple[MeasuredRun, _Part]]:
    """Which requests are fitted and which judge: whole runs where there are several, else the halves of the one."""
    if not runs:
        raise InputError("RESULTS", "no run", "give at least one file of measured requests")
    parts = []
    order = sorted(range(len(runs)), key=lambda k: len(runs[k]) / max(1e-9, float(runs[k].sent_s[-1])))
    for rank, k in enumerate(order):
        run, counted = runs[k], runs[k].counted
        if (num := int(counted.sum())) < LEAST_REQUESTS:
            found = f"{num} requests" if num == len(run) else f"{num} of {len(run)} requests in the measured window"
            raise InputError(run.name, found, f"a run needs at least {LEAST_REQUESTS}")
        is_earlier = np.cumsum(counted) <= num // 2
        is_chosen = np.full(len(run), rank % 2 == 0) if len(runs) > 1 else is_earlier
        parts.append((run, _Part(is_fitted=counted & is_chosen, is_held_back=counted & ~is_chosen)))
    return parts


class _Problem:
    """The figures of all runs under factors, with the simulations that were done already."""

    def __init__(
        self, fitted: Sequence[MeasuredRun], parts: Sequence[tuple[MeasuredRun, _Part]], simulate: Simulate
    ) -> None:
        self._fitted, self._simulate = fitted, simulate
        self._parts = {run.name: part for run, part in parts}
        self._runs = [run for run, _ in parts]
        self._seen: dict[tuple[str, tuple[tuple[str, float], ...]], Seen] = {}

    def carried(self, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The factors that the data carries together, dropping the least known one at a time."""
        left, refused = list(names), {}
        _, columns = self._columns(left, {})
        while left:
            jacobian = np.column_stack([columns[name] for name in left])
            shares = self._posterior(jacobian, left) / np.array([FACTORS[name].spread for name in left])
            worst = int(np.argmax(shares))
            if shares[worst] <= LEARNT:
                break
            name = left.pop(worst)
            refused[name] = f"the data does not carry it: its uncertainty stays at {shares[worst]:.0%} of the prior's"
        return left, refused

    def solve(self, names: Sequence[str]) -> Floats:
        """Gauss-Newton with halved steps; the factors in their own unit (ratios: logarithms)."""
        theta = np.zeros(len(names))
        if not names:
            return theta
        spreads = np.array([FACTORS[name].spread for name in names])
        cost, residual = self._cost(names, theta, spreads)
        for _ in range(MAX_STEPS):
            at = dict(zip(names, theta, strict=True))
            _, columns = self._columns(names, at)
            jacobian = np.column_stack([columns[name] for name in names])
            normal = jacobian.T @ jacobian / NOISE**2 + np.diag(1 / spreads**2)
            step = np.linalg.solve(normal, -(jacobian.T @ residual / NOISE**2 + theta / spreads**2))
            for _ in range(5):
                tried = np.array([self._clipped(n, t) for n, t in zip(names, theta + step, strict=True)])
                new_cost, new_residual = self._cost(names, tried, spreads)
                if new_cost < cost:
                    break
                step = step / 2
            else:
                break
            moved = np.abs(tried - theta) / spreads
            theta, cost, residual = tried, new_cost, new_residual
            if float(moved.max()) < STOP:
                break
        return theta

    def deviations(self, names: Sequence[str], theta: Floats) -> Floats:
        """Posterior standard deviations at `theta`."""
        if not names:
            return np.empty(0)
        _, columns = self._columns(names, dict(zip(names, map(float, theta), strict=True)))
        return self._posterior(np.column_stack([columns[name] for name in names]), names)

    def errors_held_back(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Signed relative error of every figure of the part held back."""
        errors = {}
        for run in self._runs:
            part = self._parts[run.name].is_held_back
            if part.any():
                real, ours = _figures(_measured(run), part), _figures(self._see(run, values), part)
                errors[run.name] = {name: ours[name] / real[name] - 1 for name in real if name in ours}
        return errors

    def _columns(self, names: Sequence[str], at: Mapping[str, float]) -> tuple[Floats, dict[str, Floats]]:
        """Residuals at `at`, and their derivative by each factor (one-sided, so that seconds stay above 0)."""
        base = self._residual(at)
        columns = {}
        for name in names:
            step = FACTORS[name].step
            columns[name] = (self._residual({**at, name: at.get(name, 0.0) + step}) - base) / step
        return base, columns

    def _posterior(self, jacobian: Matrix, names: Sequence[str]) -> Floats:
        precision = np.diag([1 / FACTORS[name].spread ** 2 for name in names])
        covariance = np.linalg.inv(jacobian.T @ jacobian / NOISE**2 + precision)
        return np.sqrt(np.diag(covariance))

    def _cost(self, names: Sequence[str], theta: Floats, spreads: Floats) -> tuple[float, Floats]:
        residual = self._residual(dict(zip(names, map(float, theta), strict=True)))
        return float((residual**2).sum() / NOISE**2 + ((theta / spreads) ** 2).sum()), residual

    @staticmethod
    def _clipped(name: str, theta: float) -> float:
        return min(max(theta, -2.5), 2.5) if FACTORS[name].is_ratio else min(max(theta, 0.0), 30.0)

    def _residual(self, theta: Mapping[str, float]) -> Floats:
        values = {name: FACTORS[name].value(value) for name, value in theta.items()}
        rows = []
        for run in self._fitted:
            part = self._parts[run.name].is_fitted
            real, ours = _figures(_measured(run), part), _figures(self._see(run, values), part)
            rows += [math.log(ours[name] / real[name]) for name in real if name in ours]
        return np.array(rows)

    def _see(self, run: MeasuredRun, values: Mapping[str, float]) -> Seen:
        key = (run.name, tuple(sorted(values.items())))
        if key not in self._seen:
            self._seen[key] = self._simulate(run, values)
        return self._seen[key]


def _measured(run: MeasuredRun) -> Seen:
    return Seen(ttft_s=run.ttft_s, tpot_s=run.tpot_s, e2e_s=run.e2e_s)


def _figures(seen: Seen, part: npt.NDArray[np.bool_]) -> dict[str, float]:
    """``ttft mean``, ``ttft p50``, … of the requests in `part`; what never came is left out."""
    figures = {}
    for name, column in (("ttft", seen.ttft_s), ("tpot", seen.tpot_s), ("e2e", seen.e2e_s)):
        values = column[part]
        values = values[np.isfinite(values)]
        if not len(values) or float(values.min()) < 0 or not float(values.mean()) > 0:
            continue
        figures[f"{name} mean"] = float(values.mean())
        for q in QUANTILES:
            quantile = float(np.quantile(values, q))
            if quantile > 0:
                figures[f"{name} p{round(100 * q)}"] = quantile
    return figures


def _median(errors: Mapping[str, Mapping[str, float]]) -> float:
    values = [abs(error) for figures in errors.values() for error in figures.values()]
    return float(np.median(values)) if values else float("nan")
