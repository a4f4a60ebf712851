"""A profile of Plimsoll's own form, measured by a machine that is a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plimsoll.catalog.models import load_model
from plimsoll.perf.profiles.own_format import FORMAT, Row
from plimsoll.perf.profiles.own_shape import shape_of
from plimsoll.perf.profiles.own_work import calls_of, work_of
from plimsoll.profiler.device import cpu_device, device_toml, identity
from plimsoll.profiler.shapes import Limits, Shape
from plimsoll.profiler.store import Store
from plimsoll.profiler.survey import Survey

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CPUINFO = "model name\t: Test CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
LIMITS = Limits(max_tokens=512, max_seqs=32, max_length=1151)
FLOP_PER_US = 3e5  # 300 GFLOP/s
TOKEN_OPERATORS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "norm", "other")


class Formula:
    """Affine operators; attention of a fixed time, a time per pair and a time per read token, chunk by chunk."""

    def __init__(self, shape: dict[str, int]) -> None:
        self.shape, self.num_calls = shape, 0
        self.calls = calls_of(shape)

    def tokens(self, size: int) -> list[Row]:
        self.num_calls += 1
        return [self._row(name, "flop_per_token", "tokens", size) for name in TOKEN_OPERATORS]

    def sequences(self, size: int) -> list[Row]:
        self.num_calls += 1
        return [self._row(name, "flop_per_sequence", "sequences", size) for name in ("head", "sampler")]

    def attention(self, shape: Shape, window: int | None = None) -> Row:
        assert window is None
        self.num_calls += 1
        return {"calls_per_step": self.calls["attention"], **shape.row(), **_timed(attention_us(shape))}

    def whole(self, shape: Shape) -> Row:
        self.num_calls += 1
        return {**shape.row(), "measured_us": step_us(self.shape, shape), "spread_frac": 0.0, "num_samples": 5}

    def _row(self, name: str, work: str, size_name: str, size: int) -> Row:
        flop, weights = work_of(name, self.shape)
        base = {"operator": name, "calls_per_step": self.calls[name], work: flop, "weight_bytes": weights}
        return {**base, size_name: size, **_timed(operator_us(self.shape, name, size))}


def operator_us(shape: dict[str, int], name: str, size: int) -> float:
    """One call."""
    return 10.0 + work_of(name, shape)[0] * size / FLOP_PER_US + 0.01 * size


def attention_us(shape: Shape) -> float:
    """One layer's."""
    chunk, context = shape.chunk_tokens, shape.context_tokens
    prefill = shape.num_prefill * (20 + 0.02 * chunk * (context + (chunk + 1) / 2))
    return prefill + (8 + 0.01 * shape.num_decode * shape.decode_length_tokens if shape.num_decode else 0.0)


def step_us(sizes: dict[str, int], shape: Shape) -> float:
    """A whole step without host time."""
    calls = calls_of(sizes)
    total = sum(calls[name] * operator_us(sizes, name, shape.num_tokens) for name in TOKEN_OPERATORS)
    total += sum(operator_us(sizes, name, shape.num_sequences) for name in ("head", "sampler"))
    return total + calls["attention"] * attention_us(shape)


def _timed(microseconds: float) -> dict[str, Any]:
    return {"time_us": microseconds, "spread_frac": 0.01, "num_samples": 5}


def write_config(folder: Path) -> Path:
    """A model's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(CONFIG))
    return file


def open_store(folder: Path, config: Path, **changes: Any) -> tuple[Store, dict[str, int]]:
    """The folder of a profile, and the sizes of its model."""
    model = load_model(str(config))
    sizes = shape_of(model)
    device = cpu_device(1, CPUINFO)
    run = {"backend": "test", "dtype": "bf16", "tp": 1, "threads": 1, "torch": "0", **changes}
    header = {"format": FORMAT, "model": {"id": model.id, **sizes}, "device": dict(identity(device)), "run": run}
    store = Store(folder, header)
    (folder / "device.toml").write_text(device_toml(device, 8 * 2**30))
    return store, sizes


def make_profile(folder: Path, *, host: tuple[float, float] | None = (500.0, 20.0)) -> tuple[Path, Path]:
    """A complete profile and its model's config; `host` is microseconds per step and per sequence."""
    config = write_config(folder / "model")
    store, sizes = open_store(folder / "profile", config)
    Survey(store, Formula(sizes), LIMITS).run()
    if host is not None:
        store.header["host"] = {"per_step_us": host[0], "per_sequence_us": host[1], "source": "a formula"}
        store.write_header()
    return folder / "profile", config
