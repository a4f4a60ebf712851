"""Presets: every file loads, and samples agree with the source's own statistics and, where present, with the trace."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.fit_presets import (
    AGENTIC_NOTE,
    FROM_PERCENTILES,
    FROM_TRACES,
    agentic,
    from_percentiles,
    from_trace,
    rank_correlation,
)

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.workload import presets
from plimsoll.workload.arrivals import list_arrivals
from plimsoll.workload.presets import list_presets, load_preset, sample_lengths
from plimsoll.workload.readers import list_formats, read_trace

PRESETS = Path(presets.__file__).parent / "data" / "presets"
NUM_SAMPLES = 100_000


def sample(name: str) -> tuple[np.ndarray, np.ndarray]:
    return sample_lengths(load_preset(name), NUM_SAMPLES, np.random.default_rng(20_231_116))


def assert_quantile(source: np.ndarray, drawn: np.ndarray, level: float) -> None:
    """The drawn quantile has the right rank in the source.

    Ranks, not tokens: the error of a sampled quantile is binomial in rank whatever the distribution. Five standard
    errors of the draw, and the spacing of the table's levels (0.01 for prompts, 0.025 for outputs within a class,
    of which the interpolation loses far less than 0.004 overall). One token of rounding either way.
    """
    value = np.quantile(drawn, level)
    slack = 5 * math.sqrt(level * (1 - level) / NUM_SAMPLES) + 0.004
    at_most, below = np.mean(source <= value + 1), np.mean(source < value - 1)
    assert below - slack <= level <= at_most + slack


def assert_mean(source: np.ndarray, drawn: np.ndarray) -> None:
    """Five standard errors of the drawn mean, and 0.5 % for interpolating between the table's levels."""
    error = 5 * drawn.std() / math.sqrt(NUM_SAMPLES) + 0.005 * source.mean()
    assert drawn.mean() == pytest.approx(source.mean(), abs=error)


def test_the_seven_kinds_of_the_main_job_are_there():
    wanted = {"chat", "summarization", "question-answering", "text-generation", "code", "long-context", "agentic"}
    assert wanted <= set(list_presets())


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_says_where_it_comes_from_and_is_a_quantile_table(name):
    preset = load_preset(name)
    assert preset.source.startswith("https://")
    assert preset.licence
    assert preset.attribution
    assert len(preset.date) == 10
    for levels in (preset.prompt_levels_frac, preset.output_levels_frac):
        assert levels[0] == 0
        assert levels[-1] == 1
        assert (np.diff(levels) > 0).all()
    assert preset.prompt_quantiles_tokens.shape == preset.prompt_levels_frac.shape
    assert preset.output_quantiles_tokens.shape[1:] == preset.output_levels_frac.shape
    for row in (preset.prompt_quantiles_tokens, *preset.output_quantiles_tokens):
        assert (np.diff(row) >= 0).all()
        assert row[0] >= 0.5


@pytest.mark.parametrize("name", list_presets())
def test_samples_agree_with_the_statistics_that_the_source_publishes(name):
    preset = load_preset(name)
    for column, drawn in zip(("prompt_tokens", "output_tokens"), sample(name), strict=True):
        said = preset.statistics[column]
        error = 5 * drawn.std() / math.sqrt(NUM_SAMPLES) + 0.01 * said["mean"]
        assert drawn.mean() == pytest.approx(said["mean"], abs=error)
        for level, key in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
            if said[key] is None:
                continue
            slack = 5 * math.sqrt(level * (1 - level) / NUM_SAMPLES) + 0.004
            at_most, below = np.mean(drawn <= said[key] + 1), np.mean(drawn < said[key] - 1)
            assert below - slack <= level <= at_most + slack, (column, key)


@pytest.mark.parametrize("name", sorted(FROM_TRACES))
def test_samples_agree_with_the_trace(name, shared_data):
    trace = read_trace(shared_data / "traces" / FROM_TRACES[name][0])
    prompt, output = sample(name)
    for source, drawn in ((trace.prompt_tokens, prompt), (trace.output_tokens, output)):
        assert_mean(source, drawn)
        for level in (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99):
            assert_quantile(source, drawn, level)
    # Spearman's rho of independent samples has standard error 1/sqrt(n); ten classes lose a little of a strong one.
    wanted = rank_correlation(trace.prompt_tokens, trace.output_tokens)
    assert rank_correlation(prompt, output) == pytest.approx(
        wanted, abs=5 / math.sqrt(NUM_SAMPLES) + 0.02 * abs(wanted)
    )


@pytest.mark.parametrize("name", sorted(FROM_TRACES))
def test_the_shipped_table_is_what_the_script_derives(name, shared_data):
    shipped = json.loads((PRESETS / f"{name}.json").read_text())
    derived = from_trace(shared_data / "traces" / FROM_TRACES[name][0])
    assert {key: shipped[key] for key in derived} == derived


@pytest.mark.parametrize("name", sorted(FROM_PERCENTILES))
def test_the_shipped_table_is_what_the_published_percentiles_give(name):
    shipped = json.loads((PRESETS / f"{name}.json").read_text())
    derived = from_percentiles(*FROM_PERCENTILES[name][2:])
    assert shipped["output_quantiles_tokens"] == derived["output_quantiles_tokens"]
    assert shipped["prompt_quantiles_tokens"] == derived["prompt_quantiles_tokens"]


def test_the_agentic_table_is_what_the_published_tables_give():
    shipped = json.loads((PRESETS / "agentic.json").read_text())
    derived = agentic()
    assert {key: shipped[key] for key in derived} == json.loads(json.dumps(derived))
    assert shipped["note"] == AGENTIC_NOTE


def test_longest_outputs_of_summarization_belong_to_short_prompts():
    prompt, output = sample("summarization")
    assert np.median(prompt[output > 2000]) < 1000
    assert (prompt + output).mean() < 4096


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("RAG", "long-context"),
        ("long-context/rag", "long-context"),
        ("qa", "question-answering"),
        ("Question Answering", "question-answering"),
        ("text_generation", "text-generation"),
        ("summarisation", "summarization"),
        ("conversation", "chat"),
    ],
)
def test_aliases_case_and_punctuation(asked, name):
    assert load_preset(asked).name == name


def test_no_two_presets_share_a_name_or_alias():
    owners: dict[str, str] = {}
    for preset in map(load_preset, list_presets()):
        for name in (preset.name, *preset.aliases):
            plain = "".join(ch for ch in name.lower() if ch.isalnum())
            assert owners.setdefault(plain, preset.name) == preset.name
            assert load_preset(name).name == preset.name


def test_the_documentation_names_every_preset_format_and_process():
    text = (Path(__file__).resolve().parents[2] / "docs" / "workloads.md").read_text()
    for name in (*list_presets(), *list_formats(), *list_arrivals()):
        assert f"`{name}`" in text
    for preset in map(load_preset, list_presets()):
        assert preset.source in text


def test_unknown_preset_lists_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean chat"):
        load_preset("chatt")
    with pytest.raises(InputError):
        load_preset(3)  # type: ignore[arg-type]


def test_a_longer_sample_begins_with_the_shorter_one():
    short = sample_lengths(load_preset("chat"), 10, np.random.default_rng(1))
    long = sample_lengths(load_preset("chat"), 1000, np.random.default_rng(1))
    assert (long[0][:10] == short[0]).all()
    assert (long[1][:10] == short[1]).all()


def test_a_preset_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        load_preset("chat").prompt_quantiles_tokens[0] = 1
