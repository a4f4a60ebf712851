"""Result files of load generators: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.calibration import read_measured
from plimsoll.calibration.measured import list_readers
from plimsoll.calibration.snapshots import KvCache, is_snapshot, read_kv_cache
from plimsoll.core.errors import InputError

SENT = [10.0, 10.5, 12.0]
PROMPTS = [100, 20, 7]
OUTPUTS = [3, 1, 5]
TTFTS = [0.2, 0.1, 0.3]
E2ES = [0.4, 0.1, 0.7]


def vllm_document() -> dict[str, Any]:
    gaps = [[0.1, 0.1], [], [0.1] * 4]
    return {
        "date": "20261120-101010",
        "endpoint_type": "vllm",
        "model_id": "m",
        "max_concurrency": 4,
        "request_throughput": 1.0,
        "input_lens": [*PROMPTS, 9],
        "output_lens": [*OUTPUTS, 0],
        "ttfts": [*TTFTS, 0.0],
        "itls": [*gaps, []],
        "start_times": [*SENT, 13.0],
        "errors": ["", "", "", "connection refused"],
    }


def guidellm_document(strategy: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "request_start_time": 1.7e9 + sent,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "time_to_first_token_ms": 1e3 * ttft,
            "inter_token_latency_ms": 1e3 * (e2e - ttft) / (output - 1) if output > 1 else 0.0,
            "request_latency": e2e + 0.003,
        }
        for sent, prompt, output, ttft, e2e in zip(SENT, PROMPTS, OUTPUTS, TTFTS, E2ES, strict=True)
    ]
    benchmark = {"config": {"strategy": strategy}, "requests": {"successful": rows[::-1], "errored": [{}]}}
    return {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [benchmark, benchmark]}


def aiperf_lines() -> list[dict[str, Any]]:
    lines = [
        {
            "metadata": {"request_start_ns": int(sent * 1e9), "request_end_ns": 0, "benchmark_phase": "profiling"},
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": output, "unit": "tokens"},
                "time_to_first_token": {"value": 1e3 * ttft, "unit": "ms"},
                "request_latency": {"value": 1e9 * e2e, "unit": "ns"},
            },
            "error": None,
        }
        for sent, prompt, output, ttft, e2e in zip(SENT, PROMPTS, OUTPUTS, TTFTS, E2ES, strict=True)
    ]
    warm_up = {**lines[0], "metadata": {**lines[0]["metadata"], "benchmark_phase": "warmup"}}
    failed = {**lines[0], "metrics": {}, "error": {"code": 500}}
    return [warm_up, *lines, failed]


def check(path: Path, num_runs: int = 1, concurrency: int | None = None) -> None:
    runs = read_measured(path)
    assert len(runs) == num_runs
    for run in runs:
        np.testing.assert_allclose(run.sent_s, [0.0, 0.5, 2.0], atol=1e-6)
        np.testing.assert_array_equal(run.prompt_tokens, PROMPTS)
        np.testing.assert_array_equal(run.output_tokens, OUTPUTS)
        np.testing.assert_allclose(run.ttft_s, TTFTS)
        np.testing.assert_allclose(run.e2e_s, E2ES)
        np.testing.assert_allclose(run.tpot_s, [0.1, np.nan, 0.1])
        assert run.concurrency == concurrency


def test_vllm_bench(tmp_path: Path) -> None:
    path = tmp_path / "vllm-inf.json"
    path.write_text(json.dumps(vllm_document()), encoding="utf-8")
    check(path, concurrency=4)


def test_vllm_bench_without_details_says_which_flag(tmp_path: Path) -> None:
    document = {key: value for key, value in vllm_document().items() if key not in ("itls", "start_times")}
    path = tmp_path / "short.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=r"no itls, start_times.*--save-detailed"):
        read_measured(path)


@pytest.mark.parametrize(
    ("strategy", "concurrency"),
    [
        ({"type_": "concurrent", "streams": 8}, 8),
        ({"type_": "synchronous"}, 1),
        ({"type_": "poisson", "rate": 2}, None),
    ],
)
def test_guidellm(tmp_path: Path, strategy: dict[str, Any], concurrency: int | None) -> None:
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(guidellm_document(strategy)), encoding="utf-8")
    check(path, num_runs=2, concurrency=concurrency)


@pytest.mark.parametrize("users", [None, 16])
def test_aiperf(tmp_path: Path, users: int | None) -> None:
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(map(json.dumps, aiperf_lines())), encoding="utf-8")
    if users:
        summary = {"input_config": {"loadgen": {"concurrency": users}}}
        (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(summary), encoding="utf-8")
    check(path, concurrency=users)


def test_aiperf_names_the_line_and_the_unit(tmp_path: Path) -> None:
    lines = aiperf_lines()
    lines[2]["metrics"]["request_latency"]["unit"] = "fortnights"
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(InputError, match=r"line 3.*fortnights"):
        read_measured(path)


@pytest.mark.parametrize("packed", [False, True])
def test_measured_csv(tmp_path: Path, packed: bool) -> None:
    header = "request_id,prompt_tokens,output_tokens,arrival_s,first_token_s,last_token_s"
    rows = [f"{k},{PROMPTS[k]},{OUTPUTS[k]},{SENT[k]},{SENT[k] + TTFTS[k]},{SENT[k] + E2ES[k]}" for k in (2, 0, 1)]
    text = "\n".join([header, *rows]) + "\n"
    path = tmp_path / ("measured.csv.gz" if packed else "measured.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    check(path)


def test_measured_csv_takes_blocks_and_contents_from_its_neighbours(tmp_path: Path) -> None:
    header = "request_id,prompt_tokens,output_tokens,queued_s,first_token_s,last_token_s"
    text = "\n".join([header, "1,32,2,0.5,0.6,0.7", "0,16,2,0.0,0.1,0.2"])
    (tmp_path / "measured.csv").write_text(text, encoding="utf-8")
    (tmp_path / "meta.json").write_text(json.dumps({"kv_cache": {"num_gpu_blocks": 77}}), encoding="utf-8")
    rows = [{"request_id": 0, "prefix_blocks_16": [5]}, {"request_id": 1, "prefix_blocks_16": [5, 6]}]
    with gzip.open(tmp_path / "workload.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (run,) = read_measured(tmp_path / "measured.csv")
    assert run.num_kv_blocks == 77
    workload = run.workload()
    assert workload.prompt_block_ids is not None
    assert workload.prompt_block_offsets is not None
    np.testing.assert_array_equal(workload.prompt_block_ids, [5, 5, 6])
    np.testing.assert_array_equal(workload.prompt_block_offsets, [0, 1, 3])


def test_what_simulate_writes_can_be_read(tmp_path: Path) -> None:
    text = (
        "request_id,arrival_s,scheduled_s,first_token_s,finish_s,prompt_tokens,output_tokens,preemptions,status\n"
        "0,0.0,0.0,0.1,0.5,10,5,0,finished\n1,0.2,0.2,,,10,0,0,unfinished\n"
    )
    path = tmp_path / "requests.csv"
    path.write_text(text, encoding="utf-8")
    (run,) = read_measured(path)
    assert len(run) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "give a result file of"),
        ("a.json", '{"request_throughput": 1', "not JSON"),
        ("a.json", '{"benchmarks": []}', r"benchmarks: \[\]"),
        ("a.json", '{"benchmarks": [{"requests": {"successful": [{}]}}]}', r"successful\[0\]\.request_start_time"),
        ("a.jsonl", '{"metadata": {"request_start_ns": 1}}', "line 1"),
        ("a.csv", "prompt_tokens,output_tokens,first_token_s\n1,2,3\n", "queued_s or arrival_s"),
        ("a.csv", "prompt_tokens,output_tokens,first_token_s,arrival_s,last_token_s\n1,2,x,0,3\n", "line 2"),
        ("a.csv", "prompt_tokens,output_tokens,first_token_s,arrival_s,last_token_s\n", "no answered request"),
        ("a.csv", "prompt_tokens,output_tokens,first_token_s,arrival_s,last_token_s\n1,2,3,4,5\n", "no time"),
        ("a.csv", "prompt_tokens,output_tokens,first_token_s,arrival_s,last_token_s\n1,2,3,0,9e9\n", "milliseconds"),
        ("a.csv", "\x00\x01", "give a result file of"),
    ],
)
def test_garbage_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_measured(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_measured(tmp_path / "none.json")
    path = tmp_path / "a.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="formats: aiperf"):
        read_measured(path, "excel")
    assert set(list_readers()) == {"aiperf", "guidellm", "measured_csv", "vllm_bench"}


def test_snapshot_names_the_blocks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    label = 'block_size="16",cache_dtype="auto",num_cpu_blocks="None",num_gpu_blocks="2588"'
    text = f"# HELP vllm:cache_config_info Information\n# TYPE x gauge\nvllm:cache_config_info{{{label}}} 1.0\n"
    path.write_text(text, encoding="utf-8")
    assert is_snapshot(path)
    assert read_kv_cache(path) == KvCache(num_blocks=2588, block_tokens=16)
    path.write_text("# HELP vllm:num_requests_running Number\n", encoding="utf-8")
    with pytest.raises(InputError, match="num_gpu_blocks"):
        read_kv_cache(path)
