"""`silicon`: measured operator tables of `aiconfigurator-core`, tabulated once per deployment.

Matrix products, experts, attention and collectives come from the tables. Kernels that only move bytes (norms, rotary
embedding, activation, cache write, embedding, sampler) and pipeline sends are in no table; they are the roofline's, a
few per cent of a step, and `describe` lists them. A missing operator is refused, or taken from the roofline on request.

Attention of decodes is measured at equal lengths: a step with ``r`` read tokens over ``n`` sequences is looked up at
length ``r/n``, and is a straight line between neighbouring table points. Sliding windows are looked up at the window's
length. Prompt attention is fitted to the tables by non-negative least squares (chunks, tokens, pairs and context read):
`prefill_error_frac` is the median residual.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from plimsoll.catalog import counting
from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import LatentAttention, ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import MissingExtraError, OutOfRangeError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf import silicon_tables
from plimsoll.perf.operators import Collective, Elementwise, Gemm, GroupedGemm
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from plimsoll.perf.roofline import Roofline
from plimsoll.perf.silicon_attention import MAX_BATCH, AttentionTables
from plimsoll.perf.silicon_operators import Translator
from plimsoll.perf.silicon_tables import Compiled, SiliconTables, find_system, load_tables, systems_folder
from plimsoll.perf.tabulated import UNBOUNDED, Line, PrefillRates, Tabulated

PROBE_ROWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiliconOptions:
    """How the tables are used.

    Attributes:
        allow_fallback: take operators without data, and lengths beyond the tables, from the roofline or by extending
            the last straight line, and say so; else they are refused.
        version: of the measured engine; empty takes the newest.
    """

    allow_fallback: bool = False
    version: str = ""


def silicon_available(gpu: Accelerator) -> bool:
    """Whether `Silicon` has tables of `gpu` on this machine: the package is there, and the GPU in it. Cheap."""
    return find_system(gpu) is not None


class Silicon(Tabulated):
    """A `core.step.StepModel` from measured tables. Arguments as `Roofline`'s.

    Raises:
        MissingExtraError: aiconfigurator-core is not installed.
        OutOfRangeError: it has no tables of the GPU, or none of an operator at this precision.
        InputError, InfeasibleError: as `Roofline`.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: Accelerator,
        parallelism: Parallelism | None = None,
        precision: str = "bf16",
        kv_precision: str = "auto",
        overheads: Overheads = NO_OVERHEADS,
        options: SiliconOptions | None = None,
    ) -> None:
        parallelism, options = parallelism or Parallelism(), options or SiliconOptions()
        self._arguments = (model, gpu, parallelism, precision, kv_precision, overheads, options)
        self._gpu, self._parallelism, self._options = gpu, parallelism, options
        self._roofline = Roofline(model, gpu, parallelism, precision, kv_precision, overheads)
        self._tables = _open_tables(gpu, options.version)
        self._fallbacks: list[str] = []
        self._attention: AttentionTables | None = None
        self._latent = any(isinstance(group.mixer, LatentAttention) for group in model.groups)
        super().__init__(counting.attention_layers(model), parallelism.pp)
        self._load(Translator(self._tables, model, precision, kv_precision), model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its arguments: the tables lie in compiled code."""
        return type(self), self._arguments

    def _load(self, translator: Translator, model: ModelSpec) -> None:
        """Translate every operator, probing each one, so that a hole in the tables is found now and not in a run."""
        ops = self._roofline.operators
        attention = AttentionTables(translator, model, self._parallelism, self._attention_layers)
        if attention.groups:
            try:
                attention.decode_s(PROBE_ROWS, 1024)
                attention.prefill_s(1, 512, 0)
                self._attention = attention
            except OutOfRangeError as error:
                self._refuse("attention", error)
        in_module = self._attention is not None and self._latent
        if ops.state is not None:
            self._refuse("recurrent layers", OutOfRangeError("no tables of recurrent layers are read"))
        self._token_parts = self._parts(translator, ops.token_ops, in_module)
        self._sampled_parts = self._parts(translator, ops.sampled_ops, False)

    def _parts(
        self, translator: Translator, ops: tuple[Gemm | GroupedGemm | Elementwise | Collective, ...], in_module: bool
    ) -> list[tuple[Compiled, float] | Callable[[float], float]]:
        """Operators compiled, with their share of the rows, and roofline functions for what has no table."""
        by_share: dict[float, list[Any]] = {}
        parts: list[tuple[Compiled, float] | Callable[[float], float]] = []
        for op in ops:
            if isinstance(op, Gemm) and in_module and op.in_mixer:
                continue  # the measured attention block of MLA holds its own projections
            if isinstance(op, Elementwise) or (isinstance(op, Collective) and op.kind == "p2p"):
                parts.append(self._roofline.operator_function(op))
                continue
            try:
                translated = translator.translate(op)
                self._tables.evaluate(self._tables.compile(translated), work=(1, 1, 0), rows=PROBE_ROWS)
                share = 1.0 if isinstance(op, GroupedGemm) else op.rows_share
                by_share.setdefault(share, []).append(translated)
            except OutOfRangeError as error:
                self._refuse(op.name, error)
                parts.append(self._roofline.operator_function(op))
        return [*((self._tables.compile(*found), share) for share, found in by_share.items()), *parts]

    def _refuse(self, name: str, error: OutOfRangeError) -> None:
        """Raise for a hole in the tables, or note it where the roofline may fill it."""
        model, gpu, _, precision, kv_precision, _, _ = self._arguments
        if not self._options.allow_fallback:
            raise OutOfRangeError(
                f"silicon has no measurement of '{name}' for {model.id} on {gpu.id} at {precision} "
                f"(KV {kv_precision}), {self._tables.system} {silicon_tables.BACKEND} {self._tables.version}: {error}; "
                "use the roofline, or allow it as a fallback"
            ) from error
        self._fallbacks.append(name)

    # What `Tabulated` asks for ---------------------------------------------------------------------------------

    def _sum(self, parts: list[tuple[Compiled, float] | Callable[[float], float]], rows: int) -> float:
        total = 0.0
        for part in parts:
            if isinstance(part, tuple):
                compiled, share = part
                total += self._tables.evaluate(compiled, work=(1, 1, 0), rows=math.ceil(rows * share))
            else:
                total += part(rows)
        return total

    def _token_s(self, tokens: int) -> float:
        if not tokens:
            return self._roofline.overheads.per_step_s
        state_s = self._roofline.state_launch_s
        return self._roofline.overheads.per_step_s + state_s + self._sum(self._token_parts, tokens)

    def _sampled_s(self, rows: int) -> float:
        if not rows:
            return 0.0
        return self._roofline.sampler_s(rows) + self._sum(self._sampled_parts, rows)

    def _decode_pieces(self, num_decode: int) -> Iterable[Line]:
        if self._attention is None:
            return self._roofline._decode_pieces(num_decode)
        if num_decode > MAX_BATCH * self._parallelism.dp and not self._options.allow_fallback:
            raise OutOfRangeError(
                f"silicon: {num_decode} decodes in a step, the tables of {self._gpu.id} end at {MAX_BATCH}"
            )
        return self._measured_pieces(num_decode, self._attention)

    def _measured_pieces(self, num_decode: int, attention: AttentionTables) -> Iterator[Line]:
        """Lines between table points; the last one has no end where the tables may be left."""
        sequences_s = self._roofline.sequence_s * num_decode
        held: Line | None = None
        for start_s, slope_s, below in attention.decode_pieces(num_decode):
            if held is not None:
                yield held
            held = sequences_s + start_s, slope_s, below
        assert held is not None
        yield (*held[:2], UNBOUNDED) if self._options.allow_fallback else held

    def _mixed_pieces(self, num_decode: int) -> Iterable[Line]:
        return self._roofline._mixed_pieces(num_decode) if self._attention is None else self._decode_pieces(num_decode)

    def _prefill_rates(self) -> PrefillRates:
        rates = self._roofline._prefill_rates()
        if self._attention is None:
            return rates
        fixed, chunk, token, pair, read = self._attention.prefill_rates()
        overheads = self._roofline.overheads
        return PrefillRates(fixed, chunk + self._roofline.sequence_s, token + overheads.per_prefill_token_s, pair, read)

    def _beyond(self, num_decode: int, read_tokens: int) -> Exception:
        length = read_tokens // max(1, num_decode)
        return OutOfRangeError(
            f"silicon: {num_decode} sequences of about {length} read tokens lie beyond the tables of {self._gpu.id}; "
            "use the roofline, or allow it as a fallback"
        )

    # Reports ---------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """`INTERPOLATED` where all matrix products, attention and collectives are measured, else the roofline's."""
        return self._roofline.source if self._fallbacks else Source.INTERPOLATED

    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        """Joules by the roofline's power model over the measured time."""
        return self._roofline.energy_j(shape, time_s)

    def describe(self) -> dict[str, Any]:
        """What this model is made of, for reports: plain values only."""
        return {
            "step_model": "silicon",
            "gpu": self._gpu.id,
            "package": f"aiconfigurator-core {self._tables.package_version}",
            "system": self._tables.system,
            "framework": silicon_tables.BACKEND,
            "version": self._tables.version,
            "modelled_operators": ["norms, activations, cache writes, embedding, sampler", "pipeline sends"],
            "fallbacks": list(self._fallbacks),
            "prefill_error_frac": None if self._attention is None else self._attention.prefill_error_frac,
            "overheads": self._roofline.overheads.source,
            "source": str(self.source),
        }


def _open_tables(gpu: Accelerator, version: str) -> SiliconTables:
    if systems_folder() is None:
        raise MissingExtraError("the silicon step model", "silicon")
    system = find_system(gpu)
    if system is None:
        raise OutOfRangeError(f"aiconfigurator-core has no vLLM tables of {gpu.id}; use the roofline")
    return load_tables(system, version)
