"""Tables opened by a second process: who takes what, and that the answer is the one of a single process."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.metrics import Targets
from plimsoll.perf import silicon_kept, silicon_tables
from plimsoll.planner import ahead
from plimsoll.planner.ahead import Ahead, slower_half
from plimsoll.planner.context import Context
from plimsoll.planner.prune import screen
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.results import to_json_dict
from plimsoll.planner.search import SearchOptions, search
from plimsoll.planner.space import GpuLimit
from plimsoll.planner.stages import enumerate_space
from plimsoll.workload.spec import WorkloadSpec

pytest.importorskip("aiconfigurator_core", reason="the silicon extra is not installed")
linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


def request(*gpus: str, step_model: str = "silicon", **more: Any) -> PlanRequest:
    return PlanRequest(
        model=load_model("meta-llama/Llama-3.1-8B"),
        gpus=tuple(GpuLimit(accelerator=load_accelerator(name), max_gpus=1) for name in gpus),
        workload=WorkloadSpec(preset="chat", rate_per_s=1.0),
        targets=Targets(ttft_s=1.0, tpot_s=0.05),
        precisions=("bf16",),
        token_budgets=(512,),
        step_model=step_model,
        **more,
    )


@pytest.fixture
def fresh_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing opened, nothing handed over: as a process begins."""
    silicon_tables.load_tables.cache_clear()
    for name in ("_open", "_handed"):
        monkeypatch.setattr(silicon_kept, name, {})


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "num_cores", lambda: 2)


def halved(asked: PlanRequest) -> frozenset[str]:
    context = Context(asked)
    return slower_half(context, enumerate_space(context))


def test_the_second_process_takes_the_slower_memory() -> None:
    assert halved(request("L40S", "H100-SXM", "H200", "A100-SXM-80GB")) == {"L40S", "A100-SXM-80GB"}
    assert halved(request("L40S", "H100-SXM", "H200")) == {"L40S"}
    assert halved(request("H100-SXM")) == frozenset()
    assert halved(request("MI300X", "H100-SXM")) == frozenset()  # one of them has no tables to open


def test_other_step_models_have_nothing_to_share() -> None:
    assert halved(request("L40S", "H200", step_model="roofline")) == frozenset()
    assert halved(request("L40S", "H200", step_model="silicon+nanoflow")) == {"L40S"}


def test_one_worker_starts_no_process(two_cores: None) -> None:
    context = Context(request("L40S", "H100-SXM"))
    configs = enumerate_space(context)
    with Ahead(context, configs, 1) as alone:
        assert list(alone.order()) == list(range(len(configs)))
        assert alone._process is None


@linux
def test_what_was_handed_over_opens_no_tables_here(fresh_tables: None, two_cores: None) -> None:
    context = Context(request("L40S", "H100-SXM"))
    configs = enumerate_space(context)
    with Ahead(context, configs, None) as helped:
        assert helped._process is not None
        screened, rejected = screen(context, configs, order=helped.order())
    assert not helped._process.is_alive()
    assert [one.config.accelerator.id for one in screened] == ["L40S", "H100-SXM"]  # as they were asked for
    tables = {system: silicon_tables.load_tables(system) for system in ("l40s", "h100_sxm")}
    assert "_handle" not in tables["l40s"].__dict__
    assert "_handle" in tables["h100_sxm"].__dict__
    alone = screen(Context(request("L40S", "H100-SXM")), configs)
    assert [one.estimate for one in screened] == [one.estimate for one in alone[0]]
    assert rejected == alone[1]


@linux
@pytest.mark.parametrize("failure", ["ends", "hangs"])
def test_where_the_second_process_fails_this_one_looks_itself(
    failure: str, fresh_tables: None, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pipe: Any, context: Context, configs: Any) -> None:
        if failure == "hangs":
            signal.pause()  # until the other one loses its patience
        os._exit(3)

    monkeypatch.setattr(ahead, "_look_ahead", fail)
    monkeypatch.setattr(ahead, "LONGEST_S", 0.01)
    context = Context(request("L40S", "H100-SXM"))
    configs = enumerate_space(context)
    with Ahead(context, configs, None) as helped:
        screened, _ = screen(context, configs, order=helped.order())
    assert len(screened) == 2
    assert "_handle" in silicon_tables.load_tables("l40s").__dict__


@linux
def test_a_plan_is_the_same_with_one_process_with_two_and_from_the_cache(
    fresh_tables: None, two_cores: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def answer(num_workers: int, cache: str) -> dict[str, Any]:
        silicon_tables.load_tables.cache_clear()
        silicon_kept._open.clear()
        silicon_kept._handed.clear()
        monkeypatch.setenv("PLIMSOLL_CACHE", cache)
        asked = request("A100-SXM-80GB", "L40S", top=1)
        found = to_json_dict(dataclasses.replace(search(asked, SearchOptions(num_workers=num_workers)), wall_s=0.0))
        silicon_kept.flush_all()
        return found

    one, two = answer(1, "off"), answer(2, "off")
    first, again = answer(2, str(tmp_path)), answer(1, str(tmp_path))
    assert one == two == first == again
    assert len(list((tmp_path / "silicon").glob("*.txt"))) == 2
    assert "_handle" not in silicon_tables.load_tables("l40s").__dict__  # all that was asked had been asked before
