"""Layouts and seats where prompts and answers have GPUs of their own, from public recipes: `inferencex_pools.toml`."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plimsoll.core.errors import InputError

if TYPE_CHECKING:
    from validation._inferencex_rows import Row

FILE = Path(__file__).with_name("inferencex_pools.toml")
CHANGED, BEFORE = "2026-01-01", " before 2026"
NEAR = 1.5
PROMPT_RANKS = 4  # of a prompt worker whose recipe does not say
_NAME = re.compile(r"ctx(\d+)(?:dep(\d+))?_gen(\d+)_(dep|tep|tp)(\d+)(?:_batch(\d+))?(?:_mtp(\d))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeatRecipe:
    """One recipe.

    Attributes:
        num_prompt_workers, num_answer_workers: of each pool.
        prompt_ranks: of a prompt worker.
        by_rank: whether every rank of an answering worker has sequences of its own.
        ranks: of an answering worker.
        batch: the most sequences, of a rank where `by_rank`, else of the worker; 0 where nobody waits for a seat.
        drafts: tokens drafted in every step.
        users: with which it ran.
    """

    num_prompt_workers: int
    num_answer_workers: int
    prompt_ranks: int
    by_rank: bool
    ranks: int
    batch: int
    drafts: int
    users: tuple[int, ...]

    @property
    def seats(self) -> int:
        """Of an answering worker."""
        return self.batch * self.ranks if self.by_rank else self.batch

    @property
    def num_gpus(self) -> int:
        """Of the whole deployment."""
        return self.prompt_ranks * self.num_prompt_workers + self.ranks * self.num_answer_workers

    def matches(self, row: Row) -> bool:
        """Whether the row's layout is this recipe's, and its users are these or near."""
        ranks, spread = row.num_ways("tp_size", "decode_"), row.num_ways("attention_dp_size", "decode_")
        if self.drafts and row.concurrency not in self.users:
            return False
        layout = (self.num_prompt_workers, self.num_answer_workers, self.by_rank, self.ranks)
        return self.distance(row) <= math.log(NEAR) and layout == (
            row.num_ways("num_workers", "prefill_"),
            row.num_ways("num_workers", "decode_"),
            spread > 1,
            ranks * spread,
        )

    def distance(self, row: Row) -> float:
        """How far the row's users are from those of the recipe, as a logarithm."""
        return min(abs(math.log(row.concurrency / users)) for users in self.users)

    def columns(self) -> dict[str, str]:
        """The layout as a row's columns have it."""
        ways = {
            "tp_size": "1",
            "pp_size": "1",
            "attention_dp_size": "1",
            "moe_tp_size": "1",
            "moe_ep_size": "",
            "num_workers": "",
        }
        found: dict[str, str] = {}
        for stage, ranks, workers in (
            ("prefill_", self.prompt_ranks, self.num_prompt_workers),
            ("decode_", self.ranks, self.num_answer_workers),
        ):
            own = {"attention_dp_size" if self.by_rank else "tp_size": str(ranks)}
            own |= {"moe_ep_size": str(ranks), "num_workers": str(workers)}
            found |= {stage + name: value for name, value in (ways | own).items()}
        return found


@functools.cache
def load_seats(path: Path = FILE) -> Mapping[str, Sequence[SeatRecipe]]:
    """The recipes by GPU, precision and lengths.

    Raises:
        InputError: a name of another form.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: [_recipe(path, name, users) for name, users in table.items()] for key, table in tables.items()}


def _recipe(path: Path, name: str, users: Sequence[int]) -> SeatRecipe:
    found = _NAME.fullmatch(name)
    if found is None or not users:
        raise InputError(path.name, name, "write ctxN_genN_dep8_batchN = [users, ...] (or tep8, tp8; with _mtpN)")
    first, prompt_ranks, second, kind, ranks, batch, drafts = found.groups()
    return SeatRecipe(
        num_prompt_workers=int(first),
        num_answer_workers=int(second),
        prompt_ranks=int(prompt_ranks or PROMPT_RANKS),
        by_rank=kind == "dep",
        ranks=int(ranks),
        batch=int(batch or 0),
        drafts=int(drafts or 0),
        users=tuple(users),
    )


def recipe_for(row: Row) -> SeatRecipe | None:
    """The recipe of a row with prompts and answers apart; None where none is known."""
    if row.backend != "trtllm" or "DeepSeek" not in row.model:
        return None
    era = BEFORE if row.measured < CHANGED else ""
    recipes = load_seats().get(f"{row.gpu} {row.precision} {row.prompt_tokens}/{row.output_tokens}{era}", ())
    matching = [recipe for recipe in recipes if recipe.matches(row)]
    return min(matching, key=lambda recipe: recipe.distance(row), default=None)


def seats_of(row: Row) -> int:
    """Seats of each answering worker of a row; one for every user where no recipe is known."""
    recipe = recipe_for(row)
    return row.concurrency if recipe is None or not recipe.batch else recipe.seats


def with_total_read(row: Row) -> Row:
    """A row whose columns hold the number of GPUs of a deployment with prompts and answers apart, with its layout.

    The number and the users tell the recipe; a row of another number is returned as it is.
    """
    if row.is_disaggregated or not row.measured or row.measured >= CHANGED:
        return row
    engine = "" if row.backend == "trtllm" else f"{row.backend} "
    recipes = load_seats().get(f"{engine}{row.gpu} {row.precision} {row.prompt_tokens}/{row.output_tokens}{BEFORE}", ())
    matching = [recipe for recipe in recipes if recipe.num_gpus == row.num_ways("tp_size")]
    if not matching:
        return row
    recipe = min(matching, key=lambda one: one.distance(row))
    return dataclasses.replace(row, fields={**row.fields, "mode": "disagg", **recipe.columns()})
