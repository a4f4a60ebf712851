"""How much KV cache a deployment has: the way the engine itself sizes it when it starts.

vLLM (``gpu_worker.determine_available_memory``): ``utilisation × memory − weights − activation peak of a full token
budget − memory outside torch [− CUDA graphs]``, then ``blocks = bytes // bytes per block`` on the worst rank. SGLang
and TensorRT-LLM size theirs by other rules (`catalog.engine_facts.MemoryFacts.rule`).

    GPU memory ├─ not the engine's (1 − utilisation) ─┤
               ├─ weights ─┤─ activation peak ─┤─ runtime, graphs ─┤─ KV blocks: [null][1][2]…[n−1] ─┤

What is modelled rather than counted: the activation peak (sampling over every seat, or the widest layer of a full
budget, whichever is larger: the figures are the engine file's, read from public start-up logs), the runtime, and the
two kinds of cache that are not paged by length. Layers with a sliding window keep at most the window, state-space
layers a fixed state per sequence: vLLM's hybrid cache manager takes blocks for both out of one pool. Here the pool
keeps one kind of block, so a block of such a model stands for what a sequence of `expected_sequence_tokens` really
holds, divided by its blocks: shorter sequences need more than counted, longer ones less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import kv_layers, state_bytes_per_sequence
from plimsoll.catalog.device_memory import visible_memory_bytes
from plimsoll.catalog.engines import EngineFacts, default_settings, load_engine
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.perf.footprint import activation_peak_bytes, graph_bytes, stage_layers, stage_weight_bytes
from plimsoll.perf.memory_words import breakdown_of, gib

KV_ELEMENT_BYTES = {"auto": 2.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0}
OWN_POOL = "data-parallel ranks has a pool of its own"
"""How the note ends that an engine contradicts which simulates ranks as one pool."""
DEFAULT_EXPECTED_TOKENS = 2048
_OTHER_TP = (1, 2, 4, 8, 16, 32)
_OTHER_PRECISIONS = ("fp8", "int4")


DEFAULT_SHARE = 0.9
"""Of the GPU's memory: what a remedy may suggest where less was given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryAssumptions:
    """What the sizing needs beside the deployment.

    Attributes:
        engine: whose rules hold; None is vLLM V1.
        expected_sequence_tokens: length of a usual sequence, prompt and output: what a block of a model with sliding
            windows or state-space layers stands for. None assumes `DEFAULT_EXPECTED_TOKENS`. Pure full attention
            does not need it.
        shrink_max_model_len: take the longest `max_model_len` that fits instead of refusing (vLLM's
            ``--max-model-len auto``), as long as none was given.
        weight_bytes_factor, extra_bytes: optimisations: on the bytes of all weights, and resident beside them.
        gpu_tokens: optimisations: tokens' worth of cache on the GPU of a sequence of a length; None is the length.
    """

    engine: EngineFacts | None = None
    expected_sequence_tokens: int | None = None
    shrink_max_model_len: bool = False
    weight_bytes_factor: float = 1.0
    extra_bytes: float = 0.0
    gpu_tokens: Callable[[float], float] | None = None

    def gpu_share(self, tokens: int) -> float:
        """Share of a sequence's cache that is on the GPU."""
        return 1.0 if self.gpu_tokens is None else self.gpu_tokens(tokens) / tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where the memory of the worst GPU of a replica goes.

    Attributes:
        weight_bytes: weights on that GPU.
        activation_peak_bytes: of a step with a full token budget and every seat.
        runtime_bytes: context, workspaces, communication buffers.
        graph_bytes: CUDA graphs; 0 where the engine does not take them off before sizing the cache.
        kv_bytes: what is left for the KV cache.
        block_bytes: of one KV block on that GPU (see the module's text for windows and states).
        block_size: tokens in a block.
        num_blocks: KV blocks of one data-parallel rank, as the engine prints it.
        num_dp_ranks: data-parallel ranks inside the replica, each with a pool of its own.
        max_model_len: the longest sequence, resolved.
        largest_max_model_len: the longest `max_model_len` with which the engine would start.
        settings: engine settings without gaps.
        source: modelled, or measured where `num_kv_blocks` was given.
        breakdown: the arithmetic in one line.
        notes: sentences for the user.
    """

    weight_bytes: float
    activation_peak_bytes: float
    runtime_bytes: float
    graph_bytes: float
    kv_bytes: float
    block_bytes: float
    block_size: int
    num_blocks: int
    num_dp_ranks: int
    max_model_len: int
    largest_max_model_len: int
    settings: EngineSettings
    source: Source
    breakdown: str
    notes: tuple[str, ...]

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold, what an engine configuration takes: vLLM keeps one as the null block."""
        return self.num_blocks - 1

    @property
    def replica_usable_blocks(self) -> int:
        """The same over all data-parallel ranks of the replica."""
        return self.usable_blocks * self.num_dp_ranks

    @property
    def max_concurrent_tokens(self) -> int:
        """Tokens that one data-parallel rank can cache at once."""
        return self.usable_blocks * self.block_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rank:
    """One pipeline stage's GPU: its memory, and what a token, a sequence and its state cost there."""

    weight_bytes: float
    activation_bytes: float
    runtime_bytes: float
    graph_bytes: float
    kv_bytes: float
    full_token_bytes: float
    window_token_bytes: tuple[tuple[int, float], ...]
    state_bytes: float
    assumed: MemoryAssumptions

    def sequence_bytes(self, tokens: int, block_size: int, budget: int) -> float:
        """Cache of one sequence at most: vLLM's bound (a window holds ``window − 1 + budget`` tokens, and a block)."""
        total = math.ceil(tokens / block_size) * block_size * self.full_token_bytes + self.state_bytes
        for window, token_bytes in self.window_token_bytes:
            held = min(window - 1 + budget, tokens)
            extra = 0 if held == tokens else 1
            total += (math.ceil(held / block_size) + extra) * block_size * token_bytes
        return total * self.assumed.gpu_share(tokens)

    def block_bytes(self, expected_tokens: int, block_size: int) -> float:
        """Bytes of a block: plain where attention is full, else what an expected sequence holds, by its blocks."""
        if not self.window_token_bytes and not self.state_bytes:
            return self.full_token_bytes * block_size * self.assumed.gpu_share(expected_tokens)
        blocks = math.ceil(expected_tokens / block_size)
        held = blocks * block_size * self.full_token_bytes + self.state_bytes
        for window, token_bytes in self.window_token_bytes:
            # While decoding, blocks behind the window are given back; one is only partly inside it.
            held += min(blocks, math.ceil(window / block_size) + 1) * block_size * token_bytes
        return held / blocks * self.assumed.gpu_share(expected_tokens)

    def num_blocks(self, expected_tokens: int, block_size: int) -> float:
        """Blocks that fit, as a fraction; below zero where the weights alone are too much."""
        return self.kv_bytes / max(self.block_bytes(expected_tokens, block_size), 1.0)


def kv_capacity(
    model: ModelSpec,
    gpu: Accelerator,
    parallelism: Parallelism,
    precision: str,
    kv_precision: str,
    settings: EngineSettings,
    assumptions: MemoryAssumptions | None = None,
) -> MemoryPlan:
    """KV blocks of one replica, as its engine would print them when it starts.

    Args:
        model: what is served.
        gpu: on what.
        parallelism: the cut of one replica.
        precision: of the weights.
        kv_precision: of the cache.
        settings: engine settings; what is None takes the engine's default. `num_kv_blocks` overrides the model.
        assumptions: engine and expected length.

    Raises:
        InputError: a setting that cannot be used, an unknown precision.
        InfeasibleError: constraint ``memory``: the engine would refuse to start, with what would have to give.
    """
    assumed = assumptions or MemoryAssumptions()
    engine = assumed.engine or load_engine("vllm-v1")
    resolved = default_settings(engine, gpu, settings, model, parallelism).settings
    case = _Case(engine, model, gpu, parallelism, precision, kv_precision, resolved, assumed)
    expected = assumed.expected_sequence_tokens or min(DEFAULT_EXPECTED_TOKENS, resolved.max_model_len or 1)
    given_blocks = settings.num_kv_blocks
    worst, num_blocks, largest = case.blocks(expected, given_blocks)
    block_bytes = worst.block_bytes(expected, case.block_size)
    max_model_len = resolved.max_model_len or model.max_position
    if largest > 0 and assumed.shrink_max_model_len and settings.max_model_len is None:
        # A sequence of every block would need the null block too: vLLM starts with it, and then rejects it.
        max_model_len = min(max_model_len, largest, max(num_blocks - 1, 1) * case.block_size)
    if max_model_len > largest or num_blocks < 2:
        raise _refusal(case, worst, max_model_len, largest, given_blocks)
    return MemoryPlan(
        weight_bytes=worst.weight_bytes,
        activation_peak_bytes=worst.activation_bytes,
        runtime_bytes=worst.runtime_bytes,
        graph_bytes=worst.graph_bytes,
        kv_bytes=worst.kv_bytes,
        block_bytes=block_bytes,
        block_size=case.block_size,
        num_blocks=num_blocks,
        num_dp_ranks=parallelism.dp,
        max_model_len=max_model_len,
        largest_max_model_len=largest,
        settings=dataclasses.replace(resolved, max_model_len=max_model_len),
        source=Source.MODELLED if given_blocks is None else Source.MEASURED,
        breakdown=breakdown_of(engine, gpu, resolved, worst, (block_bytes, num_blocks), given_blocks),
        notes=_notes(worst, expected, assumed, parallelism),
    )


@dataclasses.dataclass(frozen=True)
class _Case:
    """One question, so that a refusal can ask its neighbours."""

    engine: EngineFacts
    model: ModelSpec
    gpu: Accelerator
    parallelism: Parallelism
    precision: str
    kv_precision: str
    settings: EngineSettings
    assumed: MemoryAssumptions

    def ranks(self) -> list[_Rank]:
        """The GPUs of each pipeline stage; those of one stage are alike."""
        engine, model, cut, settings = self.engine, self.model, self.parallelism, self.settings
        if self.kv_precision not in KV_ELEMENT_BYTES:
            raise InputError("kv_precision", self.kv_precision, f"write one of {', '.join(KV_ELEMENT_BYTES)}")
        element_bytes = KV_ELEMENT_BYTES[self.kv_precision]
        runtime = engine.memory.runtime_bytes
        if cut.num_gpus > 1:
            runtime += engine.memory.runtime_parallel_bytes
        ranks = []
        for stage, num_layers in enumerate(stage_layers(model.num_layers, cut.pp)):
            share = num_layers / model.num_layers
            weights = stage_weight_bytes(model, self.precision, cut, stage) * self.assumed.weight_bytes_factor
            weights += self.assumed.extra_bytes
            activations = activation_peak_bytes(engine, model, cut, settings, stage)
            graphs = graph_bytes(engine, self.gpu, num_layers, settings)
            full = 0.0
            windows: dict[int, float] = {}
            for layers in kv_layers(model):
                heads = math.ceil(layers.num_kv_heads / cut.tp) / layers.num_kv_heads
                token_bytes = (
                    share
                    * layers.count
                    * (layers.elements_per_token * heads * element_bytes + layers.fixed_bytes_per_token)
                )
                if layers.window is None:
                    full += token_bytes
                else:
                    windows[layers.window] = windows.get(layers.window, 0.0) + token_bytes
            ranks.append(
                _Rank(
                    weight_bytes=weights,
                    activation_bytes=activations,
                    runtime_bytes=runtime,
                    graph_bytes=graphs,
                    kv_bytes=_available(engine, self.gpu, settings, weights, activations + runtime + graphs),
                    full_token_bytes=full,
                    window_token_bytes=tuple(sorted(windows.items())),
                    state_bytes=share * state_bytes_per_sequence(model) / cut.tp,
                    assumed=self.assumed,
                )
            )
        return ranks

    @property
    def block_size(self) -> int:
        return self.settings.block_size or self.engine.block_size

    def fits(self, max_model_len: int) -> bool:
        budget, block_size = self.settings.max_num_batched_tokens or 1, self.block_size
        return all(rank.sequence_bytes(max_model_len, block_size, budget) <= rank.kv_bytes for rank in self.ranks())

    def blocks(self, expected_tokens: int, given_blocks: int | None) -> tuple[_Rank, int, int]:
        """The GPU with the fewest blocks, those blocks, and the longest sequence that they hold."""
        ranks, block_size = self.ranks(), self.block_size
        worst = min(ranks, key=lambda rank: rank.num_blocks(expected_tokens, block_size))
        block_bytes = worst.block_bytes(expected_tokens, block_size)
        if given_blocks is None:
            largest = _largest_max_model_len(ranks, self.model, self.settings, block_size)
            return worst, max(0, int(worst.kv_bytes // block_bytes)), largest
        num_blocks = given_blocks // self.parallelism.dp
        worst = dataclasses.replace(worst, kv_bytes=num_blocks * block_bytes)
        return worst, num_blocks, min(self.model.max_position, max(0, num_blocks - 1) * block_size)


def _available(
    engine: EngineFacts, gpu: Accelerator, settings: EngineSettings, weight_bytes: float, other_bytes: float
) -> float:
    """Bytes for the cache; below zero where there are none."""
    memory, share = visible_memory_bytes(gpu), settings.gpu_memory_utilization or 0.0
    rule = engine.memory.rule
    if rule == "utilization":
        return share * memory - weight_bytes - other_bytes
    if rule == "static_fraction":
        return share * memory - weight_bytes
    if rule == "free_fraction":
        return share * (memory - weight_bytes - other_bytes)
    raise InputError(f"engine {engine.id}, memory.rule", rule, "write utilization, static_fraction or free_fraction")


def _largest_max_model_len(ranks: list[_Rank], model: ModelSpec, settings: EngineSettings, block_size: int) -> int:
    """The longest sequence that fits alone on every rank, up to the model's longest position; 0 where none does."""
    budget = settings.max_num_batched_tokens or 1
    low, high = 0, max(model.max_position, settings.max_model_len or 0)
    while low < high:
        middle = (low + high + 1) // 2
        fits = all(rank.sequence_bytes(middle, block_size, budget) <= rank.kv_bytes for rank in ranks)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _notes(rank: _Rank, expected: int, assumed: MemoryAssumptions, parallelism: Parallelism) -> tuple[str, ...]:
    notes = []
    if rank.window_token_bytes or rank.state_bytes:
        kind = "sliding windows" if rank.window_token_bytes else "a fixed state per sequence"
        given = "expected" if assumed.expected_sequence_tokens else "assumed"
        notes.append(f"{kind}: a KV block is sized for sequences of {expected} tokens ({given}); modelled")
    if parallelism.dp > 1:
        notes.append(f"each of the {parallelism.dp} {OWN_POOL}")
    return tuple(notes)


def _refusal(case: _Case, rank: _Rank, max_model_len: int, largest: int, given_blocks: int | None) -> InfeasibleError:
    """The engine's own refusal, with what would have to give."""
    model, gpu, cut = case.model, case.gpu, case.parallelism
    where = f"{model.id} in {case.precision} on {cut.num_gpus} × {gpu.id} (TP {cut.tp} × PP {cut.pp} × DP {cut.dp})"
    if given_blocks is not None:
        return InfeasibleError(
            f"{where}: {given_blocks} KV blocks of {case.block_size} tokens do not hold one sequence of "
            f"{max_model_len}; use {f'max_model_len {largest} or ' if largest > 1 else ''}more blocks",
            "memory",
        )
    budget, block_size = case.settings.max_num_batched_tokens or 1, case.block_size
    need = rank.sequence_bytes(max_model_len, block_size, budget)
    memory, share = visible_memory_bytes(gpu), case.settings.gpu_memory_utilization or 0.0
    left = f"{share:g} × {gib(memory)} GiB − weights {gib(rank.weight_bytes)} − activations "
    left += f"{gib(rank.activation_bytes)} − runtime {gib(rank.runtime_bytes + rank.graph_bytes)}"
    remedies = [f"max_model_len {largest}"] if largest >= block_size else []
    remedies += _neighbours(case, max_model_len)
    if share < DEFAULT_SHARE and DEFAULT_SHARE * memory - (share * memory - rank.kv_bytes) >= need:
        remedies.append(f"gpu_memory_utilization {DEFAULT_SHARE:g}")
    advice = f"; what would fit: {'; or '.join(remedies)}" if remedies else "; no cut of one machine would fit it"
    return InfeasibleError(
        f"{where}: one sequence of {max_model_len} tokens needs {gib(need)} GiB of KV cache per GPU and "
        f"{gib(rank.kv_bytes)} are left ({left}): {gib(need - rank.kv_bytes)} GiB short{advice}",
        "memory",
    )


def _neighbours(case: _Case, max_model_len: int) -> list[str]:
    """The smallest change of TP, and of precision, with which `max_model_len` would fit."""
    found = []
    heads = max((getattr(group.mixer, "num_heads", 0) for group in case.model.groups), default=0) or 1
    for tp in _OTHER_TP:
        if tp <= case.parallelism.tp or heads % tp:
            continue
        ep = 1 if case.parallelism.ep == 1 else tp * case.parallelism.dp
        cut = dataclasses.replace(case.parallelism, tp=tp, ep=ep)
        if dataclasses.replace(case, parallelism=cut).fits(max_model_len):
            found.append(f"TP {tp}")
            break
    for precision in _OTHER_PRECISIONS:
        if precision != case.precision and dataclasses.replace(case, precision=precision).fits(max_model_len):
            found.append(f"precision {precision}")
            break
    if case.kv_precision != "fp8" and dataclasses.replace(case, kv_precision="fp8").fits(max_model_len):
        found.append("KV precision fp8")
    return found
