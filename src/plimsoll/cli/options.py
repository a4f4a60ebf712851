"""Options that several verbs share. Each is the flag of a scenario field; help texts say the unit and the default."""

from __future__ import annotations

from typing import Annotated, Any

import typer

DEPLOYMENT, LOAD, TARGETS, OUTPUT, SEARCH = "Deployment", "Workload and load", "Targets", "Output", "Search"


def option(flag: str, text: str, panel: str) -> Any:
    """A flag; the default stands in square brackets, which rich would take for markup if they were not escaped."""
    return typer.Option(flag, help=text.replace("[", "\\["), rich_help_panel=panel, show_default=False)


Model = Annotated[str | None, option("--model", "Catalogue name, hub id, or path of a config.json.", DEPLOYMENT)]
Gpu = Annotated[
    str | None,
    option(
        "--gpu",
        "Accelerator (plimsoll catalog gpus), or a .toml file. simulate and capacity: several kinds behind the "
        "router, with their GPUs: L40S:2,H100-SXM:1.",
        DEPLOYMENT,
    ),
]
Tp = Annotated[int | None, option("--tp", "Tensor parallel ways. [1]", DEPLOYMENT)]
Pp = Annotated[int | None, option("--pp", "Pipeline stages. [1]", DEPLOYMENT)]
Dp = Annotated[int | None, option("--dp", "Data-parallel attention ranks inside one replica. [1]", DEPLOYMENT)]
Ep = Annotated[int | None, option("--ep", "Expert parallel ways over the TP × DP ranks. [1]", DEPLOYMENT)]
Replicas = Annotated[int | None, option("--replicas", "Identical replicas behind the router. [1]", DEPLOYMENT)]
Router = Annotated[
    str | None,
    option(
        "--router",
        "round-robin, random, least-loaded, least-pending-tokens, power-of-two, session-sticky or prefix-aware. "
        "[round-robin]",
        DEPLOYMENT,
    ),
]
Engine = Annotated[
    str | None,
    option(
        "--engine",
        "Engine or policy, with options: vllm-v1,watermark=0.01; in a version: vllm-v1@0.19.0; or a .py file. "
        "[vllm-v1]",
        DEPLOYMENT,
    ),
]
Precision = Annotated[
    str | None, option("--precision", "fp16, bf16, fp8, int8, int4 or fp4. [the checkpoint's own]", DEPLOYMENT)
]
KvPrecision = Annotated[str | None, option("--kv-precision", "auto, fp16, bf16 or fp8. [auto]", DEPLOYMENT)]
StepModelName = Annotated[
    str | None,
    option(
        "--step-model",
        "roofline, vllm-roofline, silicon or profile:DIR; composed: roofline+h2o,ratio=0.2. [roofline]",
        DEPLOYMENT,
    ),
]
Overheads = Annotated[
    str | None,
    option(
        "--overheads",
        "Host time: none, vllm-v1, vllm-v1-sync, vllm-0.11-hopper, …; with an API server's: vllm-v1,api-server-vllm. "
        "[the engine's own around steps, no API server]",
        DEPLOYMENT,
    ),
]
CalibrationFile = Annotated[
    str | None, option("--calibration", "File of plimsoll calibrate (plan: one a GPU, A,B).", DEPLOYMENT)
]
MaxNumSeqs = Annotated[
    int | None, option("--max-num-seqs", "Sequences that run at once. [the engine's default on this GPU]", DEPLOYMENT)
]
MaxNumBatchedTokens = Annotated[
    int | None, option("--max-num-batched-tokens", "Tokens of one step. [the engine's default]", DEPLOYMENT)
]
MaxModelLen = Annotated[
    int | None, option("--max-model-len", "Longest sequence. [the model's, or what fits]", DEPLOYMENT)
]
GpuMemoryUtilization = Annotated[
    float | None, option("--gpu-memory-utilization", "Share of memory. [the engine's default]", DEPLOYMENT)
]
KvBlocks = Annotated[
    int | None,
    option("--kv-blocks", "KV blocks as the server prints them; overrides the memory model.", DEPLOYMENT),
]
BlockSize = Annotated[int | None, option("--block-size", "Tokens in a KV block. [the engine's]", DEPLOYMENT)]

WorkloadName = Annotated[
    str | None, option("--workload", "Preset (plimsoll catalog workloads): chat, code, summarization, …", LOAD)
]
TraceFile = Annotated[str | None, option("--trace", "Trace file: CSV or JSONL, gzip or plain.", LOAD)]
TraceFormat = Annotated[str | None, option("--trace-format", "Reader of the trace. [recognised]", LOAD)]
PromptTokens = Annotated[int | None, option("--prompt-tokens", "Every prompt has this many tokens.", LOAD)]
OutputTokens = Annotated[int | None, option("--output-tokens", "Every answer has this many tokens.", LOAD)]
Rate = Annotated[float | None, option("--rate", "Requests per second, open loop.", LOAD)]
Arrivals = Annotated[
    str | None, option("--arrivals", "poisson, gamma, constant or trace. [poisson; a trace's own]", LOAD)
]
Burstiness = Annotated[
    float | None, option("--burstiness", "Of gamma arrivals: 1 is Poisson, below 1 is burstier.", LOAD)
]
Concurrency = Annotated[int | None, option("--concurrency", "Closed loop: requests in flight.", LOAD)]
Users = Annotated[int | None, option("--users", "Closed loop: users, each --think-s between requests.", LOAD)]
ThinkS = Annotated[float | None, option("--think-s", "Pause of a closed-loop user in seconds. [0]", LOAD)]
AtOnce = Annotated[bool | None, option("--at-once", "Everything at time zero.", LOAD)]
NumRequests = Annotated[
    int | None, option("--num-requests", "How many requests. [1000 of a preset, every row of a trace]", LOAD)
]
DurationS = Annotated[float | None, option("--duration-s", "Cut the run here. [every request is drained]", LOAD)]
Seed = Annotated[int | None, option("--seed", "Of everything random: lengths and arrivals. [0]", LOAD)]

TtftMs = Annotated[float | None, option("--ttft-ms", "Time to first token, milliseconds.", TARGETS)]
TpotMs = Annotated[float | None, option("--tpot-ms", "Time per output token, milliseconds.", TARGETS)]
E2eMs = Annotated[float | None, option("--e2e-ms", "End to end, milliseconds.", TARGETS)]
Percentile = Annotated[float | None, option("--percentile", "At which the targets must hold. [99]", TARGETS)]

Scenario = Annotated[str | None, option("--scenario", "YAML file with fields of this verb; flags override it.", OUTPUT)]
SaveScenario = Annotated[str | None, option("--save-scenario", "Write what was run as a scenario file.", OUTPUT)]
Out = Annotated[str | None, option("--out", "Keep the run in this folder.", OUTPUT)]
TraceOut = Annotated[str | None, option("--trace-out", "Write every step as a trace file for ui.perfetto.dev.", OUTPUT)]
Json = Annotated[bool, option("--json", "One JSON document on stdout, everything else on stderr.", OUTPUT)]
