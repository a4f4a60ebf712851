"""The torch backend on this machine's CPU, at tiny sizes; without torch, how its absence is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from plimsoll.api.profiling import profile
from plimsoll.catalog.models import load_model
from plimsoll.cli import main
from plimsoll.core.errors import InfeasibleError, InputError, MissingExtraError, UnknownNameError
from plimsoll.perf.profiles.own_format import read_own
from plimsoll.perf.profiles.own_shape import shape_of
from plimsoll.perf.profiles.own_work import token_operators
from plimsoll.profiler.samples import Effort
from plimsoll.profiler.shapes import Shape, chunks, decodes
from plimsoll.profiler.torch_backend import TorchBackend
from tests.own_profiles import write_config

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: pip install 'plimsoll[profile]'")
without_torch = pytest.mark.skipif(HAS_TORCH, reason="torch is installed: its absence cannot be tried")
QUICK = Effort(warm_ups=1, min_samples=2, max_samples=2, budget_s=0.0)


@without_torch
def test_without_torch_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert main(["profile", "--model", str(config), "--out", str(tmp_path / "p")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "plimsoll[profile]" in said
    assert not (tmp_path / "p").exists()


@without_torch
def test_collectives_need_torch_too() -> None:
    from plimsoll.profiler.collectives import measure_collectives

    assert measure_collectives(1, "cpu") == []
    with pytest.raises(MissingExtraError):
        measure_collectives(2, "cpu")


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"backend": "tensorflow"}, UnknownNameError, "--backend"),
        ({"device": "gpu"}, UnknownNameError, "--device"),
        ({"tp": 0}, InputError, "--tp"),
        ({"threads": 0}, InputError, "--threads"),
        ({"max_num_seqs": 2}, InputError, "at least 4 sequences"),
        ({"max_model_len": 100}, InputError, "256 tokens"),
        ({"backend": "vllm", "device": "cuda"}, InputError, "--backend torch"),
        ({"backend": "vllm"}, InputError, "tokenizer"),
        ({"model": None}, InputError, "--model"),
        ({"model": "no-such-model"}, InputError, "no-such-model"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    tmp_path: Path, fields: dict[str, object], error: type[Exception], said: str
) -> None:
    config = write_config(tmp_path)
    with pytest.raises(error, match=said):
        profile(**{"model": str(config), "folder": str(tmp_path / "p"), **fields})
    assert not (tmp_path / "p").exists()


@needs_torch
def test_every_operator_takes_time_at_a_tiny_size(tmp_path: Path) -> None:
    shape = shape_of(load_model(str(write_config(tmp_path))))
    backend = TorchBackend(shape, device="cpu", effort=QUICK)
    rows = [*backend.tokens(8), *backend.sequences(3)]
    assert [row["operator"] for row in rows] == [*token_operators(shape), "head", "sampler"]
    assert all(row["time_us"] > 0 for row in rows)
    for step in (
        decodes(2, 32),
        chunks(1, 16),
        chunks(2, 8, 24),
        Shape(num_prefill=1, chunk_tokens=8, num_decode=2, decode_length_tokens=16),
    ):
        assert backend.attention(step)["time_us"] > 0
        assert backend.whole(step)["measured_us"] > backend.attention(step)["time_us"] / 10


@needs_torch
def test_what_torch_cannot_do_is_refused(tmp_path: Path) -> None:
    shape = shape_of(load_model(str(write_config(tmp_path))))
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cpu"):
            TorchBackend(shape, device="cuda")
    with pytest.raises(InputError, match="fp16"):
        TorchBackend(shape, device="cpu", dtype="fp8")
    with pytest.raises(InfeasibleError, match="does not divide"):
        TorchBackend(shape, device="cpu", tp=3)


@needs_torch
def test_a_whole_profile_of_this_machine(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 256, "threads": 1}
    result = profile(model=str(config), folder=str(tmp_path / "p"), **fields)
    assert result.profiled.num_measured > 20
    assert read_own(tmp_path / "p").section("quality")["num_checks"] >= 8
    again = profile(model=str(config), folder=str(tmp_path / "p"), **fields)
    assert again.profiled.num_measured == 0
    assert again.profiled.num_kept > 20
