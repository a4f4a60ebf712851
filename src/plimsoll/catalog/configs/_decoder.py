"""What the families share: grouping equal layers, attention from the usual fields, and the frame around the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from plimsoll.catalog.architecture import Attention, ChannelMixer, DenseMlp, LayerGroup, Mixer, ModelSpec
from plimsoll.catalog.configs._fields import LARGEST_POSITION, Fields
from plimsoll.catalog.configs._quantisation import read_quantisation

Layer = tuple[Mixer | None, ChannelMixer | None, int]
"""Token mixer, channel mixer, parameters of the norms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """Where the plain pre-norm decoders differ. Biases are defaults: `attention_bias` and `mlp_bias` override them.

    Attributes:
        qkv_bias: biases on query, key and value projections.
        output_bias: bias on the output projection; None: as `qkv_bias`.
        mlp_bias: biases in the feed-forward layer.
        gated: SwiGLU or GeGLU, rather than two matrices.
        norms: norms of one layer.
        norm_vectors: vectors of one norm: 1 for RMSNorm, 2 for LayerNorm with a bias.
        qk_norm: norms over a head's queries and keys, one vector of `head_dim` each.
        wide_qk_norm: norms over all heads' queries and all heads' keys together, with a weight for each channel.
        tied: what a missing `tie_word_embeddings` means.
        bias_fields: whether the config's `attention_bias` and `mlp_bias` are heeded.
        windows: whether a `sliding_window` without further fields holds for every layer (Mistral, Phi-3).
    """

    qkv_bias: bool = False
    output_bias: bool | None = None
    mlp_bias: bool = False
    gated: bool = True
    norms: int = 2
    norm_vectors: int = 1
    qk_norm: bool = False
    wide_qk_norm: bool = False
    tied: bool = False
    bias_fields: bool = True
    windows: bool = False


def group_layers(layers: Iterable[Layer]) -> tuple[LayerGroup, ...]:
    """Equal layers together, in order of first appearance."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(
        LayerGroup(count=count, mixer=mixer, mlp=mlp, norm_params=norm_params)
        for (mixer, mlp, norm_params), count in counts.items()
    )


def layer_windows(fields: Fields, num_layers: int, *, everywhere: bool) -> list[int | None]:
    """The window of each layer, from `layer_types` where that is there, else `sliding_window` in all or none.

    A window as long as the longest sequence is none.
    """
    window = fields.optional_size("sliding_window", least=0, most=LARGEST_POSITION) or None
    longest = fields.optional_size("max_position_embeddings", most=LARGEST_POSITION)
    if window is not None and longest is not None and window >= longest:
        window, everywhere = None, False
    types = fields.texts("layer_types", num_layers)
    if types is not None:
        if "sliding_attention" in types and not fields.has("sliding_window"):
            raise fields.fail("sliding_window", None, "layer_types names sliding_attention, so a window is needed")
        return [window if kind == "sliding_attention" else None for kind in types]
    if not everywhere or not fields.flag("use_sliding_window", True):
        return [None] * num_layers
    return [window] * num_layers


def every_nth_is_full(fields: Fields, period: int) -> Fields:
    """The config, with `layer_types` filled in where it is missing: windows but for every `period`-th layer."""
    if fields.has("layer_types"):
        return fields
    types = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(fields.layers())]
    return fields.with_defaults({"layer_types": types})


def attention(fields: Fields, traits: Traits, window: int | None = None) -> Attention:
    """Attention from the usual fields; `head_dim` defaults to the hidden size over the heads."""
    heads = fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim", "attention_head_dim")
    if head_dim is None:
        head_dim = fields.size("hidden_size") // heads
        if head_dim == 0:
            raise fields.fail("num_attention_heads", heads, "there are more heads than hidden units")
    kv_heads = fields.size("num_key_value_heads", default=heads)
    check_heads(fields, heads, kv_heads)
    bias = fields.flag("attention_bias", traits.qkv_bias) if traits.bias_fields else traits.qkv_bias
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=fields.size("v_head_dim", default=head_dim),
        window=window,
        bias=bias,
        output_bias=bias if traits.output_bias is None else traits.output_bias,
        qk_norm=_qk_norm_params(traits, heads + kv_heads, head_dim),
    )


def _qk_norm_params(traits: Traits, num_heads: int, head_dim: int) -> int:
    """Parameters of the norms of queries and keys of one layer that has `num_heads` query and key heads in all."""
    if traits.wide_qk_norm:
        return num_heads * head_dim
    return 2 * head_dim if traits.qk_norm else 0


def check_heads(fields: Fields, heads: int, kv_heads: int) -> None:
    """Refuse key-value heads that do not divide the query heads."""
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", kv_heads, f"it must divide the {heads} query heads")


def dense_mlp(fields: Fields, traits: Traits) -> DenseMlp:
    """The feed-forward layer from `intermediate_size`."""
    bias = fields.flag("mlp_bias", traits.mlp_bias) if traits.bias_fields else traits.mlp_bias
    return DenseMlp(intermediate_size=fields.size("intermediate_size"), gated=traits.gated, bias=bias)


def norm_params(fields: Fields, traits: Traits) -> int:
    """Parameters of all norms of one layer."""
    return traits.norms * traits.norm_vectors * fields.size("hidden_size")


def frame(
    fields: Fields, groups: tuple[LayerGroup, ...], *, tied: bool, norm_vectors: int = 1, vocab_size: int | None = None
) -> ModelSpec:
    """The model around its layers: embedding, head, last norm, positions, quantisation.

    Args:
        fields: the config.
        groups: the layers.
        tied: what a missing `tie_word_embeddings` means.
        norm_vectors: vectors of the last norm.
        vocab_size: where the config does not say it under that name.
    """
    hidden = fields.size("hidden_size")
    dtype = fields.text("torch_dtype") or fields.text("dtype") or "bfloat16"
    return ModelSpec(
        id="",
        architecture="",
        hidden_size=hidden,
        vocab_size=vocab_size or fields.size("vocab_size"),
        max_position=fields.size(
            "max_position_embeddings", "seq_length", "n_positions", default=2048, most=LARGEST_POSITION
        ),
        tied_embeddings=fields.flag("tie_word_embeddings", tied),
        groups=groups,
        final_norm_params=norm_vectors * hidden,
        dtype_bits=32 if dtype == "float32" else 16,
        quantisation=read_quantisation(fields),
    )


def read_decoder(
    fields: Fields, traits: Traits, mlp_of_layer: Callable[[int], ChannelMixer] | None = None
) -> ModelSpec:
    """A plain pre-norm decoder: attention and a feed-forward layer in every layer.

    Args:
        fields: the config.
        traits: where this family differs.
        mlp_of_layer: the channel mixer of each layer; None: dense from `intermediate_size`.
    """
    num_layers = fields.layers()
    norms = norm_params(fields, traits)
    if mlp_of_layer is None:
        dense = dense_mlp(fields, traits)
        mlp_of_layer = lambda _layer: dense  # noqa: E731
    windows = layer_windows(fields, num_layers, everywhere=traits.windows)
    by_window = {window: attention(fields, traits, window) for window in set(windows)}
    layers = [(by_window[window], mlp_of_layer(layer), norms) for layer, window in enumerate(windows)]
    return frame(fields, group_layers(layers), tied=traits.tied, norm_vectors=traits.norm_vectors)
