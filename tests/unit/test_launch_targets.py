"""Launch commands: what they carry, and that GPU counts agree."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
import yaml

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Deployment, EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, UnknownNameError
from plimsoll.launch import LaunchRequest, list_targets, render, sglang, trtllm
from plimsoll.launch.request import arithmetic

SETTINGS = EngineSettings(
    block_size=16,
    max_num_seqs=256,
    max_num_batched_tokens=4096,
    max_model_len=8192,
    gpu_memory_utilization=0.9,
    num_kv_blocks=1000,
)


def request(
    gpu: str = "H100-SXM",
    model: str = "meta-llama/Llama-3.1-8B",
    engine: str = "vllm-v1",
    precision: str = "bf16",
    kv: str = "auto",
    replicas: int = 1,
    settings: EngineSettings = SETTINGS,
    **cut: int,
) -> LaunchRequest:
    deployment = Deployment(
        model=model,
        gpu=gpu,
        parallelism=Parallelism(**cut),
        replicas=replicas,
        engine=engine,
        precision=precision,
        kv_precision=kv,
        settings=settings,
    )
    return LaunchRequest(deployment=deployment, model=load_model(model), gpu=load_accelerator(gpu))


def words(text: str) -> list[str]:
    """The words of the command, comments and here-documents apart."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    if "YAML" in lines:
        lines = lines[lines.index("YAML") + 1 :]
    return shlex.split("\n".join(lines).replace("\\\n", " "))


def value(text: str, flag: str) -> str:
    found = words(text)
    assert found.count(flag) == 1, f"{flag} in {text}"
    return found[found.index(flag) + 1]


def test_targets_are_found_by_file_name() -> None:
    assert list_targets() == ("kubernetes", "sglang", "trtllm", "vllm")
    with pytest.raises(UnknownNameError, match="vllm"):
        render("vlm", request())


def test_vllm_carries_the_whole_deployment() -> None:
    text = render("vllm", request(precision="fp8", kv="fp8", tp=4, pp=2, replicas=2))
    assert words(text)[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B"]
    expected = {
        "--tensor-parallel-size": "4",
        "--pipeline-parallel-size": "2",
        "--quantization": "fp8",
        "--kv-cache-dtype": "fp8",
        "--max-model-len": "8192",
        "--max-num-batched-tokens": "4096",
        "--max-num-seqs": "256",
        "--gpu-memory-utilization": "0.9",
        "--block-size": "16",
        "--num-gpu-blocks-override": "1000",
        "--served-model-name": "meta-llama/Llama-3.1-8B",
    }
    assert {flag: value(text, flag) for flag in expected} == expected
    assert "# 16 GPUs = 2 replicas × TP 4 × PP 2 (H100-SXM)." in text
    assert "--data-parallel-size" not in text


@pytest.mark.parametrize("engine", ["./my_policy.py", "sarathi-serve"])
@pytest.mark.parametrize("target", ["vllm", "sglang", "trtllm"])
def test_no_server_schedules_as_a_policy_of_its_own_does(target: str, engine: str) -> None:
    said = f"# This server does not schedule as {engine} does: what was planned may not hold."
    assert said in render(target, request(engine=engine)).splitlines()
    assert "does not schedule as" not in render(target, request(engine="vllm-v1"))
    assert "does not schedule as" not in render(target, request(engine="vllm-v1@0.19.0"))


def test_a_manifest_has_no_image_of_a_policy() -> None:
    with pytest.raises(InfeasibleError, match=r"\./my_policy\.py is a scheduling policy, and no server has it"):
        render("kubernetes", request(engine="./my_policy.py"))


def test_vllm_expert_parallelism_and_machines() -> None:
    text = render("vllm", request(model="Qwen/Qwen3-30B-A3B", tp=4, dp=4, ep=16))
    assert "--enable-expert-parallel" in words(text)
    assert value(text, "--data-parallel-size") == "4"
    assert value(text, "--distributed-executor-backend") == "ray"
    assert "spans 2 machines" in text


def test_a_quantised_checkpoint_needs_no_flag_and_another_one_says_what_it_must_be() -> None:
    native = render("vllm", request(gpu="H200", model="deepseek-ai/DeepSeek-R1", precision="fp8", tp=8))
    assert "--quantization" not in words(native)
    assert "--dtype" not in words(native)
    converted = render("vllm", request(precision="int4"))
    assert value(converted, "--quantization") == "awq_marlin"
    assert "# int4: the model must be an AWQ or GPTQ checkpoint." in converted


def test_the_cache_precision_takes_the_gpus_word() -> None:
    assert value(render("vllm", request(gpu="A100-SXM-80GB", kv="fp8")), "--kv-cache-dtype") == "fp8_e5m2"
    assert value(render("sglang", request(kv="fp8", engine="sglang")), "--kv-cache-dtype") == "fp8_e4m3"
    assert value(render("vllm", request(kv="bf16")), "--kv-cache-dtype") == "bfloat16"


def test_options_of_the_policy() -> None:
    options = {"enable_prefix_caching": False, "long_prefill_token_threshold": 512, "house_rule": 3}
    text = render("vllm", request(settings=EngineSettings(options=options)))
    assert "--no-enable-prefix-caching" in words(text)
    assert value(text, "--long-prefill-token-threshold") == "512"
    assert "# vLLM has no flag for: house_rule." in text


@pytest.mark.parametrize("cut", [{"tp": 2}, {"tp": 4, "pp": 2}, {"tp": 2, "dp": 4}, {"dp": 8, "ep": 8}])
def test_sglang_counts_gpus_as_we_do(cut: dict[str, int]) -> None:
    asked = request(model="Qwen/Qwen3-30B-A3B", engine="sglang", **cut)
    text = render("sglang", asked)
    tp_size, found = int(value(text, "--tp-size")), words(text)
    pp_size = int(value(text, "--pp-size")) if "--pp-size" in found else 1
    assert tp_size * pp_size == asked.deployment.parallelism.num_gpus == sglang.num_gpus(asked)
    dp = cut.get("dp", 1)
    assert ("--enable-dp-attention" in found) == (dp > 1)
    assert int(value(text, "--max-running-requests")) == 256 * dp
    assert int(value(text, "--chunked-prefill-size")) == 4096 * dp
    assert value(text, "--context-length") == "8192"


def test_sglang_on_several_machines() -> None:
    text = render("sglang", request(tp=8, pp=2, engine="sglang"))
    assert '--nnodes 2 \\\n  --node-rank "$NODE_RANK"' in text
    assert '--dist-init-addr "$HEAD_ADDRESS"' in text


def test_trtllm_command_and_config() -> None:
    asked = request(engine="trtllm", kv="fp8", tp=4, pp=2)
    text = render("trtllm", asked)
    assert int(value(text, "--tp_size")) * int(value(text, "--pp_size")) == 8 == trtllm.num_gpus(asked)
    assert value(text, "--max_batch_size") == "256"
    assert value(text, "--max_num_tokens") == "4096"
    assert value(text, "--max_seq_len") == "8192"
    assert value(text, "--kv_cache_free_gpu_memory_fraction") == "0.9"
    config = yaml.safe_load(text.split("<<'YAML'\n")[1].split("\nYAML\n")[0])
    assert config["kv_cache_config"] == {"dtype": "fp8", "tokens_per_block": 16, "max_tokens": 16000}
    assert config["enable_attention_dp"] is False


def test_trtllm_starts_a_model_with_the_back_end_that_has_it() -> None:
    assert value(render("trtllm", request(engine="trtllm")), "--backend") == "pytorch"
    text = render("trtllm", request(model="ibm-granite/granite-3.3-8b-instruct", engine="trtllm"))
    assert value(text, "--backend") == "_autodeploy"
    assert "AutoDeploy back end (beta) only" in text
    assert "_autodeploy" not in render("vllm", request(model="ibm-granite/granite-3.3-8b-instruct", engine="trtllm"))


def test_trtllm_attention_ranks() -> None:
    spread = render("trtllm", request(model="Qwen/Qwen3-30B-A3B", engine="trtllm", dp=8, ep=8))
    assert value(spread, "--tp_size") == value(spread, "--ep_size") == "8"
    assert "enable_attention_dp: true" in spread
    with pytest.raises(InfeasibleError, match="TP 1 × DP 8 or TP 8 × DP 1"):
        render("trtllm", request(model="Qwen/Qwen3-30B-A3B", engine="trtllm", tp=2, dp=4))


def test_a_plan_for_another_engine_takes_the_targets_own_memory_share() -> None:
    own = render("sglang", request(engine="sglang"))
    other = render("sglang", request(engine="vllm-v1"))
    assert value(own, "--mem-fraction-static") == "0.9"
    assert value(own, "--max-total-tokens") == "16000"
    assert 0.8 < float(value(other, "--mem-fraction-static")) < 0.9
    assert value(other, "--page-size") == "1"
    assert "--max-total-tokens" not in words(other)
    assert "Planned for vLLM" in other
    assert value(other, "--context-length") == "8192"


def test_kubernetes_manifest() -> None:
    text = render("kubernetes", request(tp=4, replicas=3))
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["spec"]["replicas"] == 3
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"nvidia.com/gpu": "4"}
    assert value(container["args"][0], "--tensor-parallel-size") == "4"
    assert value(container["args"][0], "--max-model-len") == "8192"
    assert value(container["args"][0], "--host") == "0.0.0.0"
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": 8000}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["containerPort"]
    assert deployment["metadata"]["name"] == "llama-3-1-8b"


def test_kubernetes_follows_engine_and_vendor() -> None:
    amd = next(yaml.safe_load_all(render("kubernetes", request(gpu="MI300X", engine="sglang"))))
    container = amd["spec"]["template"]["spec"]["containers"][0]
    assert "amd.com/gpu" in container["resources"]["limits"]
    assert "sglang.launch_server" in container["args"][0]
    with pytest.raises(InfeasibleError, match="LeaderWorkerSet"):
        render("kubernetes", request(tp=8, pp=2))
    with pytest.raises(InfeasibleError, match="no public image"):
        render("kubernetes", request(gpu="TPU-v6e"))


def test_arithmetic() -> None:
    assert arithmetic(request().deployment) == "1 GPU = 1 replica × TP 1"
    assert arithmetic(request(tp=4, replicas=2).deployment) == "8 GPUs = 2 replicas × TP 4"
    moe = request(model="Qwen/Qwen3-30B-A3B", dp=8, ep=8).deployment
    assert arithmetic(moe) == "8 GPUs = 1 replica × TP 1 × DP 8 (experts over EP 8)"


@pytest.mark.parametrize(
    ("engine", "options", "chunked", "reuse"),
    [
        ("trtllm", {}, False, None),
        ("trtllm@1.2", {"enable_chunked_context": True}, True, None),
        ("trtllm", {"enable_block_reuse": False}, False, False),
        ("vllm-v1", {}, True, None),
    ],
)
def test_trtllm_starts_as_it_was_planned(
    engine: str, options: dict[str, bool], chunked: bool, reuse: bool | None
) -> None:
    text = render("trtllm", request(engine=engine, settings=dataclasses.replace(SETTINGS, options=options)))
    config = yaml.safe_load(text.split("<<'YAML'\n")[1].split("\nYAML\n")[0])
    assert config["enable_chunked_prefill"] is chunked
    assert config["kv_cache_config"].get("enable_block_reuse") is reuse
