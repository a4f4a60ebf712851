"""The few factors between first principles and measured rows, fitted on the tuning half by `_inferencex_fit`.

    TPOT = kernel · predicted TPOT              kernel = exp(sum of a row's log factors)
    TTFT = kernel · prompts · predicted TTFT + front
           prompts likewise; front = exp(sum of a row's log factors) · (per request + per prompt token + per stream
           + per stream and prompt token + steps · TPOT)

A kernel's log factors: framework on an architecture, framework on a kind of model, framework and model on a GPU,
architecture at a precision, and two of the framework's release, in general and on a kind of model, because kernels come
and go with releases. The others: framework on an architecture, on a kind of model, and with a model; of the front end
also the release on a kind of model. All are drawn towards none, so that what a level cannot tell is left to the others.

`prompts` is what prefill kernels and their launches take beside decodes. `front` is what happens before the engine sees
a request and between its first token and the client: HTTP, a burst of prompts to tokenise, results that land a step
late, one event loop for all streams.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from plimsoll.core.errors import InputError
from validation._inferencex_model import Prediction
from validation._inferencex_recipes import recipe_of
from validation._inferencex_rows import Row

FILE = Path(__file__).with_name("inferencex_factors.json")
TERMS = ("per_request_s", "per_prompt_token_s", "per_stream_s", "per_stream_and_prompt_token_s", "steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """Fitted factors; empty mappings are first principles.

    Attributes:
        kernel: log factors of the step times by feature.
        prompts: log factors of the simulated time to the first token by feature.
        front: log factors of the front end by feature.
        terms: by framework, the coefficients of TERMS.
    """

    kernel: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prompts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    front: Mapping[str, float] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def apply(self, row: Row, base: Prediction) -> Prediction:
        """The prediction with the factors of its row."""
        kernel = math.exp(_sum(self.kernel, kernel_features(row)))
        return self.apply_kernel(row, base, kernel)

    def apply_kernel(self, row: Row, base: Prediction, kernel: float) -> Prediction:
        """The same with a given factor of the step times."""
        tpot = kernel * base.tpot_s
        prompts = math.exp(_sum(self.prompts, prompt_features(row)))
        front = math.exp(_sum(self.front, front_features(row)))
        terms = self.terms.get(row.backend, (0.0,) * len(TERMS))
        extra = sum(c * x for c, x in zip(terms, front_terms(row, tpot), strict=True))
        return dataclasses.replace(base, tpot_s=tpot, ttft_s=kernel * prompts * base.ttft_s + front * extra)


def _sum(known: Mapping[str, float], features: Iterable[str]) -> float:
    return sum(known.get(name, 0.0) for name in features)


def model_name(row: Row) -> str:
    """The model's name; DeepSeek-V3, V3.1 and R1 differ in their weights' values alone."""
    name = row.model.rsplit("/", 1)[-1].removesuffix("_config.json")
    return "DeepSeek-V3" if name.startswith("DeepSeek") else name


def kernel_features(row: Row) -> list[str]:
    """Which log factors scale a row's steps."""
    found = [
        f"{row.backend} on {row.architecture}",
        f"{row.backend} with {row.family}",
        f"{row.architecture} at {row.precision}",
        f"{row.backend} with {model_name(row)} on {row.gpu}",
        f"{row.backend} {row.release}",
        f"{row.backend} {row.release} with {row.family}",
    ]
    return [*found, f"{row.backend} in two pools"] if row.is_disaggregated else found


def prompt_features(row: Row) -> list[str]:
    """Which log factors scale the simulated time to a row's first token."""
    found = [
        f"{row.backend} on {row.architecture}",
        f"{row.backend} with {row.family}",
        f"{row.backend} with {model_name(row)}",
    ]
    return [*found, f"{row.backend} in two pools"] if row.is_disaggregated else found


def front_features(row: Row) -> list[str]:
    """Which log factors scale a row's front end."""
    found = [
        f"{row.backend} on {row.architecture}",
        f"{row.backend} with {row.family}",
        f"{row.backend} with {model_name(row)}",
        f"{row.backend} by {row.client}",
        f"{row.backend} {row.release} with {row.family}",
    ]
    if row.is_disaggregated:
        found.append(f"{row.backend} in two pools")
    return [*found, "speculation"] if recipe_of(row).speculative_tokens else found


def front_terms(row: Row, tpot_s: float) -> tuple[float, ...]:
    """What TERMS multiply."""
    users, tokens = float(row.concurrency), float(row.prompt_tokens)
    return (1.0, tokens, users, users * tokens, tpot_s)


def load_factors(path: Path = FILE) -> Factors:
    """The factors of a file.

    Raises:
        InputError: no such file, or another format.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        terms = {name: tuple(float(table[term]) for term in TERMS) for name, table in document["terms"].items()}
        parts = {name: document[name] for name in ("kernel", "prompts", "front")}
        return Factors(**parts, terms=terms)
    except (OSError, ValueError, KeyError) as error:
        raise InputError("factors", str(path), "write them with python -m validation._inferencex_fit") from error
