"""Runs inside a vLLM worker (``--worker-extension-cls plimsoll_probe.Probe``): times the modules of single steps.

A step of any shape is one hand-made `SchedulerOutput` of new requests, of which some tokens count as computed already,
as vLLM's own warm-up does (``v1/worker/gpu/warmup.py``). What lies in the cache does not change what attention costs.
Only the standard library is imported here at once: the worker's Python has no Plimsoll.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

OPERATORS = {
    "qkv_proj": "qkv_proj",
    "o_proj": "o_proj",
    "gate_up_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "fc1": "gate_up_proj",
    "fc2": "down_proj",
    "down_proj": "down_proj",
    "act_fn": "activation",
    "rotary_emb": "rotary",
    "embed_tokens": "embedding",
    "attn": "attention",
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm",
    "norm": "norm",
    "q_norm": "norm",
    "k_norm": "norm",
}
"""Names of vLLM's modules, and what the profile calls them; all other time of the forward pass is ``other``."""

Times = dict[str, list[float]]


class Probe:
    """Methods that vLLM adds to its worker; called over ``/collective_rpc`` with texts, JSON both ways."""

    model_runner: Any
    execute_model: Any
    sample_tokens: Any

    def plimsoll_facts(self) -> dict[str, Any]:
        """What is measured: versions, threads, cache."""
        import platform

        import torch
        import vllm

        cache = self.model_runner.kv_cache_config
        return {
            "torch": str(torch.__version__),
            "vllm": str(vllm.__version__),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "cores": sorted(os.sched_getaffinity(0)),
            "device": str(self.model_runner.device.type),
            "block_size": cache.kv_cache_groups[0].kv_cache_spec.block_size,
            "num_blocks": cache.num_blocks,
        }

    def plimsoll_measure(self, request: str) -> dict[str, Any]:
        """Steps of one shape.

        Args:
            request: JSON of ``{"chunks": [[new tokens, context], …], "warm_ups", "min_samples", "max_samples",
                "budget_s"}``; a decode at length L is ``[1, L - 1]``.

        Returns:
            ``{"samples": [{operator: [calls, seconds]}, …]}``: the modules of `OPERATORS`, ``whole`` for the forward
            pass, ``head`` and ``sampler``; or ``{"error": text}``, because an exception would leave the caller waiting.
        """
        try:
            return {"samples": self._plimsoll_samples(request)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _plimsoll_samples(self, request: str) -> list[Times]:
        asked = json.loads(request)
        clock = _Clock(self.model_runner.model)
        samples, spent_s, done = [], 0.0, -int(asked["warm_ups"])
        try:
            while done < asked["max_samples"] and (done < asked["min_samples"] or spent_s < asked["budget_s"]):
                times = self._plimsoll_step(asked["chunks"], clock)
                if done >= 0:
                    samples.append(times)
                    spent_s += times["whole"][1]
                done += 1
        finally:
            clock.remove()
        return samples

    def _plimsoll_step(self, chunks: list[list[int]], clock: _Clock) -> Times:
        from vllm.v1.core.sched.output import SchedulerOutput

        step = _step(chunks, self.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        clock.times = {}
        output = self.execute_model(step)
        if output is None:
            began_s = time.perf_counter()
            self.sample_tokens(None)
            clock.times["sampler"] = [1, time.perf_counter() - began_s]
        done = SchedulerOutput.make_empty()
        done.finished_req_ids = set(step.num_scheduled_tokens)
        times, clock.times = clock.times, {}
        self.execute_model(done)
        return times


def _step(chunks: list[list[int]], block_size: int) -> Any:
    """A step of new requests, each with its own cache blocks."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    step = SchedulerOutput.make_empty()
    first_block = 1  # vLLM's block 0 is nobody's
    for number, (new, context) in enumerate(chunks):
        name = f"plimsoll-{number}"
        tokens = [(7 * place + 13 * number) % 1000 + 4 for place in range(new + context)]
        num_blocks = -(-(new + context) // block_size)
        step.scheduled_new_reqs.append(
            NewRequestData(
                req_id=name,
                prompt_token_ids=tokens,
                mm_features=[],
                sampling_params=SamplingParams(max_tokens=2, temperature=0.0),
                pooling_params=None,
                block_ids=(list(range(first_block, first_block + num_blocks)),),
                num_computed_tokens=context,
                lora_request=None,
                prefill_token_ids=tokens,
            )
        )
        first_block += num_blocks
        step.num_scheduled_tokens[name] = new
    step.total_num_scheduled_tokens = sum(new for new, _ in chunks)
    return step


class _Clock:
    """Hooks on the modules of a model; `times` collects calls and seconds by operator."""

    def __init__(self, model: Any) -> None:
        self.times: Times = {}
        self._model = model
        self._began: list[float] = []
        self._hooks = []
        for name, module in model.named_modules():
            operator = "whole" if not name else OPERATORS.get(name.rsplit(".", 1)[-1])
            if operator is None or (operator == "attention" and not hasattr(module, "impl")):
                continue
            self._hooks.append(module.register_forward_pre_hook(self._begin))
            self._hooks.append(module.register_forward_hook(self._ender(operator)))
        self._logits = model.compute_logits
        model.compute_logits = self._head

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        del self._model.compute_logits

    def _begin(self, *_: Any) -> None:
        self._began.append(time.perf_counter())

    def _ender(self, operator: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            seconds = time.perf_counter() - self._began.pop()
            entry = self.times.setdefault(operator, [0, 0.0])
            entry[0] += 1
            entry[1] += seconds

        return end

    def _head(self, *arguments: Any, **named: Any) -> Any:
        began_s = time.perf_counter()
        logits = self._logits(*arguments, **named)
        self.times["head"] = [1, time.perf_counter() - began_s]
        return logits
