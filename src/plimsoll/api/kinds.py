"""Replicas of several kinds behind one router: ``--gpu L40S:2,H100-SXM:1`` is two L40S and one H100.

Counts are GPUs, as in ``plan --gpus``; each kind is cut alike (``--tp`` and the rest), with memory, defaults and step
cost of its own. The router sees all replicas, and every request must fit on each of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from plimsoll.api.documents import deployment_json, sources_json
from plimsoll.api.offloaded import OFFLOADING
from plimsoll.api.resolve import Resolved, resolve
from plimsoll.api.scenario import DeploymentFields
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.metrics.percentiles import percentile
from plimsoll.planner.pools import list_pool_engines
from plimsoll.workload.spec import WorkloadSpec

Fields = TypeVar("Fields", bound=DeploymentFields)
_COUNTED = re.compile(r"(?P<gpu>[^:,]+)(?::(?P<count>-?\d+))?")


def kinds_of(fields: Fields) -> list[Fields]:
    """The fields of each kind of replica; an empty list where ``gpu`` names one kind without a count.

    Raises:
        InputError: a count that is no multiple of a replica's GPUs, a kind named twice, or replicas counted twice.
    """
    text = fields.gpu or ""
    if "," not in text and not re.fullmatch(r"[^:,]+:-?\d+", text.strip()):
        return []
    if fields.replicas != 1:
        raise InputError("--replicas", fields.replicas, f"--gpu {text} says how many there are; leave it out")
    per_replica, kinds = fields.tp * fields.pp * fields.dp, dict[str, Fields]()
    for part in text.split(","):
        match = _COUNTED.fullmatch(part.strip())
        if match is None:
            raise InputError("--gpu", text, "write kinds with their number of GPUs: L40S:2,H100-SXM:1")
        name, count = match["gpu"].strip(), int(match["count"] or per_replica)
        if count < 1 or count % per_replica:
            raise InputError("--gpu", part.strip(), f"give a multiple of the GPUs of a replica, {per_replica}")
        if name in kinds:
            raise InputError("--gpu", text, f"{name} is there twice; add its GPUs up")
        kinds[name] = dataclasses.replace(fields, gpu=name, replicas=count // per_replica)
    return list(kinds.values())


def resolve_kinds(
    kinds: Sequence[DeploymentFields], spec: WorkloadSpec
) -> tuple[tuple[Resolved, ...], Workload, WorkloadSpec]:
    """Every kind for the same requests, cut to what the smallest of them takes; raises as `resolve`.

    Raises:
        InputError: an engine that makes its own machines, or does not share GPUs.
    """
    policy = kinds[0].engine.partition(",")[0]
    if policy in list_pool_engines() or policy in OFFLOADING:
        raise InputError("--gpu", ",".join(str(kind.gpu) for kind in kinds), f"{policy} takes GPUs of one kind")
    for _ in range(2):  # once to learn what each takes, once with what all take
        answers = [resolve(kind, spec) for kind in kinds]
        shortest = min(cut.max_model_len or 0 for _, _, cut in answers)
        spec = dataclasses.replace(spec, max_model_len=shortest)
    _, workload, spec = answers[0]
    return tuple(resolved for resolved, _, _ in answers), workload, spec


def kinds_json(kinds: Sequence[Resolved], run: Run | None) -> list[dict[str, Any]]:
    """Each kind of a run: its deployment and sources, how many requests it got, and the times that they saw.

    Without a run (nothing that was tried held) the requests and times are None.
    """
    documents: list[dict[str, Any]] = []
    first = 0
    for resolved in kinds:
        about = {"deployment": deployment_json(resolved), "sources": sources_json(resolved)}
        if run is None:
            documents.append({**about, "num_requests": None, "ttft_p50_s": None, "ttft_p99_s": None})
            continue
        last = first + resolved.config.replicas
        here = (run.replica >= first) & (run.replica < last)
        served = here & np.isfinite(run.first_token_s)
        ttft_s = (run.first_token_s - run.arrival_s)[served]
        documents.append(
            {
                **about,
                "num_requests": int(here.sum()),
                "ttft_p50_s": percentile(ttft_s, 50),
                "ttft_p99_s": percentile(ttft_s, 99),
            }
        )
        first = last
    return documents
