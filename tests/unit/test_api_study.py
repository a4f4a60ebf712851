"""Several engines on identical requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plimsoll.api.simulation import simulate
from plimsoll.api.study import EnginesStudy, split_engines, study_engines
from plimsoll.cli import main
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.report.study import render, to_html

FIELDS = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 6.0, "num_requests": 150}
FLAGS = ["--model", "Llama-3.1-8B", "--gpu", "H100-SXM", "--workload", "chat", "--rate", "6", "--num-requests", "40"]
ENGINES = "vllm-v1,vllm-v1,watermark=0.05,splitwise,prefill=2,distserve"


@pytest.fixture(scope="module")
def study() -> EnginesStudy:
    return study_engines(engines=ENGINES, **FIELDS)  # type: ignore[arg-type]


def test_an_option_belongs_to_the_engine_before_it() -> None:
    assert split_engines("orca, vllm-v1,watermark=0.01,reserve_full_isl=false,distserve") == (
        "orca", "vllm-v1,watermark=0.01,reserve_full_isl=false", "distserve",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"), [("", "at least one"), ("watermark=1,orca", "begin with an engine"), ("orca,orca", "twice")]
)
def test_a_list_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        split_engines(text)


def test_every_engine_gets_the_same_requests(study: EnginesStudy) -> None:
    runs = [result.run for result in study.results.values()]
    assert len(runs) == 4
    for run in runs[1:]:
        assert run.arrival_s.tolist() == runs[0].arrival_s.tolist()
        assert run.prompt_tokens.tolist() == runs[0].prompt_tokens.tolist()
        assert run.output_tokens.tolist() == runs[0].output_tokens.tolist()


def test_an_engine_in_a_study_does_what_it_does_alone(study: EnginesStudy) -> None:
    alone = simulate(engine="vllm-v1", **FIELDS)  # type: ignore[arg-type]
    assert study.results["vllm-v1"].run.equal(alone.run)


def test_the_rows_are_the_engines_own_documents(study: EnginesStudy) -> None:
    document = json.loads(json.dumps(study.to_json_dict(), allow_nan=False))
    assert [row["engine"] for row in document["rows"]] == list(document["results"])
    assert [row["num_gpus"] for row in document["rows"]] == [1, 1, 3, 2]
    for row in document["rows"]:
        own = document["results"][row["engine"]]
        assert row["ttft_p99_s"] == own["metrics"]["ttft_s"]["p99"]
        assert row["itl_p99_s"] == own["metrics"]["itl_s"]["p99"]
        assert row["output_tokens_per_s_per_gpu"] * row["num_gpus"] == pytest.approx(row["output_tokens_per_s"])
        assert row["finished"] == 150
    by_name = {row["engine"]: row for row in document["rows"]}
    assert by_name["distserve"]["itl_p99_s"] < by_name["vllm-v1"]["itl_p99_s"], "prompts no longer stop decodes"


def test_an_engine_that_would_not_start_is_named_with_its_reason() -> None:
    study = study_engines(engines="vllm-v1,splitwise,decode=0", **FIELDS)  # type: ignore[arg-type]
    assert list(study.results) == ["vllm-v1"]
    assert "no decode pool" in study.refused["splitwise,decode=0"]
    with pytest.raises(InfeasibleError, match="no decode pool"):
        study_engines(engines="splitwise,decode=0", **FIELDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("engines", ["flexgen,gpu-batch=4,orca", "orca,flexgen,gpu-batch=4"])
def test_an_engine_that_offloads_keeps_its_own_seconds_and_gives_them_to_nobody(engines: str) -> None:
    fields = {"model": "facebook/opt-6.7b", "gpu": "T4", "prompt_tokens": 64, "output_tokens": 8}
    load = {"at_once": True, "num_requests": 8}
    study = study_engines(engines=engines, **fields, **load)  # type: ignore[arg-type]
    alone = {
        name: simulate(**fields, **load, engine=name)  # type: ignore[arg-type]
        for name in ("orca", "flexgen,gpu-batch=4")
    }
    for name, result in alone.items():
        assert study.results[name].run.equal(result.run)
    assert any("a step cost of its own" in note for note in study.notes)


def test_a_single_engine_is_asked_for_as_several() -> None:
    with pytest.raises(InputError, match="write engines"):
        study_engines(engine="orca", **FIELDS)  # type: ignore[arg-type]


def test_the_page_is_whole_and_needs_nothing_else(study: EnginesStudy) -> None:
    document = study.to_json_dict()
    document["rows"][0]["ttft_p99_s"] = None
    page = to_html(document)
    assert not re.findall(r"(?:src|href)=|@import|url\(", page)
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(charts) == 6
    for chart in charts:
        bars = [float(bar.attrib["width"]) for bar in chart.iter("rect")]
        assert len(bars) == 4
        assert max(bars) == pytest.approx(300.0)
    ttft = next(chart for chart in charts if "first token" in chart.attrib["aria-label"])
    missing, *widths = [float(bar.attrib["width"]) for bar in ttft.iter("rect")]
    assert missing == 0.0
    values = [row["ttft_p99_s"] for row in document["rows"][1:]]
    assert widths == pytest.approx([300 * value / max(values) for value in values], abs=0.06)


def test_the_command_line_prints_a_table_and_keeps_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    assert main(["study", "engines", "--engines", "vllm-v1,distserve", *FLAGS, "--out", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2 engines on the same 40 requests" in shown.splitlines()[0]
    lines = [line for line in shown.splitlines() if line.startswith(("vllm", "distserve"))]
    assert [line.split()[0] for line in lines] == 3 * ["vllm-v1", "distserve"], "the table and two charts"
    assert ["█" in line for line in lines] == 2 * [False] + 4 * [True]
    assert shown.splitlines()[-1] == f"charts: {folder / 'engines.html'}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "engines.html", "requests-1-vllm-v1.csv", "requests-2-distserve.csv", "result.json", "scenario.yaml",
    ]  # fmt: skip
    again = ["study", "engines", "--scenario", str(folder / "scenario.yaml"), "--json"]
    assert main(again) == 0
    kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    repeated = json.loads(capsys.readouterr().out)
    for row, other in zip(kept["rows"], repeated["rows"], strict=True):
        assert {**row, "wall_s": 0} == {**other, "wall_s": 0}


def test_a_study_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "engins"]) == 2
    assert "did you mean engines?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def refusing() -> EnginesStudy:
    fields = {**FIELDS, "workload": "long-context", "rate_per_s": 1.0, "num_requests": 60}
    return study_engines(engines="trtllm,vllm-v1,trtllm,enable_chunked_context=true,orca", **fields)  # type: ignore[arg-type]


def test_an_engine_that_refuses_requests_is_marked(refusing: EnginesStudy, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    document = json.loads(json.dumps(refusing.to_json_dict(), allow_nan=False))
    rows = {row["engine"]: row for row in document["rows"]}
    refused = rows["trtllm"]["rejected"]
    assert refused == int((refusing.results["trtllm"].run.status == 2).sum()) > 0
    assert [row["rejected"] for name, row in rows.items() if name != "trtllm"] == [0, 0, 0]
    assert {row["num_requests"] for row in rows.values()} == {60}
    render(Console(width=80), document)
    lines = capsys.readouterr().out.splitlines()
    mark = f"trtllm (rejects {refused} of 60)"
    assert sum(line.startswith(mark) for line in lines) == 3, "the table and two charts"
    assert sum("(rejects" in line for line in lines) == 3
    assert "…" not in next(line for line in lines if line.startswith("engine")), "no title is cut"
    page = to_html(document)
    assert page.count("trtllm †<") == 6
    assert page.count("†") == 7, "and the legend"
    assert mark in page


def test_a_study_without_refusals_has_no_mark(study: EnginesStudy) -> None:
    assert "†" not in to_html(study.to_json_dict())
    assert all(row["rejected"] == 0 for row in study.to_json_dict()["rows"])


def test_notes_name_their_engines(refusing: EnginesStudy) -> None:
    refused = [note for note in refusing.notes if "rejected" in note]
    assert len(refused) == 1
    assert re.match(r"trtllm: \d+ of 60 prompts do not fit into a step", refused[0])
    assert any(note.startswith("trtllm; trtllm,enable_chunked_context=true: the host time") for note in refusing.notes)
    assert all(note.startswith(("all engines: ", "trtllm", "vllm-v1", "orca")) for note in refusing.notes)
    assert len(set(refusing.notes)) == len(refusing.notes)
