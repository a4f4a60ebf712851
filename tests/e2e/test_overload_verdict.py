"""Is the load beyond capacity? The verdict of `simulate` where it is easily wrong."""

from __future__ import annotations

import pytest

from plimsoll.api.simulation import simulate
from plimsoll.metrics import is_queue_growing

CHAT = {"model": "Llama-3.1-8B", "workload": "chat"}
SLOW_LINK = "transfer_s_per_token=0.001"


@pytest.mark.parametrize("seed", range(6))
def test_a_short_run_at_light_load_is_not_overloaded(seed: int) -> None:
    """Three replicas at a third of what they can do: the batch fills up while the hundred requests arrive."""
    answer = simulate(**CHAT, gpu="L40S", replicas=3, rate_per_s=4.0, num_requests=100, seed=seed)
    assert not answer.queue_grows


def test_a_short_run_beyond_capacity_is() -> None:
    answer = simulate(**CHAT, gpu="L40S", rate_per_s=12.0, num_requests=100)
    assert answer.queue_grows


@pytest.mark.parametrize("engine", ["splitwise", "distserve"])
def test_kv_that_queues_for_its_link_is_a_queue(engine: str) -> None:
    """A link that carries 0.9 of the 6 requests a second."""
    fields = {**CHAT, "gpu": "H100-SXM", "rate_per_s": 6.0}
    slow = simulate(**fields, num_requests=2000, engine=f"{engine},{SLOW_LINK}")
    assert slow.queue_grows
    assert not simulate(**fields, num_requests=2000, engine=engine).queue_grows


def test_kv_that_waits_between_two_pools_is_named() -> None:
    run = simulate(**CHAT, gpu="H100-SXM", rate_per_s=6.0, num_requests=400, engine=f"splitwise,{SLOW_LINK}").run
    result = is_queue_growing(run)
    assert result.growing
    assert result.between_tokens is not None
    assert result.between_tokens.growth_frac > 0.3
    assert "between their first two tokens" in result.reason
