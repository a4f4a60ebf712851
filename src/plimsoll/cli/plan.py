"""`plimsoll plan`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from plimsoll.cli import options as o
from plimsoll.cli.flags import OUTPUT, REQUESTS, TARGETS, Group, takes

if TYPE_CHECKING:
    from plimsoll.api.scenario import PlanScenario


def _option(flag: str, text: str) -> Any:
    return o.option(flag, text, o.SEARCH)


DEPLOYMENT: Group = MappingProxyType(
    {
        "model": o.Model,
        "step_model": o.StepModelName,
        "overheads": o.Overheads,
        "calibration": o.CalibrationFile,
        "kv_precision": o.KvPrecision,
        "max_num_seqs": o.MaxNumSeqs,
        "max_model_len": o.MaxModelLen,
        "gpu_memory_utilization": o.GpuMemoryUtilization,
        "router": o.Router,
    }
)
SEARCH: Group = MappingProxyType(
    {
        "gpus": Annotated[
            str | None,
            _option(
                "--gpus",
                "Types and how many at most: H100-SXM:8,L40S:16. [H100-SXM, A100-SXM-80GB, L40S, H200; 8 each]",
            ),
        ],
        "latency_preference": Annotated[
            str | None,
            _option("--latency-preference", "interactive, balanced or batch: targets where none are given. [balanced]"),
        ],
        "budget_usd_per_hour": Annotated[
            float | None, _option("--budget-usd-per-hour", "Most that the rented machines may cost.")
        ],
        "throughput_tokens_per_s": Annotated[
            float | None, _option("--throughput-tokens-per-s", "Output tokens per second to deliver.")
        ],
        "engines": Annotated[
            str | None, _option("--engines", "vllm-v1, sglang, trtllm, or scheduling policies. [vllm-v1]")
        ],
        "precisions": Annotated[str | None, _option("--precisions", "Such as bf16,fp8. [by the tolerance]")],
        "precision_tolerance": Annotated[
            str | None,
            _option("--precision-tolerance", "none: the checkpoint's own; low: fp8, int8; high: 4 bit. [none]"),
        ],
        "token_budgets": Annotated[
            str | None, _option("--token-budgets", "max_num_batched_tokens to try. [512,2048,8192]")
        ],
        "tp": Annotated[str | None, _option("--tp", "Tensor parallel ways to try. [all that divide]")],
        "pp": Annotated[str | None, _option("--pp", "Pipeline stages to try. [all that make sense]")],
        "dp": Annotated[
            str | None, _option("--dp", "Data-parallel attention ranks to try, of mixtures. [all that make sense]")
        ],
        "disaggregated": Annotated[
            str | None,
            _option("--disaggregated", "Also try prefill and decode pools: auto, distserve or splitwise. [none]"),
        ],
        "split": Annotated[
            str | None, _option("--split", "Machines for prefill and for decode, such as 3:1. [around the balance]")
        ],
        "placement": Annotated[
            str | None,
            _option("--placement", "helr: lay the layers of one replica on unlike --gpus. [none]"),
        ],
        "prefix_hit_frac": Annotated[
            float | None, _option("--prefix-hit", "Share of every prompt found in a prefix cache, such as 0.3. [0]")
        ],
        "spare": Annotated[int | None, _option("--spare", "Replicas beyond the load: N+1. [0]")],
        "optimize": Annotated[str | None, _option("--optimize", "cost, throughput or latency. [cost]")],
        "top": Annotated[int | None, _option("--top", "Plans of each list. [3]")],
        "start_from": Annotated[
            str | None, _option("--start-from", "A 'vllm serve …' command to compare with, or a file holding one.")
        ],
    }
)


@takes(DEPLOYMENT, REQUESTS, TARGETS, SEARCH, OUTPUT)
def command(arguments: dict[str, Any]) -> int:
    """Which GPUs, how many, cut how, with which settings, and why these?

    Without a load every candidate is judged at its own capacity; with --rate or --users the cheapest that carries it
    wins. Nothing fits: exit code 1, and the answer says what would have to give.

    Example: plimsoll plan --model Llama-3.1-8B --workload chat --ttft-ms 1000 --tpot-ms 50 --budget-usd-per-hour 20
    """
    from plimsoll.api.planning import plan
    from plimsoll.api.scenario import PlanScenario
    from plimsoll.cli.running import as_json, keep, progress, scenario_from, show
    from plimsoll.report.plan import render

    asked = scenario_from(PlanScenario, arguments)
    if asked.placement is not None:
        return _placed(asked, arguments)
    with progress("plan") as update:
        answer = plan(asked, on_progress=update, keep_in=arguments["out"])
    document = answer.to_json_dict()
    files = {"result.json": as_json(document)}
    for found in document["plans"]:
        for target, text in found["launch"].items():
            suffix = "yaml" if target == "kubernetes" else "sh"
            files[f"plan-{found['rank']}-{target}.{suffix}"] = text.rstrip("\n") + "\n"
    keep(asked, arguments, files)
    show(document, arguments["json_output"], render)
    return 0 if answer.result.feasible else 1


def _placed(asked: PlanScenario, arguments: dict[str, Any]) -> int:
    """`plan --placement`."""
    from plimsoll.api.placement import place
    from plimsoll.cli.running import as_json, keep, show
    from plimsoll.report.placement import render

    document = place(asked).to_json_dict()
    keep(asked, arguments, {"result.json": as_json(document)})
    show(document, arguments["json_output"], render)
    return 0 if document["feasible"] else 1
