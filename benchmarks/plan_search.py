"""How long a plan takes, and what it did in that time.

    python benchmarks/plan_search.py            # all searches
    python benchmarks/plan_search.py small      # four GPU types, cold process: must answer in 3 s
    python benchmarks/plan_search.py silicon    # the same with measured tables, nothing kept: must answer in 6 s
    python benchmarks/plan_search.py again      # once more in a new process, with what the first kept on disk
    python benchmarks/plan_search.py large      # Llama-2-70B on all NVIDIA data-centre GPUs: must answer in 60 s

Each search runs in a fresh process, so imports and catalogue loading count; the user's own cache is neither read nor
written. ``cpu_s`` is of all processes together: beside it the wall time tells how busy the machine was. ``large`` takes
the Azure conversation lengths of the preset ``chat``, Poisson arrivals, 1 to 16 GPUs of each type, TP × PP × replicas,
three token budgets, bf16 and fp8, TTFT 2 s and TPOT 100 ms at p99.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

LIMITS_S = {"small": 3.0, "silicon": 6.0, "again": 6.0, "large": 60.0}

CHILD = """
import json, sys, time
started = time.perf_counter()
from plimsoll.catalog.accelerators import list_accelerators, load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.metrics import Targets
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.search import search
from plimsoll.planner.space import GpuLimit
from plimsoll.workload.spec import WorkloadSpec

def request(which):
    chat = WorkloadSpec(preset="chat", rate_per_s=1.0)
    if which != "large":
        gpus = [(load_accelerator(name), 8) for name in ("H100-SXM", "A100-SXM-80GB", "L40S", "H200")]
        return PlanRequest(
            model=load_model("meta-llama/Llama-3.1-8B"),
            gpus=tuple(GpuLimit(accelerator=gpu, max_gpus=most) for gpu, most in gpus),
            workload=chat, budget_usd_per_hour=20.0, targets=Targets(ttft_s=1.0, tpot_s=0.05),
            step_model="roofline" if which == "small" else "silicon",
        )
    gpus = [load_accelerator(name) for name in list_accelerators()]
    gpus = [gpu for gpu in gpus if gpu.vendor == "nvidia" and gpu.segment == "datacenter"]
    return PlanRequest(
        model=load_model("meta-llama/Llama-2-70b-hf"),
        gpus=tuple(GpuLimit(accelerator=gpu, max_gpus=16) for gpu in gpus),
        workload=chat, targets=Targets(ttft_s=2.0, tpot_s=0.1), precisions=("bf16", "fp8"),
    )

result = search(request(sys.argv[1]))
kinds = {}
for rejection in result.rejected:
    kinds[rejection.kind] = kinds.get(rejection.kind, 0) + rejection.num_candidates
print(json.dumps({
    "verdict": result.verdict, "num_candidates": result.num_candidates, "num_configs": result.num_configs,
    "num_simulated": result.num_simulated, "pareto": len(result.pareto), "out": kinds,
    "search_s": round(result.wall_s, 2), "imports_and_search_s": round(time.perf_counter() - started, 2),
}))
"""


def measure(which: str) -> dict[str, object]:
    """One search in a process of its own; wall time from before the interpreter starts."""
    with tempfile.TemporaryDirectory() as kept:
        environment = {**os.environ, "PLIMSOLL_CACHE": kept if which == "again" else "off"}
        for _ in range(2 if which == "again" else 1):
            before, started_s = _children_cpu_s(), time.perf_counter()
            command = [sys.executable, "-c", CHILD, which]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            wall_s, cpu_s = time.perf_counter() - started_s, _children_cpu_s() - before
    figures: dict[str, object] = json.loads(done.stdout)
    return {
        "search": which,
        "cores": os.cpu_count(),
        "cold_process_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "limit_s": LIMITS_S[which],
        **figures,
    }


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for name in sys.argv[1:] or list(LIMITS_S):
        if name not in LIMITS_S:
            sys.exit(f"searches: {', '.join(LIMITS_S)}")
        print(json.dumps(measure(name), indent=2))
