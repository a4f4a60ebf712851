"""What a stranger typed to break it: places, scenarios and sizes that once ended in a traceback or took for ever."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.commands import CAPACITY, PLAN, SIMULATE, Outcome, run

Capture = pytest.CaptureFixture[str]


def refused(outcome: Outcome, *words: str) -> None:
    """One line on stderr with all `words`, exit code 2, nothing on stdout."""
    assert (outcome.code, outcome.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", outcome.stderr)
    for word in words:
        assert word in outcome.stderr


@pytest.mark.parametrize("flag", ["--out", "--save-scenario", "--trace-out"])
@pytest.mark.parametrize("place", ["a\0b", "x" * 300, ""], ids=["null", "too long", "empty"])
def test_an_impossible_place_is_one_line(capsys: Capture, flag: str, place: str) -> None:
    refused(run(capsys, *SIMULATE, flag, place), flag)


def test_a_link_or_a_device_is_never_replaced_by_a_file(capsys: Capture, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "target")
    for place in (pipe, link):
        for flag in ("--save-scenario", "--trace-out"):
            refused(run(capsys, *SIMULATE, flag, str(place)), flag, str(place), "a link or a device")
    assert pipe.is_fifo()
    assert link.is_symlink()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files")
def test_a_place_that_takes_no_files_is_one_line(capsys: Capture) -> None:
    refused(
        run(capsys, *SIMULATE, "--save-scenario", "/proc/plimsoll.yaml"), "/proc/plimsoll.yaml", "cannot be written"
    )


@pytest.mark.parametrize(("verb", "name"), [(SIMULATE, "result.json"), (CAPACITY, "result.json"), (PLAN, "result.json"),
                                            (PLAN, "capacities.json")])  # fmt: skip
def test_a_folder_where_a_file_belongs_is_named(
    capsys: Capture, tmp_path: Path, verb: tuple[str, ...], name: str
) -> None:
    (tmp_path / name).mkdir()
    refused(run(capsys, *verb, "--out", str(tmp_path)), name, "Is a directory")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, ("--scenario", "nested too deeply")),
        ("2001-13-45\n", ("--scenario", "month must be in 1..12")),
        ("model: 2001-13-45\n", ("--scenario", "month must be in 1..12")),
        ("percentile: " + "9" * 5000, ("--scenario", "5000 digits")),
        ("percentile: " + "9" * 400, ("--percentile", "bits")),
        ("seed: 0x" + "f" * 5000, ("--seed", "20000 bits")),
        ("model: " + "x" * 2**20, ("--scenario", "at most 1048576 bytes")),
    ],
    ids=["deep", "no date", "no date inside", "endless", "beyond a float", "endless in hex", "huge"],
)
def test_a_hostile_scenario_is_one_line(capsys: Capture, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "s.yaml").write_text(text)
    refused(run(capsys, "simulate", "--scenario", str(tmp_path / "s.yaml")), *words)


def test_a_scenario_that_never_ends_is_not_read(capsys: Capture) -> None:
    refused(run(capsys, "simulate", "--scenario", os.devnull), "--scenario", "a device")
    refused(run(capsys, "simulate", "--scenario", "a\0b"), "--scenario", "null")


def test_a_million_replicas_are_refused(capsys: Capture) -> None:
    refused(run(capsys, *SIMULATE, "--replicas", "1000000"), "--replicas", "1000000", "at most 10000")


def test_an_empty_list_of_gpus_is_not_the_default(capsys: Capture) -> None:
    refused(run(capsys, *PLAN, "--gpus", ""), "--gpus", "at least one name")


@pytest.mark.parametrize(("flag", "ways"), [("--tp", "2"), ("--tp", "16,32"), ("--pp", "99")])
def test_a_cut_beyond_the_gpus_names_the_cut(capsys: Capture, flag: str, ways: str) -> None:
    refused(run(capsys, *PLAN, flag, ways), flag, ways, "--gpus L40S:1", "allow more")


def test_users_that_do_not_fit_are_told_in_users(capsys: Capture) -> None:
    outcome = run(capsys, *PLAN, "--users", "40000000", "--json")
    assert outcome.code == 1
    (load,) = [one for one in outcome.json()["relaxations"] if one["what"] == "load"]
    assert "users is the most that fits, instead of 4e+07 users" in load["text"]
    assert 1 <= load["needed"] < load["asked"] == 40_000_000


@pytest.mark.parametrize("verb", [SIMULATE, CAPACITY, PLAN], ids=["simulate", "capacity", "plan"])
def test_a_percentile_is_shown_as_asked(capsys: Capture, verb: tuple[str, ...]) -> None:
    outcome = run(capsys, *verb, "--ttft-ms", "1000", "--percentile", "99.999")
    assert "p99.999" in outcome.stdout
    assert "p100" not in outcome.stdout


def test_a_plan_of_cuts_that_do_not_divide_says_so(capsys: Capture) -> None:
    outcome = run(capsys, *PLAN, "--gpus", "L40S:4", "--tp", "3")
    assert outcome.code == 1
    assert "TP 3 does not divide the 32 query heads" in outcome.stdout.splitlines()[0]
    assert "lower the load" not in outcome.stdout


def test_a_run_that_answers_nothing_says_so_first(capsys: Capture) -> None:
    longer = ("--model", "Llama-3.1-8B", "--gpu", "L40S", "--prompt-tokens", "900000", "--output-tokens", "9")
    outcome = run(capsys, "simulate", *longer, "--rate", "1", "--num-requests", "3")
    assert outcome.stdout.splitlines()[0].endswith("finishes no request (3 rejected)")


def test_a_plan_says_that_it_cut_the_requests(capsys: Capture) -> None:
    outcome = run(capsys, *PLAN, "--max-model-len", "100", "--json")
    (lengths,) = [note for note in outcome.json()["notes"] if note.startswith("lengths: ")]
    assert "cut to the server's 100 tokens" in lengths
