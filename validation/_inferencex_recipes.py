"""How a measured row's engine and client were started: `inferencex_recipes.toml`, matched to the row."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError
from validation._inferencex_rows import Row

FILE = Path(__file__).with_name("inferencex_recipes.toml")
ROUND_TOKENS, SPARE_TOKENS, LENGTH_SPARE = 64, 64, 200
GENERATOR_SEATS, GENERATOR_SPARE = 512, 1500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that latency depends on; the file's head says what each means.

    Attributes:
        token_budget: tokens of a step.
        max_seqs: sequences at once.
        stream_interval and all others: as in the file.
    """

    token_budget: int = 8192
    max_seqs: int = 1024
    stream_interval: int = 1
    holds_first_token: bool = False
    recv_interval: int = 1
    kv_precision: str = "auto"
    async_scheduling: bool = False
    wait_steps: int = 0
    wait_tokens_frac: float = 0.0
    speculative_tokens: int = 0
    accepted_tokens: float = 1.0
    postprocess_workers: int = 0
    data_parallel_attention: bool = False
    memory_utilization: float = 0.92
    cold_start_s: float = 0.0
    seats_short: int = 0
    prompts_per_user: int = 10
    shortest_frac: float = 0.8
    mixed_chunk: bool = False
    prompt_launch_s: float = 0.0
    num_frontends: int = 10
    latent_read_frac: float = 1.0

    @property
    def held_tokens(self) -> int:
        """Tokens behind the first that a client waits for before it sees the first."""
        return self.stream_interval - 1 if self.holds_first_token else 0


_MATCHES: dict[str, Callable[[Row, Any], bool]] = {
    "backend": lambda row, value: row.backend == value,
    "client": lambda row, value: row.client == value,
    "models": lambda row, value: any(part in row.fields["model_path"] for part in value),
    "gpus": lambda row, value: row.gpu in value,
    "precisions": lambda row, value: row.precision in value,
    "since": lambda row, value: row.measured >= value,
    "until": lambda row, value: bool(row.measured) and row.measured <= value,
    "version": lambda row, value: row.fields["backend_version"].startswith(value),
    "tp_below": lambda row, value: row.num_ways("tp_size") < value,
    "dp": lambda row, value: (row.num_ways("attention_dp_size") > 1) is value,
    "ep": lambda row, value: (row.num_ways("moe_ep_size") > 1) is value,
    "lengths": lambda row, value: f"{row.prompt_tokens}/{row.output_tokens}" in value,
    "concurrency_from": lambda row, value: row.concurrency >= value,
    "concurrency_below": lambda row, value: row.concurrency < value,
}


@functools.cache
def load_recipes(path: Path = FILE) -> tuple[Mapping[str, Any], ...]:
    """All recipes of a file.

    Raises:
        InputError: a key that nobody reads.
    """
    recipes = tomllib.loads(path.read_text(encoding="utf-8"))["recipe"]
    known = {field.name for field in dataclasses.fields(Recipe)} | {"match", "script", "token_budget_of"}
    for recipe in recipes:
        for name in sorted(recipe.keys() - known) + sorted(recipe["match"].keys() - _MATCHES.keys()):
            raise InputError(path.name, name, f"write one of {', '.join(sorted(known | _MATCHES.keys()))}")
    return tuple(recipes)


def recipe_of(row: Row) -> Recipe:
    """The settings of a row: those of all recipes that match, later ones first."""
    found: dict[str, Any] = {}
    for recipe in load_recipes():
        if all(_MATCHES[name](row, value) for name, value in recipe["match"].items()):
            found |= {name: value for name, value in recipe.items() if name not in ("match", "script")}
    users = row.concurrency
    rule, budget = found.pop("token_budget_of", ""), found.get("token_budget", 8192)
    if rule == "lengths":
        budget = row.prompt_tokens + row.output_tokens + LENGTH_SPARE
    elif rule == "generator":
        budget = row.prompt_tokens + GENERATOR_SEATS + GENERATOR_SPARE
    elif rule == "twice the prompt":
        budget = 2 * row.prompt_tokens
    elif rule == "prompt and users":
        # With speculation every user brings its drafts along.
        width = users * (1 + found.get("speculative_tokens", 0)) if budget == 0 else users
        needed = -(-(width + row.prompt_tokens + SPARE_TOKENS) // ROUND_TOKENS) * ROUND_TOKENS
        budget = max(needed, budget)
    elif rule:
        raise InputError(
            "token_budget_of", rule, "write lengths, generator, twice the prompt, prompt and users, or nothing"
        )
    found["token_budget"] = budget
    if not found.get("max_seqs", 1):
        found["max_seqs"] = max(1, users - found.get("seats_short", 0))
    return Recipe(**found)
