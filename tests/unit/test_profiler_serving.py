"""Host times from a server's answers, the server's command, the probe's clock: all without vLLM."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_format import STEPS, TOKENS
from plimsoll.profiler import serving
from plimsoll.profiler.samples import Effort
from plimsoll.profiler.serving import add_host_time, bench, calibration_runs, line
from plimsoll.profiler.shapes import Limits, Shape, chunks, decodes
from plimsoll.profiler.survey import Survey
from plimsoll.profiler.vllm_backend import EngineBackend, Worker
from plimsoll.profiler.vllm_server import INSIDE, ServerPlan, running, split_cores
from tests.own_profiles import (
    LIMITS,
    TOKEN_OPERATORS,
    Formula,
    attention_us,
    make_profile,
    open_store,
    operator_us,
    step_us,
)

US = 1e-6
STEP_US, SEQUENCE_US, FIXED_US, REQUEST_US, PROMPT_TOKEN_US = 900.0, 40.0, 4000.0, 1500.0, 3.0
PREFILL_TOKEN_US = 7.0


# Host time -------------------------------------------------------------------------------------------------------


def write_results(folder: Path, sizes: dict[str, int], limits: Limits) -> None:
    """What a client would see of a server whose host times are the constants above."""
    folder.mkdir()
    for run in calibration_runs(limits):
        batch, prompt, output = run["batch"], run["prompt_tokens"], run["output_tokens"]
        gaps = [
            (step_us(sizes, decodes(batch, prompt + token)) + STEP_US + SEQUENCE_US * batch) * US
            for token in range(1, output)
        ]
        step = step_us(sizes, chunks(1, prompt)) + STEP_US + SEQUENCE_US + PREFILL_TOKEN_US * prompt
        single = step + FIXED_US + PROMPT_TOKEN_US * prompt
        intake = REQUEST_US + PROMPT_TOKEN_US * prompt
        first = single if batch == 1 else FIXED_US + PROMPT_TOKEN_US * prompt * 0 + intake * (batch - 1)
        if str(run["name"]).startswith("prompts"):
            document = {"ttfts": [0.0] * batch, "duration": prompts_s(sizes, limits, batch, prompt)}
            (folder / f"{run['name']}.json").write_text(json.dumps(document))
            continue
        ttfts = [(first + 10 * place) * US for place in range(batch)]
        document = {"ttfts": ttfts, "duration": sum(gaps) + 0.03}
        (folder / f"{run['name']}.json").write_text(json.dumps(document))


def prompts_s(sizes: dict[str, int], limits: Limits, batch: int, prompt: int) -> float:
    """All prompts at once, the first one alone in its step; chunked by hand."""
    left, total_s, alone = [prompt] * batch, 0.05, True
    done = [0] * batch
    while any(left):
        budget, parts = limits.max_tokens, []
        for request in range(1 if alone else batch):
            take = min(left[request], budget)
            if take:
                parts.append(Shape(num_prefill=1, chunk_tokens=take, context_tokens=done[request]))
                left[request] -= take
                done[request] += take
                budget -= take
        tokens = sum(part.chunk_tokens for part in parts)
        names = [name for name in Formula(sizes).calls if name in TOKEN_OPERATORS]
        step = sum(Formula(sizes).calls[name] * operator_us(sizes, name, tokens) for name in names)
        finishing = sum(part.chunk_tokens + part.context_tokens == prompt for part in parts)
        step += sum(operator_us(sizes, name, finishing) for name in ("head", "sampler")) if finishing else 0.0
        step += sum(8 * attention_us(part) for part in parts)
        step += STEP_US + SEQUENCE_US * len(parts) + PREFILL_TOKEN_US * tokens
        total_s, alone = total_s + step * US, False
    return total_s


def test_host_times_are_found_again(tmp_path: Path) -> None:
    folder, config = make_profile(tmp_path, host=None)
    store, sizes = open_store(folder, config)
    write_results(tmp_path / "server", sizes, LIMITS)
    add_host_time(store, tmp_path / "server", LIMITS)
    host, server = store.header["host"], store.header["server"]
    assert host["per_step_us"] == pytest.approx(STEP_US, rel=0.02)
    assert host["per_sequence_us"] == pytest.approx(SEQUENCE_US, rel=0.02)
    assert host["per_prefill_token_us"] == pytest.approx(PREFILL_TOKEN_US, rel=0.05)
    assert server["fixed_us"] == pytest.approx(FIXED_US, rel=0.02)
    assert server["per_prompt_token_us"] == pytest.approx(PROMPT_TOKEN_US, rel=0.05)
    assert server["per_request_us"] == pytest.approx(REQUEST_US, rel=0.05)
    rows = store.find(STEPS)
    assert [row["num_decode"] for row in rows] == [1, 3, 6, 12, 24]
    assert all(row["step_us"] > row["operators_us"] for row in rows)


def test_batches_of_the_calibration_are_not_those_that_are_judged() -> None:
    judged_batches, judged_prompts = {4, 8, 16, 32}, {128, 256, 512, 1024}
    for run in calibration_runs(LIMITS):
        if run["name"] != "warm-up":
            assert run["batch"] not in judged_batches
        assert run["prompt_tokens"] not in judged_prompts
    assert len({run["name"] for run in calibration_runs(LIMITS)}) == len(calibration_runs(LIMITS))


def test_small_limits_leave_large_batches_out() -> None:
    runs = calibration_runs(Limits(max_tokens=64, max_seqs=8, max_length=256))
    assert max(run["batch"] for run in runs) == 8
    assert max(run["prompt_tokens"] + run["output_tokens"] for run in runs) <= 256


def host_rows(*host_us: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"num_decode": batch, "step_us": 1000 + host, "operators_us": 1000.0} for batch, host in host_us]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (host_rows((1, 110), (11, 210)), (100, 10)),
        (host_rows((5, 70)), (70, 0)),
        (host_rows((5, -70)), (0, 0)),
        (host_rows((1, 50), (10, 30)), (40, 0)),  # noise: less for more
        (host_rows((2, 10), (10, 90)), (0, (20 + 900) / 104)),  # through zero rather than below it
    ],
)
def test_host_lines_are_never_negative(rows: list[dict[str, Any]], expected: tuple[float, float]) -> None:
    assert line(rows) == pytest.approx((expected[0] * US, expected[1] * US))


def test_results_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    folder, config = make_profile(tmp_path, host=None)
    store, sizes = open_store(folder, config)
    with pytest.raises(InputError, match="steps8-1-0"):
        add_host_time(store, tmp_path / "server", LIMITS)
    write_results(tmp_path / "server", sizes, LIMITS)
    (tmp_path / "server" / "single-96-1.json").write_text('{"ttfts": [1]}')
    with pytest.raises(InputError, match=r"single-96-1.*no result of vllm bench serve"):
        add_host_time(store, tmp_path / "server", LIMITS)


# The client ------------------------------------------------------------------------------------------------------


def test_a_failing_client_is_one_line(tmp_path: Path) -> None:
    """This Python has no vLLM, so the client's script fails at its import."""
    pytest.importorskip("plimsoll")
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here: its absence cannot be tried")
    runs = calibration_runs(LIMITS)[:1]
    with pytest.raises(InputError, match="the client failed: ModuleNotFoundError") as caught:
        bench("http://127.0.0.1:9", plan(tmp_path, Path(sys.executable)), runs, tmp_path / "out")
    assert "\n" not in str(caught.value)


# The server ------------------------------------------------------------------------------------------------------


def plan(folder: Path, python: Path = Path("/nowhere/bin/python")) -> ServerPlan:
    cores = tuple(serving.os.sched_getaffinity(0))
    return ServerPlan(
        python=python,
        model=folder,
        limits=LIMITS,
        kv_gib=2,
        worker_cores=(0,),
        other_cores=cores,
        log=folder / "log" / "v.log",
    )


def test_the_command_carries_the_limits(tmp_path: Path) -> None:
    command = " ".join(plan(tmp_path).command(8123))
    for part in (
        "--max-num-seqs 32",
        "--max-num-batched-tokens 512",
        "--max-model-len 1151",
        "--port 8123",
        "--enforce-eager",
    ):
        assert part in command
    environment = plan(tmp_path).environment()
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert (Path(environment["PYTHONPATH"]) / "plimsoll_probe.py").is_file()


@pytest.mark.parametrize(
    ("cores", "expected"), [([0, 1], ((0,), (1,))), ([3], ((3,), (3,))), ([2, 0, 1], ((0, 1), (2,)))]
)
def test_one_core_is_left_to_everything_else(cores: list[int], expected: tuple[tuple[int, ...], ...]) -> None:
    assert split_cores(cores) == expected


def test_a_missing_vllm_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make verify-vllm"), running(plan(tmp_path)):
        pass


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    binary = tmp_path / "vllm"
    binary.write_text("#!/bin/sh\necho 'ValueError: no such thing'\nexit 1\n")
    binary.chmod(0o755)
    with (
        pytest.raises(InputError, match="it did not start: ValueError: no such thing"),
        running(plan(tmp_path, tmp_path / "python")),
    ):
        pass


# The worker ------------------------------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """A server with a probe whose machine is the formula."""

    sizes: dict[str, int] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["method"] == "plimsoll_facts":
            result: dict[str, Any] = {"device": "cpu"}
        elif body["method"] == "plimsoll_measure":
            result = self.measure(json.loads(body["args"][0]))
        else:
            self.send_error(500)
            return
        answer = json.dumps({"results": [result]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def measure(self, asked: dict[str, Any]) -> dict[str, Any]:
        parts = asked["chunks"]
        if any(new + context > 1151 for new, context in parts):
            return {"error": "ValueError: too long"}
        alone, tokens = Formula(self.sizes), sum(new for new, _ in parts)
        calls = alone.calls
        seconds = {name: operator_us(self.sizes, name, tokens) * US * calls[name] for name in ("qkv_proj", "norm")}
        attention_s = sum(0.02 * new * (context + (new + 1) / 2) for new, context in parts) * US * calls["attention"]
        sample = {name: [calls[name], value] for name, value in seconds.items()}
        sample["attention"] = [calls["attention"], attention_s]
        sample["whole"] = [1, sum(seconds.values()) + attention_s + 70e-6]
        sample |= {name: [1, operator_us(self.sizes, name, len(parts)) * US] for name in ("head", "sampler")}
        return {"samples": [sample] * asked["min_samples"]}

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    config = tmp_path / "model" / "config.json"
    _, made = make_profile(tmp_path)
    assert made == config
    _, Answers.sizes = open_store(tmp_path / "sizes", config)
    found = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}", config
    found.shutdown()
    thread.join()
    found.server_close()


def test_an_engine_is_surveyed_through_its_worker(server: tuple[str, Path], tmp_path: Path) -> None:
    url, config = server
    store, sizes = open_store(tmp_path / "engine", config)
    backend = EngineBackend(Worker(url), sizes, 32, Effort(min_samples=3))
    limits = Limits(max_tokens=64, max_seqs=8, max_length=256)
    Survey(store, backend, limits).run()
    assert {row["operator"] for row in store.find(TOKENS)} == {"qkv_proj", "norm", "other"}
    for row in store.find(TOKENS, operator="other"):
        assert row["time_us"] == pytest.approx(70, rel=1e-3)
        assert row["calls_per_step"] == 1
    (row,) = store.find(TOKENS, operator="qkv_proj", tokens=64)
    assert row["calls_per_step"] == 8
    assert row["flop_per_token"] == 2 * 512 * 1024
    assert row["time_us"] == pytest.approx(operator_us(sizes, "qkv_proj", 64), rel=1e-4)
    assert store.header["quality"]["interpolation_error_max_frac"] < 0.02


def test_a_step_that_the_worker_cannot_run_is_named(server: tuple[str, Path]) -> None:
    with pytest.raises(InputError, match=r"2 decodes at 1300.*too long"):
        Worker(server[0]).samples(Shape(num_decode=2, decode_length_tokens=1300), Effort())


def test_a_server_without_probe_or_without_anybody_is_named(server: tuple[str, Path]) -> None:
    with pytest.raises(InputError, match="--worker-extension-cls"):
        Worker(server[0]).call("plimsoll_other")
    with pytest.raises(InputError, match="no vLLM worker answers"):
        Worker("http://127.0.0.1:9").facts()


# The probe's clock -----------------------------------------------------------------------------------------------


class Hook:
    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self.hooks, self.hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        self.hooks.remove(self.hook)


class Module:
    """What the probe needs of a torch module."""

    def __init__(self, *parts: Module) -> None:
        self.parts, self.before, self.after = parts, [], []  # type: ignore[var-annotated]

    def register_forward_pre_hook(self, hook: Any) -> Hook:
        return Hook(self.before, hook)

    def register_forward_hook(self, hook: Any) -> Hook:
        return Hook(self.after, hook)

    def __call__(self) -> None:
        for hook in list(self.before):
            hook(self, ())
        for part in self.parts:
            part()
        for hook in list(self.after):
            hook(self, (), None)


class Model(Module):
    def __init__(self) -> None:
        self.named = {"layers.0.qkv_proj": Module(), "layers.1.qkv_proj": Module(), "layers.0.attn": Module()}
        self.named["layers.0.attn"].impl = object()  # type: ignore[attr-defined]
        self.named["layers.0.self_attn.attn"] = Module()  # a wrapper of that name without a kernel
        super().__init__(*self.named.values())

    def named_modules(self) -> list[tuple[str, Module]]:
        return [("", self), *self.named.items()]

    def compute_logits(self, hidden: int) -> int:
        return hidden + 1


def test_the_probe_times_modules_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(INSIDE))
    import plimsoll_probe  # type: ignore[import-not-found]

    model = Model()
    clock = plimsoll_probe._Clock(model)
    model()
    assert model.compute_logits(4) == 5
    assert {name: calls for name, (calls, _) in clock.times.items()} == {
        "qkv_proj": 2,
        "attention": 1,
        "whole": 1,
        "head": 1,
    }
    inside = clock.times["qkv_proj"][1] + clock.times["attention"][1]
    assert 0 < inside <= clock.times["whole"][1]
    clock.remove()
    assert "compute_logits" not in vars(model)
    assert not any(module.before or module.after for _, module in model.named_modules())


def test_the_probe_answers_errors_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(INSIDE))
    import plimsoll_probe

    assert "AttributeError" in plimsoll_probe.Probe().plimsoll_measure('{"warm_ups": 0}')["error"]
