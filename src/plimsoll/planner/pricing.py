"""Dollars per million input tokens and per million output tokens, separately.

A machine is rented by the hour, not by the token, so the split is a convention. Here: by time. At the load that is
priced, a stage of the replica spends ``x · P`` of each second on prompts and ``x · D`` on decoding, where x is the rate
in requests per second, P what a mean prompt adds to the steps that carry it beside the decodes of that load, and D a
request's share of its decode steps. Input tokens pay ``P / (P + D)`` of the price, output tokens the rest. Idle time is
shared likewise, so the two together always pay exactly the rent:

    usd_per_hour = input_usd_per_million · input_millions_per_hour + output_usd_per_million · output_millions_per_hour

Input tokens are all prompt tokens, those found in a prefix cache included, as providers count them.
"""

from __future__ import annotations

import dataclasses

from plimsoll.core.units import SECONDS_PER_HOUR, TOKENS_PER_MILLION
from plimsoll.planner.estimate import ReplicaEstimator


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPrices:
    """Dollars per million tokens: of input, of output, and the undivided price over both together."""

    input_usd: float
    output_usd: float
    both_usd: float


def prefill_share(estimator: ReplicaEstimator, rate_per_s: float) -> float:
    """Share of the busy time that prompts take on one replica at `rate_per_s`, in [0, 1].

    Of prefill and decode pools: the share of the machines that compute prompts.
    """
    if estimator.prefill_price_frac is not None:
        return estimator.prefill_price_frac
    batch = estimator.batch_at(rate_per_s)
    if batch is None:
        batch = estimator.largest_batch()[0]
    batch = max(batch, 1.0)
    prefill_s = estimator.prefill_s(batch, packed=False)
    decode_s = max(estimator.means.output_tokens - 1.0, 0.0) / batch * estimator.decode_step_s(batch)
    return prefill_s / (prefill_s + decode_s) if prefill_s + decode_s > 0 else 1.0


def token_prices(
    usd_per_hour: float, requests_per_s: float, prompt_tokens: float, output_tokens: float, prefill_frac: float
) -> TokenPrices:
    """Split the rent over the tokens of an hour.

    Args:
        usd_per_hour: of everything that is rented, spares included.
        requests_per_s: that all replicas serve together, above zero.
        prompt_tokens: mean per request, cached prefix included.
        output_tokens: mean per request.
        prefill_frac: share of the price that input tokens pay.
    """
    requests_per_hour = requests_per_s * SECONDS_PER_HOUR
    usd_per_request = usd_per_hour / requests_per_hour
    return TokenPrices(
        input_usd=prefill_frac * usd_per_request / prompt_tokens * TOKENS_PER_MILLION,
        output_usd=(1.0 - prefill_frac) * usd_per_request / output_tokens * TOKENS_PER_MILLION,
        both_usd=usd_per_request / (prompt_tokens + output_tokens) * TOKENS_PER_MILLION,
    )
