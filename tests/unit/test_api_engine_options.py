"""Options, names and files that `--engine` takes: what follows from the catalogue, and what is refused and how."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from plimsoll.api.capacity import capacity
from plimsoll.api.planning import plan
from plimsoll.api.routing import router_notes
from plimsoll.api.simulation import simulate
from plimsoll.api.study import study_engines
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine.plugins import list_plugins
from plimsoll.report.simulation import render

CASE = {
    "model": "Llama-2-13B", "gpu": "A100-SXM-40GB", "workload": "chat", "rate_per_s": 1.0, "num_requests": 20,
}  # fmt: skip


def options_of(engine: str, **fields: object) -> dict[str, object]:
    return dict(simulate(**{**CASE, **fields}, engine=engine).resolved.config.options)


def test_a_swapping_engine_is_told_the_seconds_of_a_block() -> None:
    host_bytes_per_s = load_accelerator("A100-SXM-40GB").pcie_bytes_per_s
    block_bytes = 16 * 2 * 40 * 5120 * 2  # tokens, K and V, layers, hidden, bytes
    assert options_of("vllm-v0,preemption=swap")["swap_block_s"] == pytest.approx(block_bytes / host_bytes_per_s)
    halves = options_of("vllm-v0,preemption=swap", tp=2)["swap_block_s"]
    assert halves == pytest.approx(block_bytes / 2 / host_bytes_per_s), "each GPU moves its own half"


def test_what_the_user_says_holds() -> None:
    assert options_of("s3,swap_block_s=0.5")["swap_block_s"] == 0.5


def test_an_engine_that_does_not_swap_gets_no_such_option() -> None:
    assert options_of("orca,reservation=oracle") == {"reservation": "oracle"}


def test_an_engine_whose_host_time_is_unknown_says_whose_it_takes() -> None:
    notes = simulate(**CASE, engine="trtllm").notes
    assert any("host time of trtllm" in note for note in notes)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("orca,max_batch_size=2,max-batch-size=3", "give max_batch_size once"),
        ("vllm-v1,max_num_active_seqs=-1", "max_num_active_seqs: -1"),
        ("splitwise,prefill=-1", "option prefill of splitwise: -1 .*at least 1"),
        ("distserve,decode=-2", "option decode of distserve: -2 .*at least 1"),
        ("splitwise,mixed=-1", "option mixed of splitwise: -1 .*at least 0"),
        ("splitwise,prefill=1.5", "option prefill of splitwise: 1.5"),
    ],
)
def test_an_option_that_cannot_be_is_named(engine: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        simulate(**CASE, engine=engine)


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_name_like_nothing_lists_every_engine() -> None:
    with pytest.raises(UnknownNameError) as caught:
        simulate(**CASE, engine="xyzzy")
    for package in ("plimsoll.engine.policies", "plimsoll.engine.clusters"):
        assert all(name in str(caught.value) for name in list_plugins(package))
    assert "path of a .py file" in str(caught.value)


@pytest.mark.parametrize("name", ["nanoflow", "kv-offload", "kv_offload"])
def test_a_composition_is_no_engine_and_the_answer_says_where_it_goes(name: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"write --step-model roofline\+{name}\)"):
        simulate(**CASE, engine=name)
    with pytest.raises(UnknownNameError, match=rf"^--engines: .*write --step-model roofline\+{name}\)"):
        plan(model="Llama-2-13B", gpus="A100-SXM-40GB:1", workload="chat", rate_per_s=1.0, engines=name)


# -- users' files --------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text = "from plimsoll.engine.general.plan import GeneralPolicy\n\n\nclass Mine(GeneralPolicy):\n"
    text += "    def __init__(self, config):\n        pass\n\n    def plan(self, view):\n        return view.nothing\n"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return "./mine.py"


def test_every_verb_names_file_method_and_line_and_its_own_flag(broken: str) -> None:
    words = r": './mine.py' cannot be used; it failed in plan\(\), line 9: AttributeError"
    with pytest.raises(InputError, match=f"^--engine{words}"):
        simulate(**CASE, engine=broken)
    with pytest.raises(InputError, match=f"^--engine{words}"):
        capacity(**{**CASE, "rate_per_s": None}, engine=broken, ttft_ms=1000.0)
    with pytest.raises(InputError, match=f"^--engines{words}"):
        study_engines(**CASE, engines=f"vllm-v1,{broken}")
    with pytest.raises(InputError, match=f"^--engines{words}"):
        plan(
            model="Llama-3.1-8B", gpus="H100-SXM:1", workload="chat", rate_per_s=1.0, ttft_ms=1000.0, engines=broken
        )  # fmt: skip


def test_a_file_that_ends_the_process_at_its_import_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    engine = str(tmp_path / "leaves.py")
    with pytest.raises(InputError, match=r"^--engine: .*leaves.py.* failed in line 2: SystemExit: 0"):
        simulate(**CASE, engine=engine)
    with pytest.raises(InputError, match=r"^--engines: .*leaves.py.* failed in line 2: SystemExit: 0"):
        plan(model="Llama-3.1-8B", gpus="H100-SXM:1", workload="chat", rate_per_s=1.0, engines=engine)


def test_a_plan_takes_a_file(tmp_path: Path) -> None:
    (tmp_path / "like_v0.py").write_text(
        "from plimsoll.engine.policies.vllm_v0 import VllmV0\n\n\nclass LikeV0(VllmV0):\n    pass\n"
    )
    answer = plan(
        model="Llama-3.1-8B", prompt_tokens=200, output_tokens=20, gpus="L40S:1", token_budgets="2048",
        engines=f"vllm-v1,{tmp_path / 'like_v0.py'}", ttft_ms=1000.0, tpot_ms=100.0,
    )  # fmt: skip
    assert {one.deployment.engine for one in answer.result.plans} == {"vllm-v1", str(tmp_path / "like_v0.py")}


# -- routers and caches --------------------------------------------------------------------------------------------


def test_a_router_that_does_nothing_is_said_to() -> None:
    def notes(engine: str, router: str, replicas: int, **fields: object) -> str:
        return " ".join(simulate(**{**CASE, **fields}, engine=engine, router=router, replicas=replicas).notes)

    assert "--router least-loaded is not used" in notes("splitwise", "least-loaded", 1)
    assert "is not used" not in notes("splitwise", "round-robin", 1)
    assert "is not used" not in notes("vllm-v1", "least-loaded", 2)
    assert "the workload has no sessions: session-sticky takes" in notes("vllm-v1", "session-sticky", 2)
    assert "has no sessions" not in notes("vllm-v1", "session-sticky", 1)
    assert "has no sessions" not in notes("vllm-v1", "round-robin", 2)


def test_sessions_that_are_there_are_followed_without_a_word(tmp_path: Path) -> None:
    session = np.array([0, 1, 0, 1])
    load = Workload(
        arrival_s=floats(np.arange(4.0)), prompt_tokens=ints(np.full(4, 50)), output_tokens=ints(np.full(4, 3)),
        session=ints(session),
    )  # fmt: skip
    assert router_notes("session-sticky", "vllm-v1", 2, load) == []
    assert router_notes("session-sticky", "vllm-v1", 2, dataclasses.replace(load, session=None))


def test_the_share_of_prompts_found_in_a_cache_is_in_the_document(tmp_path: Path) -> None:
    trace = tmp_path / "same.jsonl"
    lines = [
        {"timestamp": 10_000 * i, "input_length": 1024, "output_length": 4, "hash_ids": [1, 2 if i < 3 else 3]}
        for i in range(4)
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"model": "Llama-2-13B", "gpu": "A100-SXM-40GB", "trace": str(trace), "trace_format": "mooncake"}
    found = simulate(**fields).to_json_dict()["prefix_cache"]
    # The second and third find all but the last block of 16 tokens, which is computed; the fourth its first half.
    assert found["prompt_tokens"] == 4 * 1024
    assert found["hit_tokens"] == 2 * (1024 - 16) + 512
    assert found["hit_frac"] == found["hit_tokens"] / found["prompt_tokens"]
    off = simulate(**fields, engine="vllm-v1,enable_prefix_caching=false").to_json_dict()
    assert off["prefix_cache"] == {"prompt_tokens": 4096, "hit_tokens": 0, "hit_frac": 0.0}
    assert f"prefix cache: {found['hit_frac']:.1%}".replace("%", " %") in printed(simulate(**fields).to_json_dict())
    assert "prefix cache" not in printed(off)


def printed(document: dict[str, object]) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    render(console, document)
    return console.export_text()
