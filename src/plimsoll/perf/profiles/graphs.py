"""Rows that data-parallel ranks add to a step so that all of them can replay a captured CUDA graph together.

vLLM captures graphs for 1, 2, 4, 8, 16, … 248, 256, 272, … tokens up to a limit. Every rank rounds its tokens up to the
next of these; then the ranks tell one another what they have. If all of them found a graph, all take the largest, so
that one rank's batch is padded to that of another; if one of them has more tokens than any graph, nobody replays one,
and each keeps what it had after rounding. A rank without work runs one token. Padding rows go through matrix products,
experts and messages like any other; only attention and the output head leave them out.

    tokens        limit 256: all ranks run
    [100,  30]    [104, 104]
    [  1,   0]    [  1,   1]
    [  6, 900]    [  8, 900]

Source: vLLM v0.19.0, ``v1/worker/dp_utils.py`` (`_synchronize_dp_ranks`, `_post_process_dp_padding`),
``v1/worker/gpu_model_runner.py`` (`_determine_batch_execution_and_padding`), ``v1/worker/gpu_worker.py``
(`execute_dummy_batch`), ``config/vllm.py`` (`_set_cudagraph_sizes`).

NOTE: padding rows hold tokens of earlier steps; that they use as many experts as others do is an assumption.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_LIMIT_TOKENS = 512
"""vLLM's limit is the least of 512, twice `max_num_seqs` and `max_num_batched_tokens`."""
_WIDE_FROM, _STEP, _WIDE_STEP = 256, 8, 16


def captured_tokens(tokens: int, limit: int) -> int | None:
    """The size of the graph that a rank with `tokens` replays; None where none is large enough.

    Args:
        tokens: of one rank, from 1.
        limit: largest captured size; 0 where the server was told `enforce_eager`.
    """
    if tokens <= 2:
        size = tokens
    elif tokens <= 4:
        size = 4
    else:
        step = _STEP if tokens <= _WIDE_FROM else _WIDE_STEP
        size = -(-tokens // step) * step
    return size if size <= limit else None


def padded_tokens(ranks: Sequence[int], limit: int) -> list[int]:
    """Tokens that every rank runs, given what each of them has to do; 0 is a rank without work.

    Args:
        ranks: tokens by data-parallel rank.
        limit: as in `captured_tokens`.
    """
    asked = [max(1, tokens) for tokens in ranks]
    graphs = [captured_tokens(tokens, limit) for tokens in asked]
    found = [size for size in graphs if size is not None]
    if len(found) == len(asked):
        return [max(found)] * len(asked)
    return [tokens if size is None else size for tokens, size in zip(asked, graphs, strict=True)]
