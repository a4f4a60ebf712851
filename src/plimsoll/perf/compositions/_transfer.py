"""Cache that a decode fetches from below the GPU, layer by layer, while the layer before computes.

With compute C and transfer X spread evenly over L layers, the first transfer and the last layer's compute stand alone:

    time = X/L + (L − 1)/L · max(C, X) + C/L          without overlap: C + X
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from fractions import Fraction
from importlib import resources
from typing import Any

from plimsoll.catalog.counting import attention_layers
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from plimsoll.core.units import GB, GIB
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._lines import upper
from plimsoll.perf.compositions._port import Options
from plimsoll.perf.compositions._wrapped import Args, Composed
from plimsoll.perf.operators import AttentionWork
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import Line


@functools.cache
def _tiers() -> dict[str, Any]:
    text = resources.files("plimsoll.perf.compositions").joinpath("data", "tiers.toml").read_text("utf-8")
    return tomllib.loads(text)


def tier_bytes_per_s(request: StepModelRequest, tier: str, given_gb_per_s: float) -> float:
    """Bytes per second that one GPU gets from `tier`; `given_gb_per_s` above 0 overrides the data.

    Raises:
        InputError: a tier that is neither ``cpu`` nor ``disk``, or a negative rate.
    """
    if tier not in _tiers():
        raise InputError("tier", tier, f"write one of {', '.join(_tiers())}")
    if given_gb_per_s < 0:
        raise InputError("gb_per_s", given_gb_per_s, "write GB/s above 0, or 0 for the known rate")
    link = request.gpu.pcie_bytes_per_s * _tiers()["cpu"]["link_share"]
    if given_gb_per_s:
        return given_gb_per_s * GB
    if tier == "disk":
        shared = _tiers()["disk"]["read_gb_per_s"] * GB / min(request.parallelism.num_gpus, request.gpu.gpus_per_node)
        return float(min(link, shared))
    return float(link)


def tier_capacity(request: StepModelRequest, tier: str, given_gib: float) -> tuple[float, str]:
    """Bytes of `tier` that one GPU may fill, and where that figure is from; `given_gib` above 0 overrides the data.

    Raises:
        InputError: a tier that is neither ``cpu`` nor ``disk``, or a negative size.
    """
    if tier not in _tiers():
        raise InputError("tier", tier, f"write one of {', '.join(_tiers())}")
    if given_gib < 0:
        raise InputError("capacity_gib", given_gib, "write GiB above 0, or 0 for the usual machine's")
    if given_gib:
        return given_gib * GIB, "as given"
    table = _tiers()[tier]["capacity"]
    known = table.get("gib", {}).get(request.gpu.id)
    if known is not None:
        return float(known) * GIB, f"a GPU's share of the machine that {request.gpu.id} is usually rented in"
    return float(table["default_gib"]) * GIB, table["default_note"]


def resident_share(work: AttentionWork, *, overlap: bool) -> float:
    """Share of a fetched cache that is on the GPU at any time: the layer in use, with overlap the next one, too."""
    return min(1.0, (2.0 if overlap else 1.0) / max(1.0, work.num_layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What moves.

    Attributes:
        read_s: seconds of fetching for one read token of a decode, in the inner model's unit.
        token_s: seconds of storing one new token.
        context_s: seconds of fetching one read token of a prompt chunk.
        num_layers: attention layers that the work is spread over.
        overlap: whether a layer's fetch hides behind the compute of the one before.
    """

    read_s: float
    token_s: float
    context_s: float
    num_layers: float
    overlap: bool

    def joined_s(self, compute_s: float, moved_s: float) -> float:
        """Seconds of both (see the module's text)."""
        if not self.overlap:
            return compute_s + moved_s
        return ((self.num_layers - 1) * max(compute_s, moved_s) + compute_s + moved_s) / self.num_layers


def make_transfer(
    request: StepModelRequest, work: AttentionWork, bytes_per_s: float, shares: tuple[float, float], *, overlap: bool
) -> Transfer:
    """The transfer of a deployment whose decodes fetch ``shares[0]`` of what they attend to.

    ``shares[1]`` of the cache lies away: that much of every new token is stored, and of a chunk's context fetched.
    """
    fetched, away = shares
    token_bytes = work.read_bytes * sum(weight for weight, _ in attention_layers(request.model))
    return Transfer(
        read_s=fetched * work.read_bytes / bytes_per_s,
        token_s=away * token_bytes / bytes_per_s,
        context_s=away * work.read_bytes / bytes_per_s,
        num_layers=max(1.0, work.num_layers),
        overlap=overlap,
    )


class Fetching(Composed):
    """A step model whose decodes fetch their cache from another tier."""

    def __init__(
        self,
        name: str,
        inner: DescribedStepModel,
        options: Options,
        transfer: Transfer,
        read_share: Fraction = Fraction(1),
    ) -> None:
        super().__init__(name, inner, options, source=Source.MODELLED, read_share=read_share)
        self._transfer = transfer

    def _decode_piece(self, num_decode: int, line: Line, begin: int) -> Line:
        if not num_decode:
            return line
        base, slope, below = line
        moved = (self._transfer.token_s * num_decode, self._transfer.read_s)
        if not self._transfer.overlap:
            return base + moved[0], slope + moved[1], below
        layers = self._transfer.num_layers
        piece = upper([(base, slope), moved], begin, below)
        joined = [((layers - 1) * piece[k] + line[k] + moved[k]) / layers for k in (0, 1)]
        return joined[0], joined[1], piece[2]

    def _step_s(self, args: Args) -> float:
        tokens, _, _, context, _, decodes, read = args
        moved = self._transfer
        moved_s = moved.token_s * (tokens + decodes) + moved.context_s * context + moved.read_s * read
        return moved.joined_s(self.inner.step_s(*self._inner_args(args)), moved_s)
