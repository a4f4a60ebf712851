"""Profiles of models with experts, windows and latent attention: what is measured, and how the step model reads it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.profiling import profile
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.counting import attention_layers, weight_bytes_breakdown
from plimsoll.catalog.models import list_models, load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError, PlimsollError
from plimsoll.engine.replicas.replica_state import window_pairs
from plimsoll.perf.build import build_step_model
from plimsoll.perf.profiles.own_experts import OwnExperts, expected_experts, most_experts
from plimsoll.perf.profiles.own_format import ATTENTION, EXPERTS, WINDOWED, read_own
from plimsoll.perf.profiles.own_layers import folding_of, unfolded_length
from plimsoll.perf.profiles.own_shape import plain_shape_of, shape_of
from plimsoll.perf.profiles.own_work import calls_of, expert_work_of, matrix_of, token_operators, work_of
from plimsoll.perf.request import StepModelRequest
from plimsoll.profiler.shapes import Limits, Shape, chunks, decodes
from plimsoll.profiler.survey import Survey
from tests.own_kinds import KINDS, KindsFormula, experts_us, make_kind, step_us, write_kind
from tests.own_profiles import open_store

US = 1e-6
Made = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return {kind: make_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def build(folder: Path | str, config: Path, **changes: Any) -> Any:
    own = Path(str(folder).partition(",")[0])
    given = {"model": load_model(str(config)), "gpu": load_accelerator(str(own / "device.toml")), **changes}
    return build_step_model(f"profile:{folder}", StepModelRequest(**given))


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text()
    changed = change(text)
    assert changed != text
    file.write_text(changed)


# Sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_tell_the_kinds_of_layers_apart() -> None:
    mixtral = shape_of(load_model("mistralai/Mixtral-8x7B-v0.1"))
    assert (mixtral["num_experts"], mixtral["experts_per_token"], mixtral["num_moe_layers"]) == (8, 2, 32)
    assert (mixtral["intermediate_size"], mixtral["mlp_matrices"], "window" in mixtral) == (0, 3, False)
    gemma = shape_of(load_model("google/gemma-2-9b"))
    assert (gemma["window"], gemma["num_window_layers"], gemma["num_layers"]) == (4096, 21, 42)
    assert gemma["norms_per_layer"] == 4
    latent = shape_of(load_model("deepseek-ai/DeepSeek-V2-Lite"))
    assert (latent["kv_lora_rank"], latent["q_lora_rank"], latent["num_moe_layers"]) == (512, 0, 26)
    assert latent["shared_size"] == 2 * 1408
    assert shape_of(load_model("Qwen/Qwen3-8B"))["qk_norm"] == 1
    assert shape_of(load_model("mistralai/Mistral-7B-v0.1"))["num_window_layers"] == 32


def test_every_model_is_known_or_refused_by_what_it_has() -> None:
    """And where it is known, the profile folds windows as the engine and the memory model do."""
    refused = set()
    for name in list_models():
        model = load_model(name)
        try:
            sizes = shape_of(model)
        except PlimsollError as error:
            refused.add(str(error).split("know no ")[1].split(";")[0])
            continue
        assert set(folding_of(sizes)) == set(attention_layers(model)), name
    assert refused == {"layers without attention, or with a state instead of it", "sparse attention with an indexer"}


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B",
        "mistralai/Mixtral-8x7B-v0.1",
        "Qwen/Qwen3-30B-A3B",
        "Qwen/Qwen2-57B-A14B",
        "google/gemma-2-9b",
        "openai/gpt-oss-20b",
        "deepseek-ai/DeepSeek-V2-Lite",
        "deepseek-ai/DeepSeek-V3",
    ],
)
def test_operators_hold_the_models_weights(name: str) -> None:
    """All matrices together are those of the memory model; the up projection of latents is part of attention."""
    model = load_model(name)
    sizes, counted = shape_of(model), weight_bytes_breakdown(model, "bf16")
    calls = calls_of(sizes)
    names = [name for name in token_operators(sizes) if name not in ("embedding", "router")]
    found = sum(calls[name] * work_of(name, sizes)[1] for name in names)
    if "kv_lora_rank" in sizes:
        up = sizes["num_heads"] * (sizes["qk_nope_head_dim"] + sizes["v_head_dim"])
        found += 2 * sizes["num_layers"] * sizes["kv_lora_rank"] * up
    if "num_experts" in sizes:
        found += calls["experts"] * sizes["num_experts"] * expert_work_of(sizes)[1]
    expected = counted.attention_bytes + counted.dense_mlp_bytes + counted.expert_bytes
    if "kv_lora_rank" in sizes:  # every rank's, which the memory model counts with the norms
        expected += 2 * sizes["num_layers"] * sizes["hidden_size"] * (sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"])
        expected += 2 * sizes["num_layers"] * sizes["hidden_size"] * sizes["q_lora_rank"]
    assert found == pytest.approx(expected, rel=1e-9)


def test_experts_are_cut_by_tensor_parallelism() -> None:
    sizes = shape_of(load_model("mistralai/Mixtral-8x7B-v0.1"))
    flop, weights = expert_work_of(sizes)
    assert flop == 2 * 2 * 3 * 4096 * 14336
    assert weights == 2 * 3 * 4096 * 14336
    assert expert_work_of(sizes, tp=2) == (flop // 2, weights // 2)
    assert matrix_of("router", sizes, tp=2) == (4096, 8)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deepseek-ai/DeepSeek-V3.2", "sparse attention"),
        ("ai21labs/Jamba-v0.1", "layers without attention"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "layers without attention"),
    ],
)
def test_what_is_not_measured_is_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(InputError, match=f"know no {what}"):
        shape_of(load_model(name))


def test_odd_mixtures_are_refused_by_name() -> None:
    gemma, mixtral = load_model("google/gemma-2-9b"), load_model("mistralai/Mixtral-8x7B-v0.1")
    first, second = gemma.groups
    other = dataclasses.replace(second, mixer=dataclasses.replace(second.mixer, window=17))
    wide = dataclasses.replace(second, mlp=dataclasses.replace(second.mlp, intermediate_size=1))
    heads = dataclasses.replace(second, mixer=dataclasses.replace(second.mixer, num_kv_heads=1))
    bare = dataclasses.replace(mixtral.groups[0], mlp=None)
    for model, what in (
        (dataclasses.replace(gemma, groups=(first, second, other)), "several windows"),
        (dataclasses.replace(gemma, groups=(first, wide)), "several widths"),
        (dataclasses.replace(gemma, groups=(first, heads)), "differs in more than its window"),
        (dataclasses.replace(mixtral, groups=(bare,)), "without a feed-forward part"),
    ):
        with pytest.raises(InputError, match=what):
            shape_of(model)


@pytest.mark.parametrize(
    ("kind", "what"), [("mixtral", "experts"), ("mistral", "sliding windows"), ("deepseek", "experts and latent")]
)
def test_the_vllm_backend_refuses_what_its_probe_does_not_know(tmp_path: Path, kind: str, what: str) -> None:
    config = write_kind(tmp_path / "model", kind)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=f"the vllm backend times no {what}"):
        profile(model=str(config.parent), backend="vllm", folder=str(tmp_path / "p"))
    assert not (tmp_path / "p").exists()
    with pytest.raises(InputError, match="Vidur's profiles hold no"):
        plain_shape_of(load_model(str(config)), "Vidur's profiles hold")


# Surveys and steps -----------------------------------------------------------------------------------------------

STEPS = [
    decodes(1, 16),
    decodes(5, 150),
    decodes(5, 700),
    decodes(32, 1151),
    chunks(1, 512),
    chunks(1, 100, 20),
    chunks(1, 100, 150),
    chunks(1, 300, 639),
    chunks(4, 128),
    Shape(num_prefill=1, chunk_tokens=200, num_decode=20, decode_length_tokens=400),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_a_step_is_what_the_machine_takes(made: Made, kind: str, shape: Shape) -> None:
    folder, config = made[kind]
    model = build(folder, config)
    sizes = shape_of(load_model(str(config)))
    found = model.step(shape.step_shape(model.attention_layers)).time_s
    # the decodes' fixed time is not told from the rest beside chunks; activated experts of the kink's row are whole
    assert found == pytest.approx(step_us(sizes, shape) * US, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_tables_and_says_how_well_they_fit(made: Made, kind: str) -> None:
    found = read_own(made[kind][0])
    sizes = found.section("model")
    behind = sizes.get("num_window_layers", 0)
    assert bool(found.tables[WINDOWED]) == bool(behind)
    assert bool(found.tables[ATTENTION]) == (behind < sizes["num_layers"])
    assert bool(found.tables[EXPERTS]) == ("num_experts" in sizes)
    assert found.section("quality")["interpolation_error_max_frac"] < 0.02
    for row in found.tables[WINDOWED]:
        assert row["calls_per_step"] == behind
        assert row["num_prefill"] or row["decode_length_tokens"] <= sizes["window"]
    for row in found.tables[EXPERTS]:
        assert sizes["experts_per_token"] <= row["activated_experts"] <= most_experts(sizes, row["tokens"])


def test_the_layers_fold_as_the_engine_does(made: Made) -> None:
    for kind, layers in (
        ("mistral", {(1, 200)}),
        ("gemma", {(1, None), (1, 200)}),
        ("gpt-oss", {(1, None), (1, 128)}),
        ("deepseek", {(1, None)}),
    ):
        model = build(*made[kind])
        assert set(model.attention_layers) == layers
        assert set(model.attention_layers) == set(attention_layers(load_model(str(made[kind][1]))))


def test_behind_a_window_longer_sequences_cost_nothing_more(made: Made) -> None:
    model = build(*made["mistral"])
    times = {model.step(decodes(4, length).step_shape(model.attention_layers)).time_s for length in (200, 300, 5000)}
    assert len(times) == 1
    far, near = chunks(1, 64, 100_000), chunks(1, 64, 200)
    assert model.step(far.step_shape(model.attention_layers)) == model.step(near.step_shape(model.attention_layers))
    with pytest.raises(OutOfRangeError, match="513 tokens in a step"):
        model.step(chunks(1, 513).step_shape(model.attention_layers))


def test_beside_full_layers_the_longest_length_still_holds(made: Made) -> None:
    model = build(*made["gemma"])
    assert model.covers(decodes(2, 1151).step_shape(model.attention_layers))
    with pytest.raises(OutOfRangeError, match="1152 tokens in a decoding sequence"):
        model.step(decodes(2, 1152).step_shape(model.attention_layers))
    with pytest.raises(OutOfRangeError, match="1500 tokens of context"):
        model.step(chunks(1, 16, 1500).step_shape(model.attention_layers))


@pytest.mark.parametrize("kind", ["mistral", "gemma", "gpt-oss"])
def test_a_line_is_bit_equal_to_its_steps(made: Made, kind: str) -> None:
    model, fresh = build(*made[kind]), build(*made[kind])
    per_token = sum(weight for weight, _ in model.attention_layers)
    most = decodes(1, 1151).step_shape(model.attention_layers).decode_read_tokens
    for number in (1, 3, 32):
        read, pieces = number * per_token * 20, 0
        while read < number * most:
            base_s, slope_s, below = model.decode_line(number, read)
            assert below > read
            for tokens in {read, min(below - 1, number * most)}:
                assert base_s + slope_s * tokens == fresh.step_s(0, 0, 0, 0, 0, number, tokens)
            read, pieces = below, pieces + 1
        assert pieces > 2


def test_lengths_around_the_window_count_by_their_tokens(made: Made) -> None:
    """Uneven lengths cost their read tokens where tokens cost alike, whichever side of the window they lie on."""
    folder, config = made["gemma"]
    model, sizes = build(folder, config), shape_of(load_model(str(config)))
    lengths = (40, 150, 600, 1100)
    read = sum(decodes(1, length).step_shape(model.attention_layers).decode_read_tokens for length in lengths)
    half = sizes["num_layers"] // 2
    seen = sum(half * (length + min(length, 200)) for length in lengths)
    rest_us = step_us(sizes, decodes(4, 16)) - sizes["num_layers"] * 0.01 * 4 * 16
    assert model.step_s(0, 0, 0, 0, 0, 4, read) == pytest.approx((rest_us + 0.01 * seen) * US, rel=1e-3)


def test_a_simulated_engine_asks_with_the_same_folding(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    from plimsoll.cli import main

    for kind in ("gpt-oss", "deepseek"):
        folder, config = made[kind]
        limits = ["--max-num-seqs", "32", "--max-num-batched-tokens", "512", "--max-model-len", "1151"]
        sent = ["--prompt-tokens", "300", "--output-tokens", "40", "--num-requests", "12", "--concurrency", "6"]
        where = ["--gpu", str(folder / "device.toml"), "--step-model", f"profile:{folder}", "--kv-blocks", "2000"]
        assert main(["simulate", "--model", str(config), *where, *limits, *sent, "--precision", "bf16"]) == 0
        assert "12" in capsys.readouterr().out


# Experts ---------------------------------------------------------------------------------------------------------


def test_experts_are_exact_where_they_cost_rows_and_weights(made: Made) -> None:
    found = read_own(made["mixtral"][0])
    sizes = dict(found.section("model"))
    grid = OwnExperts(found.tables[EXPERTS], sizes)
    for tokens in range(1, 513, 7):
        activated = expected_experts(sizes, tokens)
        assert grid.expected_s(tokens) == pytest.approx(experts_us(sizes, tokens, activated) * US, rel=1e-5)
    assert grid.expected_s(1024) == pytest.approx(2 * grid.at(512, 16), rel=1e-6)


def test_few_tokens_use_few_experts() -> None:
    sizes = {"num_experts": 128, "experts_per_token": 8}
    assert expected_experts(sizes, 1) == pytest.approx(8)
    assert expected_experts(sizes, 10_000) == pytest.approx(128)
    assert [most_experts(sizes, tokens) for tokens in (1, 4, 16, 100)] == [8, 32, 128, 128]


def test_an_interrupted_survey_of_experts_goes_on(tmp_path: Path) -> None:
    folder, config = make_kind(tmp_path, "gpt-oss")
    before = {file.name: sorted(file.read_text().splitlines()) for file in folder.glob("*.csv")}
    for name in ("moe.csv", "attention_window.csv"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    store, sizes = open_store(folder, config)
    backend = KindsFormula(sizes)
    Survey(store, backend, Limits(max_tokens=512, max_seqs=32, max_length=1151)).run()
    assert 0 < backend.num_calls < 300
    assert {file.name: sorted(file.read_text().splitlines()) for file in folder.glob("*.csv")} == before


@pytest.mark.parametrize(
    "limits", [Limits(max_tokens=32, max_seqs=4, max_length=256), Limits(max_tokens=2048, max_seqs=8, max_length=150)]
)
@pytest.mark.parametrize("kind", ["gpt-oss", "mistral", "qwen-moe"])
def test_small_limits_are_covered(tmp_path: Path, kind: str, limits: Limits) -> None:
    folder, config = make_kind(tmp_path, kind, limits)
    model = build(folder, config)
    for shape in (decodes(limits.max_seqs, limits.max_length), chunks(1, min(limits.max_tokens, limits.max_length))):
        assert model.covers(shape.step_shape(model.attention_layers))
    found = read_own(folder)
    for row in (*found.tables[ATTENTION], *found.tables[WINDOWED]):
        if row["num_prefill"] <= 1:
            measured = Shape(**{name: row[name] for name in Shape().row()})
            assert model.covers(measured.step_shape(model.attention_layers)), measured


# Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["moe.csv", "attention_window.csv", "attention.csv"])
def test_missing_tables_are_named(made: Made, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(made["gpt-oss"][0], tmp_path / "copy"))
    (copy / file).unlink()
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        build(copy, made["gpt-oss"][1])


def test_holes_are_named(made: Made, tmp_path: Path) -> None:
    folder, config = made["gpt-oss"]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    lines = (copy / "moe.csv").read_text().splitlines()
    (copy / "moe.csv").write_text("\n".join(line for line in lines if ",512,16," not in line) + "\n")
    with pytest.raises(InputError, match=r"moe\.csv.*16 experts of 512 tokens were not measured"):
        build(copy, config)
    shutil.copy(folder / "moe.csv", copy / "moe.csv")
    lines = (copy / "attention_window.csv").read_text().splitlines()
    (copy / "attention_window.csv").write_text("\n".join(ln for ln in lines if ",0,0,0,32,16," not in ln) + "\n")
    with pytest.raises(InputError, match=r"attention_window\.csv.*number of decodes 32 was not measured at length 16"):
        build(copy, config)


@pytest.mark.parametrize(("factor", "said"), [(1e-3, "faster than"), (1e4, "times slower")])
def test_experts_in_other_units_are_caught(made: Made, tmp_path: Path, factor: float, said: str) -> None:
    copy = Path(shutil.copytree(made["mixtral"][0], tmp_path / "copy"))

    def scaled(text: str) -> str:
        head, *lines = text.splitlines()
        rows = [line.split(",") for line in lines]
        return "\n".join([head, *(",".join([*row[:5], str(float(row[5]) * factor), *row[6:]]) for row in rows)]) + "\n"

    edit(copy / "moe.csv", scaled)
    with pytest.raises(InputError, match=f"16 experts of 512 tokens.*{said}"):
        build(copy, made["mixtral"][1])


def test_profiles_of_other_kinds_are_refused(made: Made, tmp_path: Path) -> None:
    full = write_kind(tmp_path / "full", "mistral", sliding_window=None)
    with pytest.raises(InputError, match="with window 200"):
        build(made["mistral"][0], full)
    wider = write_kind(tmp_path / "wider", "mistral", sliding_window=300)
    with pytest.raises(InputError, match="with window 200"):
        build(made["mistral"][0], wider)
    with pytest.raises(InfeasibleError, match="spread"):
        build(*made["mixtral"], parallelism=Parallelism(tp=2, ep=2))


def test_lengths_unfold_where_the_windows_are_full() -> None:
    assert unfolded_length(((1, 100),), 100) == 100
    assert unfolded_length(((1, 100),), 40) == 40
    assert unfolded_length(((1, None), (1, 100)), 2 * 50) == 50
    assert unfolded_length(((1, None), (3, 100)), 400 + 60) == 160
    assert window_pairs(10, 95, 100) == chunks(1, 10, 95).step_shape(((1, 100),)).prefill_pairs
