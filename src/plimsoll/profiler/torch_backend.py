"""Operators as torch executes them, one by one, at a model's sizes; on CUDA and on CPU.

Weights are cycled through as many copies as fill the caches, as the layers of a model do. On CUDA a kernel that waits
is put in front of the measured ones, so that launching them is not part of their time: engines launch graphs.
Attention is torch's `scaled_dot_product_attention` over contiguous keys; an engine's paged kernel may differ, and what
an engine spends between operators is not here (`vllm_backend` measures both).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.core.errors import InfeasibleError, InputError, MissingExtraError
from plimsoll.perf.profiles.own_format import Row
from plimsoll.profiler.samples import Effort, collect, figures
from plimsoll.profiler.shapes import Shape
from plimsoll.profiler.work import calls_of, matrix_of, work_of

COLD_BYTES = 512 * 2**20
"""Copies of weights and keys together exceed this, and with it every cache known to us."""
WAIT_CYCLES = 2_000_000
OF_TOKENS = ("embedding", "norm", "qkv_proj", "rotary", "kv_write", "o_proj", "gate_up_proj", "activation", "down_proj")
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}

Call = Callable[[int], Any]


def load_torch() -> Any:
    """The module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("plimsoll profile", "profile") from error
    return torch


class TorchBackend:
    """A `survey.Backend` over torch.

    Args:
        shape: the model's sizes (`own_checks.shape_of`).
        device: ``cpu`` or ``cuda``.
        dtype: ``bf16`` or ``fp16``.
        tp: devices that share a layer; one device's share is measured.
        effort: how often an operator is repeated.

    Raises:
        MissingExtraError: torch is not installed.
        InputError: no such device or type.
        InfeasibleError: `tp` does not divide the heads.
    """

    def __init__(
        self, shape: Mapping[str, int], *, device: str, dtype: str = "bf16", tp: int = 1, effort: Effort | None = None
    ) -> None:
        self.torch = load_torch()
        if device == "cuda" and not self.torch.cuda.is_available():
            raise InputError("--device", device, "torch sees no CUDA device; use --device cpu")
        if dtype not in DTYPES:
            raise InputError("--precision", dtype, f"measured are {', '.join(DTYPES)}")
        if shape["num_heads"] % tp or shape["intermediate_size"] % tp:
            raise InfeasibleError(f"TP {tp} does not divide {shape['num_heads']} heads", "divisibility")
        self._shape, self._device, self._tp = shape, device, tp
        self._effort = effort or Effort()
        self._type = getattr(self.torch, DTYPES[dtype])
        self._calls = calls_of(shape)
        self._weights: dict[str, list[Any]] = {}

    # The rows ----------------------------------------------------------------------------------------------------

    def tokens(self, size: int) -> list[Row]:
        """Every operator that works on all tokens."""
        return [self._row(name, "flop_per_token", {"tokens": size}, size) for name in OF_TOKENS]

    def sequences(self, size: int) -> list[Row]:
        """Head and sampler."""
        return [self._row(name, "flop_per_sequence", {"sequences": size}, size) for name in ("head", "sampler")]

    def attention(self, shape: Shape) -> Row:
        """One layer's: chunks and decodes one after another."""
        samples = self._attention_samples(shape)
        return {"calls_per_step": self._calls["attention"], **shape.row(), **figures(samples)}

    def whole(self, shape: Shape) -> Row:
        """The sum of all operators, each measured alone at this very shape."""
        rows = [*self.tokens(shape.num_tokens), *self.sequences(shape.num_sequences), self.attention(shape)]
        microseconds = sum(row["calls_per_step"] * row["time_us"] for row in rows)
        spread = max(row["spread_frac"] for row in rows)
        return {**shape.row(), "measured_us": microseconds, "spread_frac": spread, "num_samples": len(rows)}

    def _row(self, operator: str, work: str, size: Mapping[str, int], rows: int) -> Row:
        flop, weights = work_of(operator, self._shape, self._tp)
        base = {"operator": operator, "calls_per_step": self._calls[operator], work: flop, "weight_bytes": weights}
        call, copies = self._operator(operator, rows)
        return {**base, **size, **figures(self._time(call, copies))}

    # The operators -----------------------------------------------------------------------------------------------

    def _operator(self, name: str, rows: int) -> tuple[Call, int]:
        """A call by number of its copy, and how many copies there are."""
        torch, shape = self.torch, self._shape
        hidden, head = shape["hidden_size"], shape["head_dim"]
        matrix = matrix_of(name, shape, self._tp)
        if matrix is not None:
            inputs, weights = self._random(rows, matrix[0]), self._copies(name, *matrix)
            return (lambda copy: inputs @ weights[copy].t()), len(weights)
        kv_heads = max(1, shape["num_kv_heads"] // self._tp)
        heads = shape["num_heads"] // self._tp + kv_heads
        if name == "embedding":
            table = self._copies(name, hidden, shape["vocab_size"])[0]
            places = torch.randint(shape["vocab_size"], (rows,), device=self._device)
            return (lambda _: torch.nn.functional.embedding(places, table)), 1
        if name == "norm":
            inputs, scale = self._random(rows, hidden), self._random(hidden)
            return (lambda _: torch.nn.functional.rms_norm(inputs, (hidden,), scale)), 1
        if name == "rotary":
            inputs, turned = self._random(rows, heads, head), self._random(rows, 1, head)
            return (lambda _: inputs * turned + inputs.roll(head // 2, -1) * turned), 1
        if name == "kv_write":
            cache, fresh = self._random(4 * rows, 2, kv_heads, head), self._random(rows, 2, kv_heads, head)
            slots = torch.randperm(4 * rows, device=self._device)[:rows]
            return (lambda _: cache.index_copy_(0, slots, fresh)), 1
        if name == "activation":
            inner = shape["intermediate_size"] // self._tp
            first, second = self._random(rows, inner), self._random(rows, inner)
            gated = shape["mlp_matrices"] == 3
            silu = torch.nn.functional.silu
            return (lambda _: silu(first) * second if gated else silu(first)), 1
        logits = self._random(rows, shape["vocab_size"])
        return (lambda _: torch.argmax(logits.float(), dim=-1)), 1

    def _attention_samples(self, shape: Shape) -> list[float]:
        parts: list[Call] = []
        if shape.num_prefill:
            parts.append(self._attend(shape.num_prefill, shape.chunk_tokens, shape.context_tokens))
        if shape.num_decode:
            parts.append(self._attend(shape.num_decode, 1, shape.decode_length_tokens - 1))

        def all_parts(copy: int) -> None:
            for part in parts:
                part(copy)

        return self._time(all_parts, 1)

    def _attend(self, number: int, new: int, context: int) -> Call:
        """`number` sequences of `new` tokens each behind `context` tokens."""
        torch, shape, length = self.torch, self._shape, new + context
        heads, kv_heads = shape["num_heads"] // self._tp, max(1, shape["num_kv_heads"] // self._tp)
        one = 2 * 2 * number * kv_heads * length * shape["head_dim"]
        copies = max(1, min(shape["num_layers"], COLD_BYTES // max(1, one), 8))
        queries = self._random(number, heads, new, shape["head_dim"])
        keys = [self._random(number, kv_heads, length, shape["head_dim"]) for _ in range(copies)]
        values = [self._random(number, kv_heads, length, shape["head_dim"]) for _ in range(copies)]
        mask = None
        if context and new > 1:
            mask = torch.ones(new, length, dtype=torch.bool, device=self._device).tril(diagonal=context)
        attend, turn = torch.nn.functional.scaled_dot_product_attention, iter(range(10**9))

        def call(_: int) -> Any:
            copy = next(turn) % copies
            causal = mask is None and new > 1
            return attend(
                queries, keys[copy], values[copy], attn_mask=mask, is_causal=causal, enable_gqa=heads != kv_heads
            )

        return call

    # Timing ------------------------------------------------------------------------------------------------------

    def _time(self, call: Call, copies: int) -> list[float]:
        """Seconds of one call, sampled over all copies."""
        with self.torch.inference_mode():
            return collect(lambda: self._once(call, copies), self._effort)

    def _once(self, call: Call, copies: int) -> float:
        if self._device == "cpu":
            began_s = time.perf_counter()
            for copy in range(copies):
                call(copy)
            return (time.perf_counter() - began_s) / copies
        cuda = self.torch.cuda
        began, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        cuda._sleep(WAIT_CYCLES)
        began.record()
        for copy in range(copies):
            call(copy)
        ended.record()
        cuda.synchronize()
        return float(began.elapsed_time(ended)) / 1e3 / copies

    def _copies(self, name: str, k: int, n: int) -> list[Any]:
        """Weights ``[n, k]`` of an operator, enough to leave the caches between two uses of one."""
        if name not in self._weights:
            count = max(1, min(self._calls[name], COLD_BYTES // (2 * k * n)))
            self._weights[name] = [self._random(n, k) for _ in range(count)]
        return self._weights[name]

    def _random(self, *size: int) -> Any:
        return self.torch.randn(*size, device=self._device, dtype=self._type) * 0.02


def power_rows(torch: Any, run: Callable[[], float]) -> list[Row]:
    """Watts of an idle and of a busy CUDA device, where NVML answers; nothing elsewhere.

    Args:
        torch: the module.
        run: keeps the device busy for a moment.
    """
    try:
        watts = [torch.cuda.power_draw() / 1e3]
    except (RuntimeError, ModuleNotFoundError, AttributeError, AssertionError):
        return []
    busy = []
    for _ in range(5):
        run()
        busy.append(torch.cuda.power_draw() / 1e3)
    idle_row = {"load": "idle", **figures(watts, "power_w", 1.0)}
    return [idle_row, {"load": "busy", **figures(busy, "power_w", 1.0)}]
