"""What a transformer is made of, as far as time and memory need to know.

A model is a list of layer groups; a group is `count` equal layers, each a token mixer (attention or a state space) and
a channel mixer (dense or mixture of experts). Sizes are those of the unsharded model.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention; `window` bounds what a token can see.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; equal to `num_heads` for MHA, 1 for MQA.
        head_dim: size of a query or key head.
        v_head_dim: size of a value head (as `head_dim` almost everywhere).
        window: sliding or chunked window in tokens; None sees everything.
        bias: whether the Q, K and V projections carry a bias.
        output_bias: whether the output projection carries one.
        qk_norm: parameters of query and key norms per layer (0 where there are none).
        gated: whether the output is gated by a projection as wide as the queries (Qwen3-Next).
        sinks: learned sink logits per head (gpt-oss).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    bias: bool = False
    output_bias: bool = False
    qk_norm: int = 0
    gated: bool = False
    sinks: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA): the cache holds one compressed vector per token, shared by all heads.

    Attributes:
        num_heads: query heads.
        q_lora_rank: rank of the query compression; None projects directly.
        kv_lora_rank: rank of the cached latent.
        qk_nope_head_dim, qk_rope_head_dim: parts of a query and key head without and with rotary positions.
        v_head_dim: size of a value head.
        index_heads, index_head_dim: sparse-attention indexer (DeepSeek-V3.2) of this layer; 0 where it has none.
        index_topk: tokens that an indexer selects, of this layer or (GLM-5.2) of one before it; 0 for all tokens.
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpace:
    """A layer whose memory is a fixed state per sequence: Mamba, Mamba-2, gated delta net, lightning attention.

    Attributes:
        kind: ``mamba2``, ``gated_delta_net``, …, for reports.
        projection_params: weights read per token (all projections of one layer), the matrix work of a token.
        other_params: small weights (convolution, norms, per-head scalars).
        state_elements: elements of the recurrent state of one sequence in one layer.
        conv_elements: elements of the convolution state of one sequence in one layer, kept in 16 bit.
        state_bytes_per_element: of the recurrent state, as the config asks for it (2, or 4 where it wants float32).
    """

    kind: str
    projection_params: int
    other_params: int
    state_elements: int
    conv_elements: int
    state_bytes_per_element: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseMlp:
    """A feed-forward layer: two matrices, or three where it is gated (SwiGLU, GeGLU)."""

    intermediate_size: int
    gated: bool = True
    bias: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moe:
    """A mixture of experts.

    Attributes:
        num_experts: routed experts.
        top_k: routed experts a token uses.
        intermediate_size: width of one routed expert.
        shared_intermediate_size: summed width of the experts that every token uses; 0 where there are none.
        shared_gate: whether the shared expert has a gate of its own (Qwen2-MoE).
        gated: three matrices instead of two.
        bias: whether the experts carry biases (gpt-oss).
        router_bias: parameters per layer beside the router matrix (DeepSeek-V3's correction bias).
        latent_size: width in which routed experts work where it is not the hidden size, else None.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    gated: bool = True
    bias: bool = False
    router_bias: int = 0
    latent_size: int | None = None


Mixer = Attention | LatentAttention | StateSpace
ChannelMixer = DenseMlp | Moe


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """`count` equal layers. Either part may be missing (Nemotron-H alternates layers of one part each).

    Attributes:
        count: how many layers.
        mixer: token mixer.
        mlp: channel mixer.
        norm_params: parameters of all norms in one layer.
    """

    count: int
    mixer: Mixer | None
    mlp: ChannelMixer | None
    norm_params: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How a checkpoint is stored, where it is not plain 16 bit.

    Attributes:
        method: ``fp8``, ``int4`` (AWQ, GPTQ), ``fp4`` (nvfp4, mxfp4), ``int8``, …: one of core.deployment.PRECISIONS.
        bits_per_weight: stored bits per quantised weight, scales included.
        applies_to: ``linear`` (every matrix in the layers), ``mlp`` (feed-forward layers and experts, not the mixers)
            or ``experts`` (routed experts only). Embedding, head, router, norms and biases stay 16 bit.
        name: the checkpoint's own word for it (``awq``, ``mxfp4``, ``compressed-tensors``).
    """

    method: str
    bits_per_weight: float
    applies_to: str
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One language model: its shape, and where that is published.

    Attributes:
        id: catalogue or hub id (``meta-llama/Llama-3.1-8B``).
        architecture: the Hugging Face class that the config names (``LlamaForCausalLM``).
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding.
        max_position: longest sequence that the model was made for.
        tied_embeddings: whether the output head is the embedding.
        learned_positions: rows of a learned position table (OPT), else 0.
        embedding_size: width of the embedding where it is not `hidden_size` (OPT-350M), else None.
        final_norm_params: parameters of the last norm.
        other_params: parameters that fit nowhere else, kept resident and not used per token.
        groups: the layers, in order of first appearance.
        dtype_bits: bits of the plain weights (16, or 32).
        quantisation: of the checkpoint, None for plain weights.
        published_params: what the publisher states, main model only, None where nothing is stated.
        published_active_params: likewise for the parameters a token uses.
        source: where the figures come from.
        date: when they were read, ISO.
        aliases: other names for the same model.
    """

    id: str
    architecture: str
    hidden_size: int
    vocab_size: int
    max_position: int
    tied_embeddings: bool
    groups: tuple[LayerGroup, ...]
    final_norm_params: int
    learned_positions: int = 0
    embedding_size: int | None = None
    other_params: int = 0
    dtype_bits: int = 16
    quantisation: Quantisation | None = None
    published_params: int | None = None
    published_active_params: int | None = None
    source: str = ""
    date: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Transformer layers of all groups."""
        return sum(group.count for group in self.groups)
