"""What is measured on: names, limits, and the accelerator file of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.perf.profiles.own_shape import shape_of
from plimsoll.perf.profiles.own_work import calls_of, matrix_of, work_of
from plimsoll.profiler.device import cpu_device, cuda_device, device_toml, memory_bytes, usable_cores


@pytest.mark.parametrize(
    ("flags", "per_clock"),
    [("avx2", 64), ("avx2 avx512f", 128), ("avx512f amx_bf16", 2048), ("sse", 128), ("", 128)],
)
def test_a_cpus_limit_is_that_of_its_widest_units(flags: str, per_clock: int) -> None:
    device = cpu_device(3, f"model name : Some CPU @ 2.0GHz\nflags : {flags}\n")
    assert device.flop_per_s == 3 * per_clock * 5.5e9
    assert device.id == "cpu-some-cpu-2-0ghz-3c"
    assert device.name == "Some CPU @ 2.0GHz, 3 cores"
    assert not device.catalogued


def test_an_arm_cpu_has_features() -> None:
    assert cpu_device(1, "Features : fp asimd bf16\n").flop_per_s == 128 * 5.5e9


def test_this_machine_has_a_cpu() -> None:
    cores = usable_cores()
    device = cpu_device(len(cores))
    assert device.num_cores == len(cores) >= 1
    assert device.flop_per_s > 1e10


def test_its_file_is_an_accelerator(tmp_path: Path) -> None:
    device = cpu_device(2, 'model name : Odd "quoted" CPU\nflags : avx512f\n')
    file = tmp_path / "device.toml"
    file.write_text(device_toml(device, 8 * 2**30))
    found = load_accelerator(str(file))
    assert found.id == device.id
    assert found.vendor == "cpu"
    assert found.dense_flop_per_s["bf16"] == pytest.approx(device.flop_per_s, rel=1e-3)
    assert found.memory_bytes == 8 * 2**30


def test_a_catalogued_gpu_is_known_by_its_cuda_name() -> None:
    device = cuda_device("NVIDIA L4")
    assert (device.id, device.catalogued, device.flop_per_s) == ("L4", True, 121e12)
    other = cuda_device("NVIDIA Nonesuch 9000")
    assert (other.id, other.catalogued) == ("NVIDIA Nonesuch 9000", False)


def test_memory_is_read_where_it_is_told() -> None:
    assert memory_bytes("MemTotal:       16384 kB\n") == 16384 * 1024
    assert memory_bytes("nothing") == 0


# The model's sizes -----------------------------------------------------------------------------------------------


def test_sizes_and_work_of_llama() -> None:
    shape = shape_of(load_model("meta-llama/Llama-3.1-8B"))
    assert shape["num_layers"] == 32
    assert matrix_of("qkv_proj", shape) == (4096, (32 + 16) * 128)
    assert matrix_of("gate_up_proj", shape) == (4096, 2 * 14336)
    assert matrix_of("down_proj", shape, tp=2) == (7168, 4096)
    assert matrix_of("qkv_proj", shape, tp=16) == (4096, (2 + 2) * 128)  # key-value heads are copied, not cut
    assert matrix_of("norm", shape) is None
    assert work_of("o_proj", shape) == (2 * 4096 * 4096, 2 * 4096 * 4096)
    assert work_of("norm", shape) == (0, 0)
    assert calls_of(shape)["norm"] == 65
    matrices = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    weights = sum(work_of(name, shape)[1] * calls_of(shape)[name] for name in matrices)
    assert weights == pytest.approx(2 * 6.98e9, rel=0.01)
