"""Messages between the cards of a profiled machine: by the ``machines.json`` above it, else the catalogue.

On a described machine messages go around a ring, as NCCL's do, with one exception: two cards sum what is shorter than
`ONE_SHOT_BELOW_BYTES` by vLLM's own kernel, in which each reads the other's memory once.

    ring       rank 0 ══half══► rank 1, sum, ══half══► back        2 hops
    one shot   each reads all that the other has, and sums         1 hop, the same bytes on the link

Where the file holds what such messages were measured to take (`Measured`), or others measured cards like these on links
of that bandwidth (`measured_links`), that takes the ring's place.

Around the experts data-parallel ranks gather rows, expert numbers and their weights, and scatter sums of rows (vLLM
v0.19.0, ``distributed/device_communicators/all2all.py``, `AgRsAll2AllManager`; expert numbers and weights are 4 bytes
each). Unequal shares go as one broadcast and one sum per rank (``pynccl.py``, `all_gatherv`, `reduce_scatterv`).
NOTE: these are counted like equal shares of the same total, which is what they take where the two directions of a link
share what it carries; where each direction is a link of its own, the largest share counts, up to twice as much.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.perf.collectives import find_link, message_cost
from plimsoll.perf.profiles.curves import Curve
from plimsoll.perf.profiles.measured_links import measured_between

SEARCHED_PARENTS = 7  # from …/profiles/GPU/ORGANISATION/MODEL/PRECISION/tpN up to the folder that holds machines.json
ELEMENT_BYTES = 2
ROUTING_BYTES = 8  # number and weight of one expert that a token uses
ONE_SHOT_RANKS = 2
ONE_SHOT_BELOW_BYTES = 8 * 2**20
"""vLLM at 00d618a, ``distributed/device_communicators/custom_all_reduce.py``: `max_size` 8192·1024, two ranks, any link
(more only where NVLink connects all of them), and ``csrc/custom_all_reduce.cuh``: two ranks take
`cross_device_reduce_1stage`. Off where the server was told `disable_custom_all_reduce`.
NOTE: it needs access from card to card (P2P), of which a ``machines.json`` does not tell; a server without it takes
the ring.
"""
_HOPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """``fixed_s + s_per_byte · message``, the message being what one rank holds after (or before) it."""

    fixed_s: float
    s_per_byte: float

    def of(self, num_bytes: float) -> float:
        """Seconds of one message."""
        return self.fixed_s + self.s_per_byte * num_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of one kind of message as somebody measured them, on straight lines between.

    Attributes:
        curve: over the bytes that the measurement names: the whole message of a sum, one rank's share of the others.
        share: that part of a whole message.
    """

    curve: Curve
    share: float

    def of(self, num_bytes: float) -> float:
        """Seconds of one message."""
        return self.curve.at(num_bytes * self.share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Bandwidth and latency of one link of a ring.

    Attributes:
        bytes_per_s: one direction.
        latency_s: of one hop.
        origin: the file.
        measured: seconds by kind of message, among `measured_ranks` cards.
        measured_ranks: 0 where nothing was measured.
    """

    bytes_per_s: float
    latency_s: float
    origin: str
    measured: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    measured_ranks: int = 0


def find_machine(folder: Path, gpu: Accelerator) -> Machine | None:
    """The entry of `gpu` in the next ``machines.json`` above `folder`; None where there is none.

    Raises:
        InputError: a file that cannot be read, or figures that are no bandwidth, latency or measurement.
    """
    for parent in [folder, *folder.resolve().parents][:SEARCHED_PARENTS]:
        file = parent / "machines.json"
        if file.is_file():
            return _read_machine(file, gpu)
    return None


def _plain(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())


def _read_machine(file: Path, gpu: Accelerator) -> Machine | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(str(file), str(error), "write valid JSON") from error
    names = {_plain(name) for name in (gpu.id, gpu.name, *gpu.aliases)}
    for name, entry in document.items() if isinstance(document, dict) else ():
        if _plain(name) in names and isinstance(entry, dict):
            bandwidth, latency = entry.get("link_bandwidth_bytes_per_s"), entry.get("link_latency_s")
            if not (isinstance(bandwidth, int | float) and isinstance(latency, int | float)):
                raise InputError(f"{file}, {name}", entry, "write link_bandwidth_bytes_per_s and link_latency_s")
            if not (bandwidth > 0 and latency >= 0):
                raise InputError(f"{file}, {name}", entry, "write a bandwidth above 0 and a latency from 0")
            ranks, curves = _read_measured(f"{file}, {name}, collectives", entry.get("collectives"))
            origin = file.name
            if not ranks:
                ranks, curves = measured_between(gpu.id, bandwidth)
                origin = f"{file.name}, messages as measured between {ranks} {gpu.id}" if ranks else file.name
            return Machine(
                bytes_per_s=float(bandwidth),
                latency_s=float(latency),
                origin=origin,
                measured=curves,
                measured_ranks=ranks,
            )
    return None


def _read_measured(field: str, table: Any) -> tuple[int, Mapping[str, Curve]]:
    """``{"ranks": 2, "all_gather": {"10240": 1.5e-5, …}, …}``: cards, and seconds by bytes of every kind."""
    if table is None:
        return 0, {}
    if not isinstance(table, dict):
        raise InputError(field, table, "write ranks, and seconds by bytes for every kind of message")
    ranks, curves = table.get("ranks"), dict[str, Curve]()
    if not isinstance(ranks, int) or ranks < 2:
        raise InputError(f"{field}, ranks", ranks, "write the number of cards, from 2")
    for kind in _HOPS:
        if kind not in table:
            continue
        try:
            samples = {int(num_bytes): float(seconds) for num_bytes, seconds in table[kind].items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{field}, {kind}", str(error), "write seconds by bytes") from error
        if not samples or not all(num_bytes > 0 and 0 < s < math.inf for num_bytes, s in samples.items()):
            raise InputError(f"{field}, {kind}", table[kind], "write bytes and seconds above 0")
        curves[kind] = Curve.of(samples)
    return ranks, curves


def cost_of(kind: str, ranks: int, gpu: Accelerator, machine: Machine | None) -> Cost | Measured:
    """What a message of `kind` (``all_reduce``, ``all_gather``, ``reduce_scatter``) costs `ranks` cards.

    On a described machine that of a ring, unless it was measured among as many cards: an all-reduce takes
    ``2(ranks - 1)`` hops of ``1/ranks`` of the message.
    """
    if ranks <= 1:
        return Cost(fixed_s=0.0, s_per_byte=0.0)
    if machine is None:
        fixed_s, s_per_byte = message_cost(kind, ranks, find_link(gpu, ranks))
        return Cost(fixed_s=fixed_s, s_per_byte=s_per_byte)
    if ranks == machine.measured_ranks and kind in machine.measured:
        return Measured(curve=machine.measured[kind], share=1.0 if kind == "all_reduce" else 1 / ranks)
    hops = _HOPS[kind] * (ranks - 1)
    return Cost(fixed_s=hops * machine.latency_s, s_per_byte=hops / ranks / machine.bytes_per_s)


def one_shot_cost(ranks: int, machine: Machine | None) -> Cost | None:
    """What a short sum costs `ranks` cards where each reads the other's memory; None where they do not do that.

    A machine that nobody described takes the catalogue's coefficients for messages of every size.
    """
    if ranks != ONE_SHOT_RANKS or machine is None:
        return None
    return Cost(fixed_s=machine.latency_s, s_per_byte=1 / machine.bytes_per_s)


class Messages:
    """What the cards of a replica tell one another in a step.

    Args:
        model, gpu, parallelism: the deployment.
        machine: its links; None takes the catalogue's.
        custom_all_reduce: whether the server sums short messages by its own kernel.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: Accelerator,
        parallelism: Parallelism,
        machine: Machine | None,
        *,
        custom_all_reduce: bool = True,
    ) -> None:
        tp, dp = parallelism.tp, parallelism.dp
        self.any = tp > 1 or dp > 1
        self._row_bytes = model.hidden_size * ELEMENT_BYTES
        self._logit_bytes = model.vocab_size * ELEMENT_BYTES
        moe_layers = sum(group.count for group in model.groups if isinstance(group.mlp, Moe))
        chosen = max((group.mlp.top_k for group in model.groups if isinstance(group.mlp, Moe)), default=0)
        self._dispatched_row_bytes = self._row_bytes + chosen * ROUTING_BYTES
        # Attention and MLP of every layer and the embedding end in a sum over the ranks that share them.
        self._num_reduces = 2 * model.num_layers + 1 - (moe_layers if dp > 1 else 0)
        self._num_exchanges = moe_layers if dp > 1 else 0
        self._reduce = cost_of("all_reduce", tp, gpu, machine)
        self._one_shot = one_shot_cost(tp, machine) if custom_all_reduce else None
        self._logits = cost_of("all_gather", tp, gpu, machine)
        self._gather = cost_of("all_gather", tp * dp, gpu, machine)
        self._scatter = cost_of("reduce_scatter", tp * dp, gpu, machine)

    def of(self, tokens: int, all_tokens: int) -> float:
        """Messages of a step: `tokens` on the data-parallel rank with most, `all_tokens` on all of them."""
        seconds = self._num_reduces * self._reduce_s(tokens * self._row_bytes)
        if self._num_exchanges:
            dispatch_s = self._gather.of(all_tokens * self._dispatched_row_bytes)
            seconds += self._num_exchanges * (dispatch_s + self._scatter.of(all_tokens * self._row_bytes))
        return seconds

    def _reduce_s(self, num_bytes: int) -> float:
        if self._one_shot is not None and num_bytes < ONE_SHOT_BELOW_BYTES:
            return self._one_shot.of(num_bytes)
        return self._reduce.of(num_bytes)

    def of_logits(self, rows: int) -> float:
        """The gathering of the logits of `rows` sequences."""
        return self._logits.of(rows * self._logit_bytes)
