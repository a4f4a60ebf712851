"""Parameters, weight bytes and cache bytes of a model: arithmetic on its `ModelSpec`, nothing measured.

What is quantised. A precision below 16 bit stands for the matrices inside the layers; embedding, output head, router,
norms, biases and convolutions stay 16 bit, as vLLM keeps them. So ``fp8`` on a bf16 checkpoint means one byte per
layer matrix element, whether quantised online or by the publisher. A checkpoint that is quantised already is counted
as stored when it is run at its own precision (`native_precision`); at any other it counts as converted. ``bf16`` on an
fp8 checkpoint is therefore the dequantised copy, twice as large.
"""

from __future__ import annotations

import dataclasses
import math

from plimsoll.catalog.architecture import (
    Attention,
    DenseMlp,
    LatentAttention,
    LayerGroup,
    Mixer,
    ModelSpec,
    Moe,
    Quantisation,
    StateSpace,
)
from plimsoll.core.deployment import PRECISIONS
from plimsoll.core.errors import InputError
from plimsoll.core.step import AttentionLayers

PLAIN_BYTES = 2.0
"""Bytes of a parameter that no quantisation touches: engines load fp32 checkpoints in 16 bit as well."""

_CONVERTED_BITS = {
    "fp16": 16.0,
    "bf16": 16.0,
    "fp8": 8.0,  # scales per tensor or channel: below 0.1 %
    "int8": 8.0,
    "int4": 4.0 + 20 / 128,  # AWQ, GPTQ: groups of 128 with a 16-bit scale and a 4-bit zero
    "fp4": 4.0 + 8 / 16,  # nvfp4: groups of 16 with an 8-bit scale
}
_LINEAR = ("mixer", "mixer_replicated", "dense_mlp", "shared_experts", "routed_experts")
_QUANTISED_PARTS = {
    "linear": frozenset(_LINEAR),
    "mlp": frozenset(("dense_mlp", "shared_experts", "routed_experts")),
    "experts": frozenset(("routed_experts",)),
}
INDEX_SCALE_BYTES = 4
INDEX_SCALE_GROUP = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerParams:
    """Parameters of one layer, apart by how parallelism and quantisation treat them.

    Attributes:
        mixer: attention or state-space matrices that tensor parallelism cuts.
        mixer_replicated: those that every tensor-parallel rank holds whole (down projections of MLA, its indexer).
        dense_mlp: matrices of a dense feed-forward layer.
        shared_experts: matrices of the experts that every token uses.
        routed_experts: matrices of all routed experts.
        router: the router, with what stands beside it. Never quantised.
        small: norms, biases, convolutions, per-head scalars. Never quantised.
    """

    mixer: int = 0
    mixer_replicated: int = 0
    dense_mlp: int = 0
    shared_experts: int = 0
    routed_experts: int = 0
    router: int = 0
    small: int = 0

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        mixers = self.mixer + self.mixer_replicated
        return mixers + self.dense_mlp + self.shared_experts + self.routed_experts + self.router + self.small


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightBytes:
    """Bytes of the weights of the whole, unsharded model, apart by how parallelism cuts them.

    Attributes:
        embedding_bytes: token embedding; where it is tied it is the output head too, and `head_bytes` is 0.
        head_bytes: output head.
        attention_bytes: attention and state-space matrices, cut by tensor parallelism (by heads).
        dense_mlp_bytes: dense feed-forward layers and shared experts, cut by tensor parallelism.
        expert_bytes: routed experts, cut by tensor or by expert parallelism.
        other_bytes: what every tensor-parallel rank holds whole: norms, biases, routers, learned positions, and the
            down projections of MLA.
    """

    embedding_bytes: float
    head_bytes: float
    attention_bytes: float
    dense_mlp_bytes: float
    expert_bytes: float
    other_bytes: float

    @property
    def total_bytes(self) -> float:
        """All weights."""
        layers_bytes = self.attention_bytes + self.dense_mlp_bytes + self.expert_bytes
        return self.embedding_bytes + self.head_bytes + layers_bytes + self.other_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvLayers:
    """`count` layers that cache alike.

    Attributes:
        count: layers.
        elements_per_token: cached elements of one token in one of these layers (unsharded): bytes are these times the
            bytes of a cache element.
        window: tokens beyond which the cache may forget; None keeps all.
        num_kv_heads: heads over which tensor parallelism can spread the cache; 1 for MLA, whose latent is shared by
            all heads, so that every rank holds it whole.
        fixed_bytes_per_token: bytes of one token in one layer whatever the cache precision (indexer keys of sparse
            attention: fp8 with a 4-byte scale per 128, as vLLM stores them), also held whole by every rank.
    """

    count: int
    elements_per_token: int
    window: int | None
    num_kv_heads: int
    fixed_bytes_per_token: int = 0


def layer_params(group: LayerGroup, hidden_size: int) -> LayerParams:
    """Parameters of one layer of `group` in a model of width `hidden_size`."""
    sharded, replicated, small = _mixer_params(group.mixer, hidden_size)
    mlp = _mlp_params(group.mlp, hidden_size)
    return dataclasses.replace(
        mlp, mixer=sharded, mixer_replicated=replicated, small=mlp.small + small + group.norm_params
    )


def _mixer_params(mixer: Mixer | None, hidden: int) -> tuple[int, int, int]:
    """Parameters of a token mixer: cut by tensor parallelism, held whole, small."""
    if mixer is None:
        return 0, 0, 0
    if isinstance(mixer, StateSpace):
        return mixer.projection_params, 0, mixer.other_params
    if isinstance(mixer, LatentAttention):
        return _latent_params(mixer, hidden)
    q_width, k_width = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
    v_width, out_width = mixer.num_kv_heads * mixer.v_head_dim, mixer.num_heads * mixer.v_head_dim
    matrices = hidden * (q_width + k_width + v_width + out_width)
    if mixer.gated:
        matrices += hidden * out_width
    small = mixer.qk_norm + (mixer.num_heads if mixer.sinks else 0)
    small += q_width + k_width + v_width if mixer.bias else 0
    small += hidden if mixer.output_bias else 0
    return matrices, 0, small


def _latent_params(mixer: LatentAttention, hidden: int) -> tuple[int, int, int]:
    q_width = mixer.num_heads * (mixer.qk_nope_head_dim + mixer.qk_rope_head_dim)
    sharded = mixer.kv_lora_rank * mixer.num_heads * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    sharded += hidden * mixer.num_heads * mixer.v_head_dim
    replicated = hidden * (mixer.kv_lora_rank + mixer.qk_rope_head_dim)
    small = mixer.kv_lora_rank
    if mixer.q_lora_rank is None:
        sharded += hidden * q_width
    else:
        sharded += mixer.q_lora_rank * q_width
        replicated += hidden * mixer.q_lora_rank
        small += mixer.q_lora_rank
    if mixer.index_heads:
        index_width = mixer.index_heads * mixer.index_head_dim
        replicated += (mixer.q_lora_rank or hidden) * index_width + hidden * (mixer.index_head_dim + mixer.index_heads)
        small += 2 * mixer.index_head_dim
    return sharded, replicated, small


def _mlp_params(mlp: DenseMlp | Moe | None, hidden: int) -> LayerParams:
    if mlp is None:
        return LayerParams()
    matrices = 3 if mlp.gated else 2
    if isinstance(mlp, DenseMlp):
        biases = (matrices - 1) * mlp.intermediate_size + hidden if mlp.bias else 0
        return LayerParams(dense_mlp=matrices * hidden * mlp.intermediate_size, small=biases)
    width = mlp.latent_size or hidden
    latent = 2 * hidden * width if mlp.latent_size else 0
    return LayerParams(
        shared_experts=matrices * hidden * mlp.shared_intermediate_size + latent,
        routed_experts=mlp.num_experts * matrices * width * mlp.intermediate_size,
        router=hidden * mlp.num_experts + mlp.router_bias + (hidden if mlp.shared_gate else 0),
        small=mlp.num_experts * _expert_biases(mlp, width),
    )


def _expert_biases(moe: Moe, width: int) -> int:
    """Biases of one routed expert."""
    return (2 if moe.gated else 1) * moe.intermediate_size + width if moe.bias else 0


def _embedding_params(spec: ModelSpec) -> int:
    return spec.vocab_size * (spec.embedding_size or spec.hidden_size)


def _frame_params(spec: ModelSpec) -> int:
    """What stands around the layers, without embedding and head."""
    width = spec.embedding_size or spec.hidden_size
    projections = 0 if width == spec.hidden_size else 2 * width * spec.hidden_size
    return spec.learned_positions * spec.hidden_size + spec.final_norm_params + spec.other_params + projections


def num_params(spec: ModelSpec) -> int:
    """Parameters of the main model: a tied head counts once; no vision tower, no multi-token-prediction head."""
    layers = sum(group.count * layer_params(group, spec.hidden_size).total for group in spec.groups)
    return layers + _embedding_params(spec) * (1 if spec.tied_embeddings else 2) + _frame_params(spec)


def active_params(spec: ModelSpec, *, with_embedding: bool = True, with_head: bool = True) -> int:
    """Parameters that one token uses: all but the routed experts it is not sent to.

    Publishers differ in what they leave out: DeepSeek counts all, OpenAI leaves out the embedding of gpt-oss, GLM-4.5
    and MiniMax embedding and output head. A tied embedding is both, and left out only where both are.
    """
    idle = 0
    for group in spec.groups:
        if isinstance(group.mlp, Moe):
            moe, width = group.mlp, group.mlp.latent_size or spec.hidden_size
            expert = (3 if moe.gated else 2) * width * moe.intermediate_size + _expert_biases(moe, width)
            idle += group.count * (moe.num_experts - moe.top_k) * expert
    if spec.tied_embeddings:
        tables = 0 if with_embedding or with_head else 1
    else:
        tables = (not with_embedding) + (not with_head)
    return num_params(spec) - idle - tables * _embedding_params(spec)


def native_precision(spec: ModelSpec) -> str:
    """The precision in which the checkpoint is stored: its quantisation, or ``bf16`` for plain weights."""
    return spec.quantisation.method if spec.quantisation else "bf16"


def stored_quantisation(spec: ModelSpec, precision: str) -> Quantisation:
    """How the weights lie in memory at `precision`.

    Raises:
        InputError: `precision` is none of core.deployment.PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", precision, f"write one of {', '.join(PRECISIONS)}")
    if spec.quantisation is not None and spec.quantisation.method == precision:
        return spec.quantisation
    return Quantisation(
        method=precision, bits_per_weight=_CONVERTED_BITS[precision], applies_to="linear", name=precision
    )


def weight_bytes(spec: ModelSpec, precision: str) -> float:
    """Bytes of all weights of the unsharded model at `precision` (see the module's text)."""
    return weight_bytes_breakdown(spec, precision).total_bytes


def weight_bytes_breakdown(spec: ModelSpec, precision: str) -> WeightBytes:
    """Bytes of the weights by part, unsharded.

    Raises:
        InputError: `precision` is none of core.deployment.PRECISIONS.
    """
    stored = stored_quantisation(spec, precision)
    quantised = _QUANTISED_PARTS[stored.applies_to]
    part_bytes = {
        part: stored.bits_per_weight / 8 if part in quantised else PLAIN_BYTES
        for part in (field.name for field in dataclasses.fields(LayerParams))
    }
    sums = dict.fromkeys(part_bytes, 0.0)
    for group in spec.groups:
        params = layer_params(group, spec.hidden_size)
        for part, bytes_per_param in part_bytes.items():
            sums[part] += group.count * getattr(params, part) * bytes_per_param
    embedding = PLAIN_BYTES * _embedding_params(spec)
    return WeightBytes(
        embedding_bytes=embedding,
        head_bytes=0.0 if spec.tied_embeddings else embedding,
        attention_bytes=sums["mixer"],
        dense_mlp_bytes=sums["dense_mlp"] + sums["shared_experts"],
        expert_bytes=sums["routed_experts"],
        other_bytes=sums["mixer_replicated"] + sums["router"] + sums["small"] + PLAIN_BYTES * _frame_params(spec),
    )


def kv_layers(spec: ModelSpec) -> list[KvLayers]:
    """What the layers cache per token, equal layers together. Layers with a fixed state have no entry."""
    found: dict[KvLayers, int] = {}
    for group in spec.groups:
        mixer = group.mixer
        if isinstance(mixer, Attention):
            entry = KvLayers(
                count=0,
                elements_per_token=mixer.num_kv_heads * (mixer.head_dim + mixer.v_head_dim),
                window=mixer.window,
                num_kv_heads=mixer.num_kv_heads,
            )
        elif isinstance(mixer, LatentAttention):
            entry = KvLayers(
                count=0,
                elements_per_token=mixer.kv_lora_rank + mixer.qk_rope_head_dim,
                window=None,
                num_kv_heads=1,
                fixed_bytes_per_token=index_key_bytes(mixer),
            )
        else:
            continue
        found[entry] = found.get(entry, 0) + group.count
    return [dataclasses.replace(entry, count=count) for entry, count in found.items()]


def index_key_bytes(mixer: LatentAttention) -> int:
    """Bytes of an indexer's key of one token in one layer; 0 where the layer has no indexer."""
    if not mixer.index_heads:
        return 0
    return mixer.index_head_dim + math.ceil(mixer.index_head_dim / INDEX_SCALE_GROUP) * INDEX_SCALE_BYTES


def kv_bytes_per_token(spec: ModelSpec, kv_bytes_per_element: float) -> float:
    """Cache bytes of one token in all layers of the unsharded model, as if no layer had a window."""
    return sum(
        layers.count * (layers.elements_per_token * kv_bytes_per_element + layers.fixed_bytes_per_token)
        for layers in kv_layers(spec)
    )


def state_bytes_per_sequence(spec: ModelSpec) -> float:
    """Bytes of the fixed state that one sequence keeps in all layers without a KV cache; 0 for pure attention."""
    return float(
        sum(
            group.count
            * (group.mixer.state_elements * group.mixer.state_bytes_per_element + group.mixer.conv_elements * 2)
            for group in spec.groups
            if isinstance(group.mixer, StateSpace)
        )
    )


def _read_elements(spec: ModelSpec) -> dict[int | None, int]:
    """Cached elements of one token that attention reads, by the window in which it does; full attention first."""
    by_window: dict[int | None, int] = {}
    for group in spec.groups:
        mixer = group.mixer
        if isinstance(mixer, Attention):
            elements = mixer.num_kv_heads * (mixer.head_dim + mixer.v_head_dim)
            by_window[mixer.window] = by_window.get(mixer.window, 0) + group.count * elements
        elif isinstance(mixer, LatentAttention):
            window = mixer.index_topk or None
            elements = mixer.kv_lora_rank + mixer.qk_rope_head_dim
            by_window[window] = by_window.get(window, 0) + group.count * elements
            if mixer.index_heads:
                # The indexer looks at every key to choose the tokens; its bytes count as 16-bit elements.
                keys = group.count * index_key_bytes(mixer) // 2
                by_window[None] = by_window.get(None, 0) + keys
    return dict(sorted(by_window.items(), key=lambda item: (item[0] is not None, item[0] or 0)))


def attention_layers(spec: ModelSpec) -> AttentionLayers:
    """How the engine folds windows into read tokens (core.step): ``((weight, window or None), …)``.

    Weights are in the ratio of the elements that a cached token has in the layers of each window, divided by their
    greatest common divisor: a model of full attention has ``((1, None),)``. Sparse attention (DeepSeek-V3.2) counts
    its selection as a window of `index_topk`, beside the keys of the indexer, which are all read. Chunked attention
    (Llama 4) counts the chunk as a window, which is what a token sees at most. Empty where no layer caches anything.
    """
    by_window = _read_elements(spec)
    unit = math.gcd(*by_window.values())
    return tuple((elements // unit, window) for window, elements in by_window.items())


def elements_per_read_token(spec: ModelSpec) -> int:
    """Cached elements that one read token of `attention_layers` stands for, all layers, unsharded."""
    return math.gcd(*_read_elements(spec).values())
