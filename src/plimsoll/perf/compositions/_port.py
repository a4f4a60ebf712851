"""What a composition is, how it is written, and how a stack of them is built.

A file ``NAME.py`` of this folder holds

    SUMMARY: str                                   one sentence, with the citation
    OPTIONS: Mapping[str, Option]                  every option with its default and its meaning
    prepare(request, options) -> request           what changes before the step model is built (precision); optional
    build(inner, request, options) -> StepModel    the step model around `inner`
    memory_effect(request, options) -> MemoryEffect

`options` arrives complete and of the defaults' types. Stacks are read left to right:
``roofline+h2o,ratio=0.2+nanoflow`` is nanoflow around H2O around the roofline, so what changes the attention is written
before what overlaps it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Protocol, cast

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.perf.build import DescribedStepModel, build_step_model
from plimsoll.perf.calibrated import calibrated
from plimsoll.perf.compositions._launched import KnowsLaunches, Launched
from plimsoll.perf.request import StepModelRequest

Value = str | int | float | bool
Options = Mapping[str, Value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a composition: its default, whose type is the option's, and what it means."""

    default: Value
    meaning: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A composition as written: its name and the options that were given."""

    name: str
    options: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEffect:
    """What a composition does to the memory of one GPU.

    Attributes:
        kv_bytes_factor: on the cache bytes of a token that is kept on the GPU.
        weight_bytes_factor: on the bytes of all weights.
        extra_bytes: resident on every GPU beside weights and cache.
        gpu_kv_share: share of the kept cache that lies on the GPU; the rest lies in `kv_tier`.
        kv_tier: ``gpu``, ``cpu`` or ``disk``.
        tier_kv_share: share of the kept cache that lies in `kv_tier`, beside copies of it on the GPU.
        tier_bytes: of `kv_tier` that one GPU may fill, and `tier_source` where that figure is from.
        kept: tokens that a sequence of length L keeps, ``Σ weight × min(L, window)`` over ``(weight, window)`` with
            weights as fractions; ``((1.0, None),)`` keeps all.
        notes: sentences for the user.
    """

    kv_bytes_factor: float = 1.0
    weight_bytes_factor: float = 1.0
    extra_bytes: float = 0.0
    gpu_kv_share: float = 1.0
    kv_tier: str = "gpu"
    tier_kv_share: float = 0.0
    tier_bytes: float = float("inf")
    tier_source: str = ""
    kept: tuple[tuple[float, int | None], ...] = ((1.0, None),)
    notes: tuple[str, ...] = ()

    def kept_tokens(self, length: float) -> float:
        """Tokens that a sequence of `length` keeps, anywhere."""
        return sum(weight * (length if window is None else min(length, window)) for weight, window in self.kept)

    def gpu_tokens(self, length: float) -> float:
        """Full-precision tokens' worth of GPU cache that a sequence of `length` takes."""
        return self.kept_tokens(length) * self.gpu_kv_share * self.kv_bytes_factor

    def tier_tokens(self, length: float) -> float:
        """Full-precision tokens' worth of cache that a sequence of `length` takes in `kv_tier`."""
        return self.kept_tokens(length) * self.tier_kv_share * self.kv_bytes_factor


class Composition(Protocol):
    """The module of a composition (see the text above); `prepare` may be missing."""

    SUMMARY: str
    OPTIONS: Mapping[str, Option]

    def build(self, inner: DescribedStepModel, request: StepModelRequest, options: Options) -> DescribedStepModel:
        """The step model around `inner`."""
        ...

    def memory_effect(self, request: StepModelRequest, options: Options) -> MemoryEffect:
        """What it does to memory."""
        ...


@functools.cache
def list_compositions() -> tuple[str, ...]:
    """The compositions there are, by name."""
    folder = resources.files("plimsoll.perf") / "compositions"
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
    return tuple(sorted(name.removesuffix(".py") for name in names if not name.startswith("_")))


def load_composition(name: str) -> Composition:
    """The module of a composition; hyphens and underscores are alike.

    Raises:
        UnknownNameError: there is none of that name.
    """
    plain = name.strip().lower().replace("-", "_")
    if plain not in list_compositions():
        raise UnknownNameError("composition", name, list_compositions())
    return cast(Composition, importlib.import_module(f"plimsoll.perf.compositions.{plain}"))


def parse_compositions(text: str) -> tuple[Choice, ...]:
    """``nanoflow,nano=2+h2o,ratio=0.2`` as choices; the empty text is no composition.

    Raises:
        UnknownNameError: an unknown composition or option; the error lists those there are.
        InputError: an empty name, a part that is no ``name=value``, an option or a composition given twice, or a value
            of the wrong kind.
    """
    if not text.strip():
        return ()
    choices: list[Choice] = []
    for part in text.split("+"):
        name, *pairs = (piece.strip() for piece in part.split(","))
        if not name:
            raise InputError("compositions", text, "write a name behind every +, such as h2o,ratio=0.2")
        options: dict[str, str] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key or key in options:
                raise InputError(f"composition {name}", pair, "write every option once, as name=value")
            options[key] = value.strip()
        choice = Choice(name=name.lower().replace("-", "_"), options=MappingProxyType(options))
        complete_options(choice)
        choices.append(choice)
    _refuse_doubles(choices)
    return tuple(choices)


def _refuse_doubles(choices: Sequence[Choice]) -> None:
    names = [choice.name for choice in choices]
    for name in names:
        if names.count(name) > 1:
            raise InputError("compositions", "+".join(names), f"write {name} once")


def parse_step_model(text: str) -> tuple[str, tuple[Choice, ...]]:
    """``roofline+nanoflow,nano=2`` as the step model's name and its compositions; raises as `parse_compositions`.

    Raises:
        InputError: a + with nothing behind it.
    """
    name, plus, rest = text.partition("+")
    if plus and not rest.strip():
        raise InputError("--step-model", text, "write the name of a composition behind the +, or leave it out")
    return name.strip(), parse_compositions(rest)


def complete_options(choice: Choice) -> dict[str, Value]:
    """All options of a composition, those given converted to the type of their default.

    Raises:
        UnknownNameError: an option it does not have, with those it has.
        InputError: a value of the wrong kind.
    """
    known = load_composition(choice.name).OPTIONS
    field = f"option of composition {choice.name}"
    for name in choice.options:
        if name not in known:
            raise UnknownNameError(field, name, known, f"(it has: {', '.join(known) or 'none'})")
    values: dict[str, Value] = {name: option.default for name, option in known.items()}
    for name, text in choice.options.items():
        values[name] = _convert(f"composition {choice.name}, {name}", text, known[name].default)
    return values


def _convert(field: str, text: str, default: Value) -> Value:
    if isinstance(default, bool):
        words = {
            "1": True,
            "true": True,
            "on": True,
            "yes": True,
            "0": False,
            "false": False,
            "off": False,
            "no": False,
        }
        if text.lower() not in words:
            raise InputError(field, text, "write on or off")
        return words[text.lower()]
    if isinstance(default, str):
        return text
    try:
        value = type(default)(text)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise InputError(field, text, f"write {kind}") from error
    if not -float("inf") < value < float("inf"):
        raise InputError(field, text, "write a finite number")
    return value


def build_composed(name: str, request: StepModelRequest, choices: Sequence[Choice] = ()) -> DescribedStepModel:
    """The step model `name` (which may itself be ``roofline+h2o,…``) under `choices`, the last one outermost.

    Raises:
        PlimsollError: as `parse_compositions`, `plimsoll.perf.build.build_step_model` and the compositions say.
    """
    base, written = parse_step_model(name)
    _refuse_doubles([*written, *choices])
    stack = [(load_composition(choice.name), complete_options(choice)) for choice in (*written, *choices)]
    request = _prepare(request, stack)
    model = build_step_model(base, request)
    return calibrated(_stacked(model, stack, request) if stack else model, request.factors)


def _stacked(
    model: DescribedStepModel, stack: Sequence[tuple[Composition, Options]], request: StepModelRequest
) -> DescribedStepModel:
    """`stack` around `model`; what its host takes to launch a step stays below all of it."""
    kernels = getattr(model, "without_launches", None)
    built: DescribedStepModel = model if kernels is None else kernels()
    for module, options in stack:
        built = module.build(built, request, options)
    return built if kernels is None else Launched(built, cast(KnowsLaunches, model))


def prepared(request: StepModelRequest, choices: Sequence[Choice]) -> StepModelRequest:
    """The request as `choices` change it before a step model is built: the precision of the weights.

    Raises:
        InfeasibleError: two that choose it, or weights that are quantised already.
    """
    return _prepare(request, [(load_composition(choice.name), complete_options(choice)) for choice in choices])


def _prepare(request: StepModelRequest, stack: Sequence[tuple[Composition, Options]]) -> StepModelRequest:
    for module, options in stack:
        prepare = getattr(module, "prepare", None)
        if prepare is not None:
            request = prepare(request, options)
    return request


def combined_memory_effect(
    request: StepModelRequest, choices: Sequence[Choice]
) -> tuple[StepModelRequest, MemoryEffect]:
    """The request as the compositions change it (precision), and their effects on memory together.

    Raises:
        InputError: two compositions that both choose which tokens are kept, or where the cache lies.
    """
    stack = [(load_composition(choice.name), complete_options(choice)) for choice in choices]
    request = _prepare(request, stack)
    effects = [module.memory_effect(request, options) for module, options in stack]
    plain = MemoryEffect()
    keeping = [choice.name for choice, e in zip(choices, effects, strict=True) if e.kept != plain.kept]
    moving = [choice.name for choice, e in zip(choices, effects, strict=True) if e.kv_tier != plain.kv_tier]
    for names, what in ((keeping, "which tokens are kept"), (moving, "where the cache lies")):
        if len(names) > 1:
            raise InputError("compositions", " + ".join(names), f"only one of them may choose {what}")
    total = plain
    for effect in effects:
        total = MemoryEffect(
            kv_bytes_factor=total.kv_bytes_factor * effect.kv_bytes_factor,
            weight_bytes_factor=total.weight_bytes_factor * effect.weight_bytes_factor,
            extra_bytes=total.extra_bytes + effect.extra_bytes,
            gpu_kv_share=total.gpu_kv_share * effect.gpu_kv_share,
            kv_tier=effect.kv_tier if effect.kv_tier != plain.kv_tier else total.kv_tier,
            tier_kv_share=effect.tier_kv_share if effect.kv_tier != plain.kv_tier else total.tier_kv_share,
            tier_bytes=min(effect.tier_bytes, total.tier_bytes),
            tier_source=effect.tier_source or total.tier_source,
            kept=effect.kept if effect.kept != plain.kept else total.kept,
            notes=total.notes + effect.notes,
        )
    return request, total
