"""The door to the measured tables: shortcuts that must not change an answer."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import OutOfRangeError
from plimsoll.perf import silicon_tables
from plimsoll.perf.silicon import Silicon
from plimsoll.perf.silicon_attention import LENGTHS, AttentionTables, _distinct_reads
from plimsoll.perf.silicon_operators import Translator
from plimsoll.perf.silicon_tables import SiliconTables, load_tables

pytest.importorskip("aiconfigurator_core", reason="the silicon extra is not installed")

LLAMA8B = load_model("meta-llama/Llama-3.1-8B")
H100 = load_accelerator("H100-SXM")


@pytest.fixture(scope="module")
def tables() -> SiliconTables:
    return load_tables("h100_sxm")


@pytest.fixture
def asked(tables: SiliconTables, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What really reaches the package."""
    seen: list[tuple[str, Any]] = []
    ask = tables._ask

    def counted(text: str, *question: Any) -> list[float]:
        seen.append((text, question))
        return ask(text, *question)

    monkeypatch.setattr(tables, "_ask", counted)
    monkeypatch.setattr(tables, "_answers", {})
    return seen


def gemm(tables: SiliconTables, name: str, count: float, n: int, k: int) -> Any:
    return tables.operations.GEMM(name, count, n, k, tables.common.GEMMQuantMode["bfloat16"])


def a_layer(tables: SiliconTables, count: float) -> list[Any]:
    """Four products and three all-reduces, two of which are alike."""
    reduce = tables.operations.CustomAllReduce
    return [
        gemm(tables, "qkv", count, 3072, 4096), gemm(tables, "out", count, 4096, 2048), reduce("a", count, 4096, 2),
        gemm(tables, "up", count, 14336, 4096), gemm(tables, "down", count, 4096, 7168), reduce("b", count, 4096, 2),
        reduce("c", 1, 4096, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [32, 16, 61 / 4, 1])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000, 8192])
def test_an_operator_of_many_layers_is_a_multiple_of_one(tables: SiliconTables, count: float, rows: int) -> None:
    ops = a_layer(tables, count)
    whole = tables._handle.evaluate_ops_json(
        tables._engine.build_ops_json(ops), is_context=True, batch_size=1, s=1, prefix=0, x=rows
    )
    ours = tables.evaluate(tables.compile(*ops), work=(1, 1, 0), rows=rows)
    assert ours == pytest.approx(sum(latency_ms for _, latency_ms, _, _ in whole) / 1e3, rel=1e-14)


def test_layers_names_and_repeats_share_one_question(tables: SiliconTables, asked: list[tuple[str, Any]]) -> None:
    full, half = tables.compile(*a_layer(tables, 32)), tables.compile(*a_layer(tables, 16))
    assert full.text == half.text
    assert [place for place, _ in full.terms] == [0, 1, 2, 3, 4, 2, 2]
    assert [times for _, times in half.terms] == [16, 16, 16, 16, 16, 16, 1]
    first = tables.evaluate(full, work=(1, 1, 0), rows=50)
    second = tables.evaluate(half, work=(1, 1, 0), rows=50)
    assert len(asked) == 1
    assert second < first < 2 * second  # the all-reduce outside of the layers stays
    tables.evaluate(full, work=(1, 1, 0), rows=51)
    assert len(asked) == 2


def test_another_shape_or_phase_is_another_question(tables: SiliconTables, asked: list[tuple[str, Any]]) -> None:
    wide, narrow = (tables.compile(gemm(tables, "same name", 1, n, 4096)) for n in (4096, 1024))
    assert wide.text != narrow.text
    for compiled in (wide, narrow):
        for context in (True, False):
            tables.evaluate(compiled, context=context, work=(1, 1, 0), rows=8)
    assert len(asked) == 4


def test_a_hole_is_refused_every_time(tables: SiliconTables) -> None:
    kind = tables.common.MoEQuantMode["bfloat16"]
    strange = tables.operations.MoE("experts", 1, 100, 100, 3, 7, 1, 1, kind, "never measured", 1, is_gated=True)
    compiled = tables.compile(strange)
    for _ in range(2):
        with pytest.raises(OutOfRangeError):
            tables.evaluate(compiled, work=(1, 1, 0), rows=8)


@pytest.mark.parametrize("system", ["h100_sxm", "b200_sxm", "l40s", "a100_sxm"])
def test_kernels_are_ordered_as_the_package_orders_them(system: str) -> None:
    tables = load_tables(system)
    cache, kind = tables.common.KVCacheQuantMode["bfloat16"], tables.common.FMHAQuantMode["bfloat16"]
    ours, theirs = (
        [
            tables.operations.ContextAttention("p", 1, 32, 8, cache, kind, head_size=128),
            tables.operations.GenerationAttention("d", 1, 32, 8, cache, head_size=128),
        ]
        for _ in range(2)
    )
    tables.choose_kernels(*ours)
    with silicon_tables._quiet():
        database = SiliconTables(system, tables.version)._database
        database.__dict__.pop("_attention_lane_density_cache", None)
        tables._engine._resolve_attention_lane_orders(theirs, database, None)
    assert [op._lane_order for op in ours] == [op._lane_order for op in theirs]


def test_tables_that_mix_versions_are_seen(tables: SiliconTables) -> None:
    assert tables._is_unmixed("context_attention_perf.parquet")
    assert not tables._is_unmixed("custom_allreduce_perf.parquet")


def test_the_fast_yaml_loader_is_put_back() -> None:
    slow = yaml.SafeLoader
    with silicon_tables._c_yaml():
        assert yaml.safe_load("{a: [1, 2.5, yes, null]}") == {"a": [1, 2.5, True, None]}
    assert yaml.SafeLoader is slow

    def fail() -> None:
        with silicon_tables._c_yaml():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert yaml.SafeLoader is slow


def test_long_contexts_are_looked_up_when_they_come(tables: SiliconTables, asked: list[tuple[str, Any]]) -> None:
    attention = AttentionTables(Translator(tables, LLAMA8B, "bf16", "auto"), LLAMA8B, Parallelism(), ((1, None),))
    pieces = attention.decode_pieces(3)
    ends = []
    for _, _, below in pieces:
        ends.append(below)
        if below > 3 * 1000:
            break
    assert ends == [3 * length for length in LENGTHS[1:] if length <= 1024]
    assert {question[1][1] for _, question in asked} == {length for length in LENGTHS if length <= 1024}
    assert {question[1][0] for _, question in asked} == {2, 4}  # the tables' batches around three
    rest = [below for _, _, below in pieces]
    assert rest[-1] == 3 * LENGTHS[-1] + 1
    assert len(ends) + len(rest) == len(LENGTHS) - 1


def test_windows_end_the_lengths() -> None:
    assert _distinct_reads(((1, None),)) == LENGTHS
    assert _distinct_reads(((2, 128),)) == (2, 64, 128, 256)
    assert _distinct_reads(((1, None), (5, 64)))[-1] == LENGTHS[-1] + 5 * 64


def test_pipeline_stages_share_their_questions(tables: SiliconTables, asked: list[tuple[str, Any]]) -> None:
    whole = Silicon(LLAMA8B, H100)
    for tokens in (1, 17, 300):
        whole.step_s(0, 0, 0, 0, 0, tokens, tokens * 500)
    before = len(asked)
    staged = Silicon(LLAMA8B, H100, Parallelism(pp=2))
    for tokens in (1, 17, 300):
        assert staged.step_s(0, 0, 0, 0, 0, tokens, tokens * 500) < whole.step_s(0, 0, 0, 0, 0, tokens, tokens * 500)
    assert len(asked) == before
