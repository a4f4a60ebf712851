"""Host time by engine, version and option, `--overheads`, and engines in a version or under an alias."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.api.engines import named_engine
from plimsoll.api.planning import plan_request
from plimsoll.api.scenario import PlanScenario
from plimsoll.api.simulation import SimulationResult, simulate
from plimsoll.api.study import study_engines
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.engines import default_settings, load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import floats, ints
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine import simulate as run_engine
from plimsoll.engine.frontend import served_one_by_one
from plimsoll.perf.overheads import choose_host_time, list_overheads, load_overheads
from plimsoll.planner.parts import Parts
from plimsoll.planner.sizing import with_option_defaults
from plimsoll.planner.space import ReplicaConfig
from plimsoll.report.simulation import footing
from tests.oracle.models import KinkedModel

CASE = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 15.0, "num_requests": 400}


def run(**fields: object) -> SimulationResult:
    return simulate(**{**CASE, **fields})


def host_time(result: SimulationResult) -> dict[str, object]:
    found = result.to_json_dict()["sources"]["host_time"]
    assert isinstance(found, dict)
    return found


def test_host_time_follows_the_option_and_asynchronous_scheduling_is_faster() -> None:
    late, prompt = (run(engine=f"vllm-v1,async_scheduling={word}") for word in ("true", "false"))
    assert host_time(late)["name"] == "vllm-v1"
    assert host_time(prompt)["name"] == "vllm-v1-sync"
    assert host_time(prompt)["source"] == load_overheads("vllm-v1-sync").source
    assert late.metrics.tpot_s.mean < prompt.metrics.tpot_s.mean
    assert late.metrics.e2e_s.mean < prompt.metrics.e2e_s.mean


def test_what_a_version_does_by_default_is_simulated() -> None:
    today, old, first = run(), run(engine="vllm-v1@0.11.0"), run(engine="vllm@0.14")
    assert today.resolved.config.options["async_scheduling"] is True
    assert first.resolved.config.options["async_scheduling"] is True
    assert old.resolved.config.options["async_scheduling"] is False
    assert (host_time(today)["name"], host_time(old)["name"]) == ("vllm-v1", "vllm-v1-sync")
    deployment = old.to_json_dict()["deployment"]
    assert (deployment["engine"], deployment["engine_version"]) == ("vllm-v1@0.11.0", "0.11.0")
    assert deployment["settings"]["default_options"] == {"async_scheduling": False}
    said = run(engine="vllm-v1@0.11.0,async_scheduling=true")
    assert said.resolved.config.options["async_scheduling"] is True, "what was given holds"


def test_the_memory_share_is_the_versions_own() -> None:
    shares = [
        run(engine=name).resolved.deployment.settings.gpu_memory_utilization for name in ("vllm-v1@0.19.0", "vllm")
    ]
    assert shares == [0.90, 0.92]


def test_pipeline_stages_stay_synchronous_because_they_are_simulated_so() -> None:
    facts = load_engine("vllm-v1")
    assert with_option_defaults({}, "vllm-v1", facts, Parallelism(pp=2)) == {}
    assert with_option_defaults({}, "vllm-v1", facts, Parallelism(dp=2, ep=2)) == {"async_scheduling": True}
    assert with_option_defaults({}, "vllm-v1", facts, Parallelism()) == {"async_scheduling": True}
    for version, told in (("0.14", {"async_scheduling": False}), ("0.15.1", {"async_scheduling": False}), ("0.16", {})):
        assert with_option_defaults({}, "vllm-v1", load_engine(f"vllm-v1@{version}"), Parallelism(pp=2)) == told
    asked = {"async_scheduling": False}
    assert with_option_defaults(asked, "vllm-v1", facts, Parallelism(pp=2)) == asked
    old = load_engine("vllm-v1@0.11")
    assert with_option_defaults({}, "vllm-v1", old, Parallelism(pp=2)) == {"async_scheduling": False}
    assert with_option_defaults({}, "vllm-v1", old, Parallelism(dp=2, ep=2)) == {"async_scheduling": False}
    assert with_option_defaults({}, "orca", facts, Parallelism()) == {}


def test_host_time_with_stages_is_that_of_the_way_the_version_schedules_them() -> None:
    today, first = run(pp=2), run(pp=2, engine="vllm-v1@0.14")
    assert host_time(today)["name"] == "vllm-v1"
    assert any("pipeline stages: as of asynchronous scheduling" in note for note in today.notes)
    assert host_time(first)["name"] == "vllm-v1-sync"
    assert host_time(first)["per_sequence_s"] == load_overheads("vllm-v1-sync").per_sequence_s / 2
    assert any("once on the way through all of them" in note for note in first.notes)
    assert first.metrics.tpot_s.mean > today.metrics.tpot_s.mean
    named = run(pp=2, overheads="vllm-v1-sync")
    assert host_time(named)["per_sequence_s"] == load_overheads("vllm-v1-sync").per_sequence_s, "as asked for"
    (borrowed,) = choose_host_time("orca", {}, None, 2).notes
    assert borrowed.startswith("the host time of orca"), (
        "how vLLM's scheduler goes through stages says nothing of others"
    )


@pytest.mark.parametrize("engine", ["sglang", "trtllm", "tgi", "llamacpp", "vllm-v0", "orca", "sarathi-serve"])
def test_every_engine_whose_host_time_is_borrowed_says_so(engine: str) -> None:
    result = run(engine=engine, num_requests=20, rate_per_s=1.0)
    assert any(f"host time of {engine}" in note and "vllm-v1" in note for note in result.notes)
    assert not any("host time of" in note for note in run(num_requests=20).notes)


def test_another_host_time_can_be_asked_for_and_the_answer_names_it() -> None:
    none, usual, much = (run(overheads=name) for name in ("none", None, "vllm-0.11-hopper"))
    assert none.metrics.tpot_s.mean < usual.metrics.tpot_s.mean < much.metrics.tpot_s.mean
    assert host_time(none)["name"] == "none"
    assert host_time(much)["per_step_s"] == load_overheads("vllm-0.11-hopper").per_step_s
    assert any(line.startswith("host time: vllm-0.11-hopper (1.94 ms a step") for line in footing(much.to_json_dict()))
    borrowed = run(engine="sglang", overheads="vllm-v1", num_requests=20)
    assert not any("host time of" in note for note in borrowed.notes), "it was asked for"


def test_an_api_server_delays_requests_and_leaves_steps_alone() -> None:
    plain, served = run(), run(overheads="api-server-vllm")
    server = load_overheads("api-server-vllm")
    least = server.per_request_s + server.per_request_token_s * plain.run.prompt_tokens.min()
    assert served.resolved.config.api_server_s == server.per_request_s
    assert served.metrics.ttft_s.mean > plain.metrics.ttft_s.mean + least / 2
    assert served.metrics.tpot_s.mean == pytest.approx(plain.metrics.tpot_s.mean, rel=0.03)
    np.testing.assert_array_equal(served.run.arrival_s, plain.run.arrival_s)
    figures = host_time(served)
    assert figures["name"] == "vllm-v1"
    assert figures["api_server"]["name"] == "api-server-vllm"  # type: ignore[index]
    assert any("API server: api-server-vllm (2 ms a request" in line for line in footing(served.to_json_dict()))


@pytest.mark.parametrize(
    ("overheads", "message"),
    [
        ("nosuch", "known: api-server-sglang"),
        ("vllm-v1,none", "one name for steps"),
        ("api-server-vllm,api-server-sglang", "one of an API server"),
        (" , ", "give one of none"),
    ],
)
def test_a_wrong_name_is_one_line(overheads: str, message: str) -> None:
    for verb in (lambda: run(overheads=overheads), lambda: plan_request(PlanScenario(**PLAN, overheads=overheads))):
        with pytest.raises(InputError, match=message) as caught:
            verb()
        assert str(caught.value).startswith("--overheads")


def test_a_step_model_with_host_time_of_its_own_is_named_and_not_silently_left_alone() -> None:
    assert host_time(run(step_model="vllm-roofline"))["name"] == "vllm-roofline's own"
    with pytest.raises(InputError, match="has host time of its own"):
        run(step_model="vllm-roofline", overheads="vllm-v1")


def test_every_file_is_of_steps_or_of_an_api_server_and_can_be_chosen() -> None:
    for name in list_overheads():
        found = choose_host_time("orca", {}, name)
        assert (found.frontend_name or found.name) == name
        assert load_overheads(name).is_frontend == name.startswith("api-server-")


def test_a_study_keeps_the_host_time_that_an_engine_is_known_to_have() -> None:
    names = ("vllm-v1", "vllm-v1,async_scheduling=false", "orca")
    found = study_engines(**{**CASE, "engines": ",".join(names)}).results
    assert [host_time(found[name])["name"] for name in names] == ["vllm-v1", "vllm-v1-sync", "vllm-v1"]
    assert found[names[0]].metrics.tpot_s.mean < found[names[1]].metrics.tpot_s.mean
    assert any("vllm-v1-sync" in note for note in found[names[1]].notes)


# What --engine names


def test_engines_are_found_by_id_alias_and_version() -> None:
    assert named_engine("--engine", "vLLM").name == "vllm-v1"
    assert named_engine("--engine", "vllm@v0.19.0").name == "vllm-v1@0.19.0"
    assert named_engine("--engine", "TensorRT-LLM").policy == "trtllm"
    policy = named_engine("--engine", "vllm-v0")
    assert (policy.policy, policy.is_deployable, policy.facts.id) == ("vllm-v0", False, "vllm-v1")
    assert named_engine("--engine", "vllm@0.19").notes == ()
    assert "0.32.0" in named_engine("--engine", "vllm@0.99").notes[0]
    for name in ("orca@1", "splitwise@0.2", "mine.py@3"):
        with pytest.raises(InputError, match="has no versions" if ".py" not in name else "version|cannot be used"):
            named_engine("--engine", name)
    with pytest.raises(UnknownNameError, match="sglang, trtllm, vllm-v1"):
        named_engine("--engine", "nosuch@1")


PLAN = {"model": "Llama-3.1-8B", "gpus": "H100-SXM:1", "workload": "chat"}


def test_a_plan_takes_versions_and_aliases_and_its_engines_follow_them() -> None:
    request = plan_request(PlanScenario(**PLAN, engines="vllm,vllm-v1,vllm-v1@0.11.0,orca"))
    assert request.engines == ("vllm-v1", "vllm-v1@0.11.0", "orca")
    parts, gpu = Parts(request), load_accelerator("H100-SXM")
    configs = [
        ReplicaConfig(
            accelerator=gpu, parallelism=Parallelism(), precision="bf16", engine=engine, max_num_batched_tokens=None
        )
        for engine in request.engines
    ]
    assert [parts.host_time(config).name for config in configs] == ["vllm-v1", "vllm-v1-sync", "vllm-v1"]
    memories = [parts.memory(config, 8192, 1000, "bf16") for config in configs]
    assert [memory.settings.gpu_memory_utilization for memory in memories] == [0.92, 0.90, 0.92]
    told = [parts.engine(config, memory, 1, "round-robin") for config, memory in zip(configs, memories, strict=True)]
    assert [dict(one.options) for one in told] == [{"async_scheduling": True}, {"async_scheduling": False}, {}]
    slow, fast = parts.step_model(configs[1], "bf16"), parts.step_model(configs[0], "bf16")
    assert slow.step_s(0, 0, 0, 0, 0, 64, 64000) - fast.step_s(0, 0, 0, 0, 0, 64, 64000) == pytest.approx(64 * 40e-6)
    parts.step_model(configs[2], "bf16")
    assert any("host time of orca" in note for note in parts.notes.values())
    asked = Parts(plan_request(PlanScenario(**PLAN, overheads="vllm-v1-sync,api-server-vllm")))
    assert asked.host_time(configs[2]).name == "vllm-v1-sync"
    assert asked.engine(configs[0], memories[0], 1, "round-robin").api_server_s == 2e-3
    (said,) = [note for note in asked.notes.values() if note.startswith("host time: vllm-v1-sync (https://")]
    assert "api-server-vllm" in said
    with pytest.raises(UnknownNameError, match="--engines"):
        plan_request(PlanScenario(**PLAN, engines="nosuch"))


def test_without_chunked_prefill_the_default_budget_takes_the_longest_prompt() -> None:
    gpu, model = load_accelerator("H100-SXM"), load_model("Llama-3.1-8B")

    def budget(**settings: object) -> int | None:
        asked = EngineSettings(options={"enable_chunked_prefill": False}, **settings)  # type: ignore[arg-type]
        return default_settings(load_engine("vllm-v1"), gpu, asked, model).settings.max_num_batched_tokens

    assert budget() == model.max_position == 131_072
    assert budget(max_model_len=4096) == 8192, "the default is kept where it is enough"
    assert budget(max_num_batched_tokens=2048) == 2048, "what was given holds"
    assert run(engine="vllm-v1,enable_chunked_prefill=false", num_requests=20).metrics.ttft_s.mean > 0
    with pytest.raises(InputError, match="without chunked prefill"):
        run(engine="vllm-v1,enable_chunked_prefill=false", max_num_batched_tokens=2048, num_requests=20)


# The API server as a queue


def workload(arrival_s: list[float], prompt_tokens: list[int], concurrency: int | None = None) -> Workload:
    return Workload(
        arrival_s=floats(arrival_s), prompt_tokens=ints(prompt_tokens), output_tokens=ints([2] * len(arrival_s)),
        concurrency=concurrency,
    )  # fmt: skip


def test_an_api_server_takes_one_request_after_another() -> None:
    """Against the recursion that defines it: begin when the request and the server are both there."""
    rng = np.random.default_rng(5)
    arrival_s = np.sort(rng.uniform(0, 1, 200)).tolist()
    prompts = rng.integers(1, 5000, 200).tolist()
    free_s, expected = 0.0, []
    for arrived_s, tokens in zip(arrival_s, prompts, strict=True):
        free_s = max(free_s, arrived_s) + 2e-3 + 3e-6 * tokens
        expected.append(free_s)
    found = served_one_by_one(workload(arrival_s, prompts), 2e-3, 3e-6).arrival_s
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("concurrency", [None, 4])
def test_clients_see_the_servers_seconds_and_the_engine_does_not(concurrency: int | None) -> None:
    sent = workload([0.0] * 12, [100] * 12, concurrency)
    plain = EngineConfig(num_blocks=2000)
    served = run_engine(sent, EngineConfig(num_blocks=2000, api_server_s=0.5, api_server_token_s=1e-3), KinkedModel())
    bare = run_engine(sent, plain, KinkedModel())
    first = served.first_token_s - served.arrival_s
    assert first.min() >= 0.6, "nobody is answered before the server let him through"
    assert served.arrival_s[0] == bare.arrival_s[0] == 0.0
    if concurrency is None:
        np.testing.assert_array_equal(served.arrival_s, sent.arrival_s)
        assert first[-1] >= 12 * 0.6, "the last of a crowd waits for all before him"
    else:
        assert first[3] >= 4 * 0.6
        assert served.end_s > bare.end_s
