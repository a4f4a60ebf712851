"""How InferenceX's engines and client are started, and what that does to a closed loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import simulate
from plimsoll.engine.config import EngineConfig
from tests.oracle.models import KinkedModel
from validation._inferencex_model import POLICIES, client_workload
from validation._inferencex_recipes import Recipe, load_recipes, recipe_of
from validation._inferencex_rows import LAYOUT, Row, read_rows
from validation._inferencex_serve import ApiServer, serve

MODEL = KinkedModel()


def _row(folder: Path, **fields: str) -> Row:
    names = ("id", "silicon_data_source", "isl", "osl", "batch_size", "prefill_batch_size", "decode_batch_size")
    values = dict.fromkeys((*names, *LAYOUT, "backend_version", "silicon_ttft_ms", "silicon_tpot_ms"), "")
    values |= {
        "id": "a", "silicon_data_source": "x; silicon_concurrency=4; measured=2025-10-29T00:00:00Z",
        "model_path": "meta-llama/Llama-3.1-70B", "system": "b200_sxm", "backend": "trtllm", "mode": "agg",
        "isl": "1024", "osl": "1024", "gemm_quant_mode": "fp8", "tp_size": "4", "silicon_ttft_ms": "100",
        "silicon_tpot_ms": "10",
    }  # fmt: skip
    values |= fields
    path = folder / "rows.csv"
    path.write_text(",".join(values) + "\n" + ",".join(values.values()) + "\n", encoding="utf-8")
    return read_rows(path)[0]


# Recipes


def test_later_recipes_override_earlier_ones(tmp_path: Path) -> None:
    waiting = recipe_of(_row(tmp_path))
    assert (waiting.wait_steps, waiting.token_budget, waiting.kv_precision) == (20, 16384, "fp8")
    assert recipe_of(_row(tmp_path, tp_size="8")).wait_steps == 0
    assert recipe_of(_row(tmp_path, osl="8192")).wait_steps == 0
    assert recipe_of(_row(tmp_path, system="h200_sxm")).token_budget == 1024 + 1024 + 200


def test_dates_and_versions_tell_speculation(tmp_path: Path) -> None:
    def drafts(version: str, day: str, **fields: str) -> int:
        source = f"silicon_concurrency=8; measured={day}T00:00:00Z"
        row = _row(
            tmp_path,
            model_path="deepseek-ai/DeepSeek-R1",
            backend_version=version,
            silicon_data_source=source,
            **fields,
        )
        return recipe_of(row).speculative_tokens

    assert drafts("1.2.0rc6.post3", "2026-02-06") == 3
    assert drafts("1.2.0rc6.post3", "2026-02-06", attention_dp_size="8") == 1
    assert drafts("1.1.0rc2.post2", "2026-01-14") == 3
    assert drafts("1.1.0rc2.post2", "2026-01-28") == 0
    assert drafts("1.2.0rc6.post2", "2026-02-03") == 0


def test_the_inbox_of_sglang_is_read_less_often_with_many_users(tmp_path: Path) -> None:
    def recipe(users: int, day: str) -> Recipe:
        source = f"silicon_concurrency={users}; measured={day}T00:00:00Z"
        return recipe_of(
            _row(tmp_path, backend="sglang", model_path="deepseek-ai/DeepSeek-R1", silicon_data_source=source)
        )

    assert recipe(8, "2026-03-25").recv_interval == 10
    assert recipe(16, "2026-03-25").recv_interval == 30
    assert recipe(8, "2026-03-25").held_tokens == 0
    assert recipe(8, "2025-11-10").held_tokens == 29


def test_budgets_that_follow_the_row(tmp_path: Path) -> None:
    row = _row(tmp_path, model_path="deepseek-ai/DeepSeek-R1", isl="8192", system="h200_sxm")
    assert recipe_of(row).token_budget == -(-(4 + 8192 + 64) // 64) * 64
    glm = _row(tmp_path, model_path="zai-org/GLM-5", backend="sglang")
    assert recipe_of(glm).max_seqs == glm.concurrency
    minimax = _row(
        tmp_path, model_path="MiniMaxAI/MiniMax-M2.5", backend="vllm",
        silicon_data_source="silicon_concurrency=4; measured=2026-04-17T00:00:00Z",
    )  # fmt: skip
    assert recipe_of(minimax).token_budget == 2048


def test_one_user_always_waits_where_a_seat_is_missing(tmp_path: Path) -> None:
    row = _row(
        tmp_path, model_path="meta-llama/Llama-3.1-8B-Instruct", system="h100_sxm",
        silicon_data_source="source_file=/Users/x.csv; silicon_concurrency=8",
    )  # fmt: skip
    assert (row.client, row.measured, recipe_of(row).max_seqs) == ("other", "", 7)


def test_the_package_s_own_rows_have_fixed_lengths_and_generated_budgets(tmp_path: Path) -> None:
    def recipe(backend: str, version: str = "") -> Recipe:
        source = "source_file=/Users/x.csv; silicon_concurrency=8"
        return recipe_of(_row(tmp_path, backend=backend, backend_version=version, silicon_data_source=source))

    assert {recipe(name).shortest_frac for name in ("vllm", "trtllm", "sglang")} == {1.0}
    assert recipe("vllm").token_budget == 1024 + 512 + 1500
    assert recipe("sglang", "0.5.6.post2").mixed_chunk
    assert not recipe("sglang", "0.5.1.post1").mixed_chunk
    assert recipe_of(_row(tmp_path, backend="vllm")).shortest_frac == 0.8
    assert recipe_of(_row(tmp_path, backend="sglang")).prompt_launch_s == 1e-3
    assert recipe_of(_row(tmp_path, backend="vllm")).prompt_launch_s == 0


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text('[[recipe]]\nmatch = { backend = "vllm" }\nseets = 3\n', encoding="utf-8")
    with pytest.raises(InputError, match="seets"):
        load_recipes(path)
    path.write_text('[[recipe]]\nmatch = { bakend = "vllm" }\n', encoding="utf-8")
    with pytest.raises(InputError, match="bakend"):
        load_recipes(path)


def test_every_recipe_says_where_it_is_from() -> None:
    assert all(recipe["script"] for recipe in load_recipes())


def test_the_client_sends_ten_requests_a_user_below_the_nominal_lengths(tmp_path: Path) -> None:
    workload = client_workload(_row(tmp_path), Recipe())
    assert (len(workload), workload.concurrency) == (40, 4)
    assert 819 <= workload.prompt_tokens.min() < workload.prompt_tokens.max() <= 1024
    fixed = client_workload(_row(tmp_path), Recipe(shortest_frac=1.0, prompts_per_user=5))
    assert (len(fixed), set(fixed.output_tokens.tolist())) == (20, {1024})


# The API server in front of the engine


def _workload(users: int, num: int, prompt: int = 64, output: int = 20, spread: int = 0) -> Workload:
    rng = np.random.default_rng(1)
    outputs = output + rng.integers(0, spread + 1, num)
    return Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=ints(np.full(num, prompt)), output_tokens=ints(outputs),
        concurrency=users,
    )  # fmt: skip


def _config(policy: str = "vllm-v1", budget: int = 256, **options: float) -> EngineConfig:
    return EngineConfig(
        num_blocks=4000, max_num_seqs=64, max_num_batched_tokens=budget, policy=policy, options=dict(options)
    )


def test_without_service_times_it_is_the_plain_engine() -> None:
    workload = _workload(6, 40, spread=9)
    ours, plain = serve(workload, _config(), MODEL, ApiServer()), simulate(workload, _config(), MODEL)
    assert np.array_equal(ours.first_token_s, plain.first_token_s)
    assert np.array_equal(ours.finish_s, plain.finish_s)
    assert np.array_equal(ours.arrival_s, plain.arrival_s)


def test_requests_pass_the_server_one_after_another() -> None:
    server = ApiServer(per_request_s=0.5, per_prompt_token_s=0.01)
    run = serve(_workload(4, 4), _config(), MODEL, server)
    service_s = 0.5 + 0.64
    assert np.all(run.arrival_s == 0)
    assert np.all(run.scheduled_s >= service_s * np.arange(1, 5) - 1e-9)
    assert run.scheduled_s[0] == pytest.approx(service_s)


def test_an_open_loop_is_refused() -> None:
    workload = Workload(arrival_s=floats([0.0]), prompt_tokens=ints([8]), output_tokens=ints([2]))
    with pytest.raises(ValueError, match="closed"):
        serve(workload, _config(), MODEL, ApiServer())


# Scheduling rules


def _prompts_first(users: int, interval: int, **more: int) -> Run:
    config = _config(str(POLICIES / "prompts_first.py"), recv_interval=interval)
    return simulate(_workload(users, 8 * users, **more), config, MODEL)


def test_prompts_of_a_wave_run_before_any_answer() -> None:
    run = _prompts_first(8, 1)
    first_wave = np.arange(8)
    assert run.first_token_s[first_wave].max() < run.finish_s[first_wave].min()
    # equal answers: everybody finishes together, and the next wave comes as one
    assert len(set(run.finish_s[first_wave].tolist())) == 1


def test_a_prompt_longer_than_the_budget_is_cut() -> None:
    run = _prompts_first(3, 1, prompt=600)
    assert np.all(np.isfinite(run.finish_s))
    assert run.first_token_s[0] > 2 * MODEL.step_s(256, 1, 256 * 257 // 2, 0, 0, 0, 0)


def test_an_inbox_that_is_read_less_often_makes_requests_wait() -> None:
    def mean_ttft_s(interval: int) -> float:
        run = _prompts_first(8, interval, output=60, spread=30)
        return float((run.first_token_s - run.arrival_s)[8:].mean())

    often, seldom = mean_ttft_s(1), mean_ttft_s(20)
    step_s = MODEL.step_s(0, 0, 0, 0, 0, 8, 8 * 100)
    assert often + 5 * step_s < seldom < often + 21 * step_s


def test_prompts_wait_for_company_at_most_the_steps_given() -> None:
    def mean_ttft_s(**options: float) -> float:
        config = _config(str(POLICIES / "prompts_wait.py"), **options)
        run = simulate(_workload(4, 40, output=80, spread=40), config, MODEL)
        return float((run.first_token_s - run.arrival_s)[4:].mean())

    step_s = MODEL.step_s(0, 0, 0, 0, 0, 3, 3 * 100)
    none, waiting = mean_ttft_s(), mean_ttft_s(wait_steps=20)
    assert none + 10 * step_s < waiting < none + 22 * step_s
    assert mean_ttft_s(wait_steps=20, wait_prompts=1) == none
    assert mean_ttft_s(wait_steps=20, wait_tokens_frac=0.1) == none
