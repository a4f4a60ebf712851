"""The suite on a grid that a formula served: what it predicts is compared with what was measured."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from plimsoll.core.errors import InputError
from tests.own_profiles import make_profile
from validation import guide_grid
from validation.guide_grid import Served, measured, name_of, predicted, read, way_in_s

OUTPUT = 12
GRID = [(4, 128), (8, 64)]
SERVER = {"fixed_us": 4000.0, "per_prompt_token_us": 2.0, "per_request_us": 1500.0}


def make(folder: Path) -> Path:
    """A model's folder as `make verify-vllm` leaves it, in which the server is as fast as predicted."""
    profile, _ = make_profile(folder)
    text = (profile / "profile.toml").read_text()
    lines = "\n".join(f"{name} = {value}" for name, value in SERVER.items())
    (profile / "profile.toml").write_text(f"{text}\n[server]\n{lines}\n")
    run = {
        "grid": GRID,
        "rounds": [[0], [1]],
        "output_tokens": OUTPUT,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
    }
    run |= {"max_model_len": 1152, "block_size": 128, "num_blocks": 1024}
    (folder / "run.json").write_text(json.dumps(run))
    served = read(folder)
    for batch, prompt in GRID:
        ours = predicted(served, batch, prompt)
        gap_s = batch / ours.decode_tokens_per_s
        for repeat, slower in enumerate((1.0, 1.02)):
            write_result(served, batch, prompt, repeat, ours.latency_s * slower, ours.ttft_s * slower, gap_s * slower)
    return folder


def write_result(
    served: Served, batch: int, prompt: int, repeat: int, latency_s: float, ttft_s: float, gap_s: float
) -> None:
    document = {
        "duration": latency_s,
        "ttfts": [ttft_s] * batch,
        "itls": [[gap_s] * (OUTPUT - 1)] * batch,
        "output_lens": [OUTPUT] * batch,
        "input_lens": [prompt] * batch,
    }
    file = served.folder / "grid" / f"{name_of(batch, prompt, repeat)}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("grid") / "tiny")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def test_errors_are_ours_over_measured(made: Path) -> None:
    result = guide_grid.run([made])
    assert result["passed"]
    figures = result["figures"]["tiny"]
    assert figures["batch latency"]["mean_abs_error"] == pytest.approx(1 - 1 / 1.01, rel=1e-6)
    assert figures["decode throughput"]["worst_error"] > 0
    assert figures["ttft"]["worst_error"] < 0
    assert figures["batch latency"]["mean_abs_drift"] == pytest.approx(0.02, rel=1e-6)
    assert figures["decode throughput"]["mean_abs_drift"] == pytest.approx(1 - 1 / 1.02, rel=1e-6)
    assert "quieter" not in result["summary"]
    assert [(row["batch"], row["prompt"]) for row in result["figures"]["batches"]] == GRID
    assert guide_grid.run([made.parent])["figures"] == result["figures"]


def test_a_server_that_is_slower_than_predicted_fails(copy: Path) -> None:
    served = read(copy)
    for batch, prompt in GRID:
        real = measured(served, batch, prompt)
        gap_s = batch / real.decode_tokens_per_s
        for repeat in range(2):
            write_result(served, batch, prompt, repeat, real.latency_s * 1.2, real.ttft_s, gap_s)
    result = guide_grid.run([copy])
    assert not result["passed"]
    assert result["figures"]["tiny"]["batch latency"]["mean_abs_error"] == pytest.approx(1 - 1 / 1.2 / 1.01, abs=1e-6)
    assert result["figures"]["tiny"]["ttft"]["mean_abs_error"] < 0.08


def test_a_server_that_does_not_repeat_itself_is_said_to(copy: Path) -> None:
    served = read(copy)
    for batch, prompt in GRID:
        real = measured(served, batch, prompt)
        gap_s = batch / real.decode_tokens_per_s
        for repeat, slower in enumerate((0.95, 1.05)):
            write_result(served, batch, prompt, repeat, real.latency_s * slower, real.ttft_s, gap_s)
    result = guide_grid.run([copy])
    assert result["passed"]
    assert "differ by 10.5%, 0.0%, 0.0% (over 8%: run it on a quieter machine)" in result["summary"]
    assert result["figures"]["batches"][0]["batch latency drift"] == pytest.approx(1.05 / 0.95 - 1)


def test_no_first_token_leaves_before_the_burst_is_in(made: Path) -> None:
    served = read(made)
    fixed_s, intake_s = way_in_s(SERVER, 64)
    assert (fixed_s, intake_s) == pytest.approx((4128e-6, 1628e-6))
    assert predicted(served, 32, 16).ttft_s > 31 * way_in_s(SERVER, 16)[1]
    assert way_in_s({**SERVER, "fixed_us": 0.0}, 64)[0] == pytest.approx(1628e-6)


def test_larger_batches_decode_faster_and_take_longer(made: Path) -> None:
    served = read(made)
    batches = [predicted(served, batch, 8) for batch in (1, 4, 16, 32)]
    for small, large in itertools.pairwise(batches):
        assert large.latency_s > small.latency_s
        assert large.ttft_s > small.ttft_s
        assert large.decode_tokens_per_s > small.decode_tokens_per_s


def test_a_server_without_a_way_in_is_all_at_once(copy: Path) -> None:
    file = copy / "profile" / "profile.toml"
    text = file.read_text()
    for name, value in SERVER.items():
        text = text.replace(f"{name} = {value}", f"{name} = 0.0")
    file.write_text(text)
    assert predicted(read(copy), 4, 64).ttft_s < predicted(read(copy), 4, 128).ttft_s


@pytest.mark.parametrize(
    ("name", "value"),
    [("output_lens", [OUTPUT] * 3 + [OUTPUT - 1]), ("input_lens", [128, 128, 128, 127]), ("ttfts", [0.1] * 3)],
)
def test_results_that_are_not_what_was_asked_are_refused(copy: Path, name: str, value: object) -> None:
    file = copy / "grid" / f"{name_of(4, 128, 1)}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(InputError, match="batch4-prompt128-1"):
        guide_grid.run([copy])


def test_missing_parts_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "grid" / f"{name_of(8, 64, 0)}.json").unlink()
    with pytest.raises(InputError, match="batch8-prompt64-0"):
        guide_grid.run([copy])
    (copy / "run.json").write_text("{}")
    with pytest.raises(InputError, match="verify-vllm"):
        guide_grid.run([copy])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="--data"):
        guide_grid.run([empty])
