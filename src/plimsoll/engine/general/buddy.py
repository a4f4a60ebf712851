"""A buddy allocator: pieces of a power of two of blocks, each at a multiple of its own size."""

from __future__ import annotations

from bisect import bisect_left, insort


class Buddy:
    """Memory of `num_blocks`, not necessarily a power of two, cut into pieces.

    The lowest free piece of the smallest sufficient size is taken and halved until it fits; a piece that comes back is
    joined with its buddy, if that is free.

    Attributes:
        largest: blocks of the largest piece there can be.
    """

    def __init__(self, num_blocks: int) -> None:
        self.largest = 1 << (num_blocks.bit_length() - 1)
        self._free: list[list[int]] = [[] for _ in range(num_blocks.bit_length())]
        self._taken: dict[int, tuple[int, int]] = {}
        place = 0
        for order in reversed(range(num_blocks.bit_length())):
            if num_blocks >> order & 1:
                self._free[order].append(place)
                place += 1 << order

    def take(self, owner: int, blocks: int) -> bool:
        """A piece for `owner`, of `blocks` blocks, a power of two; False if there is none."""
        order = blocks.bit_length() - 1
        have = order
        while have < len(self._free) and not self._free[have]:
            have += 1
        if have >= len(self._free):
            return False
        place = self._free[have].pop(0)
        while have > order:
            have -= 1
            insort(self._free[have], place + (1 << have))
        self._taken[owner] = (place, order)
        return True

    def give_back(self, owner: int) -> None:
        """Return `owner`'s piece."""
        place, order = self._taken.pop(owner)
        while order + 1 < len(self._free):
            buddy = place ^ (1 << order)
            free = self._free[order]
            at = bisect_left(free, buddy)
            if at == len(free) or free[at] != buddy:
                break
            del free[at]
            place = min(place, buddy)
            order += 1
        insort(self._free[order], place)
