"""A model whose last layers lie on the GPU and whose first layers lie on the host, as llama.cpp's ``-ngl`` places them.

A step passes through the host's layers, then through the GPU's, one after the other. With few tokens the host computes
its layers itself: it reads their weights and their cache at its memory's speed, or computes at its own, whichever takes
longer. From `OFFLOAD_TOKENS` on the GPU computes them too, and their weights cross the link once for that step. The
hidden states cross the link once each way.

Sources: placement: ``load_tensors`` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp
(``i_gpu_start = n_layer + 1 - n_gpu_layers``: the output layer is the first to go to the GPU, then the last layers; the
embedding stays on the host). The threshold: ``ggml_backend_cuda_device_offload_op`` in ggml-cuda.cu compares an
operation's batch with ``op_offload_min_batch_size``; its default of 32 is from memory of that file. Read 2026-11-20.

NOTE: layers count as alike: a mean layer times their number. What a step costs once (host time, head) is the
GPU's, whole. Attention over the cache of host layers: of decodes on the host, of prompts where the layer is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import weight_bytes_breakdown
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from plimsoll.core.step import AttentionLayers, Line, StepCost, StepShape
from plimsoll.core.units import GB, GIB, TERA
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.roofline import Roofline, RooflineOptions

OFFLOAD_TOKENS = 32
HIDDEN_BYTES = 4
"""Of one element of a hidden state: llama.cpp keeps them in fp32."""
HEADLESS_VOCABULARY = 64
"""The head is the GPU's: so small a vocabulary takes it out of the host's share of a step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """Memory and arithmetic of the machine around the GPU.

    Attributes:
        memory_bytes_per_s, flop_per_s: what its layers run at.
        memory_bytes: for weights and cache of its layers.
        source: assumed, or what the user says.
        reference: where the figures come from.
    """

    memory_bytes_per_s: float
    flop_per_s: float
    memory_bytes: float
    source: Source
    reference: str

    def as_accelerator(self, gpu: Accelerator) -> Accelerator:
        """The host in the form that a roofline takes; arithmetic is the same for every type."""
        return dataclasses.replace(
            gpu,
            id="host",
            memory_bandwidth_bytes_per_s=self.memory_bytes_per_s,
            dense_flop_per_s=dict.fromkeys(gpu.dense_flop_per_s, self.flop_per_s),
        )


@functools.cache
def load_host(name: str = "desktop") -> Host:
    """A host of ``data/hosts.toml``."""
    text = (resources.files("plimsoll.perf") / "data" / "hosts.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)[name]
    return Host(
        memory_bytes_per_s=table["memory_gb_per_s"] * GB,
        flop_per_s=table["tflops"] * TERA,
        memory_bytes=table["memory_gib"] * GIB,
        source=Source.ASSUMED,
        reference=table["source"],
    )


def layers_of(model: ModelSpec, count: int) -> ModelSpec:
    """The model with `count` of its layers, its kinds of layers in their usual mixture as nearly as it can be."""
    total, left, groups = model.num_layers, count, []
    for group in model.groups:
        kept = round(left * group.count / total) if total else 0
        groups.append(dataclasses.replace(group, count=kept))
        total, left = total - group.count, left - kept
    return dataclasses.replace(model, groups=tuple(group for group in groups if group.count))


class HostLayers:
    """A `core.step.StepModel`: some of a model's layers on the GPU, the others on the host.

    Args:
        part: step model of the layers on the GPU, with the head and what a step costs once.
        whole: step model of the whole model on the GPU.
        request: of `whole`.
        gpu_layers: layers of `part`, the output layer not among them.
        host: rates of the host.

    Raises:
        InputError: windows of the layers on the GPU are not in the ratio of the whole model's.
    """

    num_stages = 1

    def __init__(
        self,
        part: DescribedStepModel,
        whole: DescribedStepModel,
        request: StepModelRequest,
        gpu_layers: int,
        host: Host,
    ) -> None:
        model, gpu = request.model, request.gpu
        if part.attention_layers != whole.attention_layers:
            remedy = "its kinds of layers are then no longer in the model's ratio; use another number"
            raise InputError("option gpu_layers of llamacpp", gpu_layers + 1, remedy)
        self._part, self._whole, self._host, self._gpu_layers = part, whole, host, gpu_layers
        self._host_share = 1 - gpu_layers / model.num_layers
        self._all_on_host = Roofline(
            dataclasses.replace(model, vocab_size=HEADLESS_VOCABULARY), host.as_accelerator(gpu), None,
            request.precision, request.kv_precision, options=RooflineOptions(ideal=True),
        )  # fmt: skip
        self._move_weights_s = host_weight_bytes(model, request.precision, gpu_layers) / gpu.pcie_bytes_per_s
        self._move_token_s = 2 * model.hidden_size * HIDDEN_BYTES / gpu.pcie_bytes_per_s

    @property
    def attention_layers(self) -> AttentionLayers:
        """Of the model: the same on both."""
        return self._whole.attention_layers

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        /,
    ) -> float:
        """As `StepModel.step_s`."""
        if not prefill_tokens:
            base_s, per_token_s, _ = self.decode_line(num_decode, decode_read_tokens)
            return base_s + per_token_s * decode_read_tokens
        tokens = prefill_tokens + num_decode
        shape = (prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done)
        moved_s = tokens * self._move_token_s
        if tokens < OFFLOAD_TOKENS:
            host_s = self._all_on_host.step_s(*shape, num_decode, decode_read_tokens)
            return self._part.step_s(*shape, num_decode, decode_read_tokens) + self._host_share * host_s + moved_s
        _, read_s, _ = self._all_on_host.decode_line(num_decode, decode_read_tokens)
        decodes_s = self._host_share * read_s * decode_read_tokens
        return self._whole.step_s(*shape, num_decode, decode_read_tokens) + decodes_s + self._move_weights_s + moved_s

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """As `StepModel.decode_line`."""
        few = num_decode < OFFLOAD_TOKENS
        gpu = self._part if few else self._whole
        base_s, read_s, below = gpu.decode_line(num_decode, decode_read_tokens)
        host_base_s, host_read_s, host_below = self._all_on_host.decode_line(num_decode, decode_read_tokens)
        layers_s = self._host_share * host_base_s if few else self._move_weights_s
        if not num_decode:
            layers_s = 0.0
        base_s += layers_s + num_decode * self._move_token_s
        return base_s, read_s + self._host_share * host_read_s, min(below, host_below)

    def step(self, shape: StepShape, /) -> StepCost:
        """As `StepModel.step`; without energy, because nobody knows the host's."""
        seconds = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        return StepCost(time_s=seconds, energy_j=None, source=self._host.source)

    @property
    def source(self) -> Source:
        """The host's: its rates are the weakest figures here."""
        return self._host.source

    def describe(self) -> dict[str, Any]:
        """What this model is made of; not compared with any run."""
        described = self._whole.describe()
        rates = {"memory_bytes_per_s": self._host.memory_bytes_per_s, "flop_per_s": self._host.flop_per_s}
        return {
            **described,
            "step_model": f"{described['step_model']} with layers on the host",
            "gpu_layers": self._gpu_layers,
            "host": {**rates, "source": self._host.reference},
            "source": str(self.source),
        }


def host_weight_bytes(model: ModelSpec, precision: str, gpu_layers: int) -> float:
    """Weights of the layers that are not on the GPU: mean layers, without embedding and head."""
    parts = weight_bytes_breakdown(model, precision)
    layers = parts.attention_bytes + parts.dense_mlp_bytes + parts.expert_bytes + parts.other_bytes
    return layers * (1 - gpu_layers / model.num_layers)
