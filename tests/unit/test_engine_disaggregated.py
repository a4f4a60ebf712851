"""Prefill and decode on different machines: small runs worked out by hand, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.pools.disaggregated import Link
from tests.oracle.models import KinkedModel
from validation.schedules import OneSecond

ENGINES = ["splitwise", "distserve"]


def workload(*rows: tuple[float, int, int]) -> Workload:
    arrival, prompt, output = zip(*rows, strict=True)
    return Workload(arrival_s=floats(arrival), prompt_tokens=ints(prompt), output_tokens=ints(output))


def run(engine: str, load: Workload, num_blocks: int = 100, budget: int = 64, **options: float) -> Run:
    pools = {"prefill": 1, "decode": 1, **options}
    replicas = max(1, int(sum(pools.get(name, 0) for name in ("prefill", "decode", "mixed"))))
    link = {"transfer_s_per_token": 0.01, "transfer_latency_s": 0.5}
    config = EngineConfig(
        num_blocks=num_blocks, block_size=4, max_num_batched_tokens=budget, policy=engine, replicas=replicas,
        options={**link, **pools},
    )  # fmt: skip
    return simulate(load, config, OneSecond())


def tokens(result: Run) -> list[list[float]]:
    assert result.timeline is not None
    return [[round(t, 9) for t in result.timeline.token_times_s(k).tolist()] for k in range(len(result))]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_token_comes_from_the_prompt_machine_and_the_next_after_the_transfer(engine: str) -> None:
    result = run(engine, workload((2.0, 10, 3)))
    # The prompt from 2 to 3; ten tokens at 0.01 s and 0.5 s of latency: KV is there at 3.6, steps end at 4.6 and 5.6.
    assert tokens(result) == [[3.0, 4.6, 5.6]]
    assert result.replica.tolist() == [1]
    assert result.num_steps == 3
    assert (result.first_token_s[0], round(result.finish_s[0], 9)) == (3.0, 5.6)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_of_one_token_never_leaves_the_prompt_machine(engine: str) -> None:
    result = run(engine, workload((0.0, 10, 1), (0.0, 10, 2)))
    assert tokens(result) == [[1.0], [1.0, 2.6]]
    assert result.replica.tolist() == [0, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_link_carries_one_prompt_at_a_time(engine: str) -> None:
    patience = {"waiting_frac": 0.5} if engine == "distserve" else {}
    result = run(engine, workload((0.0, 20, 2), (0.0, 20, 2)), **patience)
    # Both prompts in one batch until 1.0. The first is sent until 1.2 and there at 1.7; the second until 1.4, there at
    # 1.9: it joins after the first one's step, from 2.7.
    assert tokens(result) == [[1.0, 2.7], [1.0, 3.7]]


def test_layers_that_are_sent_while_the_next_are_computed_hide_the_transfer() -> None:
    whole = run("splitwise", workload((0.0, 40, 2)))
    layered = run("splitwise", workload((0.0, 40, 2)), transfer_layers=10, overlap_min_tokens=40)
    short = run("splitwise", workload((0.0, 40, 2)), transfer_layers=10, overlap_min_tokens=41)
    assert tokens(whole) == tokens(short) == [[1.0, 2.9]]
    assert tokens(layered) == [[1.0, 2.54]], "a tenth of 0.4 s is left at the end of the prompt"


def test_a_transfer_slower_than_the_prompt_is_only_partly_hidden() -> None:
    link = Link(s_per_token=0.1, latency_s=0.0, layers=10, overlap_min_tokens=1)
    # Forty tokens: 4 s on the link, 1 s to compute; nine tenths of the second are used for sending.
    assert link.rest_s(40, 1.0) == pytest.approx(4.0 - 0.9)
    assert link.rest_s(40, 100.0) == pytest.approx(0.4)
    # The pipeline of two stages, piece by piece: piece k is computed at (k + 1)/10 and sent after the one before it.
    sent = 0.0
    for k in range(10):
        sent = max(sent, (k + 1) / 10) + 0.4
    assert sent - 1.0 == pytest.approx(link.rest_s(40, 1.0))


def test_the_prompt_machine_keeps_kv_until_it_is_pulled() -> None:
    """DistServe: prompts of five blocks, six on each machine. The second is not computed before the first is gone."""
    load = workload((0.0, 20, 3), (0.0, 20, 2))
    result = run("distserve", load, num_blocks=6)
    # The first: computed until 1.0, sent until 1.2, there at 1.7; only then the second begins, until 2.7. It finds no
    # room on the other side until the first one's last token at 3.7; then 0.7 s of transfer, and a step.
    assert tokens(result) == [[1.0, 2.7, 3.7], [2.7, 5.4]]


def test_a_decode_instance_that_runs_out_swaps_out_the_last_and_takes_it_back() -> None:
    load = workload((0.0, 4, 14), (0.0, 4, 14))
    result = run("distserve", load, num_blocks=6, swap_s_per_token=0.1, waiting_frac=0.5)
    assert result.preemptions.tolist() == [0, 1]
    assert result.status.tolist() == [Status.FINISHED] * 2
    assert result.output_tokens.tolist() == [14, 14]
    gaps = np.diff(tokens(result)[1])
    assert gaps.max() > 2.0, "it waits in host memory"
    # The second began a step after the first and has eleven tokens in place: moving them takes 1.1 s of the step.
    assert np.isclose(np.diff(tokens(result)[0]).max(), 2.1)


def test_a_full_prompt_pool_overflows_into_the_token_pool() -> None:
    load = workload(*[(0.0, 10, 2)] * 6)
    calm = run("splitwise", load, budget=10)
    crowded = run("splitwise", load, budget=10, max_pending_tokens=15)
    assert calm.replica.tolist() == [1] * 6
    assert max(t[0] for t in tokens(calm)) == 6.0
    assert max(t[0] for t in tokens(crowded)) < 6.0, "the token machine computes prompts too"


def test_a_decode_left_out_by_prompts_keeps_its_kv() -> None:
    """One mixed machine; prompts as long as a step leave no room for the decode until it has been left out twice."""
    load = workload((0.0, 8, 4), (0.5, 8, 1), (0.5, 8, 1), (0.5, 8, 1))
    result = run("splitwise", load, budget=8, prefill=0, decode=0, mixed=1, max_preemptions=2)
    # 1.0 first prompt, 2.0 and 3.0 prompts; then the decode goes first and leaves 7 of 8 tokens, too few for a prompt
    # (4.0, 5.0, 6.0), and the last prompt comes after it.
    assert tokens(result) == [[1.0, 4.0, 5.0, 6.0], [2.0], [3.0], [7.0]]
    assert result.preemptions.tolist() == [0, 0, 0, 0]


def test_memory_that_is_set_aside_is_never_exceeded() -> None:
    rng = np.random.default_rng(4)
    rows = zip(np.cumsum(rng.exponential(0.02, 150)), rng.integers(1, 80, 150), rng.integers(1, 60, 150), strict=True)
    load = workload(*rows)
    for engine in ENGINES:
        config = EngineConfig(
            num_blocks=60, block_size=4, policy=engine, replicas=4, keep_step_log=True, max_num_batched_tokens=200,
            options={"prefill": 2, "decode": 2, "transfer_s_per_token": 1e-4},
        )  # fmt: skip
        result = simulate(load, config, KinkedModel())
        assert result.status.tolist() == [Status.FINISHED] * 150
        assert result.step_log is not None
        assert 0 <= result.step_log.used_blocks.min() <= result.step_log.used_blocks.max() <= 60


def test_users_wait_for_the_last_token_of_the_other_machine() -> None:
    load = dataclasses.replace(workload((0.0, 10, 2), (0.0, 10, 2)), concurrency=1, think_s=1.0)
    for engine in ENGINES:
        result = run(engine, load)
        assert result.arrival_s.tolist() == [0.0, pytest.approx(3.6)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("pool", "words"), [("decode", "no decode pool"), ("prefill", "no prefill pool")])
def test_a_deployment_without_one_of_its_pools_is_refused(engine: str, pool: str, words: str) -> None:
    with pytest.raises(InfeasibleError, match=words):
        run(engine, workload((0.0, 10, 2)), **{pool: 0})


def test_a_mixed_pool_can_stand_in_for_both() -> None:
    assert tokens(run("splitwise", workload((0.0, 10, 3)), prefill=0, decode=0, mixed=1)) == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transfer_s_per_token": 0.0}, "no transfer is free"),
        ({"transfer_latency_s": -1.0}, "zero or more seconds"),
        ({"transfer_latency_s": math.inf}, "zero or more seconds"),
        ({"prefill": -1}, "zero or more machines"),
        ({"bandwidth": 3}, "its options are: prefill, decode"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run("splitwise", workload((0.0, 10, 2)), **options)


def test_pools_are_the_replicas() -> None:
    config = EngineConfig(num_blocks=9, policy="distserve", replicas=5, options={"transfer_s_per_token": 1e-6})
    with pytest.raises(InputError, match=r"prefill 1 \+ decode 1 = 2 replicas"):
        simulate(workload((0.0, 10, 2)), config, OneSecond())


def test_pipeline_stages_are_refused() -> None:
    config = EngineConfig(num_blocks=9, policy="distserve", replicas=2, options={"transfer_s_per_token": 1e-6})
    with pytest.raises(InfeasibleError, match="without pipeline stages"):
        simulate(workload((0.0, 10, 2)), config, KinkedModel(num_stages=2))
