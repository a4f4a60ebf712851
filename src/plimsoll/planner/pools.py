"""Prefill and decode pools: how many machines in each, and the link that KV moves over between them."""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.engine.config import Option
from plimsoll.engine.plugins import list_plugins, load_plugin, option_defaults
from plimsoll.perf.memory import MemoryPlan

CLUSTERS = "plimsoll.engine.clusters"
POOL_NAMES = ("prefill", "decode", "mixed")
DEFAULT_ENGINE = "distserve"
"""What stands for pools where nobody says whose rules hold: decode machines pull KV, as vLLM's and SGLang's do."""

HANDOVER_S = {"volta": 8e-3, "turing": 8e-3, "ampere": 8e-3}
"""Seconds before KV moves that no bandwidth shortens: 8 ms on A100 machines with 200 Gb/s InfiniBand, 5 ms on H100
machines with 400 Gb/s: the constant parts that Splitwise measured (Patel et al., ISCA 2024, section 6.1,
https://arxiv.org/abs/2311.18677). Later architectures get the H100's."""
LATER_HANDOVER_S = 5e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pools:
    """A split of machines into a prefill and a decode pool.

    Attributes:
        prefill, decode: machines in each, at least one.
        engine: whose rules hold, an engine of ``engine/clusters``.

    Raises:
        InputError: a pool without machines.
    """

    prefill: int
    decode: int
    engine: str = DEFAULT_ENGINE

    def __post_init__(self) -> None:
        if self.prefill < 1 or self.decode < 1:
            raise InputError("prefill:decode", f"{self.prefill}:{self.decode}", "give at least one machine to each")

    @property
    def num_machines(self) -> int:
        """Of both pools."""
        return self.prefill + self.decode

    @property
    def text(self) -> str:
        """``3 prefill + 1 decode``."""
        return f"{self.prefill} prefill + {self.decode} decode"


def list_pool_engines() -> tuple[str, ...]:
    """Engines that have pools of their own."""
    return tuple(list_plugins(CLUSTERS))


def parse_split(text: str) -> tuple[int, int] | None:
    """``3:1`` as (prefill, decode) machines; None for ``auto``.

    Raises:
        InputError: neither.
    """
    if text == "auto":
        return None
    prefill, colon, decode = text.partition(":")
    if not (colon and prefill.isdigit() and decode.isdigit() and int(prefill) and int(decode)):
        raise InputError("--split", text, "write machines for prefill and decode, such as 3:1, or auto")
    return int(prefill), int(decode)


def splits_near(num_machines: int, prefill_frac: float, width: int = 1) -> tuple[tuple[int, int], ...]:
    """The splits of so many machines whose prefill share is closest to `prefill_frac`, fewest prefill machines first.

    Args:
        num_machines: at least 2.
        prefill_frac: where the two pools would be equally busy.
        width: how many whole splits to take on either side of it.
    """
    balanced = prefill_frac * num_machines
    low, high = int(balanced) - width + 1, int(balanced) + width
    return tuple(
        (k, num_machines - k) for k in sorted({min(max(n, 1), num_machines - 1) for n in range(low, high + 1)})
    )


def with_pools(
    memory: MemoryPlan, replicas: int, policy: str, model: ModelSpec, gpu: Accelerator, parallelism: Parallelism
) -> tuple[MemoryPlan, int, list[str]]:
    """For an engine with pools: the plan with the link among its options, the machines of all pools, and a note.

    A link moves the KV of one GPU over that GPU's own share of the network (or of NVLink, where all machines of the
    deployment lie in one scale-up domain), all GPUs of a machine side by side. What the user gave stays.

    Raises:
        InputError: a number of machines that cannot be.
    """
    if policy not in list_pool_engines():
        return memory, replicas, []
    defaults = option_defaults(load_plugin(CLUSTERS, policy, "--engine"))
    given = dict(memory.settings.options)
    for name, least in zip(POOL_NAMES, (1, 1, 0), strict=True):
        count_given = given.get(name, least)
        if not isinstance(count_given, int) or count_given < 0:  # the engine itself says what it needs of each
            raise InputError(f"option {name} of {policy}", count_given, f"give at least {least} machines")
    total = sum(int(given.get(name, defaults[name])) for name in POOL_NAMES if name in defaults)
    count = total if replicas == 1 else replicas
    near = count * parallelism.num_gpus <= gpu.scale_up_size
    name, bytes_per_s = gpu.intra_node_link, gpu.intra_node_bytes_per_s
    if not near or not bytes_per_s:
        name, bytes_per_s = gpu.inter_node_link, gpu.inter_node_bytes_per_s or gpu.pcie_bytes_per_s
    bytes_per_token = memory.block_bytes / memory.block_size
    link: dict[str, Option] = {
        "transfer_s_per_token": bytes_per_token / bytes_per_s,
        "transfer_latency_s": HANDOVER_S.get(gpu.architecture, LATER_HANDOVER_S),
        "transfer_layers": model.num_layers,
        "swap_s_per_token": bytes_per_token / gpu.pcie_bytes_per_s,
    }
    options = {**{key: value for key, value in link.items() if key in defaults}, **given}
    settings = dataclasses.replace(memory.settings, options=options)
    note = (
        f"KV moves at {float(options['transfer_s_per_token']) * 1e6:.3g} µs a token over {name or 'the network'}, "
        f"after {float(options['transfer_latency_s']) * 1e3:.3g} ms"
    )
    return dataclasses.replace(memory, settings=settings), count, [note]
