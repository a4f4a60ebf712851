"""FlexGen's block schedule: a block of GPU batches runs from its prompts to its last token, then the next one begins.

To the queue a block is a static batch: it is formed when none runs, of the earliest requests, prompts are padded to the
longest of the block, and nobody joins or leaves. That weights are loaded once per block and layer, and the cache batch
by batch, is in the seconds of a step (`perf.offload`), for which most of the options are. Of the compositions it takes
``h2o`` and ``kv_quantisation`` (4 bit); everything else that its blocks have no use for is refused.

Sources: https://arxiv.org/abs/2303.06865, section 4 (block schedule), section 5 (4-bit compression);
https://github.com/FMInference/FlexLLMGen, ``flexgen/flex_opt.py`` (``generate``: one padded tensor for the whole block,
the same number of new tokens for every sequence).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.engine.policies.fastertransformer import Fastertransformer

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig


@mypyc_attr(allow_interpreted_subclasses=True)
class Flexgen(Fastertransformer):
    """Static blocks of at most `max_num_seqs` requests.

    Args:
        config: seats, longest sequence and block size.
        machine: GPU, host and disk of ``perf/offload/data`` whose rates are used; empty takes that of the GPU, or
            scales the T4's to the GPU's datasheet.
        gpu_batch: sequences of one GPU batch; 0 lets the placement search choose.
        num_gpu_batches: GPU batches of a block; 0 lets the placement search choose.
        compress_weights: 4-bit weights.
        compress_cache: 4-bit cache; attention then runs on the GPU.
        cpu_attention: attention of decodes on the CPU, over what of the cache is not on the GPU.
        percent: weights, cache and hidden states on GPU and CPU in per cent, as FlexGen's own flag
            (``20/80/0/100/0/100``), the rest on disk; empty lets linear programming choose.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        machine: str = "",
        gpu_batch: int = 0,
        num_gpu_batches: int = 0,
        compress_weights: bool = False,
        compress_cache: bool = False,
        cpu_attention: bool = True,
        percent: str = "",
    ) -> None:
        # All of them are in the seconds of a step and in the sizes that `config` brings.
        del machine, gpu_batch, num_gpu_batches, compress_weights, compress_cache, cpu_attention, percent
        super().__init__(config, padding=True, pad_rows=True, return_together=True)
