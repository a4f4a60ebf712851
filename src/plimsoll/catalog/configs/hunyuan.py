"""Hunyuan, dense and mixtures of experts: norms on each head's queries and keys, a shared expert beside the routed.

Source: modeling_hunyuan_v1_moe.py and modeling_hunyuan_v1_dense.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Traits, read_decoder
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import Fields

_MOE = "HunYuanMoEV1ForCausalLM"
ARCHITECTURES = ("HunYuanDenseV1ForCausalLM", _MOE)


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family. Fields that list a value for each layer are heeded where all are equal."""
    if fields.flag("use_cla", False):
        raise fields.fail("use_cla", True, "attention shared between layers is not read here")
    traits = Traits(qk_norm=fields.flag("use_qk_norm", True))
    if architecture != _MOE:
        return read_decoder(fields, traits)
    width = fields.same_size("moe_intermediate_size", "intermediate_size")
    experts = Moe(
        num_experts=fields.same_size("num_experts"),
        top_k=fields.same_size("moe_topk"),
        intermediate_size=width,
        shared_intermediate_size=width * fields.same_size("num_shared_expert", default=1, least=0),
    )
    check_top_k(fields, experts)
    return read_decoder(fields, traits, lambda _layer: experts)
