"""Is anything missing from a bundle? Operators of the model, sizes of an operator, points of the attention grid.

A missing operator would cost nothing and a missing size would be read off its neighbours, without a word; so both are
refused. A grid may be denser in places, where a later sweep went over a part of it, but every line of it has to reach
from end to end, and what meta.yaml declares (`profiles.declared`) has to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from plimsoll.catalog.architecture import Attention, DenseMlp, ModelSpec, Moe
from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.bundle import Bundle
from plimsoll.perf.profiles.curves import Curve
from plimsoll.perf.profiles.declared import Shape
from plimsoll.perf.profiles.grids import AttentionGrid, Slices

EVERY_MODEL = ("embedding", "layernorm", "final_layernorm")
PLAIN_ATTENTION = ("qkv_proj", "rotary_emb", "o_proj")
DENSE_MLP = ("gate_up_proj", "act_fn", "down_proj")
SEQUENCES = ("lm_head", "sampler")
AGAIN = "the profile has a hole; measure it again, or take it from its source again"


def check_whole(bundle: Bundle, model: ModelSpec) -> None:
    """Whether a step of `model` finds all that it needs.

    Raises:
        InputError: something is missing; names the file and what.
    """
    _check_curves(bundle.folder / "dense.csv", bundle.dense, operators_of(model), "tokens")
    _check_curves(bundle.folder / "per_sequence.csv", bundle.per_sequence, SEQUENCES, "sequences")
    _check_attention(bundle)
    for name in SEQUENCES:
        if bundle.per_sequence[name].last < bundle.attention.decode.last:
            what = f"{name} not measured at {bundle.attention.decode.last} sequences, which attention was"
            raise _hole(bundle.folder / "per_sequence.csv", what)
    moe = next((group.mlp for group in model.groups if isinstance(group.mlp, Moe)), None)
    if moe is not None and bundle.experts is not None:
        steps = next(iter(bundle.dense.values()))
        _check_experts(bundle.folder / "moe.csv", bundle.experts.rows, moe, int(steps.last))


def operators_of(model: ModelSpec) -> tuple[str, ...]:
    """Names in dense.csv without which a step of `model` is not whole."""
    found = list(EVERY_MODEL)
    heads = [group.mixer for group in model.groups if isinstance(group.mixer, Attention)]
    if heads:
        found += PLAIN_ATTENTION
    if any(mixer.qk_norm for mixer in heads):
        found.append("qk_norm")
    if any(isinstance(group.mlp, DenseMlp) for group in model.groups):
        found += DENSE_MLP
    return tuple(found)


def _check_curves(file: Path, curves: Mapping[str, Curve], needed: Iterable[str], size: str) -> None:
    """All needed operators, each at the sizes of all others."""
    for name in needed:
        if name not in curves:
            raise _hole(file, f"no {name}")
    everywhere = {point for curve in curves.values() for point in curve.points}
    for name, curve in curves.items():
        missing = sorted(everywhere - set(curve.points))
        if missing:
            raise _hole(file, f"{name} not measured at {missing[0]:.0f} {size}")


def _check_attention(bundle: Bundle) -> None:
    grid, file = bundle.attention, bundle.folder / "attention.csv"
    lengths = {point for curve in grid.decode.items.values() for point in curve.points}
    for number, curve in grid.decode.items.items():
        missing = sorted(lengths - set(curve.points))
        if missing:
            raise _hole(file, f"{number} decodes not measured at length {missing[0]:.0f}")
    furthest = max(curve.last for curve in grid.prefill.items.values())
    for chunk, curve in grid.prefill.items.items():
        for end in (0, furthest):
            if end not in curve.points:
                raise _hole(file, f"a chunk of {chunk} not measured behind a context of {end:.0f}")
    for number, chunks in grid.mixed.items.items():
        for chunk, contexts in chunks.items.items():
            for context, curve in contexts.items.items():
                if curve.last < max(lengths):
                    raise _hole(file, _words((chunk, context, number, int(max(lengths)))))
    for shape in bundle.declared.shapes():
        if not _measured(grid, shape):
            raise _hole(file, f"{_words(shape)} although meta.yaml declares it")


def _measured(grid: AttentionGrid, shape: Shape) -> bool:
    chunk, context, number, length = shape
    if not chunk:
        return number in grid.decode.items and length in grid.decode.items[number].points
    if not number:
        return chunk in grid.prefill.items and context in grid.prefill.items[chunk].points
    chunks = grid.mixed.items.get(number)
    contexts = None if chunks is None else chunks.items.get(chunk)
    curve = None if contexts is None else contexts.items.get(context)
    return curve is not None and length in curve.points


def _words(shape: Shape) -> str:
    chunk, context, number, length = shape
    alone = f"a chunk of {chunk} behind a context of {context}" if chunk else ""
    decodes = f"{number} decodes at length {length}" if number else ""
    return f"{' beside '.join(part for part in (alone, decodes) if part)} not measured"


def _check_experts(file: Path, rows: Slices[Curve], moe: Moe, largest: int) -> None:
    """At every number of tokens the fewest and the most experts that they can use; up to a whole step."""
    measured = {point for curve in rows.items.values() for point in curve.points}
    for tokens in sorted({rows.axis[0], largest, *rows.axis}):
        most = min(moe.num_experts, tokens * moe.top_k)
        curve = rows.items.get(tokens)
        if curve is None:
            raise _hole(file, f"{tokens} tokens not measured")
        for experts in sorted({moe.top_k, most, *(point for point in measured if moe.top_k <= point <= most)}):
            if experts not in curve.points:
                raise _hole(file, f"{experts:.0f} experts of {tokens} tokens not measured")


def _hole(file: Path, what: str) -> InputError:
    return InputError(str(file), what, AGAIN)
