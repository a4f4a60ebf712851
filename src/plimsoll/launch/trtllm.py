"""A deployment as a TensorRT-LLM command (PyTorch back end, AutoDeploy for the models that have a note of it).

Flags as in https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve.html (2026-02). What has no flag goes into a
YAML file.

TensorRT-LLM counts like SGLang: ``--tp_size`` is the whole group of a pipeline stage. Attention data parallelism is a
switch: every GPU of the group is then an attention rank, so our TP 1 × DP 8 is its ``--tp_size 8`` with
``enable_attention_dp``.
"""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.core.deployment import Deployment
from plimsoll.core.errors import InfeasibleError
from plimsoll.launch.request import LaunchRequest, TargetView, header, join_command, view

TITLE = "TensorRT-LLM"
CONFIG_FILE = "trtllm-config.yaml"


def command(request: LaunchRequest) -> str:
    """A YAML file and the command of one replica.

    Raises:
        InfeasibleError: attention ranks of more than one GPU (TP and DP both above 1).
    """
    cut = request.deployment.parallelism
    if cut.dp > 1 and cut.tp > 1:
        raise InfeasibleError(
            f"TensorRT-LLM has no attention ranks of several GPUs (TP {cut.tp} × DP {cut.dp}); "
            f"use TP 1 × DP {cut.tp * cut.dp} or TP {cut.tp * cut.dp} × DP 1",
            "engine",
        )
    target = view(request, TITLE)
    lines = [*header(request), *target.comments]
    if request.num_nodes > 1:
        lines.append(
            f"# One replica spans {request.num_nodes} machines: start it with srun or mpirun, one task per GPU."
        )
        words = ["trtllm-llmapi-launch", "trtllm-serve", request.deployment.model]
    else:
        words = ["trtllm-serve", request.deployment.model]
    lines += [f"cat > {CONFIG_FILE} <<'YAML'", *_config(request, target), "YAML"]
    return "\n".join([*lines, join_command(words, options(request, target))])


def num_gpus(request: LaunchRequest) -> int:
    """GPUs that the command takes: ``tp_size × pp_size``."""
    cut = request.deployment.parallelism
    return cut.tp * cut.dp * cut.pp


def options(request: LaunchRequest, target: TargetView) -> list[Sequence[str]]:
    """The flags, one sequence of words each."""
    cut, settings = request.deployment.parallelism, target.settings
    found: list[Sequence[str]] = [
        ["--backend", "_autodeploy" if target.model_note else "pytorch"],
        ["--tp_size", str(cut.tp * cut.dp)],
    ]
    if cut.pp > 1:
        found.append(["--pp_size", str(cut.pp)])
    if cut.ep > 1:
        found.append(["--ep_size", str(cut.ep)])
    values = {
        "--max_batch_size": settings.max_num_seqs,
        "--max_num_tokens": settings.max_num_batched_tokens,
        "--max_seq_len": settings.max_model_len,
        "--kv_cache_free_gpu_memory_fraction": settings.gpu_memory_utilization,
    }
    found += [[flag, str(value)] for flag, value in values.items() if value is not None]
    found.append(["--extra_llm_api_options", CONFIG_FILE])
    found += [["--host", "0.0.0.0"], ["--port", str(request.port)]]
    return found


def _config(request: LaunchRequest, target: TargetView) -> list[str]:
    """Lines of the YAML file: what has no flag."""
    deployment, settings = request.deployment, target.settings
    lines = [f"enable_attention_dp: {'true' if deployment.parallelism.dp > 1 else 'false'}"]
    if deployment.precision in ("fp16", "bf16"):
        lines.append(f"dtype: {'float16' if deployment.precision == 'fp16' else 'bfloat16'}")
    lines += [f"enable_chunked_prefill: {'true' if _cuts_prompts(deployment) else 'false'}", "kv_cache_config:"]
    kv_dtype = "fp8" if deployment.kv_precision == "fp8" else "auto"
    lines += [f"  dtype: {kv_dtype}", f"  tokens_per_block: {settings.block_size}"]
    if settings.num_kv_blocks is not None:
        lines.append(f"  max_tokens: {settings.num_kv_blocks * target.block_size}")
    if deployment.settings.options.get("enable_block_reuse") is False:
        lines.append("  enable_block_reuse: false")
    return lines


def _cuts_prompts(deployment: Deployment) -> bool:
    """As planned: TensorRT-LLM leaves prompts whole unless told; what was planned for another engine cuts them."""
    default = deployment.engine.partition("@")[0] != "trtllm"
    return bool(deployment.settings.options.get("enable_chunked_context", default))
