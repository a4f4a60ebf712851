"""A small bundle with round numbers, composed by hand; and everything that a profile is refused for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError, UnknownNameError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf.build import build_step_model, list_step_models
from plimsoll.perf.overheads import Overheads
from plimsoll.perf.profiles.links import ONE_SHOT_BELOW_BYTES, Machine, Messages, cost_of, find_machine
from plimsoll.perf.request import StepModelRequest

LLAMA = load_model("meta-llama/Llama-3.1-8B")
CARD = load_accelerator("RTX-4090")
LAYERS = 32
US = 1e-6


def write_bundle(folder: Path, *, unit: float = 1.0, meta: str = "", tp: int = 1) -> Path:
    """Plausible on an RTX 4090: matrix products near its peak, attention near its bandwidth."""
    target = folder / f"tp{tp}"
    target.mkdir(parents=True)
    (folder / "meta.yaml").write_text(meta or "model: meta-llama/Llama-3.1-8B\ngpu: NVIDIA GeForce RTX 4090\n")

    def write(name: str, header: str, rows: list[tuple[Any, ...]]) -> None:
        lines = [",".join(map(str, (*row[:-1], row[-1] * unit))) for row in rows]
        (target / name).write_text("\n".join([header, *lines]) + "\n")

    products = {"qkv_proj": 0.35, "o_proj": 0.25, "gate_up_proj": 1.5, "down_proj": 0.75}
    dense = [(name, t, 50 + rate * t) for name, rate in products.items() for t in (1, 64, 2048)]
    small = ("layernorm", "embedding", "final_layernorm", "rotary_emb", "act_fn")
    dense += [(name, t, 2 + t / 256) for name in small for t in (1, 64, 2048)]
    write("dense.csv", "layer,tokens,time_us", dense)
    heads = (("lm_head", 1000, 5), ("sampler", 20, 1))
    head = [(name, n, base + rate * n) for name, base, rate in heads for n in (1, 64, 256)]
    write("per_sequence.csv", "layer,sequences,time_us", head)
    attention: list[tuple[Any, ...]] = [(0, 0, n, kv, 8 + 0.006 * n * kv) for n in (1, 64, 256) for kv in (16, 8192)]
    for chunk in (16, 2048):
        for context in (0, 8192):
            alone = 8 + 0.01 * chunk + chunk * context / 40_000
            attention.append((chunk, context, 0, 0, alone))
            attention += [
                (chunk, context, n, kv, alone + 0.007 * n * kv)
                for n in (1, 64)
                for kv in (16, 8192)
                if not (chunk == 2048 and context == 8192 and n == 64)  # a hole
            ]
    write("attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", attention)
    return folder


def build(folder: Path, **changes: Any) -> Any:
    given = {"model": LLAMA, "gpu": CARD, **changes}
    return build_step_model(f"profile:{folder}", StepModelRequest(**given))


def test_is_found_by_name() -> None:
    assert "profile" in list_step_models()


def test_a_decode_step_is_the_sum_of_its_measured_parts(tmp_path: Path) -> None:
    model = build(write_bundle(tmp_path / "bf16"))
    products = 4 * 50 + 64 * (0.35 + 0.25 + 1.5 + 0.75)
    norm = 2 + 64 / 256
    layer = products + 4 * norm + 8 + 0.006 * 64 * 8192
    expected = LAYERS * layer + 2 * norm + (1000 + 5 * 64) + (20 + 64)
    assert model.step_s(0, 0, 0, 0, 0, 64, 64 * 8192) == pytest.approx(expected * US, rel=1e-12)


def test_a_prompt_step_is_the_sum_of_its_measured_parts(tmp_path: Path) -> None:
    model = build(write_bundle(tmp_path / "bf16"))
    products = 4 * 50 + 2048 * (0.35 + 0.25 + 1.5 + 0.75)
    norm = 2 + 2048 / 256
    alone = 8 + 0.01 * 2048
    expected = LAYERS * (products + 4 * norm + alone) + 2 * norm + (1000 + 5) + (20 + 1)
    pairs = 2048 * 2049 // 2
    assert model.step_s(2048, 1, pairs, 0, 1, 0, 0) == pytest.approx(expected * US, rel=1e-12)
    behind = model.step_s(2048, 1, pairs + 2048 * 8192, 8192, 1, 0, 0)
    assert behind == pytest.approx((expected + LAYERS * 2048 * 8192 / 40_000) * US, rel=1e-12)


def test_tokens_cost_the_next_measured_size(tmp_path: Path) -> None:
    model = build(write_bundle(tmp_path / "bf16"))
    flat = model.step_s(0, 0, 0, 0, 0, 40, 40 * 16) - model.step_s(0, 0, 0, 0, 0, 39, 39 * 16)
    assert flat == pytest.approx(LAYERS * 0.006 * 16 * US, rel=1e-6)


def test_several_prompts_cost_less_than_one_of_the_same_tokens_and_a_hole_is_bridged(tmp_path: Path) -> None:
    model = build(write_bundle(tmp_path / "bf16"))
    one = model.step_s(1024, 1, 1024 * 1025 // 2, 0, 1, 0, 0)
    four = model.step_s(1024, 4, 4 * 256 * 257 // 2, 0, 1, 0, 0)
    assert four < one
    in_the_hole = model.step_s(1900, 1, 1900 * (8000 + 950), 8000, 1, 64, 64 * 100)
    beside_it = model.step_s(1900, 1, 1900 * (8000 + 950), 8000, 1, 1, 100)
    assert in_the_hole > beside_it


def test_overheads_come_on_top(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    host = Overheads(per_step_s=1e-3, per_sequence_s=1e-5, per_prefill_token_s=1e-7)
    bare, loaded = build(folder), build(folder, overheads=host)
    assert loaded.step_s(0, 0, 0, 0, 0, 8, 800) - bare.step_s(0, 0, 0, 0, 0, 8, 800) == pytest.approx(1e-3 + 8e-5)
    mixed = (100, 1, 5050, 0, 1, 8, 800)
    assert loaded.step_s(*mixed) - bare.step_s(*mixed) == pytest.approx(1e-3 + 9e-5 + 1e-5)
    assert loaded.step_s(0, 0, 0, 0, 0, 0, 0) == 1e-3


SKEW = """model: meta-llama/Llama-3.1-8B
skew_fit: {enabled: %s, per_tp: {1: {alpha_default: 0.25}}}
"""


def test_uneven_lengths_lie_between_mean_and_longest(tmp_path: Path) -> None:
    model = build(write_bundle(tmp_path / "on" / "bf16", meta=SKEW % "true"))
    mean, longest = model.step_s(0, 0, 0, 0, 0, 8, 8 * 1000), model.step_s(0, 0, 0, 0, 0, 8, 8 * 5000)
    assert model.needs_longest
    uneven = model.step_s(0, 0, 0, 0, 0, 8, 8 * 1000, 5000)
    assert uneven == pytest.approx(mean + 0.25 * (longest - mean), rel=1e-12)
    chunk = (100, 1, 5050, 0, 1)
    mean, longest = model.step_s(*chunk, 8, 8 * 1000), model.step_s(*chunk, 8, 8 * 5000)
    assert model.step_s(*chunk, 8, 8 * 1000, 5000) == pytest.approx(mean + 0.25 * (longest - mean), rel=1e-12)


def test_a_skew_sweep_that_was_off_is_not_used(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16", meta=SKEW % "false")
    (folder / "tp1" / "skew_fit.csv").write_text("pc,n_label,skew_rate_label,kv_big_label,kp_label,alpha,n_samples\n")
    model = build(folder)
    assert not model.needs_longest
    assert model.step_s(0, 0, 0, 0, 0, 8, 8000, 5000) == model.step_s(0, 0, 0, 0, 0, 8, 8000)
    on = write_bundle(tmp_path / "on" / "bf16", meta=SKEW % "true")
    assert not build(on, options={"skew": False}).needs_longest


@pytest.mark.parametrize(
    "step",
    [
        (2040, 1, 2040 * 1020, 0, 1, 16, 1600),
        (0, 0, 0, 0, 0, 300, 300 * 100),
        (0, 0, 0, 0, 0, 4, 4 * 9000),
        (16, 1, 16 * 9000, 9000, 1, 0, 0),
    ],
    ids=["tokens", "decodes", "length", "context"],
)
def test_outside_what_was_measured_is_refused_unless_allowed(tmp_path: Path, step: tuple[int, ...]) -> None:
    folder = write_bundle(tmp_path / "bf16")
    names = [field.name for field in dataclasses.fields(StepShape)]
    shape = StepShape(**dict(zip(names, step, strict=False)))
    strict, loose = build(folder), build(folder, options={"allow_extrapolation": True})
    with pytest.raises(OutOfRangeError, match="measured up to"):
        strict.step_s(*step)
    assert not strict.covers(shape)
    assert loose.step_s(*step) > 0
    assert loose.step(shape).source == Source.ASSUMED


def test_microseconds_read_from_another_unit_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="faster than RTX-4090"):
        build(write_bundle(tmp_path / "milliseconds" / "bf16", unit=1e-3))
    with pytest.raises(InputError, match="slower than RTX-4090"):
        build(write_bundle(tmp_path / "nanoseconds" / "bf16", unit=1e3))


def test_another_model_another_gpu_another_degree(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    with pytest.raises(InputError, match=r"is of meta-llama/Llama-3\.1-8B"):
        build(folder, model=load_model("Qwen/Qwen3-32B"))
    with pytest.raises(InputError, match="is of NVIDIA GeForce RTX 4090"):
        build(folder, gpu=load_accelerator("H100-SXM"))
    with pytest.raises(OutOfRangeError, match=r"degrees \[1\], not 2"):
        build(folder, parallelism=Parallelism(tp=2))
    with pytest.raises(InputError, match="degree 1"):
        build(folder / "tp1", parallelism=Parallelism(tp=2))
    with pytest.raises(InfeasibleError, match="pipeline"):
        build(folder, parallelism=Parallelism(pp=2))
    with pytest.raises(InputError, match="every token"):
        build(write_bundle(tmp_path / "w" / "bf16", meta="gpu: x\n"), model=load_model("google/gemma-2-9b-it"))
    assert build(folder / "tp1").step_s(0, 0, 0, 0, 0, 1, 16) > 0


def test_broken_files_are_named_with_their_line(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    dense = folder / "tp1" / "dense.csv"
    text = dense.read_text()
    dense.write_text(text + "o_proj,4096,fast\n")
    with pytest.raises(InputError, match=r"dense\.csv line 29, time_us"):
        build(folder)
    dense.write_text(text + "o_proj,many,5\n")
    with pytest.raises(InputError, match="whole numbers"):
        build(folder)
    dense.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="layer,tokens,time_us"):
        build(folder)
    dense.unlink()
    with pytest.raises(InputError, match="missing"):
        build(folder)
    (folder / "meta.yaml").unlink()
    with pytest.raises(InputError, match=r"meta\.yaml"):
        build(folder)
    with pytest.raises(InputError, match="folder of a profile"):
        build(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no tp1"):
        build(tmp_path)
    with pytest.raises(InputError, match="name the folder"):
        build_step_model("profile", StepModelRequest(model=LLAMA, gpu=CARD))
    with pytest.raises(UnknownNameError, match="allow_extrapolation"):
        build(folder, options={"allow_extrapolatoin": True})


def test_links_of_the_machine_before_those_of_the_catalogue(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "profiles" / "bf16", tp=2)
    catalogue = build(folder, parallelism=Parallelism(tp=2))
    assert catalogue.describe()["links"] == "catalogue"
    machines = {"RTX-4090": {"link_bandwidth_bytes_per_s": 1e10, "link_latency_s": 1e-5}, "source": "a test"}
    (tmp_path / "machines.json").write_text(json.dumps(machines))
    measured = build(folder, parallelism=Parallelism(tp=2))
    assert measured.describe()["links"] == "machines.json"
    assert measured.source == Source.MODELLED
    machine = find_machine(folder / "tp2", CARD)
    reduce = cost_of("all_reduce", 2, CARD, machine)
    assert reduce.of(1e6) == pytest.approx(2e-5 + 1e6 / 1e10)
    assert cost_of("all_gather", 4, CARD, machine).of(1e6) == pytest.approx(3e-5 + 0.75 * 1e6 / 1e10)
    (tmp_path / "machines.json").write_text('{"RTX-4090": {"link_latency_s": 1}}')
    with pytest.raises(InputError, match="link_bandwidth"):
        build(folder, parallelism=Parallelism(tp=2))


RING = Machine(bytes_per_s=1e10, latency_s=1e-5, origin="a test")


def messages(tp: int, machine: Machine | None = RING, **options: bool) -> Messages:
    return Messages(LLAMA, CARD, Parallelism(tp=tp), machine, **options)


def test_two_cards_sum_short_messages_in_one_exchange_and_long_ones_around_the_ring() -> None:
    row_bytes, sums = 2 * 4096, 2 * LAYERS + 1
    fits = ONE_SHOT_BELOW_BYTES // row_bytes - 1
    assert fits == 1023
    assert messages(2).of(fits, fits) == pytest.approx(sums * (1e-5 + fits * row_bytes / 1e10))
    assert messages(2).of(fits + 1, fits + 1) == pytest.approx(sums * (2e-5 + (fits + 1) * row_bytes / 1e10))
    ring = messages(2, custom_all_reduce=False)
    assert ring.of(fits, fits) == pytest.approx(sums * (2e-5 + fits * row_bytes / 1e10))
    assert ring.of(fits + 1, fits + 1) == messages(2).of(fits + 1, fits + 1)
    assert messages(2).of_logits(7) == ring.of_logits(7), "logits are gathered, not summed"


@pytest.mark.parametrize(("tp", "machine"), [(4, RING), (2, None), (1, RING)])
def test_more_cards_and_catalogued_links_are_as_without_the_kernel(tp: int, machine: Machine | None) -> None:
    with_kernel, without = messages(tp, machine), messages(tp, machine, custom_all_reduce=False)
    assert [with_kernel.of(n, n) for n in (1, 100, 5000)] == [without.of(n, n) for n in (1, 100, 5000)]
    assert (with_kernel.of(100, 100) > 0) == (tp > 1)


def test_a_server_without_the_kernel_can_be_told(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "profiles" / "bf16", tp=2)
    machines = {"RTX-4090": {"link_bandwidth_bytes_per_s": 1e10, "link_latency_s": 1e-5}}
    (tmp_path / "machines.json").write_text(json.dumps(machines))
    two = Parallelism(tp=2)
    default = build(folder, parallelism=two).step_s(0, 0, 0, 0, 0, 8, 800)
    ring = build(folder, parallelism=two, options={"custom_all_reduce": False}).step_s(0, 0, 0, 0, 0, 8, 800)
    assert ring - default == pytest.approx((2 * LAYERS + 1) * 1e-5)
    written = build_step_model(
        f"profile:{folder},custom_all_reduce=false", StepModelRequest(model=LLAMA, gpu=CARD, parallelism=two)
    )
    assert written.step_s(0, 0, 0, 0, 0, 8, 800) == ring
