"""The attention grid that a bundle's meta.yaml says was measured: what a table is held against to find its holes.

    attention_grid: {chunks: "0, 16-2048 x2", n_decode: "0, 1-256 x2", kv: "0, 16-16384 x2"}

``16-2048 x2`` is 16, 32, … 2048. A later sweep may have measured more, between these points; what is declared was to be
there. Forms that are not known (other factors, lists) declare nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

Shape = tuple[int, int, int, int]
"""Prompt chunk, its context, decodes, their length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """The axes of the grid, empty where they are not known.

    Attributes:
        chunks: prompt chunks, from 1.
        decodes: numbers of decodes, from 1.
        lengths: KV lengths of decodes, from 1, and of the context before a chunk, with 0.
        max_seqs: sequences that the engine took at once; 0 where it does not say.
    """

    chunks: tuple[int, ...] = ()
    decodes: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    max_seqs: int = 0

    def shapes(self) -> Iterator[Shape]:
        """Every step that was to be measured: decodes, chunks, and both where they are sequences enough."""
        for length in self.lengths:
            yield from ((0, 0, number, length) for number in self.decodes)
        contexts = (0, *self.lengths)
        for chunk in self.chunks:
            yield from ((chunk, context, 0, 0) for context in contexts)
            for number in (number for number in self.decodes if number < self.max_seqs):
                yield from ((chunk, context, number, length) for context in contexts for length in self.lengths)


NOTHING_DECLARED = Declared()


def declared_of(meta: Mapping[str, Any]) -> Declared:
    """What `meta`, a meta.yaml, declares; nothing where it does not, or in a form that is not known."""
    grid, engine = meta.get("attention_grid"), meta.get("engine_effective")
    if not isinstance(grid, dict) or "prefill_key" in grid:
        return NOTHING_DECLARED
    chunks, decodes, lengths = (_axis(grid.get(name)) for name in ("chunks", "n_decode", "kv"))
    if not (chunks and decodes and lengths):
        return NOTHING_DECLARED
    told = engine.get("max_num_seqs") if isinstance(engine, dict) else None
    return Declared(chunks=chunks, decodes=decodes, lengths=lengths, max_seqs=told if isinstance(told, int) else 0)


def _axis(text: object) -> tuple[int, ...]:
    """The points above zero of an axis."""
    points: set[int] = set()
    for part in str(text).split(","):
        swept = re.fullmatch(r"\s*([1-9]\d{0,8})-(\d{1,9}) x2(?:\.0)?\s*", part)
        if swept:
            first, last = int(swept[1]), int(swept[2])
            points |= {first << place for place in range(last.bit_length()) if first << place < last} | {last}
        elif re.fullmatch(r"\s*\d{1,9}\s*", part):
            points.add(int(part))
        else:
            return ()
    return tuple(sorted(points - {0}))
