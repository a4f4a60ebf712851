"""SGLang's radix cache the slow way: tokens as lists, compared page by page; and the tokens of a prompt."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from plimsoll.core.workload import Workload


@dataclasses.dataclass(eq=False)
class TreeNode:
    key: list[Any]
    parent: TreeNode | None
    access: int
    children: dict[Any, TreeNode] = dataclasses.field(default_factory=dict)
    locks: int = 0

    def path(self) -> list[TreeNode]:
        """From here up to below the root."""
        return [] if self.parent is None else [self, *self.parent.path()]


class RadixCache:
    """Tokens as Python lists, compared page by page."""

    def __init__(self, page: int, clock: itertools.count[int]) -> None:
        self.page, self.clock = page, clock
        self.root = TreeNode([], None, 0)

    def nodes(self) -> list[TreeNode]:
        found = [self.root]
        for node in found:
            found += node.children.values()
        return found[1:]

    def size(self) -> int:
        return sum(len(node.key) for node in self.nodes())

    def evictable(self) -> int:
        return sum(len(node.key) for node in self.nodes() if not node.locks)

    def child_key(self, key: list[Any]) -> Any:
        return tuple(key[: self.page])

    def common(self, one: list[Any], other: list[Any]) -> int:
        same = 0
        while same < min(len(one), len(other)) and one[same : same + self.page] == other[same : same + self.page]:
            same += self.page
        return same

    def descend(self, tokens: list[Any]) -> tuple[TreeNode, list[Any]]:
        """The last node of what is cached of `tokens`, cut there, and the rest of them."""
        now = next(self.clock)
        key = tokens[: len(tokens) // self.page * self.page]
        node = self.root
        while key and self.child_key(key) in node.children:
            child = node.children[self.child_key(key)]
            child.access = now
            same = self.common(child.key, key)
            if same < len(child.key):
                upper = TreeNode(child.key[:same], node, next(self.clock), locks=child.locks)
                node.children[self.child_key(child.key)] = upper
                child.key, child.parent = child.key[same:], upper
                upper.children[self.child_key(child.key)] = child
                child = upper
            node, key = child, key[same:]
            if same < len(child.key):
                break
        return node, key

    def match(self, tokens: list[Any]) -> tuple[TreeNode, int]:
        node, _ = self.descend(tokens)
        return node, sum(len(step.key) for step in node.path())

    def insert(self, tokens: list[Any]) -> int:
        """Returns how many tokens were in the tree before."""
        node, rest = self.descend(tokens)
        known = sum(len(step.key) for step in node.path())
        if rest:
            node.children[self.child_key(rest)] = TreeNode(rest, node, next(self.clock))
        return known

    def evict(self, tokens: int) -> None:
        gone = 0
        while gone < tokens:
            leaves = [node for node in self.nodes() if not node.children and not node.locks]
            if not leaves:
                return
            leaf = min(leaves, key=lambda node: node.access)
            assert leaf.parent is not None
            del leaf.parent.children[self.child_key(leaf.key)]
            gone += len(leaf.key)


def contents(workload: Workload, number: int) -> list[Any]:
    """The tokens of a prompt: equal where a content id, the ids before it, and the place in it are."""
    prompt = int(workload.prompt_tokens[number])
    tokens: list[Any] = [("private", number, i) for i in range(prompt)]
    if workload.prompt_block_ids is None:
        return tokens
    assert workload.prompt_block_offsets is not None
    assert workload.block_tokens is not None
    low, high = (int(workload.prompt_block_offsets[number + k]) for k in (0, 1))
    ids = tuple(workload.prompt_block_ids[low:high].tolist())
    for i in range(min(prompt, len(ids) * workload.block_tokens)):
        tokens[i] = (hash(ids[: i // workload.block_tokens + 1]), i)
    return tokens
