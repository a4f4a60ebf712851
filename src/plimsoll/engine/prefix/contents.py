"""What stands in the KV blocks of a workload's requests: chains of keys, equal where content and all before it is.

A workload's content ids cover `block_tokens` tokens each. Engine blocks may be smaller (then one id covers `parts`
blocks) or bigger (then the last id of a block stands for it, since ids are chained). Blocks beyond the ids, and those
with generated tokens, are private: only their own request can find them again, after a preemption.
"""

from __future__ import annotations

import numpy as np

from plimsoll.core.columns import Ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload

BLOCK_BITS = 24


class Chain:
    """The content of one request.

    Attributes:
        ids: one number for each `parts` blocks, equal where this content and all before it is equal.
        num_shared: blocks that `ids` cover; the others are private.
    """

    __slots__ = ("_private", "ids", "num_shared", "parts")

    def __init__(self, ids: list[int], num_shared: int, parts: int, request: int) -> None:
        self.ids = ids
        self.num_shared = num_shared
        self.parts = parts
        self._private = (request << (BLOCK_BITS + 1)) + 1

    def key(self, block: int) -> int:
        """A number that stands for the content of a block: even where it is shared, odd where it is private."""
        if block < self.num_shared:
            part = block % self.parts
            return (self.ids[block // self.parts] * self.parts + part) << 1
        return self._private + (block << 1)

    def common(self, other: Chain, most: int) -> int:
        """How many of the first `most` blocks are the same in both. `most` is at most what `other` shares."""
        parts = self.parts
        most = min(most, self.num_shared)
        mine, others = self.ids, other.ids
        low, high = 0, -(-most // parts)
        if high and mine[high - 1] == others[high - 1]:
            return most
        while low < high:  # ids are chained: the same up to some place, different from there on
            middle = (low + high) // 2
            if mine[middle] == others[middle]:
                low = middle + 1
            else:
                high = middle
        return low * parts


class Contents:
    """The chains of all requests of a workload, for one engine block size.

    Raises:
        InputError: the block size neither divides nor is divided by the tokens of an id.
    """

    def __init__(self, workload: Workload, block_size: int) -> None:
        self.block_size = block_size
        self.has_ids = workload.prompt_block_ids is not None
        self._prompt = workload.prompt_tokens
        self._parts = self._step = 1
        if workload.prompt_block_ids is None:
            return
        assert workload.prompt_block_offsets is not None
        assert workload.block_tokens is not None
        self._id_tokens = id_tokens = workload.block_tokens
        if id_tokens % block_size and block_size % id_tokens:
            remedy = f"the workload's content ids cover {id_tokens} tokens; give a divisor or a multiple of that"
            raise InputError("block_size", block_size, remedy)
        self._parts, self._step = max(1, id_tokens // block_size), max(1, block_size // id_tokens)
        self._offsets = workload.prompt_block_offsets
        self._ids = _numbered(workload.prompt_block_ids, self._offsets)

    def chain(self, request: int) -> Chain:
        """The content of one request."""
        if not self.has_ids:
            return Chain([], 0, 1, request)
        num_blocks = int(self._prompt[request]) // self.block_size
        begin, end = int(self._offsets[request]), int(self._offsets[request + 1])
        ids = self._ids[begin + self._step - 1 : end : self._step].tolist()
        return Chain(ids, min(num_blocks, len(ids) * self._parts), self._parts, request)

    def beginning(self, request: int, tokens: int) -> int | None:
        """A number that is equal for prompts whose first `tokens` tokens are the same; None where that is not known."""
        if not self.has_ids or self._prompt[request] < tokens:
            return None
        place = int(self._offsets[request]) + (tokens - 1) // self._id_tokens
        return int(self._ids[place]) if place < self._offsets[request + 1] else None


def _numbered(ids: Ints, offsets: Ints) -> Ints:
    """The ids as numbers from 0, equal where the ids *and all before them in the request* are.

    Chained ids keep their meaning. Where they are not chained (the same id after different ones), they become so.
    """
    if not len(ids):
        return ids
    _, numbers = np.unique(ids, return_inverse=True)
    before = np.empty_like(numbers)
    before[1:] = numbers[:-1]
    before[offsets[:-1][np.diff(offsets) > 0]] = -1
    known = np.empty(int(numbers.max()) + 1, dtype=np.int64)
    known[numbers] = before
    if bool(np.all(known[numbers] == before)):
        return numbers.astype(np.int64)
    table: dict[tuple[int, int], int] = {}
    chained = []
    last = -1
    for number, parent in zip(numbers.tolist(), before.tolist(), strict=True):
        last = table.setdefault((-1 if parent == -1 else last, number), len(table))
        chained.append(last)
    return np.array(chained, dtype=np.int64)
