"""Checks that name a field as the user typed it: by its flag, in the flag's own unit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from plimsoll.api.scenario import flag_name
from plimsoll.catalog.accelerators import Accelerator, list_accelerators, load_accelerator
from plimsoll.core.deployment import KV_PRECISIONS
from plimsoll.core.errors import InputError, UnknownNameError, closest_names
from plimsoll.engine.plugins import list_plugins
from plimsoll.perf.compositions import list_compositions

RATES_PER_S = (1e-9, 1e9)
"""Slowest and fastest rate that is simulated: beyond them a clock of 64 bits cannot tell arrivals apart."""

MOST_REPLICAS = 10_000
"""Each has a state of its own and is looked at for every request: a million would take hours."""

OR_A_FILE = "or give the path of a .py file"
_COUNTS = ("tp", "pp", "dp", "ep", "replicas", "max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_size")


def required(fields: object, *names: str) -> None:
    """Raise an InputError for the first of `names` that was not given."""
    examples = {"model": "such as meta-llama/Llama-3.1-8B", "gpu": "such as H100-SXM", "gpus": "such as H100-SXM:8"}
    for name in names:
        if getattr(fields, name) is None:
            raise InputError(f"--{name}", None, f"give one, {examples.get(name, '')}")


def check_settings(fields: object) -> None:
    """Counts, shares and the cache's precision of a deployment's or a plan's fields.

    Raises:
        InputError, UnknownNameError: the first one that cannot be.
    """
    for name in _COUNTS:
        value = getattr(fields, name, None)
        if isinstance(value, int) and value < 1:
            raise InputError(flag_name(name), value, "give a whole number of at least 1")
    replicas = getattr(fields, "replicas", 1)
    if replicas > MOST_REPLICAS:
        raise InputError("--replicas", replicas, f"at most {MOST_REPLICAS} are simulated; simulate a part of the load")
    longest = getattr(fields, "max_model_len", None)
    if longest is not None and longest < 2:
        raise InputError("--max-model-len", longest, "give at least 2: one token of prompt and one of output")
    share = getattr(fields, "gpu_memory_utilization", None)
    if share is not None and not (math.isfinite(share) and 0 < share <= 1):
        raise InputError("--gpu-memory-utilization", share, "give a share above 0 and up to 1, such as 0.9")
    kv_precision = getattr(fields, "kv_precision", "auto")
    if kv_precision not in KV_PRECISIONS:
        raise UnknownNameError("--kv-precision", kv_precision, KV_PRECISIONS)


def check_milliseconds(field: str, milliseconds: float | None) -> None:
    """A latency target, as typed."""
    if milliseconds is not None and not 0 < milliseconds < math.inf:
        raise InputError(field, milliseconds, "give milliseconds above zero, such as 500")


def check_rate(rate_per_s: float | None) -> None:
    """A rate that a simulated clock can tell apart from never and from at once."""
    slowest, fastest = RATES_PER_S
    if rate_per_s is not None and 0 < rate_per_s < math.inf and not slowest <= rate_per_s <= fastest:
        raise InputError("--rate", rate_per_s, f"give requests per second from {slowest:g} to {fastest:g}")


def check_engine_name(field: str, name: str, known: Sequence[str], hint: str = OR_A_FILE) -> None:
    """Whether `name` is among the engines that a field takes.

    Raises:
        UnknownNameError: it is not: lists them, and says so if it names a composition of the step model.
    """
    if name in known:
        return
    if name.replace("-", "_") in {one.replace("-", "_") for one in list_compositions()}:
        hint = f"({name} is an optimisation of the step's cost: write --step-model roofline+{name})"
    raise UnknownNameError(field, name, known, hint)


def check_policy(field: str, engine: str, policy: str) -> None:
    """Whether an engine's scheduler can be simulated.

    Raises:
        InputError: the engine is in the catalogue, its scheduler is not among the policies yet.
    """
    policies = list_plugins("plimsoll.engine.policies")
    if policy not in policies:
        raise InputError(field, engine, f"its scheduler ({policy}) is not simulated yet; use {', '.join(policies)}")


def load_gpu(field: str, name: str) -> Accelerator:
    """A catalogue entry or a file, with the closest catalogue ids where there is none.

    Raises:
        UnknownNameError: neither; names `field`.
        InputError: several kinds where one is wanted.
    """
    try:
        return load_accelerator(name)
    except UnknownNameError as error:
        if "," in name or ":" in name:
            raise InputError(
                field, name, "name one kind of GPU; simulate and capacity take several (L40S:2,H100-SXM:1)"
            ) from error
        ids = list_accelerators()
        hint = f"{error.hint} (plimsoll catalog gpus lists all)".strip()
        raise UnknownNameError(field, name, ids if closest_names(name, ids) else error.known, hint) from error


@contextlib.contextmanager
def called(field: str, name: str) -> Iterator[None]:
    """Let errors of `field` name it `name`, where a verb spells a flag in another way.

    Raises:
        InputError, UnknownNameError: what is raised inside, of the field that the user typed.
    """
    try:
        yield
    except InputError as error:
        if error.field != field:
            raise
        if isinstance(error, UnknownNameError):
            raise UnknownNameError(name, error.value, error.known, error.hint) from error
        raise InputError(name, error.value, error.remedy) from error
