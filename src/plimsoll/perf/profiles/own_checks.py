"""Is a profile of Plimsoll's own form whole, plausible, and of the deployment that it is used for?

Nothing is faster than the hardware: a matrix product takes at least its operations at the device's peak rate. And
nothing that is worth measuring takes a hundred times what its operations or its weights allow. A table in milliseconds
that is read as microseconds breaks the first rule, one in nanoseconds the second.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import Attention, DenseMlp, ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.units import US_PER_S
from plimsoll.perf.profiles.own_format import AGAIN, ATTENTION, HEADER, SEQUENCES, TOKENS, OwnProfile, Row, Table

FASTEST = 0.8  # of the limit: boost clocks lie above the datasheet's
SLOWEST = 100.0
FAMILIES = {SEQUENCES: ("flop_per_sequence", "sequences"), TOKENS: ("flop_per_token", "tokens")}
SIXTEEN_BIT = ("bf16", "fp16")


def shape_of(model: ModelSpec) -> dict[str, int]:
    """What a profile keeps of a model to know it again.

    Raises:
        InputError: a model of several kinds of layers, of experts, latent attention or windows: not measured yet.
    """
    group = model.groups[0]
    mixer, mlp = group.mixer, group.mlp
    plain = len(model.groups) == 1 and isinstance(mixer, Attention) and isinstance(mlp, DenseMlp)
    if not plain or not isinstance(mixer, Attention) or not isinstance(mlp, DenseMlp) or mixer.window is not None:
        what = "dense models of one kind of layers with full attention"
        raise InputError("--model", model.id, f"`plimsoll profile` and its format know {what}; use the roofline")
    return {
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": mixer.num_heads,
        "num_kv_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        "intermediate_size": mlp.intermediate_size,
        "mlp_matrices": 3 if mlp.gated else 2,
        "vocab_size": model.vocab_size,
    }


def check_deployment(
    profile: OwnProfile, model: ModelSpec, gpu: Accelerator, parallelism: Parallelism, precision: str
) -> None:
    """Whether the profile is of this model, device, cut and precision.

    Raises:
        InputError: it is not; names both.
        InfeasibleError: a cut that such a profile never holds.
    """
    measured = profile.section("model")
    differing = [name for name, size in shape_of(model).items() if measured.get(name) != size]
    if differing:
        name = differing[0]
        raise InputError(
            "--model",
            model.id,
            f"the profile {profile.folder} is of {measured.get('id')}, with {name} {measured.get(name)}",
        )
    if parallelism.pp > 1 or parallelism.dp > 1:
        raise InfeasibleError("a profile holds no pipeline stages and no data-parallel ranks", "topology")
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
    """Compare the largest size of every matrix product with the device's physical limit.

    Raises:
        InputError: a measurement is faster than the hardware, or a hundred times slower than it allows.
    """
    flop_per_s = max(gpu.dense_flop_per_s.get(name, 0.0) for name in (precision, *SIXTEEN_BIT))
    for table, (work, size) in FAMILIES.items():
        for operator, rows in by_operator(profile, table).items():
            last = max(rows, key=lambda row: row[size])
            limit_s = last[work] * last[size] / flop_per_s
            slow_s = max(limit_s, last["weight_bytes"] / gpu.memory_bandwidth_bytes_per_s)
            if not limit_s:
                continue
            seconds = last["time_us"] / US_PER_S
            if FASTEST * limit_s <= seconds <= SLOWEST * slow_s:
                continue
            slower = f"{seconds / slow_s:.0f} times slower than {gpu.id} allows"
            reason = slower if seconds > limit_s else f"faster than {gpu.id} can be ({limit_s * US_PER_S:.3g} us)"
            raise InputError(
                str(profile.folder / table.file),
                f"{operator} of {last[size]} {size}: {last['time_us']:.4g} us",
                f"that is {reason}; time_us is in microseconds, of the model and device that {HEADER} names",
            )


def check_whole(profile: OwnProfile) -> None:
    """Whether every operator was measured at every size, and attention over whole lines.

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
    chunks: dict[int, set[int]] = defaultdict(set)
    decodes: dict[int, set[int]] = defaultdict(set)
    for row in profile.tables[ATTENTION]:
        if row["num_prefill"] == 1 and not row["num_decode"]:
            chunks[row["chunk_tokens"]].add(row["context_tokens"])
        elif row["num_decode"] and not row["num_prefill"]:
            decodes[row["num_decode"]].add(row["decode_length_tokens"])
    for kind, lines, what in (("chunk", chunks, "context"), ("number of decodes", decodes, "length")):
        if len(lines) < 2:
            raise _hole(profile, ATTENTION, f"fewer than two {kind}s were measured")
        everywhere = set().union(*lines.values())
        for line, found in lines.items():  # long chunks end earlier: a sequence has a longest length
            absent = sorted(point for point in everywhere - found if kind != "chunk" or point < max(found))
            if absent:
                raise _hole(profile, ATTENTION, f"{kind} {line} was not measured at {what} {absent[0]}")


def by_operator(profile: OwnProfile, table: Table) -> dict[str, list[Row]]:
    """Rows of a table by operator."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in profile.tables[table]:
        found[row["operator"]].append(row)
    return found


def _hole(profile: OwnProfile, table: Table, what: str) -> InputError:
    return InputError(str(profile.folder / table.file), what, f"the profile has a hole; {AGAIN}")
