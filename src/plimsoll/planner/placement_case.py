"""What the layers of a model take on GPUs of several kinds: seconds, bytes, and messages between them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.counting import kv_bytes_per_token, state_bytes_per_sequence, weight_bytes_breakdown
from plimsoll.catalog.device_memory import visible_memory_bytes
from plimsoll.catalog.engines import default_settings
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, OutOfRangeError
from plimsoll.core.step import StepModel
from plimsoll.engine import EngineConfig
from plimsoll.perf.collectives import find_link, message_cost
from plimsoll.perf.footprint import activation_peak_bytes
from plimsoll.perf.memory import KV_ELEMENT_BYTES
from plimsoll.planner.context import Context
from plimsoll.planner.estimate import length_means
from plimsoll.planner.helr import Placed, Placement, place_layers
from plimsoll.planner.layered import Hop, LayeredModel
from plimsoll.planner.space import ReplicaConfig

ACTIVATION_BYTES = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of GPU that the engine would start on.

    Attributes:
        gpu, count: which, and how many there are.
        model: seconds of a step of the whole model on one of them.
        settings: of the engine on it.
        room_bytes: what the engine may use, its runtime taken off.
        activation_bytes: peak on any stage but the last, and on the last.
        request_s: a mean request alone, were the whole model there.
    """

    gpu: Accelerator
    count: int
    model: StepModel
    settings: EngineSettings
    room_bytes: float
    activation_bytes: tuple[float, float]
    request_s: float


class PlacementCase:
    """One precision: the kinds of GPUs, and what layers take on them.

    Raises:
        InfeasibleError: a model with a state besides its cache, which is not placed.
    """

    def __init__(self, context: Context, precision: str) -> None:
        request, self.context = context.request, context
        self.precision, self.model = precision, request.model
        if state_bytes_per_sequence(self.model):
            raise InfeasibleError(f"{self.model.id} keeps a state per sequence: its layers are not placed", "engine")
        self.notes: list[str] = []
        self.kv_precision = "auto"
        self.kinds = [kind for limit in request.gpus if (kind := self._kind(limit.accelerator, limit.max_gpus))]
        parts = weight_bytes_breakdown(self.model, precision)
        self.embedding_bytes = parts.embedding_bytes
        tied = self.model.tied_embeddings
        self.head_bytes = parts.embedding_bytes if tied else parts.head_bytes
        self.layer_bytes = (parts.total_bytes - parts.embedding_bytes - parts.head_bytes) / self.model.num_layers
        element_bytes = KV_ELEMENT_BYTES[self.kv_precision]
        self.kv_layer_bytes = kv_bytes_per_token(self.model, element_bytes) / self.model.num_layers

    def _kind(self, gpu: Accelerator, count: int) -> Kind | None:
        parts, engine, config = self.context.parts, self.context.request.engines[0], self._config(gpu)
        try:
            fits = parts.compatibility(config)
            model = self.context.shared_prefix(parts.step_model(config, fits.kv_precision))
        except (InfeasibleError, OutOfRangeError) as error:
            self.notes.append(f"{gpu.id} is left out: {error}")
            return None
        self.kv_precision = fits.kv_precision
        facts, given = parts.facts(engine), self.context.request.settings
        given = dataclasses.replace(given, max_num_batched_tokens=config.max_num_batched_tokens)
        settings = default_settings(facts, gpu, given, self.model, Parallelism()).settings
        peaks = [activation_peak_bytes(facts, self.model, Parallelism(pp=2), settings, stage) for stage in (0, 1)]
        share = settings.gpu_memory_utilization or 0.0
        runtime = facts.memory.runtime_bytes + facts.memory.runtime_parallel_bytes
        return Kind(
            gpu=gpu,
            count=count,
            model=model,
            settings=settings,
            room_bytes=share * visible_memory_bytes(gpu) - runtime,
            activation_bytes=(peaks[0], peaks[1]),
            request_s=mean_request_s(self.context, model),
        )

    def _config(self, gpu: Accelerator) -> ReplicaConfig:
        request = self.context.request
        return ReplicaConfig(
            accelerator=gpu,
            parallelism=Parallelism(),
            precision=self.precision,
            engine=request.engines[0],
            max_num_batched_tokens=request.token_budgets[len(request.token_budgets) // 2],
        )

    def config(self, kind: int) -> ReplicaConfig:
        """One GPU of a kind, as the planner's parts take it."""
        return self._config(self.kinds[kind].gpu)

    def weights(self, begin: int, end: int) -> float:
        """Bytes of the weights of layers `begin` to `end`, embedding and head where they belong."""
        total = (end - begin) * self.layer_bytes
        is_first, is_last = begin == 0, end == self.model.num_layers
        if is_first:
            total += self.embedding_bytes
        if is_last and not (is_first and self.model.tied_embeddings):
            total += self.head_bytes
        return total

    def room(self, kind: int, begin: int, end: int) -> float:
        """Bytes that layers `begin` to `end` leave for the cache on one GPU; below zero where they do not fit."""
        one = self.kinds[kind]
        peak = one.activation_bytes[end == self.model.num_layers]
        return one.room_bytes - peak - self.weights(begin, end)

    def kv_tokens(self, stages: Sequence[Placed]) -> int:
        """Tokens that every GPU of a placement can cache at once."""
        return int(min(self.room(s.kind, s.begin, s.end) / ((s.end - s.begin) * self.kv_layer_bytes) for s in stages))

    def place(self, num_sequences: int, objective: str) -> Placement | None:
        """The placement whose cache holds so many expected sequences; None where none does."""
        tokens = num_sequences * self.context.expected_tokens
        tokens = max(tokens, self.context.max_model_len)
        num_layers = self.model.num_layers

        def stage_s(kind: int, begin: int, end: int) -> float:
            if self.room(kind, begin, end) < (end - begin) * self.kv_layer_bytes * tokens:
                return math.inf
            return (end - begin) / num_layers * self.kinds[kind].request_s

        return place_layers(num_layers, [kind.count for kind in self.kinds], stage_s, self.hop_s, objective)

    def hop_s(self, a: int, b: int) -> float:
        """Seconds that a mean request's activations take from one GPU to the next."""
        hop, context = self.hop(a, b), self.context
        steps = max(context.mean_output_tokens, 1.0)
        return steps * hop.fixed_s + (context.mean_prompt_tokens + steps - 1.0) * hop.s_per_token

    def hop(self, a: int, b: int) -> Hop:
        """A token's activations from one GPU to the next: within a machine among equals, else over the network."""
        first, second = self.kinds[a].gpu, self.kinds[b].gpu
        links = [find_link(gpu, 2 if a == b else gpu.gpus_per_node + gpu.scale_up_size + 1) for gpu in (first, second)]
        costs = [message_cost("p2p", 2, link) for link in links]
        token_bytes = ACTIVATION_BYTES * self.model.hidden_size
        return Hop(fixed_s=max(c[0] for c in costs), s_per_token=token_bytes * max(c[1] for c in costs))

    def step_model(self, stages: Sequence[Placed]) -> LayeredModel:
        """Seconds of a step on a placement."""
        parts = [((s.end - s.begin) / self.model.num_layers, self.kinds[s.kind].model) for s in stages]
        hops = [self.hop(a.kind, b.kind) for a, b in itertools.pairwise(stages)]
        return LayeredModel(parts, hops)

    def engine(self, kv_tokens: int) -> EngineConfig:
        """What the engine is told: the settings of the first kind, the cache of the placement."""
        settings, request = self.kinds[0].settings, self.context.request
        block_size = settings.block_size
        assert block_size is not None
        return EngineConfig(
            num_blocks=max(kv_tokens // block_size, 1),
            block_size=block_size,
            max_num_seqs=settings.max_num_seqs or 1,
            max_num_batched_tokens=settings.max_num_batched_tokens or 1,
            max_model_len=self.context.max_model_len,
            policy=self.context.parts.policy(request.engines[0]),
        )


def mean_request_s(context: Context, model: StepModel) -> float:
    """Seconds of a mean request alone on the whole model: its prompt in one step, then its tokens one by one."""
    means = length_means(context.lengths, model.attention_layers, 1 << 40, context.targets.percentile)
    prefill_s = model.step_s(round(means.prompt_tokens), 1, round(means.prefill_pairs), 0, 1, 0, 0)
    steps = max(means.output_tokens - 1.0, 0.0)
    return prefill_s + steps * model.step_s(0, 0, 0, 0, 0, 1, round(means.decode_read_tokens))
