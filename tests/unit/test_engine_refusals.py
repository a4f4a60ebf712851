"""Why requests are refused: the reasons are those of the engine's own answer, each request has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import simulate
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.refusals import refusals
from tests.unit.planner_fakes import LineModel

MODEL = LineModel(1e-3, 1e-5, 1e-5, 0.0)


def requests(*lengths: tuple[int, int]) -> Workload:
    prompt, output = zip(*lengths, strict=True)
    return Workload(
        arrival_s=np.arange(len(lengths), dtype=np.float64),
        prompt_tokens=np.array(prompt, dtype=np.int64),
        output_tokens=np.array(output, dtype=np.int64),
    )


def config(**fields: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"num_blocks": 200, "max_num_batched_tokens": 1000, "max_model_len": 3000}
    return EngineConfig(**{**defaults, **fields})


LENGTHS = requests((500, 10), (1000, 10), (1001, 10), (2999, 1), (3000, 10), (2900, 500))


@pytest.mark.parametrize(
    ("fields", "too_long", "by_step", "by_rule", "options"),
    [
        ({"policy": "vllm-v1"}, [4], [], [], ()),
        ({"policy": "trtllm"}, [4], [2, 3, 5], [], ("enable_chunked_context",)),
        ({"policy": "trtllm", "options": {"enable_chunked_context": True}}, [4], [], [], ()),
        ({"policy": "trtllm", "max_num_batched_tokens": 1001}, [4], [3, 5], [], ("enable_chunked_context",)),
        ({"policy": "trtllm", "num_blocks": 100}, [3, 4, 5], [2], [], ("enable_chunked_context",)),
        # A block is not cut, so with fewer tokens than one of them cutting prompts does not help.
        ({"policy": "trtllm", "max_num_batched_tokens": 8}, [4], [0, 1, 2, 3, 5], [], ()),
        # What a pause makes it compute again counts: the prompt and all of the answer but its last token.
        (
            {"policy": "trtllm", "options": {"capacity_scheduler_policy": "max-utilization"}},
            [4], [1, 2, 3, 5], [], ("enable_chunked_context",),
        ),
        ({"policy": "llamacpp", "options": {"parallel": 2}}, [4], [], [3, 5], ()),
        ({"policy": "splitwise"}, [4], [], [], ()),
    ],
)  # fmt: skip
def test_every_refusal_has_its_reason(
    fields: dict[str, Any], too_long: list[int], by_step: list[int], by_rule: list[int], options: tuple[str, ...]
) -> None:
    found = refusals(LENGTHS, config(**fields))
    assert [np.flatnonzero(mask).tolist() for mask in found[:3]] == [too_long, by_step, by_rule]
    assert found.step_options == options


@pytest.mark.parametrize("policy", ["vllm-v1", "vllm-v0", "orca", "trtllm", "tgi", "sglang", "llamacpp", "andes"])
def test_they_are_those_that_the_engine_rejects(policy: str) -> None:
    rng = np.random.default_rng(3)
    workload = requests(*zip(rng.integers(1, 3300, 60).tolist(), rng.integers(1, 900, 60).tolist(), strict=True))
    for fields in ({}, {"num_blocks": 130}, {"max_num_batched_tokens": 2048}):
        engine = config(policy=policy, **fields)
        rejected = simulate(workload, engine, MODEL).status == Status.REJECTED
        found = refusals(workload, engine)
        assert rejected.any()
        assert np.array_equal(rejected, found.too_long | found.by_step | found.by_rule)
        assert int(rejected.sum()) == sum(int(mask.sum()) for mask in found[:3])


def test_a_policy_of_ones_own_is_asked_too(tmp_path: Path) -> None:
    path = tmp_path / "choosy.py"
    path.write_text(
        "import numpy as np\n"
        "from plimsoll.engine.policies.vllm_v0 import VllmV0\n"
        "class Choosy(VllmV0):\n"
        "    def __init__(self, config, *, lax: bool = False):\n"
        "        super().__init__(config)\n"
        "        self.most = 10**9 if lax else config.max_num_batched_tokens // 2\n"
        "    def plan(self, view):\n"
        "        return super().plan(view)\n"
        "    def accepts(self, requests, config):\n"
        "        return np.array(requests.prompt) <= self.most\n",
        encoding="utf-8",
    )
    found = refusals(LENGTHS, config(policy=str(path)))
    assert np.flatnonzero(found.by_step).tolist() == [1, 2, 3, 5]
    assert found.step_options == ("lax",)
