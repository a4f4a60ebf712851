"""Parts of SGLang's scheduler: how much of what may still be generated it reserves, and the orders of its queue."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.engine.policy import UNLIMITED

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.radix import RadixReplica
    from plimsoll.engine.prefix.radix_tree import Node
    from plimsoll.engine.requests import Requests

ORDERS = ("fcfs", "lpm", "dfs-weight", "lof", "random")
IN_RANKS = 0.3
"""Factor of `schedule_conservativeness` with data-parallel attention (``server_args.py``)."""
LONG_QUEUE = 128
"""Requests in the queue, beyond which looking up and sorting them all is too slow: first come, first served."""
RETRACT_DECODE_STEPS = 20
"""Decode steps for which those who stay should find memory."""
SAME_BEGINNING = 32
"""Tokens that waiting requests must have in common for all but one of them to wait for the first one's cache."""


def check_options(order: str, conservativeness: float, prefill_tokens: int, new_tokens: int, seed: int) -> None:
    """Refuse what SGLang's scheduler cannot have.

    Raises:
        InputError, UnknownNameError: an option that cannot be used.
    """
    if order not in ORDERS:
        raise UnknownNameError("schedule_policy", order, ORDERS)
    if not 0 <= conservativeness < float("inf"):
        raise InputError("schedule_conservativeness", conservativeness, "give a factor of 0 or more")
    if min(prefill_tokens, new_tokens) < 1:
        values = (prefill_tokens, new_tokens)
        raise InputError("max_prefill_tokens, clip_max_new_tokens", values, "give at least 1 token")
    if seed < 0:
        raise InputError("random_seed", seed, "give a whole number of zero or more")


def first_ratio(config: EngineConfig, conservativeness: float) -> NewTokenRatio:
    """The new token ratio of a server that has just started."""
    factor = conservativeness * IN_RANKS if config.ranks > 1 else conservativeness
    initial = min(0.7 * factor, 1.0)
    return NewTokenRatio(initial, min(initial * 0.14, 1.0), 600)


def chunk_size(config: EngineConfig, asked: int) -> int:
    """Prompt tokens of a step: as asked of all ranks together, 0 for the default, -1 for as many as there are.

    Raises:
        InputError: not a whole number of blocks.
    """
    if asked == -1:
        return UNLIMITED
    tokens = asked // config.ranks or max(config.max_num_batched_tokens // config.block_size, 1) * config.block_size
    if tokens < 1 or tokens % config.block_size or asked % config.ranks:
        ranks = "" if config.ranks == 1 else f" for each of the {config.ranks} ranks"
        remedy = (
            f"give a multiple of the block size ({config.block_size}){ranks}, 0 for the default, -1 for whole prompts"
        )
        raise InputError("chunked_prefill_size", asked, remedy)
    return tokens


class NewTokenRatio:
    """Which share of the tokens that requests may still generate counts as needed; less with every decode step.

    It is subtracted step by step, as in SGLang, so that it has the same bits however many steps are asked for at once.

    Attributes:
        now: the ratio.
    """

    def __init__(self, initial: float, least: float, steps: int) -> None:
        self._initial, self._least = initial, least
        self._decay = (initial - least) / steps
        self._ladder = [initial]
        self._known = self._ladder
        self._at = 0
        self.now = initial

    def reset(self) -> None:
        """Back to the start: the server has been idle."""
        self._ladder, self._at, self.now = self._known, 0, self._initial

    def start(self, ratio: float) -> None:
        """What is likely, seen from those who stayed when memory ran out."""
        self._ladder, self._at, self.now = [ratio], 0, ratio

    def decay(self, steps: int) -> None:
        """So many decode steps later."""
        if self.now == self._least:
            return
        ladder, at = self._ladder, self._at + steps
        while len(ladder) <= at and ladder[-1] != self._least:
            ladder.append(max(ladder[-1] - self._decay, self._least))
        self._at = min(at, len(ladder) - 1)
        self.now = ladder[self._at]


class QueueOrder:
    """The queue in the order of a schedule policy; the sort is stable, so what was sorted before breaks ties.

    Args:
        name: ``fcfs``, ``lpm``, ``dfs-weight``, ``lof`` or ``random``.
        most_new: tokens that each request may generate.
        seed: for `random`.
    """

    def __init__(self, name: str, most_new: list[int], seed: int) -> None:
        self.name = name
        self._most_new = most_new
        self._rng = np.random.default_rng(seed)

    def apply(self, waiting: deque[int], requests: Requests, replica: RadixReplica | None) -> None:
        """Sort the queue in place."""
        if self.name == "lof":
            order = sorted(waiting, key=lambda request: -self._most_new[request])
        elif self.name == "random":
            order = [waiting[place] for place in self._rng.permutation(len(waiting)).tolist()]
        elif replica is not None and self.name == "lpm" and len(waiting) <= LONG_QUEUE:
            order = self._by_prefix(waiting, requests, replica)
        elif replica is not None and self.name == "dfs-weight":
            order = self._by_weight(waiting, requests, replica)
        else:
            return
        waiting.clear()
        waiting.extend(order)

    def _by_prefix(self, waiting: deque[int], requests: Requests, replica: RadixReplica) -> list[int]:
        """The longest cached part first; last those that do better to wait for one before them to be computed."""
        size, target = replica.block_size, requests.target
        rank: dict[int, float] = {}
        seen = set()
        for request in waiting:
            cached = replica.match(request, target[request]).high * size
            rank[request] = -cached
            if cached > SAME_BEGINNING:
                continue
            beginning = replica.contents.beginning(request, SAME_BEGINNING)
            if beginning in seen:
                rank[request] = float("inf")
            elif beginning is not None:
                seen.add(beginning)
        return sorted(waiting, key=rank.__getitem__)

    @staticmethod
    def _by_weight(waiting: deque[int], requests: Requests, replica: RadixReplica) -> list[int]:
        """Depth first through the tree, where most wait first; whoever is cached deeper comes before those above."""
        here: dict[Node, list[int]] = {}
        for request in waiting:
            here.setdefault(replica.match(request, requests.target[request]), []).append(request)
        weight: dict[Node, int] = {}
        children: dict[Node, set[Node]] = {}
        for last, found in here.items():
            node: Node | None = last
            while node is not None:
                weight[node] = weight.get(node, 0) + len(found)
                children.setdefault(node, set())
                if node.parent is not None:
                    children.setdefault(node.parent, set()).add(node)
                node = node.parent
        order: list[int] = []
        path = [replica.tree.root]
        while path:  # each node before what goes on from it, the heaviest last; turned round at the end
            node = path.pop()
            order += reversed(here.get(node, ()))
            path += sorted(children.get(node, ()), key=lambda child: (-weight[child], child.birth))
        return order[::-1]
