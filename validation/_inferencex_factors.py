"""The few factors between first principles and measured rows, fitted on the tuning half by `_inferencex_fit`.

    TPOT = kernel · predicted TPOT              kernel = exp(sum of a row's log factors)
    TTFT = kernel · prompts · predicted TTFT + front
           prompts likewise; front = exp(sum of a row's log factors) · (per request + per prompt token + per stream
           + per stream and prompt token + steps · TPOT)

A kernel's log factors: framework on an architecture, framework on a kind of model, framework and model on a GPU,
architecture at a precision, and two of the framework's release, in general and on a kind of model, because kernels come
and go with releases. The others: framework on an architecture, on a kind of model, and with a model; of the front end
also the release on a kind of model. All are drawn towards none, so that what a level cannot tell is left to the others.

Rows with prompts and answers apart have factors of their own beside these, and one front end for all frameworks: two
engines, a link and several frontends lie between the user and the first token. Theirs scale steps, not times: such a
row is simulated again (`_inferencex_pooled`).

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
POOLED = "in two pools"
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

    def log_kernel(self, row: Row) -> float:
        """The logarithm of the factor of a row's steps."""
        return _sum(self.kernel, kernel_features(row))

    def apply(self, row: Row, base: Prediction) -> Prediction:
        """The prediction with the factors of its row."""
        return self.apply_kernel(row, base, math.exp(self.log_kernel(row)))

    def prompts_of(self, row: Row) -> float:
        """The factor of a row's prompts."""
        return math.exp(_sum(self.prompts, prompt_features(row)))

    def apply_kernel(self, row: Row, base: Prediction, kernel: float) -> Prediction:
        """The same with a given factor of the step times."""
        tpot = kernel * base.tpot_s
        prompts = self.prompts_of(row)
        front = math.exp(_sum(self.front, front_features(row)))
        terms = self.terms.get(terms_key(row), (0.0,) * len(TERMS))
        ttft, pooled = kernel * prompts * base.ttft_s, base.pooled
        if pooled is not None:
            pooled = pooled.scaled(kernel)
            ttft, tpot = pooled.means(prompts)
        extra = sum(c * x for c, x in zip(terms, front_terms(row, tpot), strict=True))
        return dataclasses.replace(base, tpot_s=tpot, ttft_s=ttft + front * extra, pooled=pooled)


def kernel_for(row: Row, base: Prediction, prompts: float = 1.0) -> float:
    """The log factor of the step times with which the row's TPOT is the measured one.

    Where prompts and answers are apart, batches depend on both, `prompts` being the factor of prompts beside it.
    """
    if base.pooled is None:
        return math.log(row.tpot_s / base.tpot_s)
    return base.pooled.kernel_for(row.tpot_s, prompts)


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
    return [*found, *pooled_kernel_features(row)] if row.is_disaggregated else found


def pooled_kernel_features(row: Row) -> list[str]:
    """Those of rows with prompts and answers apart, beside the others'."""
    return _pooled(row, "decode_")


def pooled_prompt_features(row: Row) -> list[str]:
    """Those of rows with prompts and answers apart, beside the others'."""
    return _pooled(row, "prefill_")


def _pooled(row: Row, stage: str) -> list[str]:
    by_rank = "by rank" if row.num_ways("attention_dp_size", stage) > 1 else "cut"
    return [
        POOLED,
        f"{row.backend} {POOLED}",
        f"{row.backend} {POOLED}, {by_rank}",
        f"{row.backend} {POOLED}, {row.precision} on {row.gpu}",
        f"{row.backend} {POOLED}, {row.precision}, {by_rank}",
        f"{row.backend} {POOLED}, {by_rank} on {row.gpu}",
    ]


def prompt_features(row: Row) -> list[str]:
    """Which log factors scale the simulated time to a row's first token."""
    found = [
        f"{row.backend} on {row.architecture}",
        f"{row.backend} with {row.family}",
        f"{row.backend} with {model_name(row)}",
    ]
    return [*found, *pooled_prompt_features(row)] if row.is_disaggregated else found


def front_features(row: Row) -> list[str]:
    """Which log factors scale a row's front end."""
    if row.is_disaggregated:
        return [f"{row.backend} {POOLED}"]
    found = [
        f"{row.backend} on {row.architecture}",
        f"{row.backend} with {row.family}",
        f"{row.backend} with {model_name(row)}",
        f"{row.backend} by {row.client}",
        f"{row.backend} {row.release} with {row.family}",
    ]
    return [*found, "speculation"] if recipe_of(row).speculative_tokens else found


def terms_key(row: Row) -> str:
    """Whose coefficients of TERMS a row's are."""
    return POOLED if row.is_disaggregated else row.backend


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
