"""TensorRT-LLM's block reuse the slow way: single blocks, real tokens, one list of free blocks, every step on its own.

Written from TensorRT-LLM's sources (see `plimsoll.engine.policies.trtllm`), not from the fast replica. A block's
content is the tuple of all tokens up to its end. The policy is the same class; what it asks is answered from the
blocks.
"""

from __future__ import annotations

from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.engine import EngineConfig
from plimsoll.engine.requests import Requests
from tests.oracle.naive_general import NaiveReplica
from tests.oracle.naive_general_pipeline import NaivePipeline

Content = tuple[Any, ...]


class NaiveReuseReplica(NaiveReplica):
    def __init__(self, requests: Requests, config: EngineConfig, model: StepModel) -> None:
        super().__init__(requests, config, model)
        assert self.policy.finds_blocks(requests)
        self.free = list(range(config.num_blocks))
        self.content: dict[int, Content] = {}
        self.stored: dict[Content, int] = {}
        self.held: dict[int, list[int]] = {}

    # -- content ---------------------------------------------------------------------------------------------------

    def tokens(self, number: int, count: int) -> Content:
        """The first tokens of a request: by its content ids, else its own."""
        workload = self.requests.workload
        ids: list[int] = []
        size = workload.block_tokens or 1
        if workload.prompt_block_ids is not None:
            assert workload.prompt_block_offsets is not None
            begin, end = workload.prompt_block_offsets[number : number + 2]
            ids = workload.prompt_block_ids[begin:end].tolist()
        known = min(len(ids) * size, int(workload.prompt_tokens[number]))
        return tuple((ids[i // size], i % size) if i < known else ("own", number, i) for i in range(count))

    def content_of(self, number: int, block: int) -> Content:
        return self.tokens(number, (block + 1) * self.block_size)

    def users(self, block: int) -> int:
        return sum(blocks.count(block) for blocks in self.held.values())

    # -- what the policy asks --------------------------------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        return len(self.free)

    @property
    def unpromised(self) -> int:
        to_come = sum(
            self.blocks(self.policy.reserve(self.requests, number)) - len(held) for number, held in self.held.items()
        )
        return len(self.free) - to_come

    def first_new(self, number: int) -> Content | None:
        contents = (self.content_of(number, block) for block in range(self.requests.target[number] // self.block_size))
        return next((content for content in contents if content not in self.stored), None)

    @property
    def under_way(self) -> list[int]:
        return []

    def would_free(self, number: int, tally: dict[int, int]) -> int:
        freed = 0
        for block in self.held[number]:
            tally[block] = tally.get(block, 0) + 1
            freed += tally[block] == self.users(block)
        return freed

    # -- blocks ----------------------------------------------------------------------------------------------------

    def next_block(self) -> int:
        """The front of the list, which forgets what it held."""
        block = self.free.pop(0)
        if block in self.content:
            del self.stored[self.content.pop(block)]
            self.count("forgotten")
        return block

    def admit(self, number: int) -> None:
        super().admit(number)
        row, size, target = self.rows[number], self.block_size, self.requests.target[number]
        num_blocks = self.blocks(target)
        held: list[int] = []
        for index in range((target - 1) // size):
            block = self.stored.get(self.content_of(number, index))
            if block is None:
                break
            if block in self.free:
                self.free.remove(block)
            else:
                self.count("shared")
            held.append(block)
        row.cached = len(held) * size
        self.held[number] = held
        whole = len(held) == num_blocks - 1 and target == num_blocks * size
        if whole and self.policy.partial and self.content_of(number, num_blocks - 1) in self.stored:
            row.cached = target - 1
            self.count("partial")
        held += [self.next_block() for _ in range(num_blocks - len(held))]
        if row.cached:
            self.count("found again" if self.requests.preemptions[number] else "found")
        if not self.requests.preemptions[number]:
            row.hit = row.cached

    def store(self, number: int) -> None:
        """All blocks that are full by now, but those whose content is stored in another."""
        for index in range(self.rows[number].cached // self.block_size):
            content, block = self.content_of(number, index), self.held[number][index]
            if content in self.stored:
                self.count("computed twice", self.stored[content] != block)
                continue
            assert block not in self.content
            self.stored[content], self.content[block] = block, content

    def release(self, number: int) -> None:
        self.store(number)
        for block in reversed(self.held.pop(number)):
            if not self.users(block):
                self.free.append(block)

    # -- steps -----------------------------------------------------------------------------------------------------

    def let_in(self, chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Prompts take their blocks before decodes do; what they find shortens their chunks."""
        left = []
        for number, chunk in chunks:
            if number in self.waiting:
                self.count("overtaken", any(other < number for other in self.waiting))
                self.admit(number)
                have, target = self.rows[number].cached, self.requests.target[number]
                end = min(have + chunk, target)
                chunk = (end if end == target else end - end % self.block_size) - have
            left.append((number, chunk))
        return left

    def seconds(self, plan: Any, decoding: list[int]) -> float:
        """Decodes take the blocks they need."""
        for number in decoding:
            if self.rows[number].cached % self.block_size == 0:
                self.held[number].append(self.next_block())
        return super().seconds(plan, decoding)

    def token(self, number: int) -> list[int]:
        if self.rows[number].cached == self.requests.target[number]:  # its prompt is complete
            self.store(number)
        return super().token(number)

    def leave(self, finished: list[int]) -> list[int]:
        for number in sorted(finished):
            self.release(number)
        return super().leave(finished)

    def evict(self, number: int, mode: str, place: str) -> None:
        self.release(number)
        super().evict(number, mode, place)


class NaiveReusePipeline(NaiveReuseReplica, NaivePipeline):
    """With batches in flight."""

    @property
    def under_way(self) -> list[int]:
        return sorted(self.completing)

    def completed(self, numbers: list[int]) -> None:
        for number in numbers:
            self.store(number)

    def ended(self, numbers: list[int]) -> None:
        for number in sorted(numbers):
            self.release(number)
