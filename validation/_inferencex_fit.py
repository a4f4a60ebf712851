"""Fits `inferencex_factors.json` on the tuning half: `python -m validation._inferencex_fit [CSV]`.

Robust regression of log errors with a penalty on every log factor (towards 1): the kernel factors from TPOT, then the
rest from TTFT. Eight folds of whole deployments inside the tuning half chose the form and the penalties (`--folds`
prints their errors). Nothing here reads the judging half.
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
    prompt_features,
)
from validation._inferencex_model import Prediction
from validation._inferencex_rows import Row, package_file, read_rows
from validation.inferencex import errors_of, predict_all

KERNEL_PENALTY, PROMPTS_PENALTY, FRONT_PENALTY = 20.0, 20.0, 2.0
NUM_FOLDS = 8
PACKAGE = "https://pypi.org/project/aiconfigurator-core/ 0.12 (Apache-2.0)"
STEPS, RATE = 4000, 0.02
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

    def loss(self, x: Floats) -> tuple[float, Floats]:
        """Smoothed absolute log error with penalties, and its gradient."""
        terms, prompts, front = self.split(x)
        scale, each = np.exp(self.front @ front), self.size * terms[self.which]
        simulated = self.base * np.exp(self.prompts @ prompts)
        predicted = simulated + scale * each.sum(axis=1)
        error = np.log(predicted / self.measured)
        smooth = np.sqrt(error * error + 0.01)
        slope = error / smooth / predicted
        by_term = (slope * scale)[:, None] * each
        parts = [by_term[self.which == index].sum(axis=0) for index in range(self.num_frameworks)]
        first = self.num_frameworks * len(TERMS)
        gradient = np.concatenate(
            [
                np.concatenate(parts) + 0.02 * x[:first],
                self.prompts.T @ (slope * simulated) + PROMPTS_PENALTY * prompts,
                self.front.T @ (slope * scale * each.sum(axis=1)) + FRONT_PENALTY * front,
            ]
        )
        penalty = PROMPTS_PENALTY / 2 * (prompts**2).sum() + FRONT_PENALTY / 2 * (front**2).sum()
        return float(smooth.sum() + penalty + 0.01 * (x[:first] ** 2).sum()), gradient

    def solve(self) -> Floats:
        """Gradient descent with momentum and per-parameter steps (Kingma and Ba 2015), the step shrinking to zero."""
        num = self.num_frameworks * len(TERMS)
        x = np.concatenate([np.full(num, -0.5), np.zeros(self.prompts.shape[1] + self.front.shape[1])])
        mean, square = np.zeros_like(x), np.zeros_like(x)
        for step in range(1, STEPS + 1):
            _, gradient = self.loss(x)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            scaled = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            x = x - RATE * (1 - step / (STEPS + 1)) * scaled
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


def fold_errors(pairs: Pairs) -> tuple[float, float]:
    """Median absolute errors of TPOT and TTFT on folds of whole deployments that the fit has not seen."""

    def fold(row: Row) -> int:
        return int(hashlib.sha1(("fold" + row.deployment).encode()).hexdigest(), 16) % NUM_FOLDS

    tpot, ttft = [], []
    for number in range(NUM_FOLDS):
        factors = fit([pair for pair in pairs if fold(pair[0]) != number])
        held = [pair for pair in pairs if fold(pair[0]) == number]
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
