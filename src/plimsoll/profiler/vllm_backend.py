"""Operators as a running vLLM executes them: `inside/plimsoll_probe.py` times the modules of steps in its worker."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_format import Row
from plimsoll.perf.profiles.own_work import OF_SEQUENCES, work_of
from plimsoll.profiler.samples import Effort, figures
from plimsoll.profiler.shapes import Shape, chunks, decodes
from plimsoll.profiler.survey import SHORTEST_LENGTH

Sample = Mapping[str, tuple[int, float]]
RPC_TIMEOUT_S = 180.0
LEAST_S = 1e-9  # of `other`, which is a difference


class Worker:
    """The worker of a vLLM server that was started with the probe.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, method: str, *arguments: str) -> dict[str, Any]:
        """What a method of the probe returns.

        Raises:
            InputError: nobody answers, or the server has no probe.
        """
        body = json.dumps({"method": method, "args": list(arguments)}).encode()
        request = urllib.request.Request(
            f"{self.url}/collective_rpc", data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=RPC_TIMEOUT_S) as answer:
                (result,) = json.load(answer)["results"]
        except urllib.error.HTTPError as error:
            remedy = "start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls plimsoll_probe.Probe"
            raise InputError("--server", self.url, f"its worker refused {method} ({error.code}); {remedy}") from error
        except (OSError, ValueError) as error:
            raise InputError("--server", self.url, f"no vLLM worker answers there ({error})") from error
        found: dict[str, Any] = result
        return found

    def facts(self) -> dict[str, Any]:
        """Versions, threads and cache of the worker."""
        return self.call("plimsoll_facts")

    def samples(self, shape: Shape, effort: Effort) -> list[Sample]:
        """Repeated steps of one shape: calls and seconds by operator."""
        parts = [[shape.chunk_tokens, shape.context_tokens]] * shape.num_prefill
        parts += [[1, shape.decode_length_tokens - 1]] * shape.num_decode
        request = {
            "chunks": parts,
            "warm_ups": effort.warm_ups,
            "min_samples": effort.min_samples,
            "max_samples": effort.max_samples,
            "budget_s": effort.budget_s,
        }
        answer = self.call("plimsoll_measure", json.dumps(request))
        if "samples" not in answer:
            raise InputError("vLLM worker", str(shape), f"it could not run this step: {answer.get('error')}")
        found = answer["samples"]
        return [{name: (int(entry[0]), float(entry[1])) for name, entry in sample.items()} for sample in found]


class EngineBackend:
    """A `survey.Backend` over a worker.

    Args:
        worker: who measures.
        shape: the model's sizes (`own_checks.shape_of`).
        max_seqs: of the engine: larger steps are made of prompt chunks.
        effort: how often a step is repeated.
    """

    def __init__(self, worker: Worker, shape: Mapping[str, int], max_seqs: int, effort: Effort) -> None:
        self._worker, self._shape, self._max_seqs, self._effort = worker, shape, max_seqs, effort
        self._known: dict[Shape, list[Sample]] = {}

    def tokens(self, size: int) -> list[Row]:
        """Every operator that works on all tokens, and the rest of the forward pass as ``other``."""
        samples = self._samples(self._plain(size))
        names = sorted(set(samples[0]) - {"attention", "whole", *OF_SEQUENCES})
        rows = [self._row(name, samples, "flop_per_token", tokens=size) for name in names]
        others = [max(LEAST_S, _other_s(sample)) for sample in samples]
        base = {"operator": "other", "calls_per_step": 1, "flop_per_token": 0, "weight_bytes": 0, "tokens": size}
        return [*rows, {**base, **figures(others)}]

    def sequences(self, size: int) -> list[Row]:
        """Head and sampler."""
        samples = self._samples(decodes(size, SHORTEST_LENGTH))
        return [self._row(name, samples, "flop_per_sequence", sequences=size) for name in OF_SEQUENCES]

    def attention(self, shape: Shape, window: int | None = None) -> Row:
        """One layer's; of models without windows only (`own_shape.plain_shape_of`)."""
        assert window is None
        samples = self._samples(shape)
        calls = samples[0]["attention"][0]
        return {"calls_per_step": calls, **shape.row(), **figures([s["attention"][1] / calls for s in samples])}

    def whole(self, shape: Shape) -> Row:
        """Forward pass, head and sampler."""
        samples = self._samples(shape)
        seconds = [sum(sample[name][1] for name in ("whole", *OF_SEQUENCES)) for sample in samples]
        return {**shape.row(), **figures(seconds, "measured_us")}

    def _plain(self, size: int) -> Shape:
        return decodes(size, SHORTEST_LENGTH) if size <= self._max_seqs else chunks(1, size)

    def _samples(self, shape: Shape) -> list[Sample]:
        if shape not in self._known:
            self._known[shape] = self._worker.samples(shape, self._effort)
        return self._known[shape]

    def _row(self, operator: str, samples: list[Sample], work: str, **size: int) -> Row:
        calls = samples[0][operator][0]
        flop, weights = work_of(operator, self._shape)
        seconds = [sample[operator][1] / calls for sample in samples]
        base = {"operator": operator, "calls_per_step": calls, work: flop, "weight_bytes": weights, **size}
        return {**base, **figures(seconds)}


def _other_s(sample: Sample) -> float:
    """The forward pass without the modules that are timed in it."""
    inside = sum(seconds for name, (_, seconds) in sample.items() if name not in ("whole", *OF_SEQUENCES))
    return sample["whole"][1] - inside
