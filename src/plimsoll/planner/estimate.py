"""What one replica can do, from the step model alone: no simulation, about a millisecond.

Mean-value analysis. With `d` sequences decoding in a batch, a request costs its stage

    O/d · T(d)              its share of O decode steps of T(d) seconds each
    + Σ chunks ΔT(c, d)     what its prompt adds to the steps that carry it,

so the replica serves ``x(d) = 1 / (O/d · T(d) + ΔT(d))`` requests a second, and by Little's law a token takes
``num_stages · d / (x(d) · O)`` seconds. Both grow with `d`. The largest `d` that memory, seats, the token budget and
the mean TPOT target allow gives the *bound* on the capacity: a p99 is never below its mean, queueing only costs, and
prompts are packed into full steps. The search trusts it up to a stated margin only (`planner.search`), because means
hide convexity.

Lengths enter as a sample of the workload: what a decode step reads is averaged over decode *steps*, so long answers
weigh more, as they do in a real batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from plimsoll.core.columns import Floats, Ints
from plimsoll.core.step import AttentionLayers, StepModel

KV_FILL_FRAC = 0.97
"""How full a paged cache is when it admits no more, on average (half a block a sequence and the last admission)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """A sample of prompt and output lengths, ``int64[n]``, and how much of a prompt is found in a prefix cache."""

    prompt_tokens: Ints
    output_tokens: Ints


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthMeans:
    """Means of a workload that the estimate needs, for one model's attention windows and one token budget.

    Attributes:
        prompt_tokens, output_tokens: per request.
        prefill_pairs, prefill_read_tokens: attention work of one prompt, in chunks of the token budget.
        num_chunks: per prompt.
        decode_read_tokens: read tokens of one decode, averaged over decode steps.
        kv_tokens: tokens that a decoding sequence holds, averaged over decode steps.
        tail_prompt_tokens: the prompt at the judged percentile.
        chunk_spread: mean square of a chunk's tokens over the square of their mean, 1 where all are alike.
        decode_steps: ``float64[64]``: decode steps of requests at equal probability, at least 1.
        tail_frac: the judged percentile as a share.
    """

    prompt_tokens: float
    output_tokens: float
    prefill_pairs: float
    prefill_read_tokens: float
    num_chunks: float
    decode_read_tokens: float
    kv_tokens: float
    tail_prompt_tokens: int
    chunk_spread: float
    decode_steps: Floats
    tail_frac: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds the batch of one replica.

    Attributes:
        kv_tokens: tokens that its KV cache holds.
        max_num_seqs: seats, of all ranks.
        max_num_batched_tokens: tokens of a step, of one rank.
        ttft_s, tpot_s, e2e_s: targets; None where there is none.
        ranks: data-parallel attention ranks that step together. A step costs as if all had what the fullest has, so a
            lone prompt or sequence costs as much as one on every rank.
    """

    kv_tokens: float
    max_num_seqs: int
    max_num_batched_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    ranks: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One replica, estimated. Times in seconds, source `MODELLED` whatever the step model's: means stand for runs.

    Attributes:
        unloaded_ttft_s: prefill of the mean prompt alone.
        tail_ttft_s: prefill of the prompt at the judged percentile, alone.
        unloaded_tpot_s: one sequence alone.
        unloaded_e2e_s: a mean request alone.
        saturation_per_s: requests a second with everything as full as memory, seats and budget allow.
        predicted_per_s: `bound_per_s`, with the TPOT target held by the judged percentile instead of the mean.
        bound_per_s: the most that the targets' mean TPOT allows as well; 0 where even a lone request misses a target.
        batch: decoding sequences at `bound_per_s`.
        limited_by: what sets it: ``ttft``, ``tpot``, ``e2e``, ``kv memory``, ``seats`` or ``token budget``.
        prefill_frac: share of the time that prompts take there, for splitting the price.
    """

    unloaded_ttft_s: float
    tail_ttft_s: float
    unloaded_tpot_s: float
    unloaded_e2e_s: float
    saturation_per_s: float
    predicted_per_s: float
    bound_per_s: float
    batch: float
    limited_by: str
    prefill_frac: float


def length_means(lengths: Lengths, attention_layers: AttentionLayers, budget: int, percentile: float) -> LengthMeans:
    """Average a sample of lengths as `LengthMeans` says; `percentile` (0 to 100) picks the tail prompt."""
    prompt = lengths.prompt_tokens.astype(np.float64)
    output = lengths.output_tokens.astype(np.float64)
    chunks = np.ceil(prompt / budget)
    steps = np.maximum(output - 1.0, 0.0)
    total_steps = max(float(steps.sum()), 1e-9)
    middle = prompt + output / 2.0
    pairs = np.zeros_like(prompt)
    chunk_reads = np.zeros_like(prompt)
    decode_reads = np.zeros_like(prompt)
    for weight, window in attention_layers:
        pairs += weight * _pairs(prompt, window)
        seen = middle if window is None else np.minimum(middle, window)
        decode_reads += weight * seen
        context = chunks * budget / 2.0  # mean over the chunks after the first
        chunk_reads += (
            weight * np.maximum(chunks - 1.0, 0.0) * (context if window is None else np.minimum(context, window))
        )
    alone = float(steps.sum()) <= 0
    return LengthMeans(
        prompt_tokens=float(prompt.mean()),
        output_tokens=float(output.mean()),
        prefill_pairs=float(pairs.mean()),
        prefill_read_tokens=float(chunk_reads.mean()),
        num_chunks=float(chunks.mean()),
        decode_read_tokens=float(decode_reads.mean() if alone else (decode_reads * steps).sum() / total_steps),
        kv_tokens=float(middle.mean() if alone else (middle * steps).sum() / total_steps),
        tail_prompt_tokens=int(np.percentile(prompt, percentile)),
        chunk_spread=_chunk_spread(prompt, chunks, budget),
        decode_steps=np.maximum(np.quantile(steps, (np.arange(64) + 0.5) / 64), 1.0),
        tail_frac=percentile / 100.0,
    )


def _chunk_spread(prompt: Floats, chunks: Floats, budget: int) -> float:
    last = prompt - (chunks - 1.0) * budget
    total, squares = float(prompt.sum()), float(((chunks - 1.0) * budget**2 + last**2).sum())
    return squares * float(chunks.sum()) / total**2


def _pairs(prompt: Floats, window: int | None) -> Floats:
    whole = prompt * (prompt + 1.0) / 2.0
    if window is None:
        return whole
    return np.where(prompt <= window, whole, window * prompt - window * (window - 1.0) / 2.0)


def _pairs_up_to(tokens: int, window: int | None) -> float:
    """Attention pairs of the first `tokens` tokens of a prompt in a layer with `window`."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1.0) / 2.0
    return window * tokens - window * (window - 1.0) / 2.0


class ReplicaEstimator:
    """The mean-value model of one replica. Cheap to build; every method is a few step-model calls.

    Attributes:
        prefill_price_frac: share of the rent that input tokens pay, where that does not follow from the load.
    """

    prefill_price_frac: float | None = None

    def __init__(self, model: StepModel, means: LengthMeans, limits: Limits) -> None:
        self.model, self.means, self.limits = model, means, limits
        self.num_stages = model.num_stages

    def decode_step_s(self, batch: float) -> float:
        """Seconds of one decode-only step (of one stage) with `batch` sequences; between whole batches linear."""
        low = max(math.floor(batch), self.limits.ranks)
        reads = self.means.decode_read_tokens
        at_low = self.model.step_s(0, 0, 0, 0, 0, low, round(low * reads))
        if batch <= low:
            return at_low
        at_high = self.model.step_s(0, 0, 0, 0, 0, low + 1, round((low + 1) * reads))
        return at_low + (batch - low) * (at_high - at_low)

    def prefill_s(self, batch: float, *, packed: bool) -> float:
        """Seconds that one mean prompt adds to its stage beside `batch` decodes.

        `packed`: as its share of a step filled to the token budget with prompts; otherwise alone.
        """
        return self._prefill(batch, packed=packed)[0]

    def _prefill(self, batch: float, *, packed: bool) -> tuple[float, float]:
        """As `prefill_s`, and how many of one batch's steps carry prompts (more than one: every step has several)."""
        means, decodes, ranks = self.means, round(batch), self.limits.ranks
        room = max(self.limits.max_num_batched_tokens - decodes // ranks, 1)
        prompts = max(room / means.prompt_tokens, 1.0) if packed else 1.0
        chunk = min(means.prompt_tokens * prompts, room)
        share = chunk / means.prompt_tokens  # of a prompt in this step on one rank; above one where several fit
        with_chunk = self.model.step_s(
            max(round(ranks * chunk), 1),
            max(round(ranks * prompts), 1),
            round(ranks * means.prefill_pairs * share),
            round(ranks * means.prefill_read_tokens * share),
            max(round(ranks * share), 1) if share >= 1 else 0,
            decodes,
            round(decodes * means.decode_read_tokens),
        )
        without = self.decode_step_s(batch) if decodes else 0.0
        per_step = batch / max(means.output_tokens - 1.0, 1.0) / share  # chunks that arrive in a step
        at_once = ranks if packed else min(max(per_step, 1.0), ranks)  # ranks that have one in the same step
        return max(with_chunk - without, 0.0) / share / at_once, per_step / at_once

    def _prefill_with_bubbles_s(self, batch: float, *, packed: bool) -> float:
        """Seconds that one mean prompt costs its stage, waiting of the other batches in the pipeline included.

        A batch passes the stages one after the other, and those behind it cannot overtake: a cycle of the pipeline
        lasts as long as its longest step, at every stage. With a chunk in a share ``q`` of the steps, one of the
        `num_stages` batches carries one with the chance ``1 − (1 − q)^num_stages``; each chunk so costs up to
        `num_stages` times its seconds.
        """
        seconds, often = self._prefill(batch, packed=packed)
        if self.num_stages == 1:
            return seconds
        often = min(max(often, 1e-9), 1.0)
        return seconds * (1.0 - (1.0 - often) ** self.num_stages) / often

    def _prompt_cost_s(self, batch: float, *, packed: bool) -> float:
        if packed and self.num_stages == 1:
            return min(self.prefill_s(batch, packed=False), self.prefill_s(batch, packed=True))
        # In a pipeline a batch starts every few milliseconds: prompts find no time to gather.
        return self._prefill_with_bubbles_s(batch, packed=False)

    def rate_per_s(self, batch: float, *, packed: bool = True) -> float:
        """Requests a second with `batch` sequences decoding in each of the pipeline's batches.

        `packed`: prompts come in the cheapest way; otherwise one by one.
        """
        steps = max(self.means.output_tokens - 1.0, 0.0)
        busy_s = steps / batch * self.decode_step_s(batch) + self._prompt_cost_s(batch, packed=packed)
        return 1.0 / busy_s

    def tpot_s(self, batch: float, *, packed: bool = True) -> float:
        """Mean seconds between tokens with `batch` sequences in each batch, prompts between them included."""
        steps = max(self.means.output_tokens - 1.0, 1e-9)
        share = self._prompt_cost_s(batch, packed=packed) * batch / steps
        return self.num_stages * (self.decode_step_s(batch) + share)

    def tail_tpot_s(self, batch: float) -> float:
        """The judged percentile of TPOT with `batch` sequences in each batch, about.

        A request of n steps averages n draws of a step's time, of which a share carries a prompt: normal about the
        mean with that variance over n. Besides, the batch itself varies, as the square root of its size. The percentile
        is that of the mixture over all n; a logistic curve stands for the normal one.
        """
        means, stages = self.means, self.num_stages
        seconds, often = self._prefill(batch, packed=False)
        per_chunk_s = seconds * min(self.limits.max_num_batched_tokens / means.prompt_tokens, 1.0)
        hit = 1.0 - (1.0 - min(often, 1.0)) ** stages
        variance = (stages * per_chunk_s) ** 2 * max(hit * means.chunk_spread - hit**2, 0.0)
        middle = self.tpot_s(batch)
        busier = self.tpot_s(batch + math.sqrt(batch / stages)) - middle
        spread = np.sqrt(variance / means.decode_steps + busier**2)
        low, high = middle, middle + 12.0 * float(spread.max())
        for _ in range(12):
            guess = 0.5 * (low + high)
            below = float(np.mean(1.0 / (1.0 + np.exp(np.minimum(-1.702 * (guess - middle) / (spread + 1e-12), 50.0)))))
            low, high = (guess, high) if below < means.tail_frac else (low, guess)
        return high

    def unloaded_ttft_s(self, prompt_tokens: float) -> float:
        """Prefill of one prompt on an idle replica, chunk by chunk through all stages."""
        budget, ranks = self.limits.max_num_batched_tokens, self.limits.ranks
        total, context = 0.0, 0
        left = max(round(prompt_tokens), 1)
        while left > 0:
            chunk = min(left, budget)
            pairs = reads = 0.0
            for weight, window in self.model.attention_layers:
                pairs += weight * (_pairs_up_to(context + chunk, window) - _pairs_up_to(context, window))
                reads += weight * (context if window is None else min(context, window))
            rows = (ranks * chunk, ranks, round(ranks * pairs), round(ranks * reads), ranks * int(chunk == left))
            total += self.model.step_s(*rows, 0, 0)
            context, left = context + chunk, left - chunk
        return total * self.num_stages

    def largest_batch(self) -> tuple[float, str]:
        """The largest batch (per stage) that memory, seats and token budget hold, and which of them binds."""
        means, limits, stages = self.means, self.limits, self.num_stages
        per_decode = means.prompt_tokens / max(means.output_tokens - 1.0, 1.0)
        return min(
            (KV_FILL_FRAC * limits.kv_tokens / means.kv_tokens / stages, "kv memory"),
            (limits.max_num_seqs / stages, "seats"),
            (limits.ranks * limits.max_num_batched_tokens / (1.0 + per_decode), "token budget"),
        )

    def batch_at(self, rate_per_s: float, *, packed: bool = False) -> float | None:
        """Decoding sequences (per stage) at `rate_per_s`; None where the replica cannot carry it."""
        most, _ = self.largest_batch()
        most = max(most, 1.0)
        steps = max(self.means.output_tokens - 1.0, 1e-9)
        if rate_per_s >= self.rate_per_s(most, packed=packed):
            return None
        low, high = 0.0, most
        for _ in range(14):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self._carried(middle, steps, packed) > rate_per_s else (middle, high)
        return high

    def _carried(self, batch: float, steps: float, packed: bool) -> float:
        """As `rate_per_s`, also below one sequence: then the replica is idle in between."""
        if batch >= 1.0:
            return self.rate_per_s(batch, packed=packed)
        return batch * self.rate_per_s(1.0, packed=packed) if steps > 0 else batch

    def e2e_s(self, rate_per_s: float) -> float:
        """Mean seconds from arrival to last token at `rate_per_s`; infinite beyond saturation.

        The unloaded prefill, stretched by the batch it shares its steps with and by waiting for the prompts before it
        (a single server whose work is prompts: Pollaczek-Khinchine with the mean only), then the tokens.
        """
        batch = self.batch_at(rate_per_s)
        if batch is None:
            return math.inf
        prefill = self.prefill_s(batch, packed=False)
        busy = min(rate_per_s * prefill, 0.999)
        waiting = busy * prefill / (2.0 * (1.0 - busy)) + 0.5 * self.decode_step_s(max(batch, 1.0))
        first = self.num_stages * (prefill + self.decode_step_s(max(batch, 1.0))) + waiting
        return first + max(self.means.output_tokens - 1.0, 0.0) * self.tpot_s(max(batch, 1.0), packed=False)

    def estimate(self) -> Estimate:
        """Everything the search wants to know before it simulates."""
        means, limits = self.means, self.limits
        ttft, tpot = self.unloaded_ttft_s(means.prompt_tokens), self.num_stages * self.decode_step_s(1.0)
        tail = self.unloaded_ttft_s(means.tail_prompt_tokens) if limits.ttft_s is not None else ttft
        e2e = ttft + max(means.output_tokens - 1.0, 0.0) * tpot
        most, limited_by = self.largest_batch()
        most = max(most, 1.0)
        saturation = self.rate_per_s(most)
        batch, bound = most, saturation
        target = _tightest(limits, means, ttft)
        if limits.ttft_s is not None and tail > limits.ttft_s:
            bound, limited_by, batch = 0.0, "ttft", 0.0
        elif target is not None and tpot > target[0]:
            bound, limited_by, batch = 0.0, target[1], 0.0
        elif target is not None and self.tpot_s(most) > target[0]:
            batch, limited_by = self._batch_within(target[0], most, self.tpot_s), target[1]
            bound = self.rate_per_s(batch)
        predicted = bound
        if bound > 0 and limits.tpot_s is not None and self.tail_tpot_s(batch) > limits.tpot_s:
            limited_by = "tpot"
            predicted = self.rate_per_s(self._batch_within(limits.tpot_s, batch, self.tail_tpot_s))
        prefill = self.prefill_s(max(batch, 1.0), packed=True)
        decode = max(means.output_tokens - 1.0, 0.0) / max(batch, 1.0) * self.decode_step_s(max(batch, 1.0))
        return Estimate(
            unloaded_ttft_s=ttft,
            tail_ttft_s=tail,
            unloaded_tpot_s=tpot,
            unloaded_e2e_s=e2e,
            saturation_per_s=saturation,
            predicted_per_s=predicted,
            bound_per_s=bound,
            batch=batch,
            limited_by=limited_by,
            prefill_frac=prefill / (prefill + decode) if prefill + decode > 0 else 0.0,
        )

    def _batch_within(self, tpot_s: float, most: float, at: Callable[[float], float]) -> float:
        """The largest batch up to `most` at which TPOT as given by `at` stays within its target."""
        low, high = 1.0, most
        for _ in range(10):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if at(middle) <= tpot_s else (low, middle)
        return low


def _tightest(limits: Limits, means: LengthMeans, ttft_s: float) -> tuple[float, str] | None:
    """The mean TPOT that the targets leave: the TPOT target, or what the end-to-end target leaves after the prefill."""
    targets = []
    if limits.tpot_s is not None:
        targets.append((limits.tpot_s, "tpot"))
    if limits.e2e_s is not None and means.output_tokens > 1:
        targets.append((max(limits.e2e_s - ttft_s, 0.0) / (means.output_tokens - 1.0), "e2e"))
    return min(targets, default=None)
