"""What a profile keeps of a model: the sizes that its operators were measured at, as plain whole numbers."""

from __future__ import annotations

from plimsoll.catalog.architecture import Attention, DenseMlp, LatentAttention, LayerGroup, ModelSpec, Moe
from plimsoll.core.errors import InputError

PLAIN_NORMS = 2
NOT_PLAIN = {"num_experts": "experts", "kv_lora_rank": "latent attention", "window": "sliding windows"}
Mixer = Attention | LatentAttention


def shape_of(model: ModelSpec) -> dict[str, int]:
    """What a profile keeps of a model to know it again.

    Every model has `hidden_size`, `num_layers`, `num_heads`, `num_kv_heads`, `head_dim`, `intermediate_size` and
    `mlp_matrices` of its dense layers (0 and the experts' where it has none) and `vocab_size`. Only where they apply:

    - `window`, `num_window_layers`: layers that see a window.
    - `num_experts`, `experts_per_token`, `expert_size`, `num_moe_layers`, `shared_size`, `shared_gate`.
    - `q_lora_rank` (0: none), `kv_lora_rank`, `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`: latent attention;
      `num_kv_heads` is 1 then, and `head_dim` that of a query.
    - `qk_norm`: 1 where queries and keys are normed; `norms_per_layer` where there are not two.

    Raises:
        InputError: a model with layers that are not measured: state spaces, sparse or gated attention, latent experts,
            several widths of one kind of layer, several windows; says which.
    """
    unknown = _unknown(model)
    if unknown:
        what = f"`plimsoll profile` and its format know no {unknown}; use the roofline"
        raise InputError("--model", model.id, what)
    mixers = [group.mixer for group in model.groups if isinstance(group.mixer, Mixer)]
    dense = next((group.mlp for group in model.groups if isinstance(group.mlp, DenseMlp)), None)
    moe = next((group.mlp for group in model.groups if isinstance(group.mlp, Moe)), None)
    gated = all(mlp.gated for mlp in (dense, moe) if mlp is not None)
    return {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        **_heads(mixers[0]),
        "intermediate_size": dense.intermediate_size if dense else 0,
        "mlp_matrices": 3 if gated else 2,
        "vocab_size": model.vocab_size,
        **_windows(model),
        **_latent(mixers[0]),
        **(_experts(moe, sum(group.count for group in model.groups if group.mlp == moe)) if moe else {}),
        **_norms(model.groups[0], model.hidden_size, gated=gated),
    }


def plain_shape_of(model: ModelSpec, who: str) -> dict[str, int]:
    """The sizes of a dense model of one kind of layers with full attention, for readers that know no other.

    Args:
        model: catalogue entry.
        who: says what such a reader does, as in ``Vidur's profiles hold``.

    Raises:
        InputError: experts, latent attention or windows; says which.
    """
    shape = shape_of(model)
    found = " and ".join(words for name, words in NOT_PLAIN.items() if name in shape)
    if found:
        raise InputError("--model", model.id, f"{who} no {found}; use `plimsoll profile --backend torch`")
    return shape


def _unknown(model: ModelSpec) -> str:
    """What there is in a model that no profile holds; nothing as a rule."""
    mixers = {_without_window(group.mixer) for group in model.groups}
    dense = {group.mlp for group in model.groups if isinstance(group.mlp, DenseMlp)}
    moes = {group.mlp for group in model.groups if isinstance(group.mlp, Moe)}
    if any(not isinstance(group.mixer, Mixer) for group in model.groups):
        return "layers without attention, or with a state instead of it"
    if any(group.mlp is None for group in model.groups):
        return "layers without a feed-forward part"
    if any(isinstance(mixer, LatentAttention) and mixer.index_topk for mixer in mixers):
        return "sparse attention with an indexer"
    if len(mixers) > 1:
        return "layers whose attention differs in more than its window"
    mixer = model.groups[0].mixer
    if isinstance(mixer, Attention) and mixer.gated:
        return "gated attention"
    if isinstance(mixer, Attention) and mixer.v_head_dim != mixer.head_dim:
        return "value heads of another size than the keys'"
    if len({group.mixer.window for group in model.groups if isinstance(group.mixer, Attention)} - {None}) > 1:
        return "several windows"
    if len(dense) > 1 or len(moes) > 1:
        return "several widths of feed-forward layers"
    if any(moe.latent_size for moe in moes):
        return "experts of another width than the hidden one"
    if len({mlp.gated for mlp in dense} | {mlp.gated for mlp in moes}) > 1:
        return "gated feed-forward layers beside others"
    return ""


def _without_window(mixer: object) -> object:
    if not isinstance(mixer, Attention):
        return mixer
    return (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.v_head_dim, mixer.gated)


def _heads(mixer: Mixer) -> dict[str, int]:
    if isinstance(mixer, LatentAttention):
        head_dim = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
        return {"num_heads": mixer.num_heads, "num_kv_heads": 1, "head_dim": head_dim}
    return {"num_heads": mixer.num_heads, "num_kv_heads": mixer.num_kv_heads, "head_dim": mixer.head_dim}


def _windows(model: ModelSpec) -> dict[str, int]:
    behind = [group for group in model.groups if isinstance(group.mixer, Attention) and group.mixer.window is not None]
    windows = [group.mixer.window for group in behind if isinstance(group.mixer, Attention)]
    if not windows or windows[0] is None:
        return {}
    return {"window": windows[0], "num_window_layers": sum(group.count for group in behind)}


def _latent(mixer: Mixer) -> dict[str, int]:
    if not isinstance(mixer, LatentAttention):
        return {}
    return {
        "q_lora_rank": mixer.q_lora_rank or 0,
        "kv_lora_rank": mixer.kv_lora_rank,
        "qk_nope_head_dim": mixer.qk_nope_head_dim,
        "qk_rope_head_dim": mixer.qk_rope_head_dim,
        "v_head_dim": mixer.v_head_dim,
    }


def _experts(moe: Moe, num_layers: int) -> dict[str, int]:
    return {
        "num_experts": moe.num_experts,
        "experts_per_token": moe.top_k,
        "expert_size": moe.intermediate_size,
        "num_moe_layers": num_layers,
        "shared_size": moe.shared_intermediate_size,
        "shared_gate": int(moe.shared_gate),
    }


def _norms(group: LayerGroup, hidden: int, *, gated: bool) -> dict[str, int]:
    """Gated layers have norms without biases, so that their parameters tell their number."""
    found = {}
    if isinstance(group.mixer, Attention) and group.mixer.qk_norm:
        found["qk_norm"] = 1
    number = group.norm_params // hidden
    if gated and number and number != PLAIN_NORMS:
        found["norms_per_layer"] = number
    return found
