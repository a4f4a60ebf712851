"""The suite that compares schedules: a recorded schedule written by hand, one with a wrong step, and broken files."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plimsoll.core.errors import InputError, PlimsollError
from validation import schedules

CONFIG = {
    "block_size": 4, "hash_block_size": 4, "num_gpu_blocks": 11, "num_usable_blocks": 10, "max_num_seqs": 4,
    "max_num_active_seqs": None, "max_num_batched_tokens": 8, "max_num_scheduled_tokens": 8, "max_model_len": 64,
    "long_prefill_token_threshold": 0, "long_prefill_token_threshold_adaptive": False, "enable_prefix_caching": False,
    "enable_chunked_prefill": True, "policy": "fcfs", "scheduler_reserve_full_isl": True, "watermark": 0.0,
    "watermark_blocks": 0, "async_scheduling": False, "num_lookahead_tokens": 0, "prefill_schedule_interval": 1,
}  # fmt: skip


def request(number: int, arrival_step: int, prompt: int, output: int) -> dict[str, Any]:
    return {
        "id": number, "arrival_step": arrival_step, "prompt_tokens": prompt, "output_tokens": output, "priority": 0,
        "prefix_group": None, "prefix_tokens": 0,
    }  # fmt: skip


def step(scheduled: list[list[int]], finished: list[int], free_blocks: int) -> dict[str, Any]:
    return {"scheduled": scheduled, "preempted": [], "finished": finished, "free_blocks": free_blocks}


BY_HAND = {
    "id": "hand-1",
    "category": "by_hand",
    "seed": 0,
    "config": CONFIG,
    "requests": [request(0, 0, 5, 3), request(1, 1, 6, 2), request(2, 5, 12, 1)],
    "steps": [
        step([[0, 5]], [], 8),  # 5 tokens: 2 blocks of 4
        step([[0, 1], [1, 6]], [], 6),
        step([[0, 1], [1, 1]], [0, 1], 6),
        step([], [], 10),
        step([], [], 10),
        step([[2, 8]], [], 8),  # the budget cuts the prompt
        step([[2, 4]], [2], 7),
    ],
    "computed_at_admission": [[0, 0, 0], [1, 1, 0], [5, 2, 0]],
}


def written(folder: Path, *rows: dict[str, Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_a_schedule_worked_out_by_hand_is_reproduced(tmp_path: Path, name: str) -> None:
    result = schedules.run([written(tmp_path, BY_HAND, name=name)])
    assert result["passed"] is True
    assert (result["figures"]["num_workloads"], result["figures"]["num_matching"]) == (1, 1)
    assert result["figures"]["by_category"] == {"by_hand": [1, 1]}
    assert result["figures"]["first_disagreement"] is None


@pytest.mark.parametrize(
    ("number", "key", "value"),
    [
        (0, "scheduled", [[0, 4]]),
        (1, "scheduled", [[1, 6], [0, 1]]),
        (1, "free_blocks", 5),
        (2, "finished", [1, 0]),
        (2, "preempted", [1]),
        (3, "scheduled", [[2, 1]]),
    ],
)
def test_any_difference_is_found_and_shown(tmp_path: Path, number: int, key: str, value: Any) -> None:
    wrong = copy.deepcopy(BY_HAND)
    wrong["steps"][number][key] = value  # type: ignore[index]
    result = schedules.run([written(tmp_path, BY_HAND, wrong)])
    assert result["passed"] is False
    assert (result["figures"]["num_workloads"], result["figures"]["num_matching"]) == (2, 1)
    assert (result["figures"]["first_disagreement"]["id"], result["figures"]["first_disagreement"]["step"]) == (
        "hand-1",
        number,
    )


def test_a_step_that_is_missing_in_the_record_is_a_difference(tmp_path: Path) -> None:
    short = copy.deepcopy(BY_HAND)
    short["steps"] = short["steps"][:-1]  # type: ignore[index]
    assert schedules.run([written(tmp_path, short)])["passed"] is False


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_an_empty_file_is_refused_even_beside_a_good_one(tmp_path: Path, name: str) -> None:
    empty, good = written(tmp_path, name=name), written(tmp_path, BY_HAND, name="good.jsonl")
    for paths in ([empty], [good, empty]):
        with pytest.raises(InputError, match=rf"{name}.* it is empty; give a file"):
            schedules.run(paths)


@pytest.mark.parametrize("name", ["bytes.jsonl", "bytes.jsonl.gz"])
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00\x81" * 300)
    with pytest.raises(InputError, match=rf"{name}.*not readable .*; give a file"):
        schedules.run([path])
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b'{"id": "\xff"}\n'))
        with pytest.raises(InputError, match="not readable gzip text"):
            schedules.run([path])
        whole = gzip.compress(json.dumps(BY_HAND).encode())
        for broken in (whole[:-30], whole[:12] + b"\xff" * 20 + whole[32:]):
            path.write_bytes(broken)
            with pytest.raises(InputError, match="not readable gzip text"):
                schedules.run([path])


FLAWS: list[tuple[tuple[Any, ...], Any, str]] = [
    (("category",), None, "needs category"),
    (("steps",), {}, "needs steps"),
    (("config", "watermark"), ..., "config needs watermark"),
    (("config", "block_size"), 0, "config needs block_size"),
    (("config", "max_num_seqs"), "4", "config needs max_num_seqs"),
    (("requests", 1), 7, "request 1 is no recorded request"),
    (("requests", 1, "prefix_group"), ..., "request 1 is no recorded request"),
    (("requests", 2, "output_tokens"), True, "request 2 needs whole numbers as output_tokens"),
    (("requests", 2, "arrival_step"), -1, "request 2 needs whole numbers as arrival_step"),
    (("requests", 0, "id"), 1, "request 0 needs .* its place"),
    (("steps", 3), [], "step 3 needs scheduled"),
    (("steps", 3, "free_blocks"), ..., "step 3 needs scheduled"),
]


@pytest.mark.parametrize(("place", "value", "words"), FLAWS)
def test_other_records_are_refused_by_line(tmp_path: Path, place: tuple[Any, ...], value: Any, words: str) -> None:
    foreign: Any = copy.deepcopy(BY_HAND)
    inner = foreign
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises(InputError, match=f"data.jsonl line 2: .*{words}"):
        schedules.run([written(tmp_path, BY_HAND, foreign)])


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"text"', "\n", "[" * 100_000])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"odd.jsonl line 1: .*each line is a JSON object"):
        schedules.run([path])


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n")
    for path, words in ((tmp_path / "bad.jsonl", "bad.jsonl line 1"), (tmp_path / "none.jsonl", "none.jsonl")):
        with pytest.raises(PlimsollError, match=words):
            schedules.run([path])


def test_the_command_prints_one_document(tmp_path: Path) -> None:
    def spawn(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "validation", "schedules", "--data", str(path), "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = spawn(written(tmp_path, BY_HAND))
    assert done.returncode == 0
    assert list(json.loads(done.stdout)) == ["suite", "passed", "summary", "figures"]
    missing = spawn(tmp_path / "none.jsonl")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)


def test_the_recorded_schedules_are_reproduced(shared_data: Path) -> None:
    result = schedules.run([shared_data / "vllm-schedules" / "dev.jsonl.gz"])
    assert result["figures"]["first_disagreement"] is None
    assert result["figures"]["num_matching"] == result["figures"]["num_workloads"] >= 80
