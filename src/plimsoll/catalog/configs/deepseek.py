"""DeepSeek V2, V3, R1, V3.1, V3.2, and Kimi K2, GLM-5 and Mistral Large 3 which copy them.

Latent attention, routed and shared experts. Mistral Large 3 has no score-correction bias, as its tensors' names show.

Layers may share an indexer (GLM-5.2, IndexShare, https://arxiv.org/abs/2603.12201): one that is ``shared`` attends to
what the nearest ``full`` layer before it selected, and has neither an indexer's weights nor its keys.

Multi-token-prediction layers (`num_nextn_predict_layers`) are not counted.
Source: modeling_deepseek_v2.py and modeling_deepseek_v3.py of Hugging Face transformers; the indexer of V3.2:
inference/model.py of huggingface.co/deepseek-ai/DeepSeek-V3.2-Exp; shared indexers:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/glm_moe_dsa/configuration_glm_moe_dsa.py
(read 2026-11-20).
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import ChannelMixer, DenseMlp, LatentAttention, ModelSpec
from plimsoll.catalog.configs._decoder import Layer, frame, group_layers
from plimsoll.catalog.configs._experts import grouped_experts
from plimsoll.catalog.configs._fields import Fields

_SPARSE = frozenset(("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"))
_UNCORRECTED = frozenset(("DeepseekV2ForCausalLM", "MistralLarge3ForCausalLM"))
ARCHITECTURES = ("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration", *sorted(_UNCORRECTED), *sorted(_SPARSE))


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    mixer = _latent_attention(fields, sparse=architecture in _SPARSE)
    selecting = dataclasses.replace(mixer, index_heads=0, index_head_dim=0)
    indexed = _own_indexer(fields) if architecture in _SPARSE else [True] * fields.layers()
    norms = 2 * fields.size("hidden_size")
    dense = DenseMlp(intermediate_size=fields.size("intermediate_size"))
    experts: ChannelMixer = dense
    if fields.has("n_routed_experts"):
        corrected = fields.text("topk_method") == "noaux_tc" or architecture not in _UNCORRECTED
        experts = grouped_experts(fields, correction_bias=corrected)
    num_dense = fields.size("first_k_dense_replace", default=0, least=0)
    step = fields.size("moe_layer_freq", default=1)
    layers: list[Layer] = [
        (
            mixer if indexed[layer] else selecting,
            experts if layer >= num_dense and layer % step == 0 else dense,
            norms,
        )
        for layer in range(fields.layers())
    ]
    return frame(fields, group_layers(layers), tied=False)


def _own_indexer(fields: Fields) -> list[bool]:
    """Whether each layer has an indexer of its own: the list of types, else the pattern, else every n-th, else all."""
    num_layers = fields.layers()
    types, kinds = fields.texts("indexer_types", num_layers), ("full", "shared")
    name = "indexer_types"
    if types is None and fields.has("index_topk_pattern"):
        name, kinds = "index_topk_pattern", ("F", "S")
        types = tuple(fields.text(name)) if fields.is_text(name) else fields.texts(name)
    if types is None:
        every = fields.size("index_topk_freq", default=1)
        offset = fields.size("index_skip_topk_offset", default=2, least=0)
        if offset == 0 and every > 1:
            raise fields.fail("index_skip_topk_offset", 0, "write at least 1: the first layer has none to share")
        return [max(layer - offset + 1, 0) % every == 0 for layer in range(num_layers)]
    if len(types) != num_layers or set(types) - {*kinds} or types[0] != kinds[0]:
        remedy = f"write {kinds[0]} or {kinds[1]} for each of the {num_layers} layers, the first {kinds[0]}"
        raise fields.fail(name, "".join(types) if name != "indexer_types" else list(types), remedy)
    return [kind == kinds[0] for kind in types]


def _latent_attention(fields: Fields, *, sparse: bool) -> LatentAttention:
    return LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.size("v_head_dim"),
        index_heads=fields.size("index_n_heads") if sparse else 0,
        index_head_dim=fields.size("index_head_dim") if sparse else 0,
        index_topk=fields.size("index_topk") if sparse else 0,
    )
