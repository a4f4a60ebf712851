"""An interrupted search goes on where it stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import plimsoll
from plimsoll.api.resume import FILE, KeptCapacities
from plimsoll.planner.capacity import CapacityResult, ProbeRecord, SeedCapacity

FIELDS = {
    "model": "Llama-3.1-8B",
    "gpus": "L40S:1",
    "workload": "chat",
    "ttft_ms": 2000.0,
    "tpot_ms": 80.0,
    "token_budgets": "2048",
}


def result() -> CapacityResult:
    seed = SeedCapacity(seed=3, highest_pass=1.0, lowest_fail=math.inf, load=1.2, limited_by="none")
    probe = ProbeRecord(
        load=1.0, seed=3, num_requests=9, num_measured=8, short=False, passed=None, failed_by=None,
        figures={"ttft_s": math.inf},
    )  # fmt: skip
    return CapacityResult(
        max_load=1.2, interval=(1.0, math.inf), confidence=None, limited_by="none", note="", unit="requests/s",
        by_seed=(seed,), probes=(probe,),
    )  # fmt: skip


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = KeptCapacities(tmp_path)
    kept["a"] = result()
    kept.close()
    again = KeptCapacities(tmp_path)
    assert again.num_resumed == len(again) == 1
    assert again["a"] == result()


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"a": {"interval": [0]}}', '{"a": 3}'])
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert len(KeptCapacities(tmp_path)) == 0


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        del total
        if text == "simulating" and done >= 1:
            raise KeyboardInterrupt

    whole = plimsoll.plan(**FIELDS)
    with pytest.raises(KeyboardInterrupt):
        plimsoll.plan(**FIELDS, keep_in=tmp_path, on_progress=interrupt)
    found = len(KeptCapacities(tmp_path))
    assert found > 0
    resumed = plimsoll.plan(**FIELDS, keep_in=tmp_path)
    assert any("resumed" in note for note in resumed.result.notes)
    assert [plan.capacity for plan in resumed.result.plans] == [plan.capacity for plan in whole.result.plans]
