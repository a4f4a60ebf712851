"""A prefix cache as a radix tree, as SGLang has it: whole stretches of tokens are the nodes, and are evicted whole.

A node is a stretch of pages of one request's content, below the stretch that comes before it. A look-up goes down the
tree as far as the content is the same, and cuts the node in which it ends. A request locks the path to the last node it
uses. What nobody locks may be evicted, leaf by leaf, the least recently touched first; with a leaf all its pages go.

    root ── [0 … 511]── [512 … 1023]              two requests with 512 tokens in common
                   └─── [512 … 799]── [800 … 931]     below: what the second one generated

Content is named by `plimsoll.engine.prefix.contents.Chain`: the key of a page stands for it and for all before it. So
the node that goes on after a page is found in one table, and a look-up costs something for each node, not for each
page.

Source: https://github.com/sgl-project/sglang, python/sglang/srt/mem_cache/radix_cache.py at 006b0e3d
(``match_prefix``, ``insert``, ``evict``, ``inc_lock_ref``). SGLang's clock is the wall's; here every look-up and every
insertion is a tick.
"""

from __future__ import annotations

from heapq import heappop, heappush

from plimsoll.engine.prefix.contents import Chain


class Node:
    """Pages `low` to `high` - 1 of `chain`.

    Attributes:
        parent: the node before.
        num_children: nodes that go on from here.
        locks: requests that use it or anything below it.
        touched: tick of the last look-up or insertion that came through.
        birth: its place among its parent's children, in order of insertion.
        listed: whether it stands in the list of leaves that may be evicted.
    """

    __slots__ = ("birth", "chain", "high", "listed", "locks", "low", "num_children", "parent", "touched")

    def __init__(self, chain: Chain, low: int, high: int, parent: Node | None, tick: int) -> None:
        self.chain = chain
        self.low = low
        self.high = high
        self.parent = parent
        self.num_children = 0
        self.locks = 0
        self.touched = self.birth = tick
        self.listed = False


class RadixTree:
    """What is cached on one replica.

    Attributes:
        root: the node without pages, above all others.
        evictable: pages of nodes that nobody locks.
    """

    def __init__(self) -> None:
        self.root = Node(Chain([], 0, 1, 0), 0, 0, None, 0)
        self.evictable = 0
        self._first: dict[int, Node] = {}
        self._leaves: list[tuple[int, int, Node]] = []
        self._tick = 0
        self._listings = 0

    def match(self, chain: Chain, most: int) -> Node:
        """The node that ends where the cached part of the first `most` pages of `chain` does; all of it is touched."""
        self._tick = tick = self._tick + 2
        node, first = self.root, self._first
        begin = 0
        while begin < most:
            child = first.get(chain.key(begin))
            if child is None:
                break
            child.touched = tick
            end = self._same(chain, child)
            if end > most:
                end = most
            if end < child.high:
                return self._cut(child, end)
            node, begin = child, end
        return node

    def insert(self, chain: Chain, end: int) -> tuple[Node, int]:
        """Make the first `end` pages of `chain` findable; returns the last node, and how many were so before."""
        node = self.match(chain, end)
        known = node.high
        if known == end:
            return node, known
        return self._new_leaf(chain, node, end), known

    def extend(self, node: Node, chain: Chain, end: int) -> tuple[Node, int]:
        """`insert` for who holds `node`, which ends where what `chain` has in the tree does, or before."""
        known = node.high
        if known == end or chain.key(known) in self._first:
            return self.insert(chain, end)
        self._tick += 2
        leaf = self._new_leaf(chain, node, end)
        self._touch(node)
        return leaf, known

    def keep(self, node: Node, chain: Chain, end: int) -> tuple[Node, int]:
        """`insert` for who holds `node`, and from then on what was inserted; both are touched once more."""
        known = node.high
        if known == end or chain.key(known) in self._first:
            last, known = self.insert(chain, end)
            self.lock(last, node, touch=True)
            return last, known
        self._tick += 2
        leaf = self._new_leaf(chain, node, end)
        self._tick += 2
        leaf.locks = 1
        self.evictable -= end - known
        self._touch(leaf)
        return leaf, known

    def _touch(self, node: Node) -> None:
        tick = self._tick
        while node.parent is not None:
            node.touched = tick
            node = node.parent

    def _new_leaf(self, chain: Chain, node: Node, end: int) -> Node:
        begin = node.high
        leaf = self._first[chain.key(begin)] = Node(chain, begin, end, node, self._tick + 1)
        node.num_children += 1
        self.evictable += end - begin
        return leaf

    def lock(self, node: Node, above: Node, touch: bool = False) -> None:
        """Lock the path from `node` up to `above`, without that; with `touch`, the path to the root is touched."""
        if touch:
            self._tick += 2
        tick = self._tick
        while node is not above:
            if not node.locks:
                self.evictable -= node.high - node.low
            node.locks += 1
            if touch:
                node.touched = tick
            assert node.parent is not None
            node = node.parent
        while touch and node.parent is not None:
            node.touched = tick
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Give up one lock of the whole path to `node`."""
        while node.parent is not None:
            node.locks -= 1
            if not node.locks:
                self.evictable += node.high - node.low
                if not node.num_children:
                    self.list_leaf(node)
            node = node.parent

    def unlocked_pages(self, node: Node) -> int:
        """Pages on the path to `node` that nobody locks."""
        pages = 0
        while node.parent is not None and not node.locks:
            pages += node.high - node.low
            node = node.parent
        return pages

    def list_leaf(self, node: Node) -> None:
        """Let a leaf be evicted when its turn comes, if nobody locks it then."""
        if not node.listed and node.parent is not None:
            node.listed = True
            self._listings += 1
            heappush(self._leaves, (node.touched, self._listings, node))

    def evict(self, pages: int) -> int:
        """Forget leaves, the least recently touched first, until that many pages or more are gone; returns how many."""
        gone = 0
        leaves = self._leaves
        while gone < pages and leaves:
            touched, _, node = heappop(leaves)
            node.listed = False
            if node.locks or node.num_children:
                continue
            if touched != node.touched:
                self.list_leaf(node)
                continue
            parent = node.parent
            assert parent is not None
            del self._first[node.chain.key(node.low)]
            gone += node.high - node.low
            parent.num_children -= 1
            if not parent.num_children and not parent.locks:
                self.list_leaf(parent)
        self.evictable -= gone
        return gone

    def _same(self, chain: Chain, node: Node) -> int:
        """Up to which page `chain` and a node that begins alike are the same."""
        other = node.chain
        if other is chain:
            return node.high
        shared = other.num_shared
        return chain.common(other, shared if shared < node.high else node.high)

    def _cut(self, node: Node, at: int) -> Node:
        """Cut a node; returns the upper part. The lower one keeps its identity, and so those who hold it their path."""
        upper = Node(node.chain, node.low, at, node.parent, self._tick + 1)
        upper.locks, upper.birth = node.locks, node.birth
        upper.num_children = 1
        self._first[node.chain.key(node.low)] = upper
        self._first[node.chain.key(at)] = node
        node.low, node.parent = at, upper
        return upper
