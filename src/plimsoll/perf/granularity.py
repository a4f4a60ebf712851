"""Memory taken against memory used: blocks of a KV cache against the pieces in which a GPU hands memory out.

A sequence holds whole blocks. Where the engine asks the GPU's allocator for memory as sequences grow, instead of taking
it all when it starts, the allocator hands out whole granules, for each layer and for keys and values apart: CUDA maps
physical memory in pieces of 2 MiB. A block that is no multiple of a granule, or a granule that holds few blocks, then
leaves memory empty, all the more the shorter the sequences are and the more layers a model has.

    tokens      ├── used ──────────────┤
    blocks      ├───┼───┼───┼───┼───┼───┤             one block partly empty
    granules    ├───────────┼───────────┼─ ─ ─ ┤      one granule partly empty, for each layer and twice

Sources: https://arxiv.org/abs/2309.06180 (blocks), https://arxiv.org/abs/2405.04437 (2 MiB as the smallest piece of
physical memory that CUDA's interface maps), https://arxiv.org/abs/2412.04788, section 2.4.1 (GUIDE, which ascribes
drops of memory utilisation to this mismatch).
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import Attention, LatentAttention, ModelSpec
from plimsoll.core.errors import InputError
from plimsoll.core.units import MIB

CUDA_GRANULE_BYTES = 2 * MIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvGranularity:
    """How one sequence's cache is cut into pieces.

    Attributes:
        block_tokens: tokens of a block; 1 is none.
        tensors: bytes per token of each tensor that is kept apart: keys and values of every layer.
        granule_bytes: the allocator's smallest piece; 0 where the engine has taken all memory beforehand.
    """

    block_tokens: int
    tensors: tuple[float, ...]
    granule_bytes: int = 0

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or self.granule_bytes < 0 or not self.tensors or min(self.tensors) <= 0:
            values = (self.block_tokens, self.granule_bytes, len(self.tensors))
            remedy = "give positive sizes and at least one tensor"
            raise InputError("block_tokens, granule_bytes, tensors", values, remedy)

    def used_bytes(self, tokens: int) -> float:
        """What the tokens themselves need."""
        return tokens * sum(self.tensors)

    def taken_bytes(self, tokens: int) -> float:
        """What a sequence of so many tokens holds."""
        held = -(-tokens // self.block_tokens) * self.block_tokens
        if not self.granule_bytes:
            return held * sum(self.tensors)
        granule = self.granule_bytes
        return float(sum(-(-held * each // granule) * granule for each in self.tensors))

    def utilisation_frac(self, tokens: int) -> float:
        """Used over taken, for one sequence."""
        return self.used_bytes(tokens) / self.taken_bytes(tokens)


def granularity(
    model: ModelSpec, block_tokens: int, granule_bytes: int = 0, bytes_per_element: float = 2.0
) -> KvGranularity:
    """That of a model's cache on one GPU: keys and values apart; latent attention keeps one tensor a layer.

    Raises:
        InputError: the model keeps no cache by tokens, or a size is not positive.
    """
    tensors: list[float] = []
    for group in model.groups:
        mixer = group.mixer
        if isinstance(mixer, Attention):
            each = [mixer.num_kv_heads * mixer.head_dim, mixer.num_kv_heads * mixer.v_head_dim]
        elif isinstance(mixer, LatentAttention):
            each = [mixer.kv_lora_rank + mixer.qk_rope_head_dim]
        else:
            continue
        tensors += [elements * bytes_per_element for elements in each] * group.count
    return KvGranularity(block_tokens=block_tokens, tensors=tuple(tensors), granule_bytes=granule_bytes)
