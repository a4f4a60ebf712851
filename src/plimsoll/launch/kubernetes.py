"""A deployment as a Kubernetes manifest: a Deployment of replicas and the Service in front of them.

As in https://docs.vllm.ai/en/latest/deployment/k8s/ (2026-07): GPU limits, shared memory for tensor parallelism, probes
on ``/health`` (``/health`` is also SGLang's and TensorRT-LLM's).
"""

from __future__ import annotations

import importlib
import re

from plimsoll.catalog.engines import load_engine
from plimsoll.core.errors import InfeasibleError, UnknownNameError
from plimsoll.launch.request import LaunchRequest, arithmetic

TITLE = "Kubernetes"
STARTUP_PERIOD_S = 10
STARTUP_TRIES = 360
"""An hour: a large checkpoint is downloaded, loaded, compiled and captured before the first answer."""
_IMAGES = {
    ("vllm", "nvidia"): "vllm/vllm-openai:v{version}",
    ("vllm", "amd"): "rocm/vllm:latest",
    ("sglang", "nvidia"): "lmsysorg/sglang:v{version}",
    ("sglang", "amd"): "lmsysorg/sglang:v{version}-rocm700-mi30x",
    ("trtllm", "nvidia"): "nvcr.io/nvidia/tensorrt-llm/release:{version}",
}
_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "habana.ai/gaudi", "google": "google.com/tpu"}


def command(request: LaunchRequest) -> str:
    """Two YAML documents.

    Raises:
        InfeasibleError: a replica on several machines (that takes a LeaderWorkerSet), or no public image.
    """
    import yaml

    deployment = request.deployment
    if request.num_nodes > 1:
        raise InfeasibleError(
            f"a replica on {request.num_nodes} machines is no plain Kubernetes Deployment; use a LeaderWorkerSet with "
            "the vllm or sglang command, or a cut of one machine",
            "topology",
        )
    documents = [_deployment(request), _service(request)]

    class Dumper(yaml.SafeDumper):
        """Scripts as blocks, so that a reader can read and edit them."""

    def as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, as_block)
    text = "---\n".join(
        yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000) for document in documents
    )
    head = f"# {arithmetic(deployment)} ({deployment.gpu}); Service routing takes the place of {deployment.router}."
    return f"{head}\n{text}"


def _name(request: LaunchRequest) -> str:
    """A name that Kubernetes accepts: lower case, digits and hyphens, at most 50 characters."""
    last = request.deployment.model.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:50].strip("-") or "model"


def _script(request: LaunchRequest, framework: str) -> str:
    """The engine's own command, bound to every interface."""
    target = importlib.import_module(f"plimsoll.launch.{framework}")
    return str(target.command(request)) + (" \\\n  --host 0.0.0.0" if framework == "vllm" else "")


def _probe(request: LaunchRequest, period_s: int, num_tries: int = 1) -> dict[str, object]:
    """An HTTP probe of the server."""
    return {
        "httpGet": {"path": "/health", "port": request.port},
        "periodSeconds": period_s,
        "failureThreshold": num_tries,
    }


def _deployment(request: LaunchRequest) -> dict[str, object]:
    deployment = request.deployment
    try:
        engine = load_engine(deployment.engine)
    except UnknownNameError:
        reason = f"{deployment.engine} is a scheduling policy, and no server has it; use a server's command"
        raise InfeasibleError(reason, "engine") from None
    image = _IMAGES.get((engine.framework, request.gpu_vendor))
    resource = _RESOURCES.get(request.gpu_vendor)
    if image is None or resource is None:
        raise InfeasibleError(
            f"no public image of {engine.framework} for {request.gpu_vendor} is known; "
            f"use the {engine.framework} command",
            "engine",
        )
    name, num_gpus = _name(request), deployment.parallelism.num_gpus
    container = {
        "name": engine.framework,
        "image": image.format(version=engine.version),
        "command": ["/bin/bash", "-c"],
        "args": [_script(request, engine.framework)],
        "ports": [{"containerPort": request.port, "name": "http"}],
        "env": [
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}},
            }
        ],
        "resources": {"requests": {resource: str(num_gpus)}, "limits": {resource: str(num_gpus)}},
        "startupProbe": _probe(request, STARTUP_PERIOD_S, STARTUP_TRIES),
        "readinessProbe": _probe(request, 5),
        "livenessProbe": _probe(request, 10, 3),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": "/root/.cache/huggingface"},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": deployment.replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [container],
                    "volumes": [
                        # Tensor-parallel processes of one pod talk through shared memory.
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(2, 2 * num_gpus)}Gi"}},
                        {"name": "cache", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def _service(request: LaunchRequest) -> dict[str, object]:
    name = _name(request)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": name},
            "type": "ClusterIP",
            "ports": [{"name": "http", "port": 80, "targetPort": request.port, "protocol": "TCP"}],
        },
    }
