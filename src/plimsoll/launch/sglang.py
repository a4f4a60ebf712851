"""A deployment as an SGLang command.

Flags as in https://docs.sglang.io/advanced_features/server_arguments.html (2026-02).

SGLang counts differently: ``--tp-size`` is the whole tensor-parallel group of a pipeline stage, and with
``--enable-dp-attention`` the data-parallel attention ranks lie *inside* it: our TP 2 × DP 4 is its
``--tp-size 8 --dp-size 4``. It divides seats and chunk size over those ranks, while ours are those of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.launch.request import LaunchRequest, TargetView, header, join_command, view

TITLE = "SGLang"
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_QUANTIZATIONS = {"fp8": "fp8", "int8": "w8a8_int8"}
_KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8_e4m3"}


def command(request: LaunchRequest) -> str:
    """The command of one replica; with several machines, one per machine with its rank."""
    target = view(request, TITLE)
    lines = [*header(request), *target.comments]
    nodes = request.num_nodes
    if nodes > 1:
        lines.append(f"# One replica spans {nodes} machines: run it on each, NODE_RANK 0 to {nodes - 1}.")
        lines.append("# HEAD_ADDRESS is host:port of the first machine.")
    words = ["python", "-m", "sglang.launch_server", "--model-path", request.deployment.model]
    text = join_command(words, options(request, target))
    if nodes > 1:
        text += f' \\\n  --nnodes {nodes} \\\n  --node-rank "$NODE_RANK" \\\n  --dist-init-addr "$HEAD_ADDRESS"'
    return "\n".join([*lines, text])


def num_gpus(request: LaunchRequest) -> int:
    """GPUs that the command takes: SGLang's own arithmetic, ``tp-size × pp-size`` (DP attention lies inside)."""
    cut = request.deployment.parallelism
    return cut.tp * cut.dp * cut.pp


def options(request: LaunchRequest, target: TargetView) -> list[Sequence[str]]:
    """The flags, one sequence of words each."""
    deployment, cut, settings = request.deployment, request.deployment.parallelism, target.settings
    found: list[Sequence[str]] = [["--tp-size", str(cut.tp * cut.dp)]]
    if cut.pp > 1:
        found.append(["--pp-size", str(cut.pp)])
    if cut.dp > 1:
        found += [["--dp-size", str(cut.dp)], ["--enable-dp-attention"]]
    if cut.ep > 1:
        found.append(["--ep-size", str(cut.ep)])
    if deployment.precision in _DTYPES:
        found.append(["--dtype", _DTYPES[deployment.precision]])
    elif not request.is_native_precision and deployment.precision in _QUANTIZATIONS:
        # int4 and fp4 checkpoints tell their own method; the documentation asks not to repeat it.
        found.append(["--quantization", _QUANTIZATIONS[deployment.precision]])
    kv_flag = target.kv_flag or _KV_DTYPES.get(deployment.kv_precision, "")
    if kv_flag and deployment.kv_precision != "auto":
        found.append(["--kv-cache-dtype", kv_flag])
    values = {
        "--context-length": settings.max_model_len,
        "--chunked-prefill-size": _all_ranks(settings.max_num_batched_tokens, cut.dp),
        "--max-running-requests": _all_ranks(settings.max_num_seqs, cut.dp),
        "--mem-fraction-static": settings.gpu_memory_utilization,
        "--page-size": settings.block_size,
    }
    found += [[flag, str(value)] for flag, value in values.items() if value is not None]
    if settings.num_kv_blocks is not None:
        found.append(["--max-total-tokens", str(settings.num_kv_blocks * target.block_size)])
    found += [["--served-model-name", deployment.model], ["--host", "0.0.0.0"], ["--port", str(request.port)]]
    return found


def _all_ranks(per_rank: int | None, ranks: int) -> int | None:
    return None if per_rank is None else per_rank * ranks
