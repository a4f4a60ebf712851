"""Layers whose memory is a state of fixed size: how many parameters and state elements they have."""

from __future__ import annotations

from plimsoll.catalog.architecture import StateSpace
from plimsoll.catalog.configs._fields import Fields


def state_bytes(fields: Fields) -> int:
    """Bytes of an element of the recurrent state: float32 where the config wants it, else 16 bit."""
    wanted = fields.text("mamba_ssm_cache_dtype") or fields.text("mamba_ssm_dtype")
    return 4 if wanted == "float32" else 2


def mamba2(fields: Fields, *, heads: int, head_dim: int, groups: int, state: int, kernel: int) -> StateSpace:
    """Mamba-2: one projection in, a causal convolution, a scalar decay per head, a gated norm, one projection out."""
    hidden, inner = fields.size("hidden_size"), heads * head_dim
    conv_width = inner + 2 * groups * state
    conv_bias = conv_width if fields.flag("use_conv_bias", True) else 0
    bias = fields.flag("use_bias", False) or fields.flag("mamba_proj_bias", False)
    projection_bias = inner + conv_width + heads + hidden if bias else 0
    return StateSpace(
        kind="mamba2",
        projection_params=hidden * (inner + conv_width + heads) + inner * hidden,
        other_params=conv_width * kernel + conv_bias + 3 * heads + inner + projection_bias,
        state_elements=heads * head_dim * state,
        conv_elements=conv_width * (kernel - 1),
        state_bytes_per_element=state_bytes(fields),
    )


def gated_delta_net(fields: Fields) -> StateSpace:
    """The gated delta net of Qwen3-Next: a matrix of keys by values per value head, after a causal convolution."""
    hidden = fields.size("hidden_size")
    key_heads, value_heads = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    key_dim, value_dim = fields.size("linear_key_head_dim"), fields.size("linear_value_head_dim")
    kernel = fields.size("linear_conv_kernel_dim", most=64)
    keys, values = key_heads * key_dim, value_heads * value_dim
    conv_width = 2 * keys + values
    return StateSpace(
        kind="gated_delta_net",
        projection_params=hidden * (2 * keys + 2 * values + 2 * value_heads) + values * hidden,
        other_params=conv_width * kernel + 2 * value_heads + value_dim,
        state_elements=value_heads * key_dim * value_dim,
        conv_elements=conv_width * (kernel - 1),
        state_bytes_per_element=state_bytes(fields),
    )


def delta_attention(fields: Fields, linear: Fields) -> StateSpace:
    """The delta attention of Kimi Linear: a gated delta net whose decay is per channel, its gates of low rank.

    The state is kept in float32, as vLLM's MambaStateDtypeCalculator.kda_state_dtype has it.
    """
    hidden = fields.size("hidden_size")
    heads, head_dim = linear.size("num_heads"), linear.size("head_dim")
    kernel = linear.size("short_conv_kernel_size", default=4, most=64)
    width = heads * head_dim
    gates = 2 * (hidden * head_dim + head_dim * width)
    return StateSpace(
        kind="delta_attention",
        projection_params=4 * hidden * width + gates + hidden * heads,
        other_params=3 * width * kernel + width + heads + head_dim,
        state_elements=heads * head_dim * head_dim,
        conv_elements=3 * width * (kernel - 1),
        state_bytes_per_element=4,
    )


def mamba1(fields: Fields) -> StateSpace:
    """Mamba as Jamba has it: a state per channel, with norms on the step, input and output vectors."""
    hidden = fields.size("hidden_size")
    inner = fields.size("mamba_expand", default=2) * hidden
    state, kernel = fields.size("mamba_d_state", default=16), fields.size("mamba_d_conv", default=4, most=64)
    rank = fields.size("mamba_dt_rank", default=-(-hidden // 16))
    conv_bias = inner if fields.flag("mamba_conv_bias", True) else 0
    projection_bias = 2 * inner + hidden if fields.flag("mamba_proj_bias", False) else 0
    return StateSpace(
        kind="mamba1",
        projection_params=hidden * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden,
        other_params=inner * kernel + conv_bias + inner + inner * state + inner + rank + 2 * state + projection_bias,
        state_elements=inner * state,
        conv_elements=inner * (kernel - 1),
        state_bytes_per_element=state_bytes(fields),
    )


def lightning_attention(fields: Fields, *, heads: int, head_dim: int) -> StateSpace:
    """The linear attention of MiniMax-Text-01: a square state per head, a norm and a gate on the output."""
    hidden, width = fields.size("hidden_size"), heads * head_dim
    return StateSpace(
        kind="lightning_attention",
        projection_params=hidden * 3 * width + width * hidden + hidden * width,
        other_params=width,
        state_elements=heads * head_dim * head_dim,
        conv_elements=0,
        # vLLM keeps it in the model's own type (MambaStateDtypeCalculator.linear_attention_state_dtype).
        state_bytes_per_element=2,
    )
