"""The published-figures suite: how rows are judged, what is skipped, and the cheap part of every paper's physics."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import validation._papers
from plimsoll.core.columns import ints
from plimsoll.core.errors import InputError
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.offload.flexgen import BlockWork
from plimsoll.perf.overheads import Overheads
from validation import papers
from validation._papers import _nanoflow_engines, euromlsys, h2o, mooncake, nanoflow, sarathi, splitwise, vllm
from validation._papers._row import SHOWN, as_text, points, row
from validation._papers._serving import (
    POLICIES,
    SplitAttention,
    arriving,
    highest_rate,
    kernels,
    preset_lengths,
    scaled_lengths,
)

MODULES = [info.name for info in pkgutil.iter_modules(validation._papers.__path__) if not info.name.startswith("_")]


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "within"), [(109.9, True), (90.1, True), (110.1, False), (89.9, False)])
def test_a_row_judges_the_relative_error(ours, within):
    entry = row("x", 100.0, ours, 0.1, unit="s", assumption="none")
    assert entry["within"] is within
    assert entry["error"] == pytest.approx(ours / 100 - 1)


@pytest.mark.parametrize(("ours", "within"), [(25.3, True), (15.5, True), (25.5, False), (15.3, False)])
def test_points_judge_the_difference(ours, within):
    entry = points("share", 20.4, ours, 5.0)
    assert (entry["within"], entry["bound"], entry["unit"]) == (within, "5 points", "%")
    assert entry["error"] == pytest.approx(ours / 20.4 - 1), "still relative, as in every other row"


def test_what_is_only_shown_has_no_bound():
    assert row("x", 1.0, 9.0, SHOWN, unit="s")["bound"] is None
    assert points("x", 1.0, 9.0, SHOWN)["bound"] is None


def test_a_table_marks_misses():
    text = as_text(
        [row("near", 1, 1.01, 0.1, unit="s"), points("far", 10, 20, 5.0), row("shown", 1, 5, SHOWN, unit="s")]
    )
    assert [("MISS" in line) for line in text.splitlines()] == [False, False, True, False]
    assert "5 points" in text


# -- the suite -----------------------------------------------------------------------------------------------------


class _Paper:
    """A module of one row."""

    def __init__(self, entry, needs=None):
        self.entry, self.data = entry, None
        if needs:
            self.NEEDS_DATA = needs

    def rows(self, data=None):
        self.data = data
        return [self.entry]


@pytest.fixture
def two_papers(monkeypatch):
    """One paper that misses, one that needs a file."""
    found = {
        "validation._papers.vllm": _Paper(row("far", 1.0, 2.0, 0.1, unit="s")),
        "validation._papers.mooncake": _Paper(row("near", 1.0, 1.0, 0.1, unit="s"), needs="deep/file.csv"),
    }
    names = [info for info in pkgutil.iter_modules(validation._papers.__path__) if info.name in ("vllm", "mooncake")]
    monkeypatch.setattr(papers.pkgutil, "iter_modules", lambda _: names)
    monkeypatch.setattr(papers.importlib, "import_module", found.__getitem__)
    return found


def test_a_paper_without_its_data_is_skipped_with_the_reason(two_papers, tmp_path):
    result = papers.run([tmp_path])
    assert result["figures"]["skipped"] == {
        "mooncake": "needs deep/file.csv in the folder of measured data (--data, PLIMSOLL_DATA)"
    }
    assert "mooncake" not in result["figures"]["vllm"]
    assert result["summary"] == "0 of 1 judged figures within bounds; outside: vllm: far; skipped: mooncake"
    assert result["passed"] is False


def test_a_paper_with_its_data_gets_the_folder(two_papers, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.csv").write_text("x")
    result = papers.run([tmp_path])
    assert two_papers["validation._papers.mooncake"].data == tmp_path
    assert result["summary"] == "1 of 2 judged figures within bounds; outside: vllm: far"
    assert "skipped" not in result["figures"]


def test_a_folder_without_any_papers_data_is_refused(two_papers, tmp_path):
    (tmp_path / "rows.csv").write_text("x")
    for path in (tmp_path, tmp_path / "rows.csv", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"holds deep/file.csv, or leave --data out") as refused:
            papers.check([path])
        assert str(path) in str(refused.value)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.csv").write_text("x")
    papers.check([tmp_path])
    with pytest.raises(InputError, match="give one folder"):
        papers.check([tmp_path, tmp_path])


def test_no_folder_is_no_error(two_papers):
    papers.check([])


def test_without_a_folder_the_environment_tells(two_papers, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.csv").write_text("x")
    monkeypatch.setenv("PLIMSOLL_DATA", str(tmp_path))
    papers.run([])
    assert two_papers["validation._papers.mooncake"].data == tmp_path


@pytest.mark.parametrize("name", MODULES)
def test_every_paper_says_where_its_figures_are_from(name):
    paper = importlib.import_module(f"validation._papers.{name}")
    assert "https://" in paper.SOURCE
    assert paper.__doc__
    assert callable(paper.rows)


# -- what they have in common --------------------------------------------------------------------------------------


def test_scaled_lengths_have_the_means_and_the_limit():
    lengths = preset_lengths("sharegpt-first-turn", 3000, 1)
    prompt, output = scaled_lengths(lengths, (161.31, 337.99), 2048)
    assert prompt.mean() == pytest.approx(161.31, rel=0.002)
    assert output.mean() == pytest.approx(337.99, rel=0.002)
    assert (prompt + output).max() < 2048
    assert min(prompt.min(), output.min()) >= 1


def test_a_power_below_one_narrows_the_outputs():
    lengths = preset_lengths("sharegpt-first-turn", 3000, 1)
    plain, narrow = (scaled_lengths(lengths, (161.31, 337.99), 2048, power)[1] for power in (1.0, 0.6))
    assert narrow.std() < 0.8 * plain.std()
    assert narrow.mean() == pytest.approx(plain.mean(), rel=0.01)


def test_arrivals_are_poisson_or_at_once():
    lengths = ints([5] * 4000), ints([5] * 4000)
    load = arriving(lengths, 8.0, 3)
    gaps = np.diff(load.arrival_s)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert not arriving(lengths, None, 3).arrival_s.any()


def test_the_highest_rate_is_found_to_the_tolerance():
    asked = []

    def holds(rate):
        asked.append(rate)
        return rate <= 3.3

    assert highest_rate(holds, 0.1, 51.2) == pytest.approx(3.3, rel=0.02)
    assert len(asked) < 10


def test_split_attention_reads_as_fast_beside_prompts_as_alone():
    base = kernels("mistralai/Mistral-7B-v0.1", "A100-SXM-80GB")
    split = SplitAttention(base)
    prompt = (512, 1, 512 * 513 // 2, 0, 0)
    base_s, slope, _ = base.decode_line(32, 32)
    assert split.step_s(*prompt, 32, 32 * 4096) == pytest.approx(base.step_s(*prompt, 32, 0) + slope * 32 * 4096)
    assert split.step_s(*prompt, 32, 32 * 4096) < base.step_s(*prompt, 32, 32 * 4096), "one kernel for both is slower"
    assert split.step_s(0, 0, 0, 0, 0, 32, 1000) == base_s + slope * 1000, "decodes alone: to the bit"
    assert split.step_s(*prompt, 0, 0) == base.step_s(*prompt, 0, 0), "prompts alone: to the bit"
    assert (split.num_stages, split.attention_layers) == (base.num_stages, base.attention_layers)


# -- engines that only the papers need -----------------------------------------------------------------------------


class _OneSecond:
    """Every step takes a second, and is written down."""

    attention_layers = ((1, None),)
    num_stages = 1

    def __init__(self):
        self.steps = []

    def step_s(self, *shape):
        self.steps.append((shape[0], shape[5]))
        return 1.0

    def decode_line(self, num_decode, read, /):
        return 1.0, 0.0, 1 << 60


def _serve(policy, rows, model, **sizes):
    arrival, prompt, output = zip(*rows, strict=True)
    load = arriving((ints(prompt), ints(output)), None, 0)
    assert not any(arrival)
    options = sizes.pop("options", {})
    settings = {"num_blocks": 100, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 64, **sizes}
    config = EngineConfig(policy=str(POLICIES / f"{policy}.py"), options=options, **settings)
    return simulate(load, config, model)


def test_simple_chunking_takes_turns():
    model = _OneSecond()
    run = _serve("simple_chunking", [(0, 4, 3), (0, 10, 2)], model, options={"chunk_size": 8})
    # 4 + 4 of 10; a decode of the first; 6 left of the second; decodes of both until they end.
    assert model.steps[0] == (8, 0)
    assert (6, 0) in model.steps
    assert all(not (tokens and decodes) for tokens, decodes in model.steps), "never both"
    assert run.first_token_s.tolist() == [1.0, 3.0]
    assert run.finish_s.tolist() == [4.0, 4.0]


def test_mixed_batching_takes_whole_prompts_up_to_the_budget():
    model = _OneSecond()
    run = _serve("mixed_batching", [(0, 30, 4), (0, 30, 4), (0, 30, 2)], model)
    assert model.steps[0] == (60, 0)
    assert model.steps[1] == (30, 2), "the third beside the decodes of the others"
    assert run.first_token_s.tolist() == [1.0, 1.0, 2.0]


def test_mixed_batching_runs_a_longer_prompt_alone():
    model = _OneSecond()
    run = _serve("mixed_batching", [(0, 8, 2), (0, 100, 2)], model)
    assert [tokens for tokens, _ in model.steps] == [8, 100]
    assert run.first_token_s.tolist() == [1.0, 2.0]


def test_mixed_batching_waits_for_room_for_the_whole_sequence():
    run = _serve("mixed_batching", [(0, 8, 8), (0, 8, 8)], _OneSecond(), num_blocks=5)  # a sequence of 15 takes 4
    assert run.first_token_s.tolist() == [1.0, 9.0]


# -- vLLM's paper --------------------------------------------------------------------------------------------------


def test_the_live_cache_of_a_request_is_its_prompt_and_half_of_its_answer():
    assert vllm.live_tokens((ints([10, 30]), ints([4, 4]))) == pytest.approx((12 + 32) / 2)
    assert vllm.live_tokens((ints([0, 0]), ints([1, 3]))) == pytest.approx((0.5 + 4.5) / 4), "weighted by stay"


def test_the_lengths_reproduce_what_they_were_fitted_to():
    lengths = vllm.sharegpt(3000, 0)
    assert vllm.live_tokens(lengths) == pytest.approx(vllm.LIVE_TOKENS, rel=0.01)
    assert lengths[1].mean() == pytest.approx(337.99, rel=0.002)


def test_vllms_paper_in_one_seed(monkeypatch):
    """One seed of four, ten minutes of the hour: full memory soon looks like full memory."""
    monkeypatch.setattr(vllm, "HOUR_S", 900.0)
    batch = {name: vllm.measure(name, (0,)) for name in vllm.SYSTEMS}
    assert batch["Orca (Max)"][0] == pytest.approx(7.0, rel=0.01)
    assert batch["Orca (Max)"][1] == pytest.approx(20.4, abs=5)
    order = [batch[name][0] for name in vllm.SYSTEMS]
    assert order == sorted(order)
    assert batch["vLLM"][0] > 2 * batch["Orca (Oracle)"][0]


def test_more_host_time_only_fills_the_memory(monkeypatch):
    """Where vLLM's memory is full, slower steps no longer enlarge the batch: it hangs on memory."""
    monkeypatch.setattr(vllm, "HOUR_S", 900.0)
    slow, slower = (vllm.measure("vLLM", (1,), Overheads(per_sequence_s=s))[0] for s in (6e-4, 12e-4))
    assert slower == pytest.approx(slow, rel=0.05)


# -- Sarathi-Serve -------------------------------------------------------------------------------------------------


def test_sarathi_serves_order_of_the_ablation():
    table = sarathi.ablation(1024, range(4))
    hybrid, chunked, both = table.values()
    assert hybrid[0] < both[0] < chunked[0], "time to first token"
    assert both[1] < chunked[1] < hybrid[1], "gaps"


def test_a_budget_bounds_the_gaps_and_whole_prompts_do_not():
    bounded = sarathi.run_at("Yi-34B", ("sarathi-serve", {"chunk_size": 512}), 0.8, 0, 200)
    stalled = sarathi.run_at("Yi-34B", ("vllm-v0", {}), 0.8, 0, 200)
    assert sarathi.gap_p99_s(bounded) < 0.2 < sarathi.gap_p99_s(stalled)


def test_the_targets_are_five_decode_steps():
    """20 and 40 ms at 32 sequences of 4096 tokens, which the kernels reach without host time."""
    for name, (_, _, target_s, _) in sarathi.MODELS.items():
        step_s = sarathi.step_model(name).step_s(0, 0, 0, 0, 0, 32, 32 * 4096)
        assert step_s == pytest.approx(target_s / 5, rel=0.25)


# -- Splitwise -----------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path) -> splitwise.MeasuredSteps:
    """Prompts of a millisecond a token from 100 tokens on, decodes of 40 ms and half a millisecond a sequence."""
    lines = ["model,hardware,prompt_size,batch_size,prompt_time,token_time,tensor_parallel"]
    lines += [f"bloom-176b,gpu,{n},1,{n},{40 + n / 2},8" for n in (100, 200, 400)]
    lines += ["bloom-176b,gpu,100,1,900,900,8", "bloom-176b,gpu,100,1,50,1,8"]  # medians: neither counts
    lines += ["bloom-176b,other,100,1,1,1,8", "bloom-176b,gpu,100,1,1,1,4", "llama2-70b,gpu,100,1,1,1,8"]
    path = tmp_path / "perf_model.csv"
    path.write_text("\n".join(lines) + "\n")
    return splitwise.MeasuredSteps(path, "gpu")


@pytest.mark.parametrize(("tokens", "seconds"), [(100, 0.1), (150, 0.15), (400, 0.4), (500, 0.5), (50, 0.05)])
def test_measured_steps_lie_on_straight_lines(measured, tokens, seconds):
    assert measured.prompt_s(tokens) == pytest.approx(seconds)


def test_measured_steps_mix_at_a_tenth_more(measured):
    assert measured.step_s(150, 1, 0, 0, 1, 0, 0) == pytest.approx(0.15)
    assert measured.step_s(140, 1, 0, 0, 1, 10, 999) == pytest.approx(0.165)
    assert measured.step_s(0, 0, 0, 0, 0, 10, 999) == pytest.approx(0.045)
    assert measured.decode_line(10, 999) == (measured.token_s(10), 0.0, 1 << 60)


def test_a_lone_request_is_not_slowed_down(measured):
    load = arriving((ints([150]), ints([5])), None, 0)
    run = simulate(load, EngineConfig(num_blocks=100, policy=str(POLICIES / "mixed_batching.py")), measured)
    for values in splitwise.slowdowns(run, measured).values():
        assert values.tolist() == pytest.approx([1.0])
    assert splitwise.meets([run], measured)


def test_equal_cost_is_equal_cost():
    assert pytest.approx(splitwise.H100 * 4.76, rel=0.01) == splitwise.A100 * 2.21


def test_splitwise_on_its_own_step_times(shared_data, monkeypatch):
    """A tenth of the clusters at one rate: the pools meet what the baseline does not."""
    path = shared_data / splitwise.NEEDS_DATA
    a100, h100 = splitwise.MeasuredSteps(path, "a100-80gb"), splitwise.MeasuredSteps(path, "h100-80gb")
    for name, value in (("H100", 8), ("A100", 17), ("DURATION_S", 30.0)):
        monkeypatch.setattr(splitwise, name, value)
    rate = 120 * 0.2
    assert not splitwise.meets([splitwise.run_cluster(h100, rate, None, 0)], a100)
    pools = splitwise.slowdowns(splitwise.run_cluster(a100, rate, 12, 0), a100)
    assert np.percentile(pools["tbt"], 90) < splitwise.TARGETS["tbt"][1]


# -- Mooncake ------------------------------------------------------------------------------------------------------


def test_an_infinite_cache_finds_what_came_before(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [(1024, [1, 2]), (1500, [1, 2, 3]), (1024, [4, 5]), (2048, [1, 2, 6, 7])]
    path.write_text(
        "".join(
            json.dumps({"timestamp": 0, "input_length": n, "output_length": 9, "hash_ids": ids}) + "\n"
            for n, ids in rows
        )
    )
    found = mooncake.hit_percent(mooncake.workload_of(Path(path)))
    assert found == pytest.approx(100 * (1024 + 1024) / sum(n for n, _ in rows), abs=0.1)


# -- EuroMLSys -----------------------------------------------------------------------------------------------------


def test_answers_end_early():
    never = euromlsys.lengths("ShareGPT", 2000, float("inf"))
    early = euromlsys.lengths("ShareGPT", 2000)
    assert (early[0] == never[0]).all()
    assert (early[1] <= never[1]).all()
    assert 0.4 < early[1].mean() / never[1].mean() < 0.8
    first = euromlsys.lengths("ShareGPT", 2000, first_ends_frac=0.3)
    assert (first[1] == 1).mean() == pytest.approx(0.3, abs=0.05)


def test_other_tokenizers_make_longer_sequences():
    plain, longer = (euromlsys.lengths("Dolly QA", 500, float("inf"), scale=s)[0].mean() for s in (1.0, 1.2))
    assert longer == pytest.approx(1.2 * plain, rel=0.05)


@pytest.mark.parametrize(("data_set", "paper"), [("CNN/DailyMail", 3.95), ("Dolly QA", 17.4)])
def test_offline_throughput_of_opt_13b(data_set, paper):
    assert euromlsys.offline_per_s("OPT-13B", data_set) == pytest.approx(paper, rel=euromlsys.BOUND)


def test_articles_are_answered_far_below_capacity_in_the_paper():
    """At the published 0.5 requests/s the machine is a seventh busy: load cannot be what breaks the target."""
    assert euromlsys.latency_p95_s("CNN/DailyMail", 0.5) < euromlsys.TARGET_S / 2
    assert euromlsys.latency_p95_s("CNN/DailyMail", 0.5, 0.3) > 0.8 * euromlsys.TARGET_S, "answers of one token"


# -- NanoFlow ------------------------------------------------------------------------------------------------------


def test_the_bars_have_the_means_of_the_text():
    for percent, bars in _nanoflow_engines.ENGINES.values():
        assert 100 * np.mean(bars) / nanoflow.OPTIMAL_TOKENS_PER_S_PER_GPU == pytest.approx(percent, abs=0.11)


def test_the_bars_have_the_ratios_of_the_text():
    constant, data_sets = np.array([1286, 1263, 1212]), np.array([1259, 1247, 1272])
    ratios = {"vLLM 0.5.3": (2.62, 4.18), "DeepSpeed-FastGen 0.2.3": (2.78, 3.45), "TensorRT-LLM 0.8": (1.73, 1.91)}
    for engine, (_, bars) in _nanoflow_engines.ENGINES.items():
        assert (constant / bars[:3]).mean() == pytest.approx(ratios[engine][0], abs=0.011)
        assert (data_sets / bars[3:]).mean() == pytest.approx(ratios[engine][1], abs=0.011)


def test_host_time_is_what_the_measurement_leaves():
    host, step = _nanoflow_engines.host_time(), _nanoflow_engines.kernels_of_the_measurement()
    for sequences, seconds in ((1, 0.019), (32, 0.025)):
        assert step(sequences) + host.per_step_s + sequences * host.per_sequence_s == pytest.approx(seconds)
    assert host.per_step_s > 0
    assert host.per_sequence_s > 0


def test_drawn_lengths_have_the_published_moments():
    prompt, output = _nanoflow_engines.workload("LMSYS-Chat")
    assert prompt.mean() == pytest.approx(102, rel=0.1)
    assert output.mean() == pytest.approx(222, rel=0.1)
    assert output.std() == pytest.approx(210, rel=0.15)


def test_a_wave_takes_as_long_as_its_slowest_tile():
    model = nanoflow.roofline()
    spread = nanoflow.operator_ms(model)["prefill attention"]
    assert spread < nanoflow.prefill_wave_ms(model) < nanoflow.MEASURED_MS["prefill attention"]


# -- FlexGen and H2O -----------------------------------------------------------------------------------------------


def test_a_decode_is_averaged_over_what_was_timed():
    work = BlockWork(prompt_tokens=512, output_tokens=1024, gpu_batch=1)
    assert work.mean_decode_tokens == 512 + 512
    assert dataclasses.replace(work, timed_tokens=128).mean_decode_tokens == 512 + 64
    assert dataclasses.replace(work, timed_tokens=4096).mean_decode_tokens == 512 + 512, "no more than there are"
    assert dataclasses.replace(work, timed_tokens=128, kept_tokens=300).mean_decode_tokens == 300
    assert dataclasses.replace(work, timed_tokens=128).stored_tokens == work.stored_tokens, "memory holds all"
    with pytest.raises(InputError, match="timed_tokens"):
        dataclasses.replace(work, timed_tokens=0)


def test_timing_the_first_decode_flatters_long_answers():
    """What the projection leaves out grows with the answer; H2O, whose cache does not grow, never sees it."""
    flattery = []
    for base, kept in h2o.PAIRS[3:]:
        flattery.append(h2o.throughput(base) / h2o.throughput(base, as_timed=False))
        assert h2o.throughput(kept) == h2o.throughput(kept, as_timed=False)
    assert flattery == sorted(flattery)
    assert flattery[0] < 1.02
    assert flattery[-1] > 1.35


def test_all_of_h2os_rows_are_within():
    assert [entry["figure"] for entry in h2o.rows() if not entry["within"]] == []
