"""FlexGen as an engine: the placement's throughput comes out of the simulation, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.simulation import SimulationResult, simulate
from plimsoll.api.study import study_engines
from plimsoll.calibration import Calibration
from plimsoll.calibration.document import to_text
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.perf.offload.hardware import load_machine
from plimsoll.perf.offload.machines import machine_for

AUTHORS = "flexgen,gpu-batch=48,num-gpu-batches=3,percent=20/80/0/100/0/100"


def run(engine: str, **changes: Any) -> SimulationResult:
    fields = {
        "model": "facebook/opt-30b",
        "gpu": "T4",
        "prompt_tokens": 512,
        "output_tokens": 32,
        "at_once": True,
        "num_requests": 288,
        **changes,
    }
    return simulate(**fields, engine=engine)


def test_the_authors_configuration_gives_the_papers_throughput() -> None:
    """Table 2 of arXiv 2303.06865: 7.32 tokens/s for OPT-30B at 512 + 32 on one T4; here through the engine's steps."""
    result = run(AUTHORS)
    assert result.metrics.output_tokens_per_s == pytest.approx(7.32, rel=0.05)
    assert result.resolved.config.max_num_seqs == 144
    assert "weights 20/80/0, cache 0/100/0" in result.resolved.memory.breakdown


def test_simulated_steps_add_up_to_the_cost_model() -> None:
    """Full blocks of equal lengths: the engine's throughput is the equations'."""
    result = run(AUTHORS, num_requests=144)
    words = result.resolved.memory.breakdown.split("; ")[-1]
    assert result.metrics.output_tokens_per_s == pytest.approx(float(words.split()[0]), rel=0.01)


def test_the_search_places_what_does_not_fit_on_the_gpu() -> None:
    result = run("flexgen", num_requests=64)
    memory = result.resolved.memory
    assert memory.weight_bytes < 16e9 < 60e9  # OPT-30B has 60 GB of weights, a T4 16 GB of memory
    assert result.run.finished.all()


def test_blocks_are_static() -> None:
    """Nobody of a block is answered before all are, and the second block starts after the first."""
    result = run("flexgen,gpu-batch=8,num-gpu-batches=2", num_requests=32)
    ends = sorted(set(result.run.finish_s.tolist()))
    assert len(ends) == 2
    starts = sorted(set(result.run.scheduled_s.tolist()))
    assert starts == [0.0, ends[0]]


def test_four_bit_cache_makes_a_large_model_faster() -> None:
    """Table 2: OPT-175B at 512 + 32 does 0.69 tokens/s from the disk, 1.12 with everything in 4 bit."""
    fields = {"model": "facebook/opt-175b", "num_requests": 48}
    plain = run("flexgen,gpu-batch=16,num-gpu-batches=3", **fields)
    packed = run("flexgen,gpu-batch=16,num-gpu-batches=3,compress-weights=true,compress-cache=true", **fields)
    assert packed.run.end_s < plain.run.end_s


SUITE = "flexgen,gpu-batch=52,num-gpu-batches=14,percent=0/100/0/100/0/100"
"""The H2O repository's run of OPT-30B at 512 + 32: every tensor in CPU memory."""


def test_h2o_over_flexgen_gives_the_papers_throughput() -> None:
    """arXiv 2306.14048, its suite: 12.7 tokens/s at 20 % of the cache, where FlexGen alone does 8.1; without H2O this
    block of 728 sequences does not fit into CPU memory."""
    result = run(SUITE, num_requests=728, step_model="roofline+h2o,ratio=0.2,max_tokens=512")
    assert result.metrics.output_tokens_per_s == pytest.approx(12.7, rel=0.05)
    assert result.metrics.output_tokens_per_s > 1.5 * run(AUTHORS).metrics.output_tokens_per_s
    facts = result.resolved.step_model_facts
    assert (facts["step_model"], [entry["name"] for entry in facts["compositions"]]) == ("flexgen", ["h2o"])
    with pytest.raises(InfeasibleError, match="CPU memory"):
        run(SUITE, num_requests=728)


@pytest.mark.parametrize(
    "stack",
    ["h2o,ratio=0.2,max_tokens=512", "h2o,ratio=0.3", "kv_quantisation,group=64", "h2o,ratio=0.2+kv_quantisation"],
)
def test_composed_steps_add_up_to_the_cost_model(stack: str) -> None:
    """Full blocks of equal lengths, everything in CPU memory: the engine's throughput is that of the equations."""
    engine = "flexgen,gpu-batch=48,num-gpu-batches=3,percent=0/100/0/100/0/100"
    result = run(engine, num_requests=144, step_model=f"roofline+{stack}")
    words = result.resolved.memory.breakdown.split("; ")[-1]
    assert result.metrics.output_tokens_per_s == pytest.approx(float(words.split()[0]), rel=0.01)


def test_a_quantised_cache_is_flexgens_own() -> None:
    """The composition with FlexGen's group of 64 is its compress-cache option; a larger group stores less."""
    engine = "flexgen,gpu-batch=48,num-gpu-batches=3,percent=0/100/0/100/0/100"
    option = run(f"{engine},compress-cache=true", num_requests=144)
    same = run(engine, num_requests=144, step_model="roofline+kv_quantisation,group=64")
    assert same.run.end_s == option.run.end_s
    assert same.resolved.memory.block_bytes == option.resolved.memory.block_bytes
    plain, wider = (
        run(engine, num_requests=144, **fields).resolved.memory.block_bytes
        for fields in ({}, {"step_model": "roofline+kv_quantisation"})
    )
    assert same.resolved.memory.block_bytes == pytest.approx(plain * 4.5 / 16)
    assert wider == pytest.approx(plain * 4.25 / 16)
    assert any("FlexGen's own 4-bit cache" in note for note in same.notes)


def test_the_search_uses_the_room_that_h2o_leaves() -> None:
    plain, kept = (run("flexgen", num_requests=64, step_model=name) for name in ("roofline", "roofline+h2o"))
    assert kept.resolved.config.max_num_seqs > plain.resolved.config.max_num_seqs
    assert kept.run.end_s < plain.run.end_s


def test_a_study_keeps_flexgens_own_steps() -> None:
    """Where the others use another step model, FlexGen keeps its own; what it cannot apply it is left out for."""
    fields = {"model": "facebook/opt-6.7b", "gpu": "T4", "prompt_tokens": 128, "output_tokens": 16, "at_once": True}
    study = study_engines(
        engines="fastertransformer,flexgen", num_requests=4, max_num_seqs=4, step_model="vllm-roofline", **fields
    )
    facts = {name: result.resolved.step_model_facts["step_model"] for name, result in study.results.items()}
    assert facts == {"fastertransformer": "vllm-roofline", "flexgen": "flexgen"}
    left = study_engines(engines="fastertransformer,flexgen", num_requests=4, step_model="roofline+nanoflow", **fields)
    assert "does not apply the composition nanoflow" in left.refused["flexgen"]


def test_a_calibration_is_applied_or_refused(tmp_path: Path) -> None:
    """One measured with FlexGen scales its steps; one of another engine says nothing of them."""
    files = {}
    for engine in ("flexgen", "vllm-v1"):
        found = Calibration(
            model="facebook/opt-30b", gpu="T4", step_model="roofline", circumstances={"engine": engine},
            factors={"compute": 2.0, "bandwidth": 2.0}, error_before=0.5, error_after=0.1,
        )  # fmt: skip
        files[engine] = tmp_path / f"{engine}.json"
        files[engine].write_text(to_text(found), encoding="utf-8")
    plain, twice = run(AUTHORS, num_requests=144), run(AUTHORS, num_requests=144, calibration=str(files["flexgen"]))
    assert twice.run.end_s == pytest.approx(2 * plain.run.end_s)
    with pytest.raises(InfeasibleError, match=r"measured with vllm-v1.*leave --calibration out"):
        run(AUTHORS, calibration=str(files["vllm-v1"]))


def test_other_gpus_are_scaled_and_said_so() -> None:
    result = run("flexgen,gpu-batch=4", gpu="L4", model="facebook/opt-6.7b", num_requests=8)
    assert any("nobody published" in note for note in result.notes)
    scaled, note = machine_for(load_accelerator("L4"))
    assert note
    ratio = load_accelerator("L4").memory_bandwidth_bytes_per_s / load_accelerator("T4").memory_bandwidth_bytes_per_s
    assert scaled.gpu_memory_bytes_per_s == pytest.approx(ratio * load_machine("t4-gcp").gpu_memory_bytes_per_s)
    assert scaled.cpu_flop_per_s == load_machine("t4-gcp").cpu_flop_per_s
    assert machine_for(load_accelerator("T4"))[1] == ""


@pytest.mark.parametrize(
    ("engine", "changes", "error", "message"),
    [
        ("flexgen,percent=20/80", {}, InputError, "six shares"),
        ("flexgen,percent=90/80/0/100/0/100", {}, InputError, "six shares"),
        ("flexgen,gpu-batch=-1", {}, InputError, "at least 1"),
        ("flexgen,machine=t5", {}, UnknownNameError, "t4-gcp"),
        ("flexgen,colour=1", {}, InputError, "its options are"),
        ("flexgen", {"tp": 2}, InfeasibleError, "one GPU"),
        ("flexgen,percent=100/0/0/100/0/100", {}, InfeasibleError, "GPU memory"),
        ("flexgen", {"step_model": "silicon"}, InfeasibleError, "step cost of its own"),
        ("flexgen", {"step_model": "roofline+nanoflow"}, InfeasibleError, "does not apply the composition nanoflow"),
        ("flexgen", {"step_model": "roofline+h2o+speculative"}, InfeasibleError, "speculative"),
        ("flexgen", {"step_model": "roofline+kv_quantisation,bits=2"}, InfeasibleError, "16 or 4 bits"),
        ("flexgen,compress-cache=true", {"step_model": "roofline+kv_quantisation"}, InputError, "already"),
        ("flexgen", {"step_model": "roofline+h2o,ratio=2"}, InputError, "up to 1"),
        ("flexgen", {"kv_blocks": 100}, InfeasibleError, "--kv-blocks 100"),
        ("flexgen", {"max_num_batched_tokens": 100}, InfeasibleError, "--max-num-batched-tokens 100"),
        ("flexgen", {"gpu_memory_utilization": 0.5}, InfeasibleError, "--gpu-memory-utilization 0.5"),
        ("flexgen", {"block_size": 32}, InfeasibleError, "--block-size 32"),
        ("flexgen", {"overheads": "vllm-v1"}, InfeasibleError, "--overheads vllm-v1"),
        ("flexgen", {"precision": "int8"}, InfeasibleError, "--precision int8"),
        ("flexgen,gpu-batch=512,num-gpu-batches=512", {"prompt_tokens": 1500}, InfeasibleError, "fits no placement"),
    ],
)
def test_what_cannot_be_is_refused(engine: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(engine, **changes)
