"""Speculative decoding in the token timeline: a verify step yields several tokens of a request at once.

The engine runs such a deployment at one token a step, each of which costs its share of a verify step: so queues,
batches, memory and every request's first and last token are as they are. What that gets wrong is when the tokens in
between appear. They come in bursts, at the end of the verify step that accepted them:

    steps that the engine ran     |--|--|--|--|--|--|--|--|
    tokens, at one a step         1  2  3  4  5  6  7  8  9
    accepted together               [2  3  4][5][6  7][8  9]
    tokens as they appear         1        4  5     7     9        three at 4's step end, one, two, two
                                           3     6     8
                                           2

So after the run the tokens are handed out again. How many come together is drawn from the acceptance by position that
the step model knows, with the run's seed. A run without speculation keeps its timeline, and pays nothing for this.

NOTE: the steps stay those that were run. A burst of three takes three shares here and one verify step in truth: right
on average over requests and bursts, too slow for long bursts and too quick for short ones.
NOTE: a burst ends where a request stops for a while (evicted, handed over), and the first token of all comes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from plimsoll.core.columns import Ints
from plimsoll.core.run import Run, TokenTimeline
from plimsoll.core.step import StepModel

Draw = Callable[[int, np.random.Generator], Ints]
"""Tokens of each of so many verify steps of one sequence, 1 or more each."""


def burst_draw(model: StepModel) -> Draw | None:
    """How many tokens of a request come together under `model`; None where they come one by one."""
    draw: Draw | None = getattr(model, "draw_bursts", None)
    return draw


def with_bursts(run: Run, draws: Sequence[Draw | None], seed: int) -> Run:
    """The same run with tokens in bursts.

    Args:
        run: as the engine ran it, one token a step.
        draws: for each replica what its step model draws from; None: tokens come one by one there.
        seed: of the draws.

    Returns:
        A run that differs in its timeline only: the same requests got as many tokens, the first and the last of every
        stretch when they did, and none before.
    """
    timeline = run.timeline
    if timeline is None or not any(draws) or not len(timeline.slice_request):
        return run
    rng = np.random.default_rng([seed, len(run)])
    request, length = timeline.slice_request, timeline.slice_end - timeline.slice_begin
    first = np.concatenate([[True], request[1:] != request[:-1]])
    replica = run.replica[request]
    shown = np.repeat(timeline.slice_begin, length) + _place_in(length)
    for number, draw in enumerate(draws):
        if draw is not None:
            mine = replica == number
            tokens = np.repeat(mine, length)
            shown[tokens] += _to_burst_end(length[mine], first[mine], draw(int(tokens.sum()), rng))
    # Tokens at one step's end cannot share a slice, so each gets its own.
    bursts = TokenTimeline(
        step_end_s=timeline.step_end_s,
        lane_offsets=timeline.lane_offsets,
        slice_request=np.repeat(request, length),
        slice_begin=shown,
        slice_end=shown + 1,
    )
    return dataclasses.replace(run, timeline=bursts)


def _place_in(length: Ints) -> Ints:
    """0, 1, … in each of the slices, one after another."""
    return np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)


def _to_burst_end(length: Ints, first: np.ndarray[tuple[int], np.dtype[np.bool_]], drawn: Ints) -> Ints:
    """For each token of some slices how many steps later it appears.

    Args:
        length: tokens of each slice.
        first: whether it begins with a request's first token of all.
        drawn: as many burst lengths as there are tokens; a slice takes its own from the left, as many as it needs.
    """
    begin, total = np.cumsum(length) - length, len(drawn)
    sizes = drawn.copy()
    sizes[begin[first]] = 1
    end = np.cumsum(sizes)
    end -= np.repeat(end[begin] - sizes[begin], length)  # of each burst, in tokens of its slice
    ends_here = np.zeros(total, dtype=np.bool_)
    ends_here[(np.repeat(begin, length) + end - 1)[end <= np.repeat(length, length)]] = True
    ends_here[begin + length - 1] = True
    number = np.arange(total)
    next_end = np.minimum.accumulate(np.where(ends_here, number, total)[::-1])[::-1]
    later: Ints = next_end - number
    return later
