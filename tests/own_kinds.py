"""Models of other kinds of layers than `own_profiles`, and a machine that is a formula for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plimsoll.perf.profiles.own_experts import expected_experts
from plimsoll.perf.profiles.own_format import Row
from plimsoll.perf.profiles.own_grids import pairs_of
from plimsoll.perf.profiles.own_work import OF_SEQUENCES, calls_of, expert_work_of, token_operators, work_of
from plimsoll.profiler.shapes import Limits, Shape
from plimsoll.profiler.survey import Survey
from tests.own_profiles import CONFIG, FLOP_PER_US, open_store

LIMITS = Limits(max_tokens=512, max_seqs=32, max_length=1151)
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 16, "num_experts_per_tok": 2}
MISTRAL = {"architectures": ["MistralForCausalLM"], "sliding_window": 200}
GEMMA = {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 200}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "sliding_window": 128, **{k: MIXTRAL[k] for k in list(MIXTRAL)[1:]}}
QWEN_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 12,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 512,
    "decoder_sparse_step": 2,
}
DEEPSEEK = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 128,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "topk_method": "greedy",
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "gpt-oss": GPT_OSS,
    "qwen-moe": QWEN_MOE,
    "deepseek": DEEPSEEK,
}


class KindsFormula:
    """Affine operators; attention by pairs and read tokens in its window; experts by rows and by experts in use."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.calls, self.num_calls = sizes, calls_of(sizes), 0

    def tokens(self, size: int) -> list[Row]:
        return [self._row(name, "flop_per_token", "tokens", size) for name in token_operators(self.sizes)]

    def sequences(self, size: int) -> list[Row]:
        return [self._row(name, "flop_per_sequence", "sequences", size) for name in OF_SEQUENCES]

    def attention(self, shape: Shape, window: int | None = None) -> Row:
        self.num_calls += 1
        calls = self.calls["attention" if window is None else "attention_window"]
        return {"calls_per_step": calls, **shape.row(), **_timed(attention_us(shape, window))}

    def experts(self, tokens: int, activated: int) -> Row:
        self.num_calls += 1
        flop, weights = expert_work_of(self.sizes)
        base = {"calls_per_step": self.calls["experts"], "flop_per_token": flop, "weight_bytes": weights}
        time_us = experts_us(self.sizes, tokens, activated)
        return {**base, "tokens": tokens, "activated_experts": activated, **_timed(time_us)}

    def whole(self, shape: Shape) -> Row:
        return {**shape.row(), "measured_us": step_us(self.sizes, shape), "spread_frac": 0.0, "num_samples": 5}

    def _row(self, name: str, work: str, size_name: str, size: int) -> Row:
        self.num_calls += 1
        flop, weights = work_of(name, self.sizes)
        base = {"operator": name, "calls_per_step": self.calls[name], work: flop, "weight_bytes": weights}
        return {**base, size_name: size, **_timed(operator_us(self.sizes, name, size))}


def operator_us(sizes: dict[str, int], name: str, size: int) -> float:
    """One call."""
    return 10.0 + work_of(name, sizes)[0] * size / FLOP_PER_US + 0.01 * size


def attention_us(shape: Shape, window: int | None) -> float:
    """One layer's."""
    prefill = shape.num_prefill * (20 + 0.02 * pairs_of(shape.chunk_tokens, shape.context_tokens, window))
    length = shape.decode_length_tokens if window is None else min(shape.decode_length_tokens, window)
    return prefill + (8 + 0.01 * shape.num_decode * length if shape.num_decode else 0.0)


def experts_us(sizes: dict[str, int], tokens: int, activated: float) -> float:
    """One layer's."""
    return 30 + expert_work_of(sizes)[0] * tokens / FLOP_PER_US + 40 * activated


def step_us(sizes: dict[str, int], shape: Shape) -> float:
    """A whole step without host time, its experts used uniformly."""
    calls = calls_of(sizes)
    found = sum(calls[name] * operator_us(sizes, name, shape.num_tokens) for name in token_operators(sizes))
    found += sum(operator_us(sizes, name, shape.num_sequences) for name in OF_SEQUENCES)
    found += calls["attention"] * attention_us(shape, None)
    found += calls["attention_window"] * attention_us(shape, sizes.get("window"))
    if calls["experts"]:
        activated = expected_experts(sizes, shape.num_tokens)
        found += calls["experts"] * experts_us(sizes, shape.num_tokens, activated)
    return found


def write_kind(folder: Path, kind: str, **changes: Any) -> Path:
    """The config.json of a small model of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps({**CONFIG, **KINDS[kind], **changes}))
    return file


def make_kind(folder: Path, kind: str, limits: Limits = LIMITS) -> tuple[Path, Path]:
    """A complete profile of a kind, and its model's config."""
    config = write_kind(folder / "model", kind)
    store, sizes = open_store(folder / "profile", config)
    Survey(store, KindsFormula(sizes), limits).run()
    return folder / "profile", config


def _timed(microseconds: float) -> dict[str, Any]:
    return {"time_us": microseconds, "spread_frac": 0.01, "num_samples": 5}
