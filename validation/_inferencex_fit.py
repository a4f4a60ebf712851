"""Fits `inferencex_factors.json` on the tuning half: `python -m validation._inferencex_fit [CSV]`.

Robust regression of log errors with a penalty on every log factor (towards 1): the kernel factors from TPOT, then the
rest from TTFT. What is particular to rows with prompts and answers apart is fitted afterwards, beside the others'
factors, and by simulating such a row again with every factor tried (`_inferencex_pooled`). Eight folds of whole
deployments inside the tuning half chose the form and the penalties (`--folds` prints their errors). Nothing here reads
the judging half.

A deployment of the folds is what runs, not what the columns call it: many a measurement stands in the file twice, under
two names of a model and two ways to write a layout, and must not lie on both sides of a fold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from validation._inferencex_factors import (
    FILE,
    TERMS,
    Factors,
    front_features,
    front_terms,
    kernel_features,
    kernel_for,
    model_name,
    pooled_kernel_features,
    pooled_prompt_features,
    prompt_features,
    terms_key,
)
from validation._inferencex_model import Prediction, is_mixture
from validation._inferencex_rows import Row, package_file, read_rows
from validation.inferencex import errors_of, predict_all

KERNEL_PENALTY, PROMPTS_PENALTY, FRONT_PENALTY = 20.0, 20.0, 2.0
POOLED_KERNEL_PENALTY, POOLED_PROMPTS_PENALTY = 2.0, 3.0
NUM_FOLDS = 8
PACKAGE = "https://pypi.org/project/aiconfigurator-core/ 0.12 (Apache-2.0)"
SMOOTH, TERMS_PENALTY = 0.05, 0.02
TURNS = 2
GRID = np.linspace(-1.2, 1.2, 7)
ROUNDS, LEAST_GAIN, MOST_DAMPING = 60, 1e-6, 1e8
Pairs = list[tuple[Row, Prediction]]
Floats = np.ndarray


def _design(features: list[list[str]]) -> tuple[Floats, list[str]]:
    names = sorted({name for row in features for name in row})
    table = np.zeros((len(features), len(names)))
    for i, row in enumerate(features):
        table[i, [names.index(name) for name in row]] = 1.0
    return table, names


def fit_kernel(target: Floats, features: list[list[str]], penalty: float) -> dict[str, float]:
    """Log factors of the step times: least absolute log error, by reweighting."""
    table, names = _design(features)
    weight, found = np.ones(len(target)), np.zeros(len(names))
    for _ in range(40):
        left = (table * weight[:, None]).T @ table + penalty * np.eye(len(names))
        found = np.linalg.solve(left, (table * weight[:, None]).T @ target)
        weight = 0.1 / np.maximum(np.abs(target - table @ found), 0.02)
    return dict(zip(names, (float(value) for value in found), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _FrontProblem:
    """TTFT as ``simulated(prompts) + exp(front) · terms``: tables of the rows, and the loss in all unknowns.

    `tables` holds the logarithm of every row's simulated TTFT at the log factors of `GRID`, straight in between. The
    unknowns are log terms by framework, then log factors of the prompts, then of the front end.
    """

    tables: Floats
    size: Floats
    measured: Floats
    which: Floats
    num_frameworks: int
    prompts: Floats
    front: Floats
    prompts_penalty: float

    def split(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Terms by framework, log factors of prompts, log factors of the front end."""
        first = self.num_frameworks * len(TERMS)
        second = first + self.prompts.shape[1]
        return np.exp(x[:first]).reshape(self.num_frameworks, -1), x[first:second], x[second:]

    def simulated(self, log_factors: Floats) -> tuple[Floats, Floats]:
        """Every row's simulated TTFT at its log factor of prompts, and by what share it grows as that does."""
        step, rows = GRID[1] - GRID[0], np.arange(len(log_factors))
        at = np.clip(((log_factors - GRID[0]) / step).astype(int), 0, len(GRID) - 2)
        slope = (self.tables[rows, at + 1] - self.tables[rows, at]) / step
        return np.exp(self.tables[rows, at] + slope * (log_factors - GRID[at])), slope

    def loss(self, x: Floats) -> tuple[float, Floats, Floats]:
        """Smoothed absolute log error with penalties, its gradient, and its curvature as Gauss and Newton have it."""
        terms, prompts, front = self.split(x)
        scale, each = np.exp(self.front @ front), self.size * terms[self.which]
        simulated, growth = self.simulated(self.prompts @ prompts)
        predicted = simulated + scale * each.sum(axis=1)
        error = np.log(predicted / self.measured)
        weight = 1 / np.sqrt(error * error + SMOOTH**2)
        by_term = [np.where((self.which == i)[:, None], scale[:, None] * each, 0) for i in range(self.num_frameworks)]
        parts = [
            *by_term,
            self.prompts * (growth * simulated)[:, None],
            self.front * (scale * each.sum(axis=1))[:, None],
        ]
        slopes = np.concatenate(parts, axis=1) / predicted[:, None]
        penalty = self._penalty()
        gradient = slopes.T @ (weight * error) + penalty * x
        curvature = (slopes * weight[:, None]).T @ slopes + np.diag(penalty)
        return float((1 / weight).sum() + (penalty * x * x).sum() / 2), gradient, curvature

    def _penalty(self) -> Floats:
        """Of each unknown."""
        nums = self.num_frameworks * len(TERMS), self.prompts.shape[1], self.front.shape[1]
        return np.repeat([TERMS_PENALTY, self.prompts_penalty, FRONT_PENALTY], nums)

    def solve(self) -> Floats:
        """Damped steps of Gauss and Newton on reweighted squares (Levenberg 1944, Marquardt 1963)."""
        num = self.num_frameworks * len(TERMS)
        x = np.concatenate([np.full(num, -0.5), np.zeros(self.prompts.shape[1] + self.front.shape[1])])
        loss, gradient, curvature = self.loss(x)
        damping, eye = 1.0, np.eye(len(x))
        for _ in range(ROUNDS):
            before = loss
            while damping < MOST_DAMPING:
                candidate = x - np.clip(np.linalg.solve(curvature + damping * eye, gradient), -1, 1)
                found = self.loss(candidate)
                if found[0] < loss:
                    x, (loss, gradient, curvature) = candidate, found
                    damping /= 4
                    break
                damping *= 4
            if before - loss <= LEAST_GAIN * before:
                break
        return x


def _table(base: Prediction) -> list[float]:
    """Logarithm of a row's simulated TTFT at the log factors of `GRID`."""
    if base.pooled is None:
        return [float(np.log(base.ttft_s) + log_factor) for log_factor in GRID]
    return [float(np.log(base.pooled.means(np.exp(log_factor))[0])) for log_factor in GRID]


def fit_front(pairs: Pairs, bases: Sequence[Prediction]) -> Factors:
    """The factors beside those of the steps, which `bases` hold: smoothed least absolute log error of TTFT."""
    apart = [row.is_disaggregated for row, _ in pairs]
    shared = [pair for pair, pool in zip(zip(pairs, bases, strict=True), apart, strict=True) if not pool]
    pooled = [pair for pair, pool in zip(zip(pairs, bases, strict=True), apart, strict=True) if pool]
    found = Factors()
    if shared:
        found = _fit_front(
            [row for (row, _), _ in shared], [base for _, base in shared], prompt_features, PROMPTS_PENALTY
        )
    if not pooled:
        return found
    rows = [row for (row, _), _ in pooled]
    given = [base.again(found.prompts_of(row)) for row, (_, base) in zip(rows, pooled, strict=True)]
    more = _fit_front(rows, given, pooled_prompt_features, POOLED_PROMPTS_PENALTY)
    return joined(found, more)


def joined(one: Factors, other: Factors) -> Factors:
    """The factors of both."""
    return Factors(
        kernel={**one.kernel, **other.kernel},
        prompts={**one.prompts, **other.prompts},
        front={**one.front, **other.front},
        terms={**one.terms, **other.terms},
    )


def _fit_front(
    rows: Sequence[Row], bases: Sequence[Prediction], of_prompts: Callable[[Row], list[str]], penalty: float
) -> Factors:
    prompts, prompt_names = _design([of_prompts(row) for row in rows])
    front, front_names = _design([front_features(row) for row in rows])
    names = sorted({terms_key(row) for row in rows})
    size = np.array([front_terms(row, base.tpot_s) for row, base in zip(rows, bases, strict=True)])
    unit = size.mean(axis=0) / 0.05
    problem = _FrontProblem(
        tables=np.array([_table(base) for base in bases]),
        size=size / unit,
        measured=np.array([row.ttft_s for row in rows]),
        which=np.array([names.index(terms_key(row)) for row in rows]),
        num_frameworks=len(names),
        prompts=prompts,
        front=front,
        prompts_penalty=penalty,
    )
    terms, log_prompts, log_front = problem.split(problem.solve())
    return Factors(
        prompts=dict(zip(prompt_names, map(float, log_prompts), strict=True)),
        front=dict(zip(front_names, map(float, log_front), strict=True)),
        terms={name: tuple(map(float, row / unit)) for name, row in zip(names, terms, strict=True)},
    )


def fit(pairs: Pairs) -> Factors:
    """All factors of some rows: of those whose prompts and answers share GPUs, then what is particular to the others.

    Among the latter step times and prompts decide each other, so they are fitted in turns.
    """
    shared = [pair for pair in pairs if not pair[0].is_disaggregated]
    pooled = [pair for pair in pairs if pair[0].is_disaggregated]
    found = Factors()
    if shared:
        target = np.array([kernel_for(row, base) for row, base in shared])
        kernel = fit_kernel(target, [kernel_features(row) for row, _ in shared], KERNEL_PENALTY)
        scaled = Factors(kernel=kernel)
        found = dataclasses.replace(fit_front(shared, [scaled.apply(row, base) for row, base in shared]), kernel=kernel)
    return joined(found, fit_pooled(pooled, found)) if pooled else found


def fit_pooled(pooled: Pairs, shared: Factors) -> Factors:
    """The factors of rows with prompts and answers apart, beside the `shared` ones."""
    found = shared
    for _ in range(TURNS):
        wanted = [kernel_for(row, base, found.prompts_of(row)) - shared.log_kernel(row) for row, base in pooled]
        kernel = fit_kernel(np.array(wanted), [pooled_kernel_features(row) for row, _ in pooled], POOLED_KERNEL_PENALTY)
        steps = Factors(kernel={**shared.kernel, **kernel})
        bases = [steps.apply(row, base).again(shared.prompts_of(row)) for row, base in pooled]
        more = _fit_front([row for row, _ in pooled], bases, pooled_prompt_features, POOLED_PROMPTS_PENALTY)
        found = joined(shared, dataclasses.replace(more, kernel=kernel))
    return found


def document(factors: Factors) -> dict[str, Any]:
    """What `load_factors` reads, to three digits."""
    parts = {name: _rounded(getattr(factors, name)) for name in ("kernel", "prompts", "front")}
    terms = {k: _rounded(dict(zip(TERMS, v, strict=True))) for k, v in sorted(factors.terms.items())}
    return {**parts, "terms": terms}


def _rounded(values: Any) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in sorted(values.items())}


def what_runs(row: Row) -> str:
    """A row's deployment, the same for all its names and layouts; for pools apart the columns, which agree."""
    if row.is_disaggregated:
        return row.deployment.replace("DeepSeek-R1", "DeepSeek-V3")
    cut = row.cut(is_mixture=is_mixture(row))
    return f"{model_name(row)}|{row.gpu}|{row.backend}|{row.precision}|{cut.tp}|{cut.dp}|{cut.ep}"


def fold_errors(pairs: Pairs) -> tuple[float, float]:
    """Median absolute errors of TPOT and TTFT on folds of whole deployments that the fit has not seen."""
    folds = {
        row.id: int(hashlib.sha1(("fold" + what_runs(row)).encode()).hexdigest(), 16) % NUM_FOLDS for row, _ in pairs
    }
    tpot, ttft = [], []
    for number in range(NUM_FOLDS):
        factors = fit([pair for pair in pairs if folds[pair[0].id] != number])
        held = [pair for pair in pairs if folds[pair[0].id] == number]
        for _, ttft_error, tpot_error in errors_of([r for r, _ in held], {r.id: p for r, p in held}, factors):
            tpot.append(abs(tpot_error))
            ttft.append(abs(ttft_error))
    return float(np.median(tpot)), float(np.median(ttft))


def main() -> None:
    """Read, predict, fit, write."""
    paths = [Path(name) for name in sys.argv[1:] if not name.startswith("--")]
    path = paths[0] if paths else package_file("systems", "silicon_sample.csv")
    rows = [row for row in read_rows(path) if row.half == "tune" and row.complete]
    predictions, _ = predict_all(rows)
    pairs = [(row, predictions[row.id]) for row in rows if row.id in predictions]
    if "--folds" in sys.argv:
        print("held-out folds of the tuning half: TPOT {:.1%}, TTFT {:.1%}".format(*fold_errors(pairs)))
        return
    head = {"source": f"{PACKAGE}, systems/silicon_sample.csv, tuning half", "date": "2026-11-20"}
    text = json.dumps({**head, "num_rows": len(pairs), **document(fit(pairs))}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"{FILE.name}: {len(pairs)} rows")


if __name__ == "__main__":
    main()
