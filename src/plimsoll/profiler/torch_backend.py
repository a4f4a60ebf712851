"""Operators as torch executes them, one by one, at a model's sizes; on CUDA and on CPU.

Weights are cycled through as many copies as fill the caches, as the layers of a model do. `clock` times them, `attend`
makes attention and `experts` the experts; an engine's own kernels may differ, and what an engine spends between
operators is not here (`vllm_backend` measures both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.core.errors import InfeasibleError, InputError, MissingExtraError
from plimsoll.perf.profiles.own_experts import expected_experts
from plimsoll.perf.profiles.own_format import Row
from plimsoll.perf.profiles.own_work import OF_SEQUENCES, calls_of, expert_work_of, matrix_of, token_operators, work_of
from plimsoll.profiler.attend import COLD_BYTES, ELEMENT_BYTES, Attend
from plimsoll.profiler.clock import Call, Copied, clock_of
from plimsoll.profiler.experts import Experts
from plimsoll.profiler.samples import Effort, figures
from plimsoll.profiler.shapes import Shape

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
CUT = {
    "num_heads": "heads",
    "intermediate_size": "columns of a feed-forward layer",
    "expert_size": "columns of an expert",
    "shared_size": "columns of the shared experts",
}


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
        shape: the model's sizes (`own_shape.shape_of`).
        device: ``cpu`` or ``cuda``.
        dtype: ``bf16`` or ``fp16``.
        tp: devices that share a layer; one device's share is measured.
        effort: how often an operator is repeated.

    Raises:
        MissingExtraError: torch is not installed.
        InputError: no such device or type.
        InfeasibleError: `tp` does not divide the heads or the width of a feed-forward layer.
    """

    def __init__(
        self, shape: Mapping[str, int], *, device: str, dtype: str = "bf16", tp: int = 1, effort: Effort | None = None
    ) -> None:
        self.torch = load_torch()
        if device == "cuda" and not self.torch.cuda.is_available():
            raise InputError("--device", device, "torch sees no CUDA device; use --device cpu")
        if dtype not in DTYPES:
            raise InputError("--precision", dtype, f"measured are {', '.join(DTYPES)}")
        for name, what in CUT.items():
            if shape.get(name, 0) % tp:
                raise InfeasibleError(f"TP {tp} does not divide {shape[name]} {what}", "divisibility")
        self._shape, self._device, self._tp = shape, device, tp
        self._effort = effort or Effort()
        self._type = getattr(self.torch, DTYPES[dtype])
        self._calls = calls_of(shape)
        self._weights: dict[str, list[Any]] = {}
        self._clock = clock_of(self.torch, device)
        self._attend = Attend(self.torch, shape, tp, self._random, device)
        self._experts = Experts(self.torch, shape, tp, self._random, device) if "num_experts" in shape else None

    @property
    def kernels(self) -> dict[str, str]:
        """What attention and experts are executed by, for the header."""
        found = {"attention": self._attend.kernel}
        if self._experts is not None:
            found["experts"] = "grouped_mm" if self._experts.grouped else "one product an expert"
        return found

    # The rows ----------------------------------------------------------------------------------------------------

    def tokens(self, size: int) -> list[Row]:
        """Every operator that works on all tokens."""
        return self._rows(token_operators(self._shape), "flop_per_token", {"tokens": size})

    def sequences(self, size: int) -> list[Row]:
        """Head and sampler."""
        return self._rows(OF_SEQUENCES, "flop_per_sequence", {"sequences": size})

    def attention(self, shape: Shape, window: int | None = None) -> Row:
        """One layer's, behind its window."""
        parts = self._attend.calls(shape, window)

        def all_parts(copy: int) -> None:
            for part in parts:
                part(copy)

        calls = self._calls["attention" if window is None else "attention_window"]
        return {"calls_per_step": calls, **shape.row(), **figures(self._samples([(all_parts, 1)])[0])}

    def experts(self, tokens: int, activated: int) -> Row:
        """One layer's routed experts; only of a model that has some."""
        assert self._experts is not None
        flop, weights = expert_work_of(self._shape, self._tp)
        base = {"calls_per_step": self._calls["experts"], "flop_per_token": flop, "weight_bytes": weights}
        (seconds,) = self._samples([self._experts.call(tokens, activated)])
        return {**base, "tokens": tokens, "activated_experts": activated, **figures(seconds)}

    def whole(self, shape: Shape) -> Row:
        """The sum of all operators, each measured alone at this very shape."""
        rows = [*self.tokens(shape.num_tokens), *self.sequences(shape.num_sequences)]
        windows = {"attention": None, "attention_window": self._shape.get("window")}
        rows += [self.attention(shape, window) for name, window in windows.items() if self._calls[name]]
        if self._experts is not None:
            rows.append(self.experts(shape.num_tokens, round(expected_experts(self._shape, shape.num_tokens))))
        microseconds = sum(row["calls_per_step"] * row["time_us"] for row in rows)
        spread = max(row["spread_frac"] for row in rows)
        return {**shape.row(), "measured_us": microseconds, "spread_frac": spread, "num_samples": len(rows)}

    def work(self, tokens: int) -> None:
        """Keep the device busy for some milliseconds: the matrix products of a step of `tokens`, nothing timed."""
        with self.torch.inference_mode():
            for name in token_operators(self._shape):
                if matrix_of(name, self._shape, self._tp) is not None:
                    call, copies = self._operator(name, tokens)
                    for copy in range(copies):
                        call(copy)

    def _rows(self, operators: Sequence[str], work: str, size: Mapping[str, int]) -> list[Row]:
        (number,) = size.values()
        measured = self._samples([self._operator(name, number) for name in operators])
        found = []
        for operator, seconds in zip(operators, measured, strict=True):
            flop, weights = work_of(operator, self._shape, self._tp)
            base = {"operator": operator, "calls_per_step": self._calls[operator], work: flop, "weight_bytes": weights}
            found.append({**base, **size, **figures(seconds)})
        return found

    # The operators -----------------------------------------------------------------------------------------------

    def _operator(self, name: str, rows: int) -> Copied:
        torch, shape = self.torch, self._shape
        hidden = shape["hidden_size"]
        matrix = matrix_of(name, shape, self._tp)
        if matrix is not None:
            inputs, weights = self._random(rows, matrix[0]), self._copies(name, *matrix)
            return (lambda copy: inputs @ weights[copy].t()), len(weights)
        if name == "embedding":
            tables = self._copies(name, hidden, shape["vocab_size"])
            places = torch.randint(shape["vocab_size"], (rows,), device=self._device)
            return (lambda copy: torch.nn.functional.embedding(places, tables[copy])), len(tables)
        if name == "norm":
            fresh, residual, scale = self._random(rows, hidden), self._random(rows, hidden), self._random(hidden)
            return (lambda _: torch.nn.functional.rms_norm(residual + fresh, (hidden,), scale)), 1
        if name in ("activation", "shared_activation"):
            whole = shape["intermediate_size"] if name == "activation" else shape["shared_size"]
            first, second = self._random(rows, whole // self._tp), self._random(rows, whole // self._tp)
            gated, silu = shape["mlp_matrices"] == 3, torch.nn.functional.silu
            return (lambda _: silu(first) * second if gated else silu(first)), 1
        if name == "top_k":
            scores, number = self._random(rows, shape["num_experts"]), shape["experts_per_token"]
            return (lambda _: torch.topk(torch.softmax(scores.float(), dim=-1), number, dim=-1)), 1
        if name == "sampler":
            logits = self._random(rows, shape["vocab_size"])
            return (lambda _: torch.argmax(logits.float(), dim=-1)), 1
        return self._of_heads(name, rows), 1

    def _of_heads(self, name: str, rows: int) -> Call:
        """Norms of queries and keys, rotary embedding, and the write to the cache."""
        torch, shape = self.torch, self._shape
        kv_heads, heads = max(1, shape["num_kv_heads"] // self._tp), shape["num_heads"] // self._tp
        latent, turned = shape.get("kv_lora_rank", 0), shape.get("qk_rope_head_dim", shape["head_dim"])
        if name == "qk_norm" and latent:
            norms = [self._norm(self._random(rows, rank)) for rank in (latent, shape["q_lora_rank"]) if rank]
            return lambda copy: [norm(copy) for norm in norms]
        if name == "qk_norm":
            return self._norm(self._random(rows, heads + kv_heads, shape["head_dim"]))
        if name == "rotary":
            inputs, angles = self._random(rows, heads + kv_heads, turned), self._random(rows, 1, turned)
            return lambda _: inputs * angles + inputs.roll(turned // 2, -1) * angles
        size = (latent + turned,) if latent else (2, kv_heads, shape["head_dim"])
        cache, fresh = self._random(4 * rows, *size), self._random(rows, *size)
        slots = torch.randperm(4 * rows, device=self._device)[:rows]
        return lambda _: cache.index_copy_(0, slots, fresh)

    def _norm(self, inputs: Any) -> Call:
        """Over the last dimension."""
        size = inputs.shape[-1]
        scale, norm = self._random(size), self.torch.nn.functional.rms_norm
        return lambda _: norm(inputs, (size,), scale)

    # Timing ------------------------------------------------------------------------------------------------------

    def _samples(self, calls: Sequence[Copied]) -> list[list[float]]:
        """Seconds of one call of each, sampled over all copies."""
        with self.torch.inference_mode():
            return self._clock.samples(calls, self._effort)

    def _copies(self, name: str, k: int, n: int) -> list[Any]:
        """Weights ``[n, k]`` of an operator, enough to leave the caches between two uses of one."""
        if name not in self._weights:
            # What is used once a step finds the caches full of the layers; copies stand for these.
            used = self._calls[name] if self._calls[name] > 1 else self._shape["num_layers"]
            count = max(1, min(used, COLD_BYTES // (ELEMENT_BYTES * k * n)))
            self._weights[name] = [self._random(n, k) for _ in range(count)]
        return self._weights[name]

    def _random(self, *size: int) -> Any:
        return self.torch.randn(*size, device=self._device, dtype=self._type) * 0.02
