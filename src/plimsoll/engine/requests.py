"""The requests of one simulation as columns that all replicas share, indexed by request number.

A column that is read in the hot path is a list (an array makes a new number at every reading); one that is written
once and read at the end is an array (8 bytes a request, where a list keeps 8 and the number itself).
"""

from __future__ import annotations

import functools
import math
from array import array

import numpy as np

from plimsoll.core.workload import Workload
from plimsoll.engine.prefix.contents import Contents

NEVER = -1
KEY_BITS = 32
"""Low bits of a finish key, which hold the request number."""


class Requests:
    """Mutable state of every request.

    Attributes:
        workload: where they come from.
        contents: what their prompts say, where a replica has asked for it.
        prompt, output: tokens asked for; `output` already cut at the longest sequence.
        final: tokens in the cache when the last token appears.
        target: tokens that a prefill must compute: the prompt, and after a preemption what was generated too.
        left: tokens to come from the last preemption on; all of them before the first.
        finish_key: ``step of its last token << KEY_BITS | request``, since the request last began to decode.
        slice_begin: lane step of the first token in the current stretch.
        last_step: lane step of the last token of all.
        cached: prompt tokens found in a prefix cache at the first admission.
        scheduled_s: start of the first step that worked on the request, NaN before.
        preemptions, replica, lane: as in `core.run.Run`.
        rejected: requests that can never run here.
        early_slices: (request, lane, begin, end) of stretches that a preemption or a pause ended.
    """

    def __init__(self, workload: Workload, max_model_len: int) -> None:
        n = len(workload)
        self.workload = workload
        self._longest = max_model_len
        self.contents: Contents | None = None
        self.prompt: list[int] = workload.prompt_tokens.tolist()
        self.output: list[int] = np.minimum(workload.output_tokens, max_model_len - workload.prompt_tokens).tolist()
        self.final: list[int] = (workload.prompt_tokens + np.array(self.output, dtype=np.int64) - 1).tolist()
        self.target = self.prompt.copy()
        self.left = self.output.copy()
        self.finish_key = [NEVER] * n
        self.slice_begin = [NEVER] * n
        self.last_step = [NEVER] * n
        self.scheduled_s = [math.nan] * n
        self.cached = array("q", bytes(8 * n))
        self.preemptions = [0] * n
        self.replica = array("q", [NEVER]) * n
        self.lane = [0] * n
        self.rejected: list[int] = []
        self.early_slices: list[tuple[int, int, int, int]] = []

    @functools.cached_property
    def told_output(self) -> list[int]:
        """The most output tokens that the engine is told of; the truth, where the workload does not say."""
        told = self.workload.max_output_tokens
        if told is None:
            return self.output
        cut = np.minimum(told, self._longest - self.workload.prompt_tokens)
        return [int(tokens) for tokens in np.maximum(cut, self.output)]

    def __len__(self) -> int:
        return len(self.prompt)
