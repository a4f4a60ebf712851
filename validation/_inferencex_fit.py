"""Fits `inferencex_factors.json` on the tuning half: `python -m validation._inferencex_fit [CSV]`.

Robust regression of log errors with a penalty on every log factor (towards 1): the kernel factors from TPOT, then the
rest from TTFT. Eight folds of whole deployments inside the tuning half chose the form and the penalties (`--folds`
prints their errors). Nothing here reads the judging half.

A deployment of the folds is what runs, not what the columns call it: many a measurement stands in the file twice, under
two names of a model and two ways to write a layout, and must not lie on both sides of a fold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
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
    model_name,
    prompt_features,
)
from validation._inferencex_model import Prediction, is_mixture
from validation._inferencex_rows import Row, package_file, read_rows
from validation.inferencex import errors_of, predict_all

KERNEL_PENALTY, PROMPTS_PENALTY, FRONT_PENALTY = 20.0, 20.0, 2.0
NUM_FOLDS = 8
PACKAGE = "https://pypi.org/project/aiconfigurator-core/ 0.12 (Apache-2.0)"
SMOOTH, TERMS_PENALTY = 0.05, 0.02
ROUNDS, LEAST_GAIN, MOST_DAMPING = 60, 1e-6, 1e8
Pairs = list[tuple[Row, Prediction]]
Floats = np.ndarray


def _design(features: list[list[str]]) -> tuple[Floats, list[str]]:
    names = sorted({name for row in features for name in row})
    table = np.zeros((len(features), len(names)))
    for i, row in enumerate(features):
        table[i, [names.index(name) for name in row]] = 1.0
    return table, names


def fit_kernel(pairs: Pairs) -> dict[str, float]:
    """Log factors of the step times: least absolute log error, by reweighting."""
    table, names = _design([kernel_features(row) for row, _ in pairs])
    target = np.array([np.log(row.tpot_s / base.tpot_s) for row, base in pairs])
    weight, found = np.ones(len(pairs)), np.zeros(len(names))
    for _ in range(40):
        left = (table * weight[:, None]).T @ table + KERNEL_PENALTY * np.eye(len(names))
        found = np.linalg.solve(left, (table * weight[:, None]).T @ target)
        weight = 0.1 / np.maximum(np.abs(target - table @ found), 0.02)
    return dict(zip(names, (float(value) for value in found), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _FrontProblem:
    """TTFT as ``base · exp(prompts) + exp(front) · terms``: tables of the rows, and the loss in all unknowns.

    The unknowns are log terms by framework, then log factors of the prompts, then of the front end.
    """

    base: Floats
    size: Floats
    measured: Floats
    which: Floats
    num_frameworks: int
    prompts: Floats
    front: Floats

    def split(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Terms by framework, log factors of prompts, log factors of the front end."""
        first = self.num_frameworks * len(TERMS)
        second = first + self.prompts.shape[1]
        return np.exp(x[:first]).reshape(self.num_frameworks, -1), x[first:second], x[second:]

    def loss(self, x: Floats) -> tuple[float, Floats, Floats]:
        """Smoothed absolute log error with penalties, its gradient, and its curvature as Gauss and Newton have it."""
        terms, prompts, front = self.split(x)
        scale, each = np.exp(self.front @ front), self.size * terms[self.which]
        simulated = self.base * np.exp(self.prompts @ prompts)
        predicted = simulated + scale * each.sum(axis=1)
        error = np.log(predicted / self.measured)
        weight = 1 / np.sqrt(error * error + SMOOTH**2)
        by_term = [np.where((self.which == i)[:, None], scale[:, None] * each, 0) for i in range(self.num_frameworks)]
        parts = [*by_term, self.prompts * simulated[:, None], self.front * (scale * each.sum(axis=1))[:, None]]
        slopes = np.concatenate(parts, axis=1) / predicted[:, None]
        penalty = self._penalty()
        gradient = slopes.T @ (weight * error) + penalty * x
        curvature = (slopes * weight[:, None]).T @ slopes + np.diag(penalty)
        return float((1 / weight).sum() + (penalty * x * x).sum() / 2), gradient, curvature

    def _penalty(self) -> Floats:
        """Of each unknown."""
        nums = self.num_frameworks * len(TERMS), self.prompts.shape[1], self.front.shape[1]
        return np.repeat([TERMS_PENALTY, PROMPTS_PENALTY, FRONT_PENALTY], nums)

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


def fit_front(pairs: Pairs, bases: Sequence[Prediction]) -> Factors:
    """The factors beside those of the steps, which `bases` hold: smoothed least absolute log error of TTFT."""
    prompts, prompt_names = _design([prompt_features(row) for row, _ in pairs])
    front, front_names = _design([front_features(row) for row, _ in pairs])
    names = sorted({row.backend for row, _ in pairs})
    size = np.array([front_terms(row, base.tpot_s) for (row, _), base in zip(pairs, bases, strict=True)])
    unit = size.mean(axis=0) / 0.05
    problem = _FrontProblem(
        base=np.array([base.ttft_s for base in bases]),
        size=size / unit,
        measured=np.array([row.ttft_s for row, _ in pairs]),
        which=np.array([names.index(row.backend) for row, _ in pairs]),
        num_frameworks=len(names),
        prompts=prompts,
        front=front,
    )
    terms, log_prompts, log_front = problem.split(problem.solve())
    return Factors(
        prompts=dict(zip(prompt_names, map(float, log_prompts), strict=True)),
        front=dict(zip(front_names, map(float, log_front), strict=True)),
        terms={name: tuple(map(float, row / unit)) for name, row in zip(names, terms, strict=True)},
    )


def fit(pairs: Pairs) -> Factors:
    """All factors of some rows."""
    scaled = Factors(kernel=fit_kernel(pairs))
    front = fit_front(pairs, [scaled.apply(row, base) for row, base in pairs])
    return dataclasses.replace(front, kernel=scaled.kernel)


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
