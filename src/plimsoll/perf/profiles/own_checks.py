"""Is a profile of Plimsoll's own form whole, plausible, and of the deployment that it is used for?

Nothing is faster than the hardware: a matrix product takes at least its operations at the device's peak rate. And
nothing that is worth measuring takes a hundred times what its operations or its weights allow. A table in milliseconds
that is read as microseconds breaks the first rule, one in nanoseconds the second.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.units import US_PER_S
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
from plimsoll.perf.profiles.own_shape import shape_of

FASTEST = 0.8  # of the limit: boost clocks lie above the datasheet's
SLOWEST = 100.0
SHORTEST_S = 5e-6
"""What a call costs that does nothing: of smaller work no time is called slow."""
FAMILIES = {SEQUENCES: ("flop_per_sequence", "sequences"), TOKENS: ("flop_per_token", "tokens")}
SIXTEEN_BIT = ("bf16", "fp16")


def check_deployment(
    profile: OwnProfile, model: ModelSpec, gpu: Accelerator, parallelism: Parallelism, precision: str
) -> None:
    """Whether the profile is of this model, device, cut and precision.

    Raises:
        InputError: it is not; names both.
        InfeasibleError: a cut that such a profile never holds.
    """
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
    dtype = run.get("dtype")
    if dtype != precision:
        raise InputError("--precision", precision, f"the profile {profile.folder} is in {dtype}")
    device = profile.section("device").get("id")
    if device != gpu.id:
        near = profile.folder / "device.toml"
        use = f"--gpu {near}" if near.is_file() else f"--gpu {device}"
        raise InputError("--gpu", gpu.id, f"the profile {profile.folder} is of {device}; use {use}")


def check_plausible(profile: OwnProfile, gpu: Accelerator, precision: str) -> None:
    """Compare the largest size of every matrix product, and of the experts, with the device's physical limit.

    Raises:
        InputError: a measurement is faster than the hardware, or a hundred times slower than it allows.
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
        slow_s = max(limit_s, weight_bytes / gpu.memory_bandwidth_bytes_per_s, SHORTEST_S)
        seconds = last["time_us"] / US_PER_S
        if not limit_s or FASTEST * limit_s <= seconds <= SLOWEST * slow_s:
            continue
        slower = f"{seconds / slow_s:.0f} times slower than {gpu.id} allows"
        reason = slower if seconds > limit_s else f"faster than {gpu.id} can be ({limit_s * US_PER_S:.3g} us)"
        raise InputError(
            str(profile.folder / table.file),
            f"{what} {last[size]} {size}: {last['time_us']:.4g} us",
            f"that is {reason}; time_us is in microseconds, of the model and device that {HEADER} names",
        )


def check_whole(profile: OwnProfile) -> None:
    """Whether every operator was measured at every size, attention over whole lines, experts from end to end.

    Raises:
        InputError: a hole; names it.
    """
    for table, (_, size) in FAMILIES.items():
        operators = by_operator(profile, table)
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
