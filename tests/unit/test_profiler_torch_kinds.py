"""What torch executes for windows, experts and latents is what it should be; two real processes exchange messages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.profiling import profile
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InfeasibleError, InputError, PlimsollError
from plimsoll.perf.profiles.own_format import EXPERTS, WINDOWED, read_own
from plimsoll.perf.profiles.own_shape import shape_of
from plimsoll.perf.profiles.own_work import token_operators
from plimsoll.profiler.attend import absorbed, blocks, expanded, masked, packed, varlen_of
from plimsoll.profiler.clock import power_rows
from plimsoll.profiler.collectives import measure_collectives
from plimsoll.profiler.experts import Experts, Routing
from plimsoll.profiler.samples import Effort
from plimsoll.profiler.shapes import Shape, chunks, decodes
from plimsoll.profiler.torch_backend import TorchBackend
from tests.own_kinds import KINDS, write_kind

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install 'plimsoll[profile]'"
)
QUICK = Effort(warm_ups=1, min_samples=2, max_samples=2, budget_s=0.0)


def random(*size: int) -> Any:
    import torch

    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def seen(torch: Any, new: int, context: int, window: int | None) -> Any:
    """The mask of everything at once: which keys each query sees."""
    queries, keys = torch.arange(context, context + new)[:, None], torch.arange(context + new)[None, :]
    return (keys <= queries) & (keys > queries - (window or context + new))


@pytest.mark.parametrize(
    ("new", "context", "window"),
    [(1, 40, None), (30, 0, None), (30, 50, None), (300, 0, 64), (300, 100, 64), (7, 90, 64), (1, 90, 64), (300, 3, 1)],
)
def test_attention_in_blocks_is_attention_under_one_mask(new: int, context: int, window: int | None) -> None:
    import torch

    query, key, value = random(2, 4, new, 8), random(2, 2, new + context, 8), random(2, 2, new + context, 8)
    whole = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen(torch, new, context, window), enable_gqa=True
    )
    pieces = blocks(torch, new, context, window, "cpu")
    torch.testing.assert_close(masked(torch, query, key, value, pieces), whole)
    if window is not None:
        assert all(keys.stop - keys.start <= window - 1 + max(128, window // 4) for _, keys, _, _ in pieces)


@pytest.mark.parametrize("window", [None, 5])
def test_the_flash_kernel_is_called_as_its_documentation_says(window: int | None) -> None:
    """Against `varlen_attn`'s documentation in plain torch: windows of keys before each, aligned to the last key."""
    import torch

    def documented(query: Any, key: Any, value: Any, *more: Any, window_size: Any, enable_gqa: bool) -> Any:
        of_queries, of_keys, most_queries, most_keys = more
        assert of_queries.dtype == of_keys.dtype == torch.int32
        assert (most_queries, most_keys) == (int(of_queries.diff().max()), int(of_keys.diff().max()))
        assert enable_gqa
        assert window_size[1] == 0
        found = []
        for number in range(len(of_queries) - 1):
            one = slice(int(of_queries[number]), int(of_queries[number + 1]))
            all_keys = slice(int(of_keys[number]), int(of_keys[number + 1]))
            new, whole = one.stop - one.start, all_keys.stop - all_keys.start
            places = torch.arange(whole - new, whole)[:, None] - torch.arange(whole)[None, :]
            mask = (places >= 0) & (places <= (window_size[0] if window_size[0] >= 0 else whole))
            heads = (tensor.transpose(0, 1)[None] for tensor in (query[one], key[all_keys], value[all_keys]))
            out = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
            found.append(out[0].transpose(0, 1))
        return torch.cat(found)

    lengths = [(3, 4), (1, 9), (6, 0)]
    query, key, value = random(10, 4, 8), random(23, 2, 8), random(23, 2, 8)
    found = packed(torch, documented, lengths, window, "cpu")(query, key, value)
    start = first = 0
    for new, context in lengths:
        heads = (
            tensor.transpose(0, 1)[None]
            for tensor in (
                query[start : start + new],
                key[first : first + new + context],
                value[first:][: new + context],
            )
        )
        mine = masked(torch, *heads, blocks(torch, new, context, window, "cpu"))[0].transpose(0, 1)
        torch.testing.assert_close(found[start : start + new], mine)
        start, first = start + new, first + new + context


def test_this_torchs_flash_kernel_takes_what_it_is_given() -> None:
    import inspect

    import torch

    found = varlen_of(torch)
    if found is None:
        pytest.skip("this torch has no varlen_attn with windows")
    names = list(inspect.signature(found).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_absorbed_and_expanded_latents_attend_alike() -> None:
    import torch

    heads, nope, rope, rank, out, length = 3, 6, 4, 5, 7, 11
    up, latents = random(heads, nope + out, rank), random(2, length, rank + rope)
    plain, turned = random(heads, 2, nope), random(2, heads, rope)
    key, value = expanded(torch, latents, up, nope)
    query = torch.cat([plain.transpose(0, 1), turned], dim=-1)[:, :, None]
    whole = torch.nn.functional.scaled_dot_product_attention(query, key.transpose(1, 2), value.transpose(1, 2))
    found = absorbed(torch, (plain, turned), latents, (up[:, :nope], up[:, nope:].transpose(1, 2)))
    torch.testing.assert_close(found.transpose(0, 1), whole[:, :, 0])


# Experts ---------------------------------------------------------------------------------------------------------


def experts_of(tmp_path: Path, kind: str = "mixtral", tp: int = 1) -> Experts:
    import torch

    shape = shape_of(load_model(str(write_kind(tmp_path, kind))))
    small = {**shape, "hidden_size": 16, "expert_size": 8, "num_moe_layers": 2}
    return Experts(torch, small, tp, random, "cpu")


@pytest.mark.parametrize("grouped", [True, False])
def test_experts_compute_what_each_token_chose(tmp_path: Path, grouped: bool) -> None:
    import torch

    experts = experts_of(tmp_path)
    experts.grouped = experts.grouped and grouped
    up, down = experts.weights[0]
    inputs, chosen = random(5, 16), torch.tensor([[0, 3], [3, 15], [7, 0], [15, 3], [2, 9]])
    shares = random(5, 2)
    counts = torch.bincount(chosen.view(-1), minlength=16).tolist()
    found = experts.forward(inputs, Routing(chosen=chosen, shares=shares, counts=counts), up, down)
    expected = torch.zeros_like(inputs)
    for token in range(5):
        for place in range(2):
            expert = chosen[token, place]
            first, second = (up[expert] @ inputs[token]).chunk(2)
            inner = torch.nn.functional.silu(first) * second
            expected[token] += shares[token, place] * (down[expert] @ inner)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("tokens", "activated"), [(1, 2), (5, 2), (5, 10), (8, 16), (40, 3), (40, 16)])
def test_routing_uses_the_experts_that_it_says(tmp_path: Path, tokens: int, activated: int) -> None:
    experts = experts_of(tmp_path)
    found = experts.routing(tokens, activated, first=13)
    assert len(found.chosen.unique()) == activated
    assert all(len(set(row)) == 2 for row in found.chosen.tolist())
    assert sum(found.counts) == 2 * tokens
    used = [count for count in found.counts if count]
    assert len(used) == activated
    assert max(used) - min(used) <= 1


def test_copies_reach_all_weights(tmp_path: Path) -> None:
    experts = experts_of(tmp_path)
    assert len(experts.weights) == 2
    assert experts.call(4, 2)[1] == 16  # 2 layers x 8 pairs of experts
    assert experts.call(64, 16)[1] == 2
    call, copies = experts.call(4, 8)
    assert [tuple(call(copy).shape) for copy in range(copies)] == [(4, 16)] * copies


# The backend -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_of_every_kind_takes_time(tmp_path: Path, kind: str) -> None:
    shape = shape_of(load_model(str(write_kind(tmp_path, kind, hidden_size=64, vocab_size=128, intermediate_size=96))))
    backend = TorchBackend(shape, device="cpu", effort=QUICK)
    rows = backend.tokens(8)
    assert [row["operator"] for row in rows] == list(token_operators(shape))
    assert all(row["time_us"] > 0 for row in rows)
    both = Shape(num_prefill=1, chunk_tokens=8, num_decode=2, decode_length_tokens=9)
    for step in (decodes(2, 300), chunks(1, 16, 290), both):
        assert backend.attention(step, shape.get("window"))["time_us"] > 0
    if "num_experts" in shape:
        row = backend.experts(8, shape["experts_per_token"])
        assert (row["tokens"], row["calls_per_step"]) == (8, shape["num_moe_layers"])
        assert row["flop_per_token"] > 0
    assert backend.whole(decodes(2, 32))["measured_us"] > 0
    assert backend.kernels["attention"] == "scaled_dot_product_attention"


def test_devices_cut_experts_evenly_or_not_at_all(tmp_path: Path) -> None:
    shape = shape_of(load_model(str(write_kind(tmp_path, "qwen-moe"))))
    assert TorchBackend(shape, device="cpu", tp=4, effort=QUICK).experts(4, 4)["weight_bytes"] == 2 * 3 * 512 * 64
    with pytest.raises(InfeasibleError, match="does not divide 250 columns of an expert"):
        TorchBackend({**shape, "expert_size": 250}, device="cpu", tp=4)


@pytest.mark.parametrize("kind", ["gpt-oss", "deepseek"])
def test_a_whole_profile_of_another_kind(tmp_path: Path, kind: str) -> None:
    config = write_kind(tmp_path / "model", kind, hidden_size=64, vocab_size=128, num_hidden_layers=2, head_dim=16)
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 256, "threads": 1, "precision": "bf16"}
    result = profile(model=str(config), folder=str(tmp_path / "p"), **fields)
    found = read_own(tmp_path / "p")
    assert found.tables[EXPERTS]
    assert bool(found.tables[WINDOWED]) == (kind == "gpt-oss")
    assert found.section("run")["experts_kernel"] in ("grouped_mm", "one product an expert")
    assert result.profiled.num_measured > 30
    assert profile(model=str(config), folder=str(tmp_path / "p"), **fields).profiled.num_measured == 0


def test_too_little_memory_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    config = write_kind(tmp_path / "model", "mixtral")

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore lines.")

    monkeypatch.setattr(TorchBackend, "sequences", full)
    with pytest.raises(InputError, match="too little memory for this grid") as caught:
        profile(model=str(config), folder=str(tmp_path / "p"), threads=1)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(TorchBackend, "sequences", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profile(model=str(config), folder=str(tmp_path / "p"), threads=1)


def test_without_cuda_there_are_no_watts() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    assert power_rows(torch, lambda: None) == []


# Messages --------------------------------------------------------------------------------------------------------


def test_two_processes_exchange_messages() -> None:
    rows = measure_collectives(2, "cpu", (1024, 65536))
    assert [(row["operation"], row["message_bytes"]) for row in rows] == [
        (operation, size) for operation in ("all_reduce", "all_gather") for size in (1024, 65536)
    ]
    assert all(row["ranks"] == 2 and row["time_us"] > 0 and row["num_samples"] == 9 for row in rows)


def test_a_process_that_fails_is_said_in_one_line() -> None:
    import torch

    if torch.cuda.device_count() > 1:
        pytest.skip("two CUDA devices are there")
    with pytest.raises(PlimsollError, match="collectives over 2 devices failed") as caught:
        measure_collectives(2, "cuda", (1024,))
    assert "\n" not in str(caught.value)
