"""What a prompt step of SGLang may still take: tokens of a chunk, prompt tokens, memory (its ``PrefillAdder``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.policy import UNLIMITED

if TYPE_CHECKING:
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.policies.sglang import Sglang
    from plimsoll.engine.policy import Chunk


def take_at_once(policy: Sglang, view: GeneralState) -> list[Chunk]:
    """What `Sglang` takes in the common case: no cache, prompts alone, first come first served.

    The same rules as below, in one piece: most runs have no content.
    """
    chunks: list[Chunk] = []
    seats = policy.seats - view.lane.num - len(policy.ghosts)
    if seats <= 0 and not view.prefilling:
        policy.full = True
        return chunks
    requests, size, clipped = view.requests, policy.size, policy.clipped_new
    policy.room_tokens = total = view.free_blocks * size - policy.likely_tokens(view)
    chunk, prompt = policy.chunk_size, policy.max_prefill_tokens
    policy.is_cut = False
    for request, done in view.prefilling.items():  # one at most
        left = requests.target[request] - done
        tokens = min(left, chunk, int(total))
        if tokens <= 0:
            tokens = min(left, chunk, view.free_blocks * size + -done % size)
            if tokens <= 0:
                return chunks
        policy.is_cut = tokens < left
        chunks.append((request, tokens))
        paged = -(-tokens // size) * size
        total -= paged + (0 if policy.is_cut else clipped[request]) + size
        prompt -= paged
        chunk -= paged  # where prompts are not cut, nobody is part-way
    for request in view.waiting:
        if len(chunks) >= seats:
            policy.full = True
            break
        tokens = requests.target[request]
        most = to_generate = clipped[request]
        if requests.preemptions[request]:
            to_generate = policy.left_to_generate(view, request)
        if tokens + to_generate + size >= total:
            policy.full = True
            break
        paged = -(-tokens // size) * size
        if paged > chunk:
            if chunk <= 0:
                break
            tokens, paged, most = chunk, chunk, 0
            policy.is_cut = True
        elif chunk == UNLIMITED and paged >= prompt and chunks:
            break
        chunks.append((request, tokens))
        total -= paged + most + size
        prompt -= paged
        if chunk != UNLIMITED:
            chunk -= paged
        if total <= 0:
            policy.full = True
            break
        if prompt <= 0 or chunk <= 0:
            break
    return chunks


class PrefillBudget:
    """Counts down while a step is filled. In a mixed step the decodes' tokens are gone from the start.

    Attributes:
        memory: tokens that are free or could be evicted.
        total: as many, less what everybody is taken to need.
        chunk: tokens of the chunk, huge where prompts are not cut.
        prompt: prompt tokens of the step.
        lacks_memory: whether the last one was refused, or would be the next one, for want of memory.
    """

    def __init__(self, settings: Sglang) -> None:
        self.settings = settings
        self.size = settings.size
        self.cut = settings.chunk_size != UNLIMITED
        self.memory = self.chunk = self.prompt = 0
        self.total = 0.0
        self.lacks_memory = False

    def begin(self, view: GeneralState) -> None:
        """A new step."""
        settings, tree = self.settings, self.settings.tree
        memory = view.free_blocks
        if tree is not None:
            memory += tree.tree.evictable
        memory *= self.size
        self.chunk, self.prompt = settings.chunk_size, settings.max_prefill_tokens
        if settings.mixed:
            decodes = view.lane.num + len(settings.ghosts)
            self.chunk -= decodes
            self.prompt -= decodes
            memory -= max(decodes, view.decode_need * self.size)
        self.memory = memory
        self.total = memory - settings.likely_tokens(view)

    def take_next_chunk(self, left: int, own_room: int, most_new: int) -> int:
        """Tokens of the next chunk of a prompt under way, none or fewer if it must wait.

        Args:
            left: tokens that it lacks.
            own_room: tokens for which it has room in a block of its own.
            most_new: tokens that it may generate in all, as far as they count.
        """
        most = min(self.chunk, int(self.total))
        if most <= 0:
            most = min(self.chunk, self.memory + own_room)
        tokens = left if left < most else most
        if tokens > 0:
            self._charge(tokens, most_new if tokens == left else 0)
        return tokens

    def take(self, uncached: int, to_generate: int, most_new: int, first: bool, locked: int = 0) -> int:
        """Tokens of the first chunk of a request that waits, 0 if it is refused.

        Args:
            uncached: tokens that it lacks.
            to_generate: tokens that it may generate from now on, as far as they count.
            most_new: tokens that it may generate in all, as far as they count.
            first: whether the step has no chunks yet.
            locked: tokens that could be evicted, but for this request.
        """
        size = self.size
        self.lacks_memory = uncached + to_generate + size >= self.total - locked
        if self.lacks_memory:
            return 0
        tokens = -(-uncached // size) * size
        if self.cut:
            if tokens > self.chunk:
                tokens = max(self.chunk, 0) // size * size
                if tokens:
                    self.total -= locked
                    self._charge(tokens, 0)
                return tokens
        elif tokens >= self.prompt and not first:
            return 0
        self.total -= locked
        self._charge(uncached, most_new)
        return uncached

    def is_spent(self) -> bool:
        """Whether nobody else can be taken."""
        self.lacks_memory = self.total <= 0
        return self.lacks_memory or self.prompt <= 0 or self.chunk <= 0

    def _charge(self, tokens: int, to_generate: int) -> None:
        size = self.size
        paged = -(-tokens // size) * size
        self.memory -= paged
        self.total -= paged + to_generate + size
        self.chunk -= paged
        self.prompt -= paged
