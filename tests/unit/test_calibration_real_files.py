"""Files that GuideLLM, AIPerf and vLLM wrote themselves: what is read agrees with what the tool printed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.calibration import MeasuredRun, read_measured
from plimsoll.calibration.snapshots import KvCache, is_snapshot, read_kv_cache
from plimsoll.core.errors import InputError
from plimsoll.core.units import MS_PER_S

DATA = Path(__file__).resolve().parent.parent / "data" / "calibration"


def runs_of(name: str) -> list[MeasuredRun]:
    return read_measured(DATA / name)


def nearest_rank(values: np.ndarray[Any, Any], q: float, weights: np.ndarray[Any, Any] | None = None) -> float:
    """GuideLLM's quantile: the first value whose share of the weight reaches `q`."""
    order = np.argsort(values)
    weight = np.ones(len(values)) if weights is None else weights[order]
    return float(values[order][np.searchsorted(np.cumsum(weight / weight.sum()), q)])


# GuideLLM: what its console showed, as it rounds: latency mean; TTFT, ITL and TPOT mean, median, 95th percentile, ms.
GUIDELLM_PRINTED = [
    ("closed.json", 0, 2, (0.5, (99.7, 56.0, 324.1), (31.6, 30.5, 79.5), (36.4, 31.4, 93.1))),
    ("closed.json", 1, 5, (0.6, (155.1, 138.9, 259.9), (40.3, 46.8, 54.0), (50.9, 56.2, 65.0))),
    ("throughput.json", 0, 4, (0.7, (192.6, 182.1, 420.7), (37.8, 17.1, 80.0), (49.0, 30.8, 93.3))),
]


@pytest.mark.parametrize(("name", "index", "users", "printed"), GUIDELLM_PRINTED)
def test_guidellm_agrees_with_its_console(name: str, index: int, users: int, printed: tuple[Any, ...]) -> None:
    run = runs_of(f"guidellm/{name}")[index]
    latency_s, ttft, itl, tpot = printed
    gaps = np.maximum(run.output_tokens - 1, 0)
    ours_itl = np.where(gaps > 0, (run.e2e_s - run.ttft_s) / np.maximum(gaps, 1), 0.0) * MS_PER_S
    ours_tpot = run.e2e_s / run.output_tokens * MS_PER_S
    for values, weights, shown in (
        (run.ttft_s * MS_PER_S, None, ttft),
        (ours_itl, gaps, itl),
        (ours_tpot, run.output_tokens, tpot),
    ):
        mean = float(np.average(values, weights=weights))
        ours = (mean, nearest_rank(values, 0.5, weights), nearest_rank(values, 0.95, weights))
        assert tuple(round(value, 1) for value in ours) == shown
    assert round(float(run.e2e_s.mean()), 1) == pytest.approx(latency_s, abs=0.1)
    assert run.concurrency == users
    assert run.notes == ()


@pytest.mark.parametrize("name", ["closed.json", "throughput.json", "v0.5.4.json", "v0.3.1.json"])
def test_guidellm_agrees_with_the_figures_in_its_file(name: str) -> None:
    """To the last digits, in every version: its own means of TTFT, of gaps by tokens, and of time by token."""
    benchmarks = json.loads((DATA / "guidellm" / name).read_text())["benchmarks"]
    for run, benchmark in zip(runs_of(f"guidellm/{name}"), benchmarks, strict=True):
        told = {figure: value["successful"]["mean"] for figure, value in benchmark["metrics"].items()}
        some = run.counted
        gaps = run.output_tokens[some] - 1
        assert run.prompt_tokens[some].mean() == pytest.approx(told["prompt_token_count"])
        assert run.output_tokens[some].mean() == pytest.approx(told["output_token_count"])
        assert (run.e2e_s - run.ttft_s)[some].sum() * MS_PER_S / gaps.sum() == pytest.approx(
            told["inter_token_latency_ms"], rel=1e-6
        )
        # Before 0.4 its time per output token left out the first token's time, but not that token.
        of_tokens_s = (run.e2e_s - run.ttft_s if name == "v0.3.1.json" else run.e2e_s)[some].sum()
        assert of_tokens_s * MS_PER_S / run.output_tokens[some].sum() == pytest.approx(
            told["time_per_output_token_ms"], rel=1e-6
        )
        # The stream's end comes a little after the last token.
        assert 0 < told["request_latency"] - run.e2e_s[some].mean() < 0.01
        assert len(run) / float((run.sent_s + run.e2e_s).max()) == pytest.approx(
            told["requests_per_second"], rel=0.005 if bool(some.all()) else 0.5
        )
        if bool(some.all()):
            assert run.ttft_s.mean() * MS_PER_S == pytest.approx(told["time_to_first_token_ms"], rel=1e-9)


def test_guidellm_requests_outside_the_window_are_replayed_but_not_judged() -> None:
    (run,) = runs_of("guidellm/window.json")
    assert (len(run), int(run.counted.sum())) == (21, 13)  # its console: 13 completed
    assert run.prompt_tokens[run.counted].sum() == 3285  # its console: 3285.0 input tokens of completed requests
    assert len(run.workload().prompt_tokens) == 21
    assert run.concurrency is None
    failed, cut = run.notes
    assert "1 of 47 requests failed" in failed
    assert "25 of 47 requests were cancelled" in cut
    assert "more to do than the replay" in cut


def test_guidellm_warm_up_of_an_older_version() -> None:
    """0.5.4 with --warmup 2: 19 of 22 completed requests count, says its request_totals."""
    assert [(len(run), int(run.counted.sum()), run.concurrency) for run in runs_of("guidellm/v0.5.4.json")] == [
        (22, 19, 2),
        (22, 19, 4),
    ]


def test_guidellm_before_0_4_names_the_start_otherwise() -> None:
    runs = runs_of("guidellm/v0.3.1.json")
    assert [run.concurrency for run in runs] == [2, 4]
    # Its console: ITL mean and TTFT mean of both benchmarks.
    for run, (ttft, itl) in zip(runs, ((36.3, 7.7), (71.0, 13.0)), strict=True):
        assert round(run.ttft_s.mean() * MS_PER_S, 1) == ttft
        gaps = (run.e2e_s - run.ttft_s).sum() / (run.output_tokens - 1).sum()
        assert round(gaps * MS_PER_S, 1) == itl


# AIPerf: what its console showed: TTFT, latency and ITL, mean, median, 90th percentile, ms.
AIPERF_PRINTED = [
    ("closed/profile_export.jsonl", 3, (150.25, 106.62, 357.83), (528.05, 505.06, 758.90), (37.42, 37.15, 60.40)),
    ("rate/mine.jsonl", None, (70.71, 41.30, 171.95), (191.33, 185.87, 319.86), (11.60, 9.46, 21.14)),
    ("cancelled/profile_export.jsonl", 3, (238.64, 190.49, 445.64), (801.44, 844.04, 1213.51), (52.37, 57.79, 64.34)),
    ("v0.8.0/profile_export.jsonl", 3, (65.60, 61.06, 96.50), (334.21, 319.12, 471.86), (23.16, 24.64, 27.17)),
    ("v0.4.0/profile_export.jsonl", 3, (28.43, 25.76, 44.43), (120.54, 124.27, 147.22), (7.98, 8.12, 8.92)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "users", "ttft", "latency", "itl"), AIPERF_PRINTED)
def test_aiperf_agrees_with_its_console(name: str, users: int | None, ttft: Any, latency: Any, itl: Any) -> None:
    (run,) = runs_of(f"aiperf/{name}")
    for values, shown in ((run.ttft_s, ttft), (run.e2e_s, latency), (run.tpot_s, itl)):
        ours = values * MS_PER_S
        figures = (float(ours.mean()), float(np.median(ours)), float(np.quantile(ours, 0.9)))
        assert tuple(round(value, 2) for value in figures) == pytest.approx(shown, abs=0.0051)
    summary = DATA / "aiperf" / name.replace("profile_export.jsonl", "profile_export_aiperf.jsonl")
    told = json.loads(summary.with_suffix(".json").read_text())
    span_s = float((run.sent_s + run.e2e_s).max())  # its throughput is over more: the phase with its start
    assert span_s == pytest.approx(told["benchmark_duration"]["avg"], abs=1e-5)
    assert told["request_throughput"]["avg"] <= len(run) / span_s * 1.00001
    assert run.concurrency == users
    assert (run.num_kv_blocks, run.kv_block_tokens) == (1024, 128)


def test_aiperf_leaves_out_warm_up_and_cancelled_requests() -> None:
    text = (DATA / "aiperf" / "closed" / "profile_export.jsonl").read_text()
    assert (len(text.splitlines()), len(runs_of("aiperf/closed/profile_export.jsonl")[0])) == (27, 24)
    (run,) = runs_of("aiperf/cancelled/profile_export.jsonl")
    assert len(run) == 11
    assert len(run.notes) == 1
    assert "1 of 12 requests were cancelled" in run.notes[0]
    assert "more to do" not in run.notes[0]


def test_aiperf_counts_tokens_as_the_server_does(tmp_path: Path) -> None:
    """The model emitted a token without text: the client's own count is one short, as in a real file."""
    lines = (DATA / "aiperf" / "rate" / "mine.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    record["metrics"]["output_sequence_length"]["value"] -= 1
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join([json.dumps(record), *lines[1:]]))
    (changed,), (run,) = read_measured(path), runs_of("aiperf/rate/mine.jsonl")
    np.testing.assert_array_equal(changed.output_tokens, run.output_tokens)
    assert changed.concurrency is None
    assert "no profile_export_aiperf.json beside it" in changed.notes[0]


# vLLM: what its console showed: TTFT, TPOT and E2EL, mean, median, 90th percentile, ms; requests a second.
VLLM_PRINTED = [
    ("closed.json", 0, 3, (43.86, 37.76, 73.93), (8.43, 7.94, 10.21), (126.39, 123.22, 167.20), 23.26),
    ("appended.json", 1, None, (47.54, 41.19, 85.28), (10.63, 10.53, 16.59), (154.80, 164.41, 218.98), 15.08),
    ("failures.json", 0, 2, (142.97, 94.36, 273.58), (11.95, 10.05, 21.64), (327.98, 284.25, 552.00), 5.85),
]


@pytest.mark.parametrize(("name", "index", "users", "ttft", "tpot", "e2el", "rate_per_s"), VLLM_PRINTED)
def test_vllm_agrees_with_its_console(
    name: str, index: int, users: int | None, ttft: Any, tpot: Any, e2el: Any, rate_per_s: float
) -> None:
    run = runs_of(f"vllm_bench/{name}")[index]
    for values, shown in ((run.ttft_s, ttft), (run.tpot_s, tpot), (run.e2e_s, e2el)):
        ours = values * MS_PER_S
        figures = (float(ours.mean()), float(np.median(ours)), float(np.quantile(ours, 0.9)))
        assert tuple(round(value, 2) for value in figures) == pytest.approx(shown, abs=0.0051)
    # Its duration is that of the client: a little before the first request and after the last.
    assert 0 < len(run) / rate_per_s - float((run.sent_s + run.e2e_s).max()) < 0.05
    assert run.concurrency == users


def test_vllm_appended_runs_and_failures() -> None:
    runs = runs_of("vllm_bench/appended.json")
    assert [len(run) for run in runs] == [24, 24]
    assert [run.name.rpartition(" ")[2] for run in runs] == ["#0", "#1"]
    (run,) = runs_of("vllm_bench/failures.json")
    assert len(run) == 9
    assert "3 of 12 requests failed" in run.notes[0]


@pytest.mark.parametrize("name", ["before.txt", "after.txt"])
def test_real_snapshot(name: str) -> None:
    path = DATA / "vllm_metrics" / name
    assert is_snapshot(path)
    assert read_kv_cache(path) == KvCache(num_blocks=1024, block_tokens=128)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guidellm/not_streamed.json", r"requests\.successful\[0\]\.time_to_first_token_ms.*not streamed"),
        ("guidellm/failed.json", r"requests\.successful.*no answered request.*3 of 3 requests failed"),
        ("aiperf/not_streamed/profile_export.jsonl", r"line 1 time_to_first_token: missing.*--streaming"),
        ("aiperf/failed/profile_export.jsonl", r"metrics.*no answered request.*all 3 requests failed"),
        ("aiperf/closed/profile_export_aiperf.json", r"without requests.*give the profile_export\.jsonl"),
        ("aiperf/closed/server_metrics_export.json", r"without requests.*give the profile_export\.jsonl"),
    ],
)
def test_files_that_cannot_serve_say_why(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        runs_of(name)
    assert str(DATA / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "share"), [("guidellm/cached.json", "81%"), ("aiperf/cached/profile_export.jsonl", "85%")]
)
def test_prompts_from_the_prefix_cache_are_said(name: str, share: str) -> None:
    """300 tokens a prompt, 256 of them from the cache in all but GuideLLM's first request."""
    (run,) = runs_of(name)
    assert set(run.prompt_tokens) == {300}
    assert f"the server had {share} of the prompts in its prefix cache" in run.notes[0]


REAL = ["guidellm/closed.json", "guidellm/v0.3.1.json", "aiperf/closed/profile_export.jsonl", "vllm_bench/closed.json"]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_truncated_files_are_refused_in_one_line(tmp_path: Path, name: str, share: float) -> None:
    text = (DATA / name).read_text()
    path = tmp_path / Path(name).name
    path.write_text(text[: round(len(text) * share)])
    with pytest.raises(InputError) as caught:
        read_measured(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def edited(name: str, tmp_path: Path, change: Any) -> Path:
    """A real file with one thing changed by `change(document)`; of lines, in the first that is answered."""
    path = tmp_path / Path(name).name
    text = (DATA / name).read_text()
    if name.endswith(".jsonl"):
        records = [json.loads(line) for line in text.splitlines()]
        change(next(one for one in records if one["metadata"]["benchmark_phase"] == "profiling"))
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        document = json.loads(text)
        change(document)
        path.write_text(json.dumps(document))
    return path


def of_guidellm(field: str, value: Any) -> Any:
    return lambda document: document["benchmarks"][1]["requests"]["successful"][3].__setitem__(field, value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (REAL[0], of_guidellm("prompt_tokens", None), r"#1 requests\.successful\[3\]\.prompt_tokens: missing"),
        (REAL[0], of_guidellm("request_start_time", "noon"), r"successful\[3\]\.request_start_time: 'noon'"),
        (REAL[0], of_guidellm("inter_token_latency_ms", float("nan")), r"\[3\]\.inter_token_latency_ms.*finite"),
        (REAL[0], of_guidellm("time_to_first_token_ms", -5.0), r"#1 request \d+ by time of sending.*no times"),
        (REAL[0], lambda d: d["benchmarks"][0].pop("requests"), r"#0 requests"),
        (REAL[0], lambda d: d.update(benchmarks={}), r"benchmarks: \{\}"),
        (REAL[2], lambda r: r["metrics"].pop("request_latency"), r"line 4: 'no request_latency'"),
        (REAL[2], lambda r: r["metrics"]["request_latency"].update(unit="min"), r"line 4: .*unit 'min'"),
        (REAL[2], lambda r: r.pop("metrics"), r"line 4: 'no metrics'.*give the profile_export\.jsonl"),
        (REAL[2], lambda r: r["metrics"]["usage_prompt_tokens"].update(value=float("inf")), r"line 4: .*infinity"),
        (REAL[3], lambda d: d["ttfts"].pop(), r"24 input_lens.*23 ttfts.*is the file cut"),
        (REAL[3], lambda d: d["itls"].__setitem__(5, None), r"request 5: .*itls: a list"),
        (REAL[3], lambda d: d.update(errors=["no"] * 24), r"ttfts: 'no answered request'.*all 24"),
        (REAL[3], lambda d: d["input_lens"].__setitem__(2, 0), r"without tokens"),
    ],
)
def test_hostile_changes_name_file_and_field(tmp_path: Path, name: str, change: Any, message: str) -> None:
    path = edited(name, tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        read_measured(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


ODD = (None, "", -1, 0, float("inf"), float("nan"), "x", [], {}, True, 10**30, [None], {"a": 1}, -1e-9)


def spoil(document: Any, rng: random.Random) -> None:
    """Delete one value anywhere in the document, or put something odd there."""
    depth, holder = rng.randint(0, 7), document
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if depth == 0 or not isinstance(holder[key], (dict, list)) or not holder[key]:
            break
        depth, holder = depth - 1, holder[key]
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name", ["guidellm/throughput.json", REAL[1], "vllm_bench/failures.json", "records", "summary"]
)
def test_a_spoiled_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    source = DATA / "aiperf" / "cancelled"
    refusals = []
    for trial in range(30):
        folder = tmp_path / str(trial)
        folder.mkdir()
        if name in ("records", "summary"):
            records = [json.loads(line) for line in (source / "profile_export.jsonl").read_text().splitlines()]
            others = {one: json.loads((source / one).read_text())
                      for one in ("profile_export_aiperf.json", "server_metrics_export.json")}  # fmt: skip
            spoil(records if name == "records" else others, rng)
            path = folder / "profile_export.jsonl"
            path.write_text("\n".join(map(json.dumps, records)))
            for one, document in others.items():
                (folder / one).write_text(json.dumps(document))
        else:
            document = json.loads((DATA / name).read_text())
            spoil(document, rng)
            path = folder / Path(name).name
            path.write_text(json.dumps(document))
        try:
            for run in read_measured(path):
                assert len(run.workload().prompt_tokens) == len(run) > 0
        except InputError as error:
            refusals.append((str(folder), str(error)))
    assert all(folder in text and "\n" not in text for folder, text in refusals)


def test_a_benchmark_without_answers_does_not_spoil_the_others(tmp_path: Path) -> None:
    def fail(document: dict[str, Any]) -> None:
        groups = document["benchmarks"][0]["requests"]
        groups["errored"], groups["successful"] = groups["successful"], []

    (run,) = read_measured(edited(REAL[0], tmp_path, fail))
    assert run.name.endswith("#1")
    assert "#0: 24 of 24 requests failed" in run.notes[0]


def test_a_sample_of_the_requests_is_said(tmp_path: Path) -> None:
    def sample(document: dict[str, Any]) -> None:
        document["benchmarks"][0]["request_totals"]["successful"] = 400

    runs = read_measured(edited("guidellm/v0.3.1.json", tmp_path, sample))
    assert "22 of 400 answers are in the file" in runs[0].notes[0]
    assert runs[1].notes == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("benchmarks.csv", "Run Info,Run Info,Timings\nModel,Backend,Start\n", "give GuideLLM's JSON"),
        (
            "benchmarks.yaml",
            "metadata:\n  guidellm_version: 0.8.1\nbenchmarks:\n- config: {}\n",
            "give GuideLLM's JSON",
        ),
    ],
)
def test_other_outputs_of_guidellm_say_which_is_needed(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_measured(path)


def test_aiperf_phases_are_runs(tmp_path: Path) -> None:
    """A configuration file may have several profiling phases; each has its own load."""
    records = [json.loads(line) for line in (DATA / REAL[2]).read_text().splitlines()]
    for k, record in enumerate(records):
        if record["metadata"]["benchmark_phase"] == "profiling" and k % 2:
            record["metadata"]["profiling_index"] = 1
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    loads = [{"kind": "warmup", "type": "concurrency", "concurrency": 9}, {"type": "concurrency", "concurrency": 3}]
    summary = {"input_config": {"phases": [*loads, {"kind": "profiling", "type": "poisson", "rate": 2.0}]}}
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(summary))
    first, second = read_measured(path)
    assert (len(first), len(second)) == (12, 12)
    assert (first.concurrency, second.concurrency) == (3, None)
    assert (first.name, second.name) == (f"{path} #0", f"{path} #1")
