"""Commands for prefill and decode pools: the target's own command for a machine of each, and what goes in front.

Flags as in https://docs.vllm.ai/en/latest/features/nixl_connector_usage/ and
https://docs.sglang.io/advanced_features/pd_disaggregation.html (2026-07).
"""

from __future__ import annotations

import dataclasses
import shlex

from plimsoll import launch
from plimsoll.core.errors import InfeasibleError
from plimsoll.planner.pools import Pools

_EXTRA: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm": {
        "prefill": ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_producer"}'),
        "decode": ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'),
    },
    "sglang": {
        "prefill": ("--disaggregation-mode", "prefill", "--disaggregation-transfer-backend", "nixl"),
        "decode": ("--disaggregation-mode", "decode", "--disaggregation-transfer-backend", "nixl"),
    },
}
_FRONT = {
    "vllm": (
        "# Each server on one host needs a port and a VLLM_NIXL_SIDE_CHANNEL_PORT of its own. In front of all goes a",
        "# proxy that sends each request to a prefill and then to a decode server; vLLM's repository has an example:",
        "# python tests/v1/kv_connector/nixl_integration/toy_proxy_server.py --prefiller-hosts … --decoder-hosts …",
    ),
    "sglang": (
        "# In front of all, with the address of every server:",
        "# python -m sglang_router.launch_router --pd-disaggregation --prefill http://… --decode http://…",
    ),
}


def pool_command(target: str, request: launch.LaunchRequest, pools: Pools) -> str:
    """The commands of both pools for `target`, with how often to run each.

    Raises:
        InfeasibleError: no commands are written for pools on that target.
    """
    if target not in _EXTRA:
        known = ", ".join(_EXTRA)
        raise InfeasibleError(f"commands for prefill and decode pools are written for {known} only", "engine")
    parts = [f"# {pools.text}; planned by the rules of {pools.engine}."]
    for name, count in (("prefill", pools.prefill), ("decode", pools.decode)):
        settings = dataclasses.replace(request.deployment.settings, options={})
        machine = dataclasses.replace(request.deployment, replicas=1, settings=settings)
        text = launch.render(target, dataclasses.replace(request, deployment=machine))
        times = "once" if count == 1 else f"{count} times, each on GPUs of its own"
        parts.append(f"# The {name} pool: run this {times}.\n{text} \\\n  {shlex.join(_EXTRA[target][name])}")
    return "\n".join([*parts, *_FRONT[target]])
