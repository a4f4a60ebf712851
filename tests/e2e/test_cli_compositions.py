"""Compositions as users write them: every one runs with its defaults, a plan takes them, what cannot be is refused."""

from __future__ import annotations

import re

import pytest

from plimsoll.perf.compositions import list_compositions
from tests.e2e.commands import DEPLOYMENT, PLAN, SIMULATE, run

Capture = pytest.CaptureFixture[str]
LOAD = ("--workload", "chat", "--rate", "4", "--num-requests", "20")
FLEXGEN = (
    "simulate", "--model", "facebook/opt-6.7b", "--gpu", "T4", "--engine", "flexgen,gpu-batch=4", "--prompt-tokens",
    "256", "--output-tokens", "32", "--at-once", "--num-requests", "8",
)  # fmt: skip


def on(gpu: str, *flags: str) -> tuple[str, ...]:
    return ("simulate", "--model", "Llama-3.1-8B", "--gpu", gpu, *LOAD, *flags)


@pytest.mark.parametrize("name", list_compositions())
def test_every_composition_runs_with_its_defaults(capsys: Capture, name: str) -> None:
    outcome = run(capsys, "simulate", *DEPLOYMENT, *LOAD, "--step-model", f"roofline+{name}", "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    document = outcome.json()
    assert document["counts"]["finished"] == 20
    assert [entry["name"] for entry in document["sources"]["step_model"]["compositions"]] == [name]


def test_a_study_takes_an_offloaded_cache(capsys: Capture) -> None:
    outcome = run(
        capsys,
        "study",
        "engines",
        "--engines",
        "vllm-v1,orca",
        *DEPLOYMENT,
        *LOAD,
        "--step-model",
        "roofline+kv_offload",
    )
    assert (outcome.code, outcome.stderr) == (0, "")


def test_a_plan_takes_compositions(capsys: Capture) -> None:
    """A fifth of the cache and of its reads: more requests a second from the same GPU."""
    plain, kept = (run(capsys, *PLAN, "--json", *flags) for flags in ((), ("--step-model", "roofline+h2o,ratio=0.2")))
    assert (kept.code, kept.stderr) == (0, "")
    plans = [outcome.json()["plans"][0] for outcome in (plain, kept)]
    assert plans[1]["capacity_per_s"]["value"] > plans[0]["capacity_per_s"]["value"]
    assert any("no launch flag is known for h2o" in note for note in kept.json()["notes"])


# Each: the command, and what its one line must hold.
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing behind the plus": (on("H100-SXM", "--step-model", "roofline+"), ("--step-model", "behind the +")),
    "an empty name": (on("H100-SXM", "--step-model", "roofline+h2o+,ratio=0.1"), ("write a name behind every +",)),
    "a plan's empty name": ((*PLAN, "--step-model", "roofline+"), ("--step-model", "behind the +")),
    "one twice": (on("H100-SXM", "--step-model", "roofline+h2o+h2o,ratio=0.1"), ("h2o+h2o", "once")),
    "a plan's unknown one": ((*PLAN, "--step-model", "roofline+hh2o"), ("hh2o", "did you mean h2o")),
    "two precisions": (on("H100-SXM", "--step-model", "roofline+awq+smoothquant"), ("smoothquant", "these are int4")),
    "two precisions, other way": (on("H100-SXM", "--step-model", "roofline+awq+llm_int8"), ("llm_int8", "are int4")),
    "quantised before": (
        on("H100-SXM", "--precision", "fp8", "--step-model", "roofline+awq"),
        ("awq", "these are fp8"),
    ),
    "no kernels": (on("B200", "--step-model", "roofline+smoothquant"), ("no precision int8 on B200", "use fp8")),
    "no kernels of AMD": (on("MI300X", "--step-model", "roofline+awq"), ("no precision int4 on MI300X", "fp8")),
    "a tier that is none": (on("H100-SXM", "--step-model", "roofline+kv_offload,tier=gpu"), ("'gpu'", "cpu")),
    "a rate below 0": (on("H100-SXM", "--step-model", "roofline+kv_offload,gb_per_s=-1"), ("gb_per_s", "above 0")),
    "a size below 0": (
        on("H100-SXM", "--step-model", "roofline+infinigen,capacity_gib=-1"),
        ("capacity_gib", "above 0"),
    ),
    "a tiny tier": (
        on("H100-SXM", "--step-model", "roofline+kv_offload,capacity_gib=0.002"),
        ("0.002 GiB of cpu", "1 blocks", "larger"),
    ),
    "more blocks than the tier": (
        on("H100-SXM", "--kv-blocks", "200000", "--step-model", "roofline+kv_offload"),
        ("200000 KV blocks", "256 GiB of cpu", "131,072 blocks"),
    ),
    "nothing kept": (on("H100-SXM", "--step-model", "roofline+h2o,ratio=0.0001"), ("ratio", "from 0.001")),
    "a placement": ((*PLAN, "--placement", "helr", "--step-model", "roofline+h2o"), ("--step-model", "placement")),
    "flexgen and nanoflow": ((*FLEXGEN, "--step-model", "roofline+nanoflow"), ("flexgen does not apply", "nanoflow")),
    "flexgen and drafts": ((*FLEXGEN, "--step-model", "roofline+speculative"), ("does not apply", "speculative")),
    "flexgen in 8 bit": ((*FLEXGEN, "--step-model", "roofline+kv_quantisation,bits=8"), ("16 or 4 bits", "bits=4")),
    "flexgen and silicon": ((*FLEXGEN, "--step-model", "silicon"), ("step cost of its own", "silicon")),
    "flexgen and blocks": ((*FLEXGEN, "--kv-blocks", "900"), ("--kv-blocks 900", "gpu-batch")),
    "flexgen and a block size": ((*FLEXGEN, "--block-size", "32"), ("--block-size 32", "gpu-batch")),
    "flexgen and a budget": ((*FLEXGEN, "--max-num-batched-tokens", "999"), ("--max-num-batched-tokens 999",)),
    "flexgen and a share": ((*FLEXGEN, "--gpu-memory-utilization", "0.5"), ("--gpu-memory-utilization 0.5", "80%")),
    "flexgen and a small cache": ((*FLEXGEN, "--kv-precision", "fp8"), ("fp8",)),
    "a plan with flexgen": ((*PLAN, "--engines", "flexgen"), ("--engines", "flexgen", "simulate or study")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(capsys: Capture, case: str) -> None:
    command, words = REFUSED[case]
    outcome = run(capsys, *command)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", outcome.stderr)
    for word in words:
        assert word in outcome.stderr


def test_weights_in_int8_fit_where_16_bit_do_not(capsys: Capture) -> None:
    fields = ("simulate", "--model", "Llama-2-13B", "--gpu", "L4", *LOAD, "--max-model-len", "2048")
    assert "GiB short" in run(capsys, *fields).stderr
    assert run(capsys, *fields, "--step-model", "roofline+llm_int8").code == 0


def test_an_offloaded_cache_takes_a_sequence_that_the_gpu_does_not(capsys: Capture) -> None:
    """16 GiB of cache for one sequence of 131,072 tokens, on a GPU of 24 GB that holds 16 of weights."""
    fields = (
        "simulate", "--model", "Llama-3.1-8B", "--gpu", "RTX-4090", "--prompt-tokens", "60000", "--output-tokens", "10",
        "--at-once", "--num-requests", "2", "--max-num-batched-tokens", "2048", "--max-model-len", "61000",
    )  # fmt: skip
    assert "GiB short" in run(capsys, *fields).stderr
    outcome = run(capsys, *fields, "--step-model", "roofline+kv_offload", "--json")
    assert outcome.json()["counts"]["finished"] == 2


def test_a_tier_bounds_the_cache_and_says_so(capsys: Capture) -> None:
    """The same share away: what the GPU holds grows with it, until CPU memory is full."""
    blocks = {}
    for share, gib in (("0.5", 4096), ("0.99", 4096), ("0.99", 256), ("0.99", 128)):
        stack = f"roofline+kv_offload,share={share},capacity_gib={gib}"
        document = run(capsys, *SIMULATE, "--step-model", stack, "--json").json()
        blocks[share, gib] = document["deployment"]["settings"]["num_kv_blocks"]
        bound = [note for note in document["notes"] if f"{gib:,} GiB of cpu for one GPU" in note]
        assert len(bound) == (gib < 4096)
    assert blocks["0.99", 4096] > 2 * blocks["0.5", 4096]
    assert blocks["0.99", 256] == int(256 * 2**30 / (0.99 * 2 * 2**20))  # 2 MiB a block
    assert blocks["0.99", 128] == blocks["0.99", 256] // 2
