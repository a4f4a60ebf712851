"""The radix tree, by hand: pages are single tokens, content ids are letters."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine.prefix.contents import Chain, Contents
from plimsoll.engine.prefix.radix_tree import Node, RadixTree


def chains(*words: str) -> list[Chain]:
    """A chain for each word, one page a letter; equal beginnings are equal content."""
    known: dict[str, int] = {}
    made = []
    for request, word in enumerate(words):
        ids = [known.setdefault(word[: k + 1], len(known)) for k in range(len(word))]
        made.append(Chain(ids, len(ids), 1, request))
    return made


def path(node: Node) -> list[tuple[int, int]]:
    """The stretches from the root to a node."""
    steps = []
    while node.parent is not None:
        steps.append((node.low, node.high))
        node = node.parent
    return steps[::-1]


def test_what_was_inserted_is_found_and_cut_where_others_part() -> None:
    tree = RadixTree()
    abcd, abx = chains("abcd", "abx")
    leaf, known = tree.insert(abcd, 4)
    assert (path(leaf), known, tree.evictable) == ([(0, 4)], 0, 4)
    assert path(tree.match(abx, 3)) == [(0, 2)]
    assert path(leaf) == [(0, 2), (2, 4)]  # the lower part keeps its identity
    other, known = tree.insert(abx, 3)
    assert (path(other), known, tree.evictable) == ([(0, 2), (2, 3)], 2, 5)
    assert tree.match(abcd, 4) is leaf


def test_a_look_up_of_fewer_pages_ends_there() -> None:
    tree = RadixTree()
    (abcd,) = chains("abcd")
    tree.insert(abcd, 4)
    assert path(tree.match(abcd, 3)) == [(0, 3)]
    assert tree.match(abcd, 0) is tree.root
    assert tree.insert(abcd, 4)[1] == 4


def test_what_is_private_is_found_by_its_own_request_only() -> None:
    tree = RadixTree()
    mine, other = Chain([0, 1], 2, 1, 7), Chain([0, 1], 2, 1, 8)
    leaf, _ = tree.insert(mine, 5)  # one stretch across what is shared and what is not
    assert path(tree.match(other, 5)) == [(0, 2)]
    assert tree.match(mine, 5) is leaf
    assert tree.insert(other, 5)[1] == 2


def test_leaves_go_whole_and_the_least_recently_touched_first() -> None:
    tree = RadixTree()
    abcd, abx, pq = chains("abcd", "abx", "pq")
    for chain, length in ((abcd, 4), (abx, 3), (pq, 2)):
        tree.list_leaf(tree.insert(chain, length)[0])
    tree.list_leaf(tree.match(abcd, 4))
    tree.match(abcd, 4)  # touched last of all
    assert tree.evict(2) == 3  # "x", then "pq": one leaf was not enough
    assert path(tree.match(abx, 3)) == [(0, 2)]
    assert tree.match(pq, 2) is tree.root
    assert tree.evict(3) == 4  # "cd" and, now that nothing follows it, "ab"
    assert tree.evictable == 0
    assert tree.evict(1) == 0


def test_what_is_locked_stays_with_all_before_it() -> None:
    tree = RadixTree()
    abcd, abx = chains("abcd", "abx")
    tree.list_leaf(tree.insert(abcd, 4)[0])
    leaf, _ = tree.insert(abx, 3)
    assert tree.unlocked_pages(leaf) == 3
    tree.lock(leaf, tree.root)
    assert tree.evictable == 2
    assert tree.unlocked_pages(leaf) == 0
    assert tree.evict(100) == 2
    assert path(tree.match(abx, 3)) == [(0, 2), (2, 3)]
    tree.lock(leaf, tree.root)
    tree.unlock(leaf)
    assert tree.evict(100) == 0
    tree.unlock(leaf)
    assert tree.evictable == tree.evict(100) == 3


def test_a_lock_moves_on_along_its_path() -> None:
    tree = RadixTree()
    (abcd,) = chains("abcd")
    upper, _ = tree.insert(abcd, 2)
    tree.lock(upper, tree.root)
    lower, known = tree.insert(abcd, 4)
    assert known == 2
    tree.lock(lower, upper, touch=True)
    assert upper.touched == lower.touched
    tree.unlock(lower)
    assert tree.evictable == 4


def test_a_cut_of_a_locked_stretch_keeps_its_locks() -> None:
    tree = RadixTree()
    abcd, abx = chains("abcd", "abx")
    leaf, _ = tree.insert(abcd, 4)
    tree.lock(leaf, tree.root)
    upper = tree.match(abx, 3)
    assert (upper.locks, leaf.locks) == (1, 1)
    tree.unlock(leaf)
    assert tree.evictable == 4


def test_tree_and_books_agree_after_anything() -> None:
    """Random insertions, locks and evictions: what could be evicted is what nobody locks."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ab"), int(rng.integers(1, 9)))) for _ in range(60)]
    tree, held = RadixTree(), []
    for chain in chains(*words):
        action = rng.random()
        if action < 0.6:
            node, _ = tree.insert(chain, len(chain.ids))
            tree.lock(node, tree.root)
            held.append(node)
        elif held and action < 0.85:
            tree.unlock(held.pop(int(rng.integers(len(held)))))
        else:
            before = tree.evictable
            assert tree.evict(2) == before - tree.evictable
        locked = {step: None for node in held for step in ancestors(node)}
        nodes = {step: None for node in tree._first.values() for step in ancestors(node)}
        assert tree.evictable == sum(node.high - node.low for node in nodes if node not in locked)
        assert all(node.locks == sum(node in ancestors(one) for one in held) for node in nodes)
    while held:
        tree.unlock(held.pop())
    assert tree.evict(1000) > 0
    assert not tree._first


def ancestors(node: Node) -> list[Node]:
    """The path to a node, without the root."""
    steps = []
    while node.parent is not None:
        steps.append(node)
        node = node.parent
    return steps


@pytest.mark.parametrize(("tokens", "same"), [(1, True), (16, True), (17, False), (40, False)])
def test_beginnings_are_compared_by_the_ids_that_cover_them(tokens: int, same: bool) -> None:
    workload = Workload(
        arrival_s=floats([0.0, 0.0]),
        prompt_tokens=ints([40, 48]),
        output_tokens=ints([1, 1]),
        block_tokens=16,
        prompt_block_ids=ints([5, 6, 7, 5, 8, 9]),
        prompt_block_offsets=ints([0, 3, 6]),
    )
    contents = Contents(workload, 4)
    assert (contents.beginning(0, tokens) == contents.beginning(1, tokens)) is same
    assert contents.beginning(0, 41) is None
