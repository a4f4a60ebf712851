"""The own profile's files: whatever is written is read again; whatever else stands there is refused in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.core.errors import InputError
from plimsoll.engine.replicas.replica_state import window_pairs
from plimsoll.perf.profiles.own_experts import OwnExperts, expected_experts, most_experts
from plimsoll.perf.profiles.own_format import (
    FORMAT,
    TABLES,
    TOKENS,
    Table,
    header_text,
    line_of,
    read_header,
    read_own,
    read_rows,
)
from plimsoll.perf.profiles.own_grids import attention_of, pairs_of
from plimsoll.perf.profiles.own_layers import unfolded_context, unfolded_length
from plimsoll.profiler.shapes import chunks, decodes
from tests import own_kinds
from tests.own_profiles import attention_us

NAMES = st.text(st.characters(whitelist_categories=("Ll", "Lu", "Nd")), min_size=1, max_size=8)
COUNTS = st.integers(0, 10**6)
FIGURES = st.floats(1e-6, 1e9).map(lambda value: float(f"{value:.6g}"))


def rows_of(table: Table) -> st.SearchStrategy[list[dict[str, Any]]]:
    columns = {
        name: NAMES if name in table.texts else COUNTS if name in table.key or name == "num_samples" else FIGURES
        for name in table.columns
    }
    return st.lists(st.fixed_dictionaries(columns), max_size=6, unique_by=table.key_of)


@given(data=st.data(), table=st.sampled_from(TABLES))
def test_tables_come_back(data: st.DataObject, table: Table) -> None:
    rows = data.draw(rows_of(table))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / table.file
        file.write_text(",".join(table.columns) + "\n" + "".join(line_of(table, row) for row in rows))
        assert read_rows(file, table) == rows


KEYS = st.text("abcxyz_019", min_size=1, max_size=8)
VALUES = st.one_of(
    st.booleans(), st.integers(-(10**9), 10**9), FIGURES, st.text(max_size=20), st.lists(st.integers(0, 9), max_size=4)
)


@given(plain=st.dictionaries(KEYS, VALUES, max_size=4), section=st.dictionaries(KEYS, VALUES, max_size=4))
def test_headers_come_back(plain: dict[str, Any], section: dict[str, Any]) -> None:
    header = {**plain, "format": FORMAT, "zz-section": section}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.toml"
        file.write_text(header_text(header), encoding="utf-8")
        assert read_header(file) == header


@given(text=st.text(max_size=200), file=st.sampled_from(["profile.toml", *(table.file for table in TABLES)]))
def test_garbage_is_refused_in_one_line(text: str, file: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "profile.toml").write_text(f'format = "{FORMAT}"\n')
        (folder / file).write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_own(folder)
        assert "\n" not in str(caught.value)


@given(text=st.text("0123456789,.e-\nnorm", max_size=120))
def test_almost_right_lines_are_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TOKENS.file
        file.write_text(",".join(TOKENS.columns) + "\n" + text)
        try:
            rows = read_rows(file, TOKENS)
        except InputError as error:
            said = str(error)
        else:
            said = ""
            assert all(row["time_us"] > 0 and row["tokens"] >= 0 for row in rows)
        assert "\n" not in said


@settings(max_examples=60)
@given(
    number=st.integers(1, 40),
    chunk=st.integers(1, 600),
    context=st.integers(0, 2000),
    sequences=st.integers(1, 40),
    length=st.integers(1, 2000),
)
def test_a_machine_of_pairs_and_read_tokens_is_found_again(
    number: int, chunk: int, context: int, sequences: int, length: int
) -> None:
    """Attention of a fixed time, a time per pair and a time per read token: exact everywhere, off the grid too."""
    shapes = [chunks(1, size, before) for size in (1, 37, 512) for before in (0, 300, 1024)]
    shapes += [decodes(size, long) for size in (1, 32) for long in (16, 1024)]
    rows = [{"calls_per_step": 1, **shape.row(), "time_us": attention_us(shape)} for shape in shapes]
    grid = attention_of(rows)
    asked = chunks(number, chunk, context)
    found = grid.prefill_s(number, chunk, context)
    inside = chunk <= 512  # beyond, time grows in proportion to the pairs
    assert found == pytest.approx(attention_us(asked) * 1e-6, rel=1e-6 if inside else 0.05)
    if sequences <= 32 and length >= 16:
        curve = grid.decode_curve(sequences)
        assert curve.at(length) == pytest.approx(attention_us(decodes(sequences, length)) * 1e-6, rel=1e-6)


WINDOWS = st.one_of(st.none(), st.integers(1, 900))
LAYERS = st.lists(st.tuples(st.integers(1, 9), WINDOWS), min_size=1, max_size=3, unique_by=lambda kind: kind[1])


@given(chunk=st.integers(1, 1500), context=st.integers(0, 3000), window=WINDOWS)
def test_pairs_behind_a_window_are_the_engines(chunk: int, context: int, window: int | None) -> None:
    assert pairs_of(chunk, context, window) == window_pairs(chunk, context, window)


@given(layers=LAYERS, length=st.integers(0, 3000))
def test_folded_lengths_unfold(layers: list[tuple[int, int | None]], length: int) -> None:
    folding = tuple(layers)
    read = sum(weight * (length if window is None else min(length, window)) for weight, window in folding)
    found = unfolded_length(folding, read)
    seen = length if any(window is None for _, window in folding) else min(length, max(w or 0 for _, w in folding))
    assert found == pytest.approx(seen)


@given(layers=LAYERS, chunk=st.integers(1, 1500), context=st.integers(0, 3000))
def test_folded_pairs_unfold(layers: list[tuple[int, int | None]], chunk: int, context: int) -> None:
    """Into the context itself, or, where every window is full, into one that has the same pairs."""
    folding = tuple(layers)
    pairs = sum(weight * window_pairs(chunk, context, window) for weight, window in folding)
    found = unfolded_context(folding, chunk, pairs)
    assert sum(weight * pairs_of(chunk, found, window) for weight, window in folding) == pytest.approx(pairs, rel=1e-9)
    if any(window is None for _, window in folding):
        assert found == pytest.approx(context, rel=1e-6, abs=1e-6)


@settings(max_examples=60)
@given(
    window=st.integers(20, 900),
    number=st.integers(1, 40),
    chunk=st.integers(1, 512),
    context=st.integers(0, 3000),
    sequences=st.integers(1, 32),
    length=st.integers(16, 3000),
)
def test_a_machine_with_windows_is_found_again(
    window: int, number: int, chunk: int, context: int, sequences: int, length: int
) -> None:
    """However far a context or a length reaches beyond what was measured: it lies behind the window."""
    shapes = [chunks(1, size, before) for size in (1, 37, 512) for before in {0, window // 3, window}]
    shapes += [decodes(size, long) for size in (1, 32) for long in {min(16, window), window}]
    rows = [{"calls_per_step": 1, **s.row(), "time_us": own_kinds.attention_us(s, window)} for s in shapes]
    grid = attention_of(rows, window)
    expected = own_kinds.attention_us(chunks(number, chunk, context), window)
    assert grid.prefill_s(number, chunk, context) == pytest.approx(expected * 1e-6, rel=1e-6)
    expected = own_kinds.attention_us(decodes(sequences, length), window)
    assert grid.decode_curve(sequences).at(grid.seen(length)) == pytest.approx(expected * 1e-6, rel=1e-6)


@given(
    experts=st.integers(2, 40),
    per_token=st.integers(1, 8),
    tokens=st.integers(1, 600),
    share=st.floats(0, 1),
)
def test_a_machine_of_rows_and_weights_is_found_again(experts: int, per_token: int, tokens: int, share: float) -> None:
    """Exact beside the point from which all experts can be in use, which whole tokens meet only where they divide."""
    experts *= per_token
    sizes = {"num_experts": experts, "experts_per_token": per_token}
    points = {1, 3, experts // per_token, 600}
    rows = [
        {"tokens": size, "activated_experts": used, "time_us": 30 + 2.0 * size + 40 * used}
        for size in points
        for used in {per_token, most_experts(sizes, size)}
    ]
    grid = OwnExperts(rows, sizes)
    most = most_experts(sizes, tokens)
    activated = per_token + share * (most - per_token)
    assert grid.at(tokens, activated) == pytest.approx((30 + 2.0 * tokens + 40 * activated) * 1e-6, rel=1e-6)
    assert per_token - 1e-9 <= expected_experts(sizes, tokens) <= most + 1e-9
