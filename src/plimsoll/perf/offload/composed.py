"""Compositions on FlexGen's block schedule: H2O's evicting cache and a cache of 4 bit, which its cost model knows.

The cost of every other composition is written for engines that keep weights on the GPU, so it is refused here.
``h2o`` keeps its tokens after a full prefill, in whatever tier the cache lies (the authors run it over FlexGen:
arXiv 2306.14048, section 5). ``kv_quantisation`` is FlexGen's own compression (arXiv 2303.06865, section 5) with the
group asked for: 4 bit only, packed and unpacked on the GPU, attention not on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions import Choice, complete_options, load_composition
from plimsoll.perf.compositions._wrapped import Composed
from plimsoll.perf.compositions.h2o import budget
from plimsoll.perf.compositions.kv_quantisation import stored_share
from plimsoll.perf.offload.flexgen import BlockWork
from plimsoll.perf.offload.steps import OffloadedSteps
from plimsoll.perf.request import StepModelRequest

APPLIED = ("h2o", "kv_quantisation")
CACHE_BITS = 4


def composed_work(work: BlockWork, choices: Sequence[Choice], request: StepModelRequest) -> BlockWork:
    """The work of a block as `choices` change it: what is kept of the cache, and in how many bits.

    Raises:
        InfeasibleError: a composition that the cost model does not know, other bits than 4.
        InputError: an option out of range, a cache that is compressed twice.
    """
    for choice in choices:
        options = complete_options(choice)
        if choice.name == "h2o":
            share, kept = budget(options)
            work = dataclasses.replace(work, kept_frac=float(share), kept_tokens=kept)
        elif choice.name == "kv_quantisation":
            stored_share(request, options)
            if int(options["bits"]) != CACHE_BITS:
                raise InfeasibleError(
                    f"flexgen's cache has 16 or {CACHE_BITS} bits, not {options['bits']}; write bits={CACHE_BITS}",
                    "engine",
                )
            if work.compress_cache:
                raise InputError("--step-model", str(choice), "compress-cache stores the cache in 4 bit already")
            work = dataclasses.replace(
                work, compress_cache=True, cpu_attention=False, cache_group=int(options["group"])
            )
        else:
            raise InfeasibleError(
                f"flexgen does not apply the composition {choice.name}; it applies {' and '.join(APPLIED)} alone",
                "engine",
            )
    return work


def composition_notes(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Sentences for the user on how the compositions run here."""
    sentences = {
        "h2o": "h2o: the prompt's full cache of one layer at a time is not counted",
        "kv_quantisation": "kv_quantisation is FlexGen's own 4-bit cache here: attention runs on the GPU",
    }
    return tuple(sentences[choice.name] for choice in choices)


def with_compositions(
    steps: OffloadedSteps, choices: Sequence[Choice], request: StepModelRequest
) -> DescribedStepModel:
    """`steps`, made for `composed_work`, under the compositions: H2O's decodes read what is kept."""
    model: DescribedStepModel = steps
    for choice in choices:
        options = complete_options(choice)
        if choice.name == "h2o":
            model = load_composition("h2o").build(model, request, options)
        else:  # its seconds are in the steps, so that only the report changes
            model = Composed(choice.name, model, options)
    return model
