"""DeepSeek V2, V3, R1, V3.1, V3.2, and Kimi K2, GLM-5 and Mistral Large 3 which copy them.

Latent attention, routed and shared experts. Mistral Large 3 has no score-correction bias, as its tensors' names show.

Multi-token-prediction layers (`num_nextn_predict_layers`) are not counted.
Source: modeling_deepseek_v2.py and modeling_deepseek_v3.py of Hugging Face transformers; the indexer of V3.2:
inference/model.py of huggingface.co/deepseek-ai/DeepSeek-V3.2-Exp.
"""

from __future__ import annotations

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
    norms = 2 * fields.size("hidden_size")
    dense = DenseMlp(intermediate_size=fields.size("intermediate_size"))
    experts: ChannelMixer = dense
    if fields.has("n_routed_experts"):
        corrected = fields.text("topk_method") == "noaux_tc" or architecture not in _UNCORRECTED
        experts = grouped_experts(fields, correction_bias=corrected)
    num_dense = fields.size("first_k_dense_replace", default=0, least=0)
    step = fields.size("moe_layer_freq", default=1)
    layers: list[Layer] = [
        (mixer, experts if layer >= num_dense and layer % step == 0 else dense, norms)
        for layer in range(fields.layers())
    ]
    return frame(fields, group_layers(layers), tied=False)


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
