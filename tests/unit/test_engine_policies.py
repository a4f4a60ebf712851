"""The classic engines, each on a case small enough to do by hand. Most steps take one second here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, StepCost, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.general.buddy import Buddy
from plimsoll.engine.policies.orca import Orca
from plimsoll.engine.policies.s3 import S3
from plimsoll.engine.requests import Requests

Shape = tuple[int, int, int, int, int, int, int]


class OneSecond:
    """Every forward pass takes a second, and is written down."""

    attention_layers = FULL_ATTENTION
    num_stages = 1

    def __init__(self) -> None:
        self.passes: list[Shape] = []

    def step_s(self, *shape: int) -> float:
        self.passes.append(shape)  # type: ignore[arg-type]
        return 1.0

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        return 1.0, 0.0, 1 << 60

    def step(self, shape: StepShape, /) -> StepCost:
        return StepCost(time_s=1.0, energy_j=None, source=Source.ASSUMED)


def workload(*rows: tuple[float, int, int], **columns: Any) -> Workload:
    """Rows of arrival, prompt and output."""
    arrival_s, prompt, output = zip(*rows, strict=True)
    return Workload(
        arrival_s=floats(arrival_s), prompt_tokens=ints(prompt), output_tokens=ints(output), **columns
    )  # fmt: skip


def run(load: Workload, engine: str, model: OneSecond | None = None, **fields: Any) -> Run:
    settings = {"num_blocks": 1000, "block_size": 4, "max_model_len": 64, "policy": engine}
    sizes = {key: fields.pop(key) for key in list(fields) if key in EngineConfig.__dataclass_fields__}
    config = EngineConfig(**{**settings, **sizes}, options=fields)
    return simulate(load, config, model or OneSecond())


def times(result: Run, request: int) -> list[float]:
    assert result.timeline is not None
    return result.timeline.token_times_s(request).tolist()


# -- static batches ------------------------------------------------------------------------------------------------


def test_fastertransformer_runs_a_batch_to_its_end_before_the_next() -> None:
    load = workload((0, 4, 2), (0, 8, 5), (0.5, 4, 3))
    result = run(load, "fastertransformer", return_together=False)
    assert times(result, 0) == [1, 2]
    assert times(result, 1) == [1, 2, 3, 4, 5]
    assert times(result, 2) == [6, 7, 8], "not before the batch is done"


def test_fastertransformer_answers_when_the_batch_ends() -> None:
    result = run(workload((0, 4, 2), (0, 8, 5)), "fastertransformer")
    assert times(result, 0) == [1, 5], "the last token waits for the longest row"
    assert result.finish_s.tolist() == [5, 5]


def test_fastertransformer_pads_prompts_and_keeps_finished_rows() -> None:
    class Counting(OneSecond):
        rows: list[int] = []  # noqa: RUF012

        def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
            self.rows.append(num_decode)
            return 1.0, 0.0, 1 << 60

    model = Counting()
    run(workload((0, 4, 2), (0, 8, 5)), "fastertransformer", model)
    assert model.passes[0] == (16, 2, 2 * (8 * 9 // 2), 0, 2, 0, 0), "two prompts of eight"
    assert model.rows == [2, 2], "after the first row is done there are still two"
    model = Counting()
    model.rows = []
    run(workload((0, 4, 2), (0, 8, 5)), "fastertransformer", model, padding=False, pad_rows=False)
    assert model.passes[0] == (12, 2, 10 + 36, 0, 2, 0, 0)
    assert model.rows == [2, 1]


def test_fastertransformer_reserves_the_longest_sequence() -> None:
    load = workload(*[(0, 4, 3)] * 5)
    result = run(load, "fastertransformer", num_blocks=35)  # 16 blocks for 64 tokens: two at a time
    assert [times(result, i)[0] for i in range(5)] == [1, 1, 4, 4, 7]


# -- reservations --------------------------------------------------------------------------------------------------


def test_orca_max_runs_seven_requests_on_the_memory_of_the_vllm_papers_opt_13b() -> None:
    """12 GiB of KV at 2 x 40 layers x 5120 x 2 bytes are 15.7 K token slots: 7 of 2048 (SOSP'23, figure 13: 7.00)."""
    slots = 12 * 2**30 // (2 * 40 * 5120 * 2)
    assert round(slots, -2) == 15_700
    rng = np.random.default_rng(0)
    load = workload(*[(0, int(rng.integers(20, 300)), int(rng.integers(50, 600))) for _ in range(60)])
    result = run(load, "orca", num_blocks=slots // 16, block_size=16, max_model_len=2048, keep_step_log=True)
    assert result.step_log is not None
    assert result.step_log.num_running.max() == 7
    early = result.step_log.time_s < result.finish_s[:50].max()  # while somebody waits
    assert set(result.step_log.num_running[early]) <= {6, 7}, "one seat is empty only between an end and a step"


@pytest.mark.parametrize(
    ("reservation", "tokens"), [("max", 64), ("pow2", 10 + 32), ("oracle", 10 + 25), ("told", 10 + 40)]
)
def test_orcas_reservations(reservation: str, tokens: int) -> None:
    load = workload((0, 10, 25), max_output_tokens=ints([40]))
    policy = Orca(EngineConfig(num_blocks=100, max_model_len=64), reservation=reservation)
    assert policy.reserve(Requests(load, 64), 0) == tokens


def test_orca_takes_whole_prompts_beside_decodes() -> None:
    model = OneSecond()
    result = run(workload((0, 4, 5), (1.5, 6, 3)), "orca", model)
    assert times(result, 0) == [1, 2, 3, 4, 5], "nobody waits for a prompt"
    assert times(result, 1) == [3, 4, 5]
    assert model.passes == [(4, 1, 10, 0, 1, 0, 0), (6, 1, 21, 0, 1, 1, 6)]


def test_orca_stops_at_the_first_that_does_not_fit() -> None:
    load = workload((0, 30, 2), (0, 40, 2), (0, 4, 2))
    result = run(load, "orca", num_blocks=12, reservation="oracle")
    assert [times(result, i)[0] for i in range(3)] == [1, 3, 5], "the last would fit at once, but stays behind"


def test_a_buddy_allocator_halves_and_joins() -> None:
    buddy = Buddy(13)  # pieces of 8, 4 and 1
    assert buddy.largest == 8
    assert [buddy.take(owner, blocks) for owner, blocks in enumerate([4, 4, 2, 4, 2, 1])] == [
        True, True, True, False, True, True,
    ]  # fmt: skip
    for owner in (0, 1, 2, 4, 5):
        buddy.give_back(owner)
    assert buddy.take(9, 8)
    assert not buddy.take(10, 8)


def test_a_buddy_allocator_wastes_what_lies_between_its_pieces() -> None:
    load = workload(*[(0, 20, 4)] * 4)  # 24 tokens, 6 blocks, a piece of 8
    assert {times(run(load, "orca", num_blocks=26, reservation="oracle"), i)[0] for i in range(4)} == {1}
    pieces = run(load, "orca", num_blocks=26, reservation="oracle", buddy=True)  # 16 + 8 + 2
    assert [times(pieces, i)[0] for i in range(4)] == [1, 1, 1, 5]


# -- vLLM v0 -------------------------------------------------------------------------------------------------------


def test_vllm_v0_lets_decodes_wait_for_prompts() -> None:
    result = run(workload((0, 4, 5), (1.5, 6, 3)), "vllm-v0")
    assert times(result, 0) == [1, 2, 4, 5, 6], "the second prompt runs alone from 2 to 3"
    assert times(result, 1) == [3, 4, 5]
    assert result.num_steps == 6


def test_vllm_v0_recomputes_the_latest() -> None:
    load = workload((0, 8, 9), (0, 8, 9))
    model = OneSecond()
    result = run(load, "vllm-v0", model, num_blocks=5, watermark=0.0)
    # Both want a third block for their second token, and one is left: the second gives way, and computes its 8 + 1
    # tokens again when the first is done.
    assert result.preemptions.tolist() == [0, 1]
    assert times(result, 0) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert times(result, 1) == [1, *range(10, 18)]
    assert [p[0] for p in model.passes] == [16, 9]


def test_vllm_v0_swaps_for_seconds_by_the_block() -> None:
    load = workload((0, 8, 9), (0, 8, 9))
    result = run(load, "vllm-v0", num_blocks=7, watermark=0.0, preemption="swap", swap_block_s=0.25)
    assert result.preemptions.tolist() == [0, 1]
    cached_blocks = 3
    gap_s = max(np.diff(times(result, 1)))
    assert times(result, 0)[-1] == 9 + cached_blocks * 0.25, "swapping out takes time from whoever runs"
    assert gap_s > cached_blocks * 0.25
    assert times(result, 1)[-1] == pytest.approx(
        9 + 2 * cached_blocks * 0.25 + (9 - len([t for t in times(result, 1) if t < 9]))
    )


def test_vllm_v0_delays_prompts_by_a_factor_of_the_last_prompt_step() -> None:
    load = workload((0, 4, 9), (1.5, 4, 2))
    assert times(run(load, "vllm-v0"), 1)[0] == 3
    delayed = run(load, "vllm-v0", delay_factor=3.0)
    assert times(delayed, 1)[0] == 6, "1.5 + 3 x 1 s is past at 5, the first step start after 4.5"


# -- chunks --------------------------------------------------------------------------------------------------------


def test_sarathi_takes_one_chunk_that_is_shorter_by_the_decodes() -> None:
    model = OneSecond()
    run(workload((0, 4, 9), (0, 10, 2)), "sarathi", model, chunk_size=4)
    chunks = [(tokens, num) for tokens, _, _, _, _, num, _ in model.passes]
    assert chunks == [(4, 0), (3, 1), (3, 1), (3, 1), (1, 1)]
    model = OneSecond()
    run(workload((0, 4, 9), (0, 10, 2)), "sarathi", model, chunk_size=4, aligned=False)
    assert [p[0] for p in model.passes] == [4, 4, 4, 2]


def test_sarathi_serve_fills_the_budget_with_several_prompts() -> None:
    model = OneSecond()
    result = run(workload((0, 4, 9), (0, 10, 3), (0, 5, 2)), "sarathi-serve", model, chunk_size=8)
    assert [(p[0], p[1], p[5]) for p in model.passes] == [(8, 2, 0), (7, 2, 1), (4, 1, 2)]
    assert times(result, 0) == list(range(1, 10)), "decodes never stall"


def test_sarathi_serve_takes_the_whole_prompt_and_fastgen_chunk_by_chunk() -> None:
    held: dict[str, list[int]] = {"sarathi-serve": [], "fastgen": []}
    for engine in held:

        class Watch:
            def __init__(self, engine: str) -> None:
                self.engine = engine

            def scheduled(self, replica: Any, plan: Any, begin_s: float) -> None:
                held[self.engine].append(replica.num_blocks - replica.free_blocks)

            def stepped(self, replica: Any, finished: list[int], end_s: float) -> None:
                pass

        options = {"chunk_size": 8} if engine == "sarathi-serve" else {"max_ragged_batch_size": 8}
        config = EngineConfig(num_blocks=100, block_size=4, policy=engine, options=options)
        simulate(workload((0, 24, 2)), config, OneSecond(), observer=Watch(engine))
    assert held == {"sarathi-serve": [6, 6, 6, 7], "fastgen": [2, 4, 6, 7]}


def test_fastgen_flushes_the_last_when_nobody_can_go_on() -> None:
    result = run(workload((0, 8, 9), (0, 8, 9)), "fastgen", num_blocks=4)
    assert result.preemptions.sum() >= 1
    assert (result.status == Status.FINISHED).all()


# -- the others ----------------------------------------------------------------------------------------------------


def test_trtllm_reserves_all_or_pauses_the_last() -> None:
    load = workload((0, 8, 9), (0, 8, 9))
    careful = run(load, "trtllm", num_blocks=7)
    assert careful.preemptions.sum() == 0
    assert times(careful, 1)[0] == 10, "17 tokens are 5 blocks: one at a time"
    greedy = run(load, "trtllm", num_blocks=7, capacity_scheduler_policy="max-utilization")
    assert times(greedy, 1)[0] == 1
    assert greedy.preemptions.tolist() == [0, 1]


def test_trtllm_without_chunks_rejects_prompts_beyond_a_step() -> None:
    load = workload((0, 8, 2), (0, 20, 2))
    assert run(load, "trtllm", max_num_batched_tokens=16).status.tolist() == [Status.FINISHED, Status.REJECTED]
    chunked = run(load, "trtllm", max_num_batched_tokens=16, max_num_seqs=4, enable_chunked_context=True)
    assert chunked.status.tolist() == [Status.FINISHED, Status.FINISHED]


def test_tgi_waits_for_enough_requests_or_long_enough() -> None:
    rows = [(0, 4, 60)] * 4 + [(0.5, 4, 2)]
    result = run(workload(*rows), "tgi", waiting_served_ratio=0.5, max_waiting_tokens=5)
    # Two would be half of four: one has to wait until five tokens have passed since the prompts' own.
    assert times(result, 4)[0] == 6
    rows += [(1.5, 4, 2)]
    result = run(workload(*rows), "tgi", waiting_served_ratio=0.5, max_waiting_tokens=5)
    assert times(result, 4)[0] == 3, "two wait from 1.5 on; their prompts run from 2 to 3"
    assert times(result, 0)[:3] == [1, 2, 4]


def test_llamacpp_cuts_a_logical_batch_into_passes() -> None:
    model = OneSecond()
    result = run(workload((0, 10, 3)), "llamacpp", model, ubatch_size=4, batch_size=16)
    assert times(result, 0) == [3, 4, 5], "three passes before the first token"
    assert [p[:5] for p in model.passes] == [(4, 1, 10, 0, 0), (4, 1, 26, 4, 0), (2, 1, 19, 8, 1)]


def test_llamacpp_has_so_many_slots() -> None:
    result = run(workload(*[(0, 4, 3)] * 5), "llamacpp", parallel=2, num_blocks=20)
    assert [times(result, i)[0] for i in range(5)] == [1, 1, 4, 4, 7]
    long = run(workload((0, 30, 12)), "llamacpp", parallel=2, num_blocks=20)
    assert long.status.tolist() == [Status.REJECTED], "a slot has 40 tokens"


def test_s3_doubles_what_was_predicted_too_short() -> None:
    load = workload((0, 8, 20), predicted_output_tokens=ints([3]))
    policy = S3(EngineConfig(num_blocks=100, block_size=4, max_model_len=64), num_buckets=8, max_output=32)
    requests = Requests(load, 64)
    assert policy.reserve(requests, 0) == 8 + 4
    requests.preemptions[0] = 2
    assert policy.reserve(requests, 0) == 8 + 16
    result = run(load, "s3", num_buckets=8, max_output=32, swap_block_s=0.125)
    assert result.preemptions.tolist() == [3], "4, 8 and 16 were too few, 32 do"
    # Out with 3 blocks and back, out with 4 and back, out with 6 and back; it comes back a step after it left.
    assert times(result, 0)[-1] == 20 + 3 + 2 * (3 + 4 + 6) * 0.125


def test_s3_packs_the_largest_first() -> None:
    load = workload((0, 4, 4), (0, 40, 4), (0, 20, 4))
    result = run(load, "s3", num_blocks=12, num_buckets=1, max_output=4, accuracy=1.0)
    assert [times(result, i)[0] for i in range(3)] == [5, 1, 5]


@pytest.mark.parametrize(("accuracy", "right"), [(1.0, 1.0), (0.656, 0.656), (0.0, 0.0)])
def test_s3_draws_mispredictions_with_the_predictors_accuracy(accuracy: float, right: float) -> None:
    rng = np.random.default_rng(1)
    output = rng.integers(205, 1640, 4000)  # no bucket at an end, where half of the neighbours are missing
    load = workload(*[(0.0, 1, int(tokens)) for tokens in output])
    policy = S3(EngineConfig(num_blocks=9999, max_model_len=4096), accuracy=accuracy, max_output=2050)
    bounds = np.array(policy.predicted(Requests(load, 4096)))
    own = ((output - 1) // 205 + 1) * 205
    assert np.mean(bounds == own) == pytest.approx(right, abs=0.03)
    assert np.max(np.abs(bounds - own)) <= 205


def test_uellm_batches_urgent_and_short_requests_first() -> None:
    load = workload(
        (0, 4, 9), (0, 4, 2), (0, 4, 2), ttft_target_s=floats([9.0, 9.0, 1.0]), predicted_output_tokens=ints([9, 2, 2])
    )
    result = run(load, "uellm", threshold=20.0)
    # 1: 1 x (0.5 x 2 + 0.5 x 4) = 3; with the second 3 + 2 x (0.5 x 18 + 0.5 x 4) = 25 > 20: alone.
    assert [times(result, i)[0] for i in range(3)] == [5, 3, 1]


def test_andes_takes_from_whoever_is_ahead_of_the_reader() -> None:
    load = workload((0, 8, 40), (10, 8, 8))
    fields = {"num_blocks": 14, "interval_s": 1.0, "tokens_per_s": 0.25, "ttft_s": 2.0}
    waiting = run(load, "vllm-v0", num_blocks=14, watermark=0.0, max_num_seqs=1)
    result = run(load, "andes", max_num_seqs=1, **fields)
    assert times(waiting, 1)[0] == 41
    assert times(result, 1)[0] < 15, "the first has tokens for minutes of reading"
    assert result.preemptions.tolist() == [1, 0]
    assert (result.status == Status.FINISHED).all()


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("orca", {"reservation": "some"}, "reservation: 'some'"),
        ("vllm-v0", {"preemption": "kill"}, "did you mean|known: recompute, swap"),
        ("vllm-v0", {"watermark": 1.0}, "watermark"),
        ("sarathi", {"chunk_size": 0}, "chunk_size"),
        ("llamacpp", {"parallel": 0}, "parallel"),
        ("trtllm", {"capacity_scheduler_policy": "static"}, "capacity_scheduler_policy"),
        ("s3", {"accuracy": 1.5}, "accuracy"),
        ("tgi", {"max_waiting_tokens": 0}, "max_waiting_tokens"),
        ("andes", {"interval_s": 0.0}, "interval_s"),
        ("uellm", {"threshold": -1.0}, "threshold"),
        ("vllm-v1", {"max_num_active_seqs": -1}, "max_num_active_seqs: -1"),
        ("vllm-v1", {"long_prefill_token_threshold": -8}, "long_prefill_token_threshold: -8"),
        ("vllm-v0", {"swap_blocks": -1}, "swap_blocks: -1"),
        ("vllm-v0", {"delay_factor": float("nan")}, "delay_factor: nan"),
        ("vllm-v0", {"swap_block_s": float("inf")}, "swap_block_s: inf"),
        ("orca", {"max_batch_size": -2}, "max_batch_size: -2"),
        (
            "tgi",
            {"max_batch_prefill_tokens": 63},
            "max_batch_prefill_tokens: 63 .* at least 64, or a smaller",
        ),
        ("tgi", {"max_batch_prefill_tokens": -1}, "max_batch_prefill_tokens: -1"),
        ("tgi", {"waiting_served_ratio": float("nan")}, "waiting_served_ratio: nan"),
        ("s3", {"max_output": -1}, "max_output: -1"),
        ("s3", {"predictor_seed": -1}, "predictor_seed: -1"),
        ("s3", {"swap_block_s": -1.0}, "swap_block_s: -1"),
        ("andes", {"candidates": 0}, "candidates: 0"),
        ("andes", {"tokens_per_s": float("nan")}, "tokens_per_s"),
        ("andes", {"max_preemptions": -1}, "max_preemptions: -1"),
        ("guide", {"tuning_factor": float("nan")}, "tuning_factor: nan"),
        ("sglang", {"random_seed": -1}, "random_seed: -1"),
        ("fastgen", {"chunk": 3}, "its options are: max_ragged_batch_size"),
    ],
)
def test_a_wrong_option_is_named_with_the_remedy(engine: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(workload((0, 4, 2)), engine, **options)


def test_a_users_policy_of_the_general_kernel_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "one_by_one.py"
    file.write_text(
        "from plimsoll.engine.general.plan import UNLIMITED, GeneralPlan, GeneralPolicy\n"
        "class OneByOne(GeneralPolicy):\n"
        "    def __init__(self, config):\n"
        "        pass\n"
        "    def plan(self, view):\n"
        "        if view.running:\n"
        "            return GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)\n"
        "        request = view.waiting[0]\n"
        "        return GeneralPlan([(request, view.requests.target[request])])\n"
    )
    result = run(workload((0, 4, 2), (0, 4, 3)), str(file))
    assert [times(result, i) for i in range(2)] == [[1, 2], [3, 4, 5]]


def test_a_policy_that_idles_for_ever_is_a_bug_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "idle.py"
    file.write_text(
        "from plimsoll.engine.general.plan import GeneralPlan, GeneralPolicy\n"
        "class Idle(GeneralPolicy):\n"
        "    def __init__(self, config):\n"
        "        pass\n"
        "    def plan(self, view):\n"
        "        return GeneralPlan()\n"
    )
    with pytest.raises(AssertionError, match="nothing to wait for"):
        run(workload((0, 4, 2)), str(file))


def test_guide_cuts_the_batch_to_the_longest_sequence_in_it() -> None:
    """20 blocks of 4; the third request has 40 tokens, so with it a request counts 10 blocks: only two fit."""
    load = workload((0.0, 8, 5), (0.0, 8, 5), (0.0, 36, 5), (0.0, 8, 5))
    seen = run(load, "guide", num_blocks=20, dynamic_sequence_length=False)
    assert times(seen, 0) == times(seen, 1) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert times(seen, 2)[0] == times(seen, 3)[0] == 6.0


def test_guide_processes_prompts_in_sub_batches_and_decodes_together() -> None:
    model = OneSecond()
    seen = run(workload(*[(0.0, 8, 2)] * 5), "guide", model, split_size=2, dynamic_sequence_length=False)
    assert [shape[1] for shape in model.passes if shape[0]] == [2, 2, 1]  # the rest makes one more
    assert [times(seen, row) for row in range(5)] == [[1.0, 4.0], [1.0, 4.0], [2.0, 4.0], [2.0, 4.0], [3.0, 4.0]]


def test_guide_divides_prompts_into_segments_that_cost_as_full_ones() -> None:
    model = OneSecond()
    seen = run(workload((0.0, 25, 1), (0.0, 9, 1)), "guide", model, base_split=8, tuning_factor=1.25)
    assert [shape[:2] for shape in model.passes] == [(20, 2), (10, 1), (10, 1)]
    assert (times(seen, 0), times(seen, 1)) == ([3.0], [1.0])


def test_guide_without_its_adjustments_counts_the_longest_sequence_there_may_be() -> None:
    load = workload(*[(0.0, 8, 1)] * 3)
    fixed = run(load, "guide", num_blocks=32, dynamic_batch_size=False)  # two of 64 tokens, 16 blocks each
    assert [times(fixed, row)[0] for row in range(3)] == [1.0, 1.0, 2.0]
    with pytest.raises(InputError, match="at least 1 token together"):
        run(load, "guide", base_split=1, tuning_factor=0.5)
    with pytest.raises(InputError, match="split_size"):
        run(load, "guide", split_size=-1)
