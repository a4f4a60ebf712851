"""TensorRT-LLM that lets prompts wait for company: `Trtllm`, and a few decode steps before prompts join them.

While answers are being generated, prompts wait until as many tokens as `wait_tokens_frac` of the budget have gathered
(``batch_wait_max_tokens_ratio``), or as many prompts as `wait_prompts` (all ranks of data-parallel attention have one),
or until `wait_steps` steps have passed since the first of them came (``batch_wait_timeout_iters``, ``timeout_iters``).

Source: https://github.com/NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/pyexecutor/py_executor.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.general.plan import GeneralPlan
from plimsoll.engine.policies.trtllm import Trtllm

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState


class PromptsWait(Trtllm):
    """`Trtllm` with batching of prompts over time.

    Args:
        config: seats, tokens of a step, block size.
        wait_steps: most steps that a prompt waits for company.
        wait_tokens_frac: share of the tokens of a step at which waiting ends.
        wait_prompts: number of prompts at which waiting ends; 0 is off.
    """

    def __init__(
        self, config: EngineConfig, *, wait_steps: int = 0, wait_tokens_frac: float = 0.0, wait_prompts: int = 0
    ) -> None:
        super().__init__(config)
        self.wait_steps, self.wait_tokens = wait_steps, wait_tokens_frac * config.max_num_batched_tokens
        self.wait_prompts = wait_prompts
        self._began: int | None = None

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """All decodes; prompts with them once they have waited or gathered."""
        seats = self.seats - len(view.running)
        if not view.num_decode or not view.waiting or not seats or view.prefilling:
            self._began = None
            return super().plan(view)
        step = len(view.lane.ends)
        if self._began is None:
            self._began = step
        left = self._began + self.wait_steps - step
        if left <= 0 or self._gathered(view, seats):
            self._began = None
            return super().plan(view)
        if view.free_blocks < view.decode_need:
            return super().plan(view)
        return GeneralPlan(holds=left)

    def _gathered(self, view: GeneralState, seats: int) -> bool:
        count, tokens = 0, view.num_decode
        for request in view.waiting:
            count += 1
            tokens += view.requests.target[request]
            if count >= seats:
                break
        enough = self.wait_tokens and tokens >= self.wait_tokens
        return bool(enough or (self.wait_prompts and count >= self.wait_prompts))
