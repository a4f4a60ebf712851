"""Is a profile of Plimsoll's own form whole, plausible, and of the deployment that it is used for?

Nothing is faster than the hardware: a matrix product takes at least its operations at the device's peak rate. And
nothing that is worth measuring takes a hundred times what its operations or its weights allow. A table in milliseconds
that is read as microseconds breaks the first rule, one in nanoseconds the second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.units import US_PER_S
from plimsoll.perf.profiles.origin import SIXTEEN_BIT, check_precision, other_precision
from plimsoll.perf.profiles.own_experts import most_experts
from plimsoll.perf.profiles.own_format import (
    AGAIN,
    ATTENTION,
    EXPERTS,
    HEADER,
    SEQUENCES,
    TOKENS,
    WINDOWED,
    OwnProfile,
    Row,
    Table,
)
from plimsoll.perf.profiles.own_grids import pairs_of
from plimsoll.perf.profiles.own_shape import shape_of
from plimsoll.perf.profiles.own_work import OF_SEQUENCES, calls_of, token_operators, work_of
from plimsoll.perf.request import StepModelRequest

FASTEST = 0.8  # of the limit: boost clocks lie above the datasheet's
SLOWEST = 100.0
SHORTEST_S = 5e-6
"""What a call costs that does nothing: of smaller work no time is called slow."""
FAMILIES = {SEQUENCES: ("flop_per_sequence", "sequences"), TOKENS: ("flop_per_token", "tokens")}
ELEMENT_BYTES = 2
SLOWEST_ATTENTION = 1000.0  # it has more to do than multiply; a nanosecond read as a microsecond is still beyond
LEAST_WORK = 0.98  # of the operations of all matrix products: rounded figures, and cuts that do not come out even
PRODUCTS = (
    "qkv_proj", "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "o_proj", "gate_up_proj", "down_proj", "router",
    "shared_gate_up_proj", "shared_down_proj", "head",
)  # fmt: skip
BACKENDS_PARTS = {"torch": ("sampler",), "vllm": ("other", "sampler")}
"""What these backends write beside matrix products; of others' profiles no names are asked for."""


def check_deployment(profile: OwnProfile, request: StepModelRequest) -> None:
    """Whether the profile is of this model, device, cut and precision.

    Raises:
        InputError: it is not; names both.
        InfeasibleError: a cut that such a profile never holds, or another precision.
    """
    model, gpu, parallelism = request.model, request.gpu, request.parallelism
    measured = profile.section("model")
    asked = shape_of(model)
    names = [*asked, *(name for name in measured if name not in asked and name != "id")]
    differing = [name for name in names if measured.get(name) != asked.get(name)]
    if differing:
        name = differing[0]
        found = f"with {name} {measured[name]}" if name in measured else f"without {name}"
        raise InputError("--model", model.id, f"the profile {profile.folder} is of {measured.get('id')}, {found}")
    if parallelism.pp > 1 or parallelism.dp > 1:
        raise InfeasibleError("a profile holds no pipeline stages and no data-parallel ranks", "topology")
    if parallelism.ep > 1:
        raise InfeasibleError("a profile holds experts that tensor parallelism cuts, not spread ones", "topology")
    run = profile.section("run")
    if run.get("tp", 1) != parallelism.tp:
        raise InputError("--tp", parallelism.tp, f"{profile.folder} was measured at tensor-parallel degree {run['tp']}")
    dtype = str(run.get("dtype"))
    if dtype != request.precision:  # of the two in 16 bit, processors may know one only
        raise other_precision(profile.folder, "--precision", dtype, request.precision)
    check_precision(profile.folder, (dtype, dtype), (dtype, request.kv_precision))
    device = profile.section("device").get("id")
    if device != gpu.id:
        near = profile.folder / "device.toml"
        use = f"--gpu {near}" if near.is_file() else f"--gpu {device}"
        raise InputError("--gpu", gpu.id, f"the profile {profile.folder} is of {device}; use {use}")


def check_plausible(profile: OwnProfile, gpu: Accelerator, precision: str) -> None:
    """Compare the largest size of every matrix product, of the experts and of attention with the device's limit.

    Raises:
        InputError: a measurement is faster than the hardware, or many times slower than it allows.
    """
    flop_per_s = max(gpu.dense_flop_per_s.get(name, 0.0) for name in (precision, *SIXTEEN_BIT))
    largest = [
        (table, f"{operator} of", max(rows, key=lambda row: row[size]))
        for table, (_, size) in FAMILIES.items()
        for operator, rows in by_operator(profile, table).items()
    ]
    experts = profile.tables[EXPERTS]
    if experts:
        most = max(experts, key=lambda row: (row["tokens"], row["activated_experts"]))
        largest.append((EXPERTS, f"{most['activated_experts']} experts of", most))
    for table, what, last in largest:
        work, size = FAMILIES.get(table, FAMILIES[TOKENS])
        limit_s = last[work] * last[size] / flop_per_s
        weight_bytes = last["weight_bytes"] * last.get("activated_experts", 1)
        slow_s = SLOWEST * max(limit_s, weight_bytes / gpu.memory_bandwidth_bytes_per_s, SHORTEST_S)
        _judge(profile, table, f"{what} {last[size]} {size}", last, (gpu.id, limit_s, slow_s))
    for table in (ATTENTION, WINDOWED):
        for what, row, flop, read_bytes in _largest_attention(profile, table):
            limit_s = flop / flop_per_s
            slow_s = SLOWEST_ATTENTION * max(limit_s, read_bytes / gpu.memory_bandwidth_bytes_per_s, SHORTEST_S)
            _judge(profile, table, what, row, (gpu.id, limit_s, slow_s))


def _largest_attention(profile: OwnProfile, table: Table) -> Iterator[tuple[str, Row, float, float]]:
    """The chunk of most attention pairs and the decodes that read most: name, row, operations, bytes of cache."""
    sizes, tp = profile.section("model"), profile.section("run").get("tp", 1)
    window = sizes.get("window") if table is WINDOWED else None
    width = sizes["head_dim"] + sizes.get("v_head_dim", sizes["head_dim"])
    latent = "kv_lora_rank" in sizes
    kv_width = sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"] if latent else sizes["num_kv_heads"] * width / tp

    def pairs(row: Row) -> float:
        if not row["num_prefill"]:
            length = row["decode_length_tokens"]
            return float(row["num_decode"] * (length if window is None else min(length, window)))
        return float(row["num_prefill"] * pairs_of(row["chunk_tokens"], row["context_tokens"], window))

    rows = profile.tables[table]
    chunks = [row for row in rows if row["num_prefill"] and not row["num_decode"]]
    decodes = [row for row in rows if row["num_decode"] and not row["num_prefill"]]
    flop_of_pair = 2.0 * sizes["num_heads"] / tp * width
    if chunks:
        row = max(chunks, key=pairs)
        what = f"attention of a chunk of {row['chunk_tokens']} behind {row['context_tokens']} tokens"
        read = (row["context_tokens"] + row["chunk_tokens"]) * kv_width * ELEMENT_BYTES
        yield what, row, flop_of_pair * pairs(row), read
    if decodes:
        row = max(decodes, key=pairs)
        what = f"attention of {row['num_decode']} decodes at length {row['decode_length_tokens']}"
        yield what, row, flop_of_pair * pairs(row), pairs(row) * kv_width * ELEMENT_BYTES


def _judge(profile: OwnProfile, table: Table, what: str, row: Row, limits: tuple[str, float, float]) -> None:
    """Refuse a time below `limits`' second, or above its third; the first is the device's name."""
    device, limit_s, slow_s = limits
    seconds = row["time_us"] / US_PER_S
    if not limit_s or FASTEST * limit_s <= seconds <= slow_s:
        return
    slower = f"many times slower than {device} allows ({slow_s * US_PER_S:.3g} us)"
    reason = slower if seconds > limit_s else f"faster than {device} can be ({limit_s * US_PER_S:.3g} us)"
    raise InputError(
        str(profile.folder / table.file),
        f"{what}: {row['time_us']:.4g} us",
        f"that is {reason}; time_us is in microseconds, of the model and device that {HEADER} names",
    )


def check_whole(profile: OwnProfile) -> None:
    """Whether every operator was measured at every size, attention over whole lines, experts from end to end.

    Raises:
        InputError: a hole; names it.
    """
    for table, (_, size) in FAMILIES.items():
        operators = by_operator(profile, table)
        check_products(profile, table)
        everywhere = {row[size] for rows in operators.values() for row in rows}
        for operator, rows in operators.items():
            missing = sorted(everywhere - {row[size] for row in rows})
            if missing:
                raise _hole(profile, table, f"{operator} was not measured at {missing[0]} {size}")
    for table in (ATTENTION, WINDOWED):
        if profile.tables[table]:
            _check_lines(profile, table)
    if profile.tables[EXPERTS]:
        _check_experts(profile)


def check_products(profile: OwnProfile, table: Table) -> None:
    """Whether the matrix products of a table make all the operations that the model's weights ask of a row.

    Operators may have any name; those of our own backends are looked for, too.

    Raises:
        InputError: one is missing; names it where it is known by name.
    """
    work, _ = FAMILIES[table]
    sizes, run = profile.section("model"), profile.section("run")
    calls, measured = calls_of(sizes), by_operator(profile, table)
    products = [name for name in PRODUCTS if calls.get(name) and (name in OF_SEQUENCES) == (table is SEQUENCES)]
    asked_flop = sum(calls[name] * work_of(name, sizes, run.get("tp", 1))[0] for name in products)
    found_flop = sum(rows[0]["calls_per_step"] * rows[0][work] for rows in measured.values())
    absent = [name for name in products if name not in measured]
    if found_flop < LEAST_WORK * asked_flop:
        missing = f"{absent[0]} is missing" if absent else "a matrix product is missing"
        makes = f"the rest makes {found_flop:.4g} of {asked_flop:.4g} operations a row"
        raise _hole(profile, table, f"{missing}: {makes}")
    backend = str(run.get("backend"))
    parts = [name for name in BACKENDS_PARTS.get(backend, ()) if (name in OF_SEQUENCES) == (table is SEQUENCES)]
    if backend == "torch" and table is TOKENS:
        parts += token_operators(sizes)
    for name in parts:
        if name not in measured:
            raise _hole(profile, table, f"{name} is missing")


def _check_lines(profile: OwnProfile, table: Table) -> None:
    chunks: dict[int, set[int]] = defaultdict(set)
    decodes: dict[int, set[int]] = defaultdict(set)
    for row in profile.tables[table]:
        if row["num_prefill"] == 1 and not row["num_decode"]:
            chunks[row["chunk_tokens"]].add(row["context_tokens"])
        elif row["num_decode"] and not row["num_prefill"]:
            decodes[row["num_decode"]].add(row["decode_length_tokens"])
    for kind, lines, what in (("chunk", chunks, "context"), ("number of decodes", decodes, "length")):
        if len(lines) < 2:
            raise _hole(profile, table, f"fewer than two {kind}s were measured")
        everywhere = set().union(*lines.values())
        for line, found in lines.items():  # long chunks end earlier: a sequence has a longest length
            absent = sorted(point for point in everywhere - found if kind != "chunk" or point < max(found))
            if absent:
                raise _hole(profile, table, f"{kind} {line} was not measured at {what} {absent[0]}")


def _check_experts(profile: OwnProfile) -> None:
    """At every number of tokens the fewest and the most experts that they can use; from one token to a whole step."""
    sizes = profile.section("model")
    found: dict[int, set[int]] = defaultdict(set)
    for row in profile.tables[EXPERTS]:
        found[row["tokens"]].add(row["activated_experts"])
    steps = {row["tokens"] for row in profile.tables[TOKENS]}
    for tokens in sorted({min(steps), max(steps), *found}):
        for experts in (sizes["experts_per_token"], most_experts(sizes, tokens)):
            if experts not in found[tokens]:
                raise _hole(profile, EXPERTS, f"{experts} experts of {tokens} tokens were not measured")


def by_operator(profile: OwnProfile, table: Table) -> dict[str, list[Row]]:
    """Rows of a table by operator."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in profile.tables[table]:
        found[row["operator"]].append(row)
    return found


def _hole(profile: OwnProfile, table: Table, what: str) -> InputError:
    return InputError(str(profile.folder / table.file), what, f"the profile has a hole; {AGAIN}")
