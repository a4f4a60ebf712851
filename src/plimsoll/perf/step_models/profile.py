"""``profile:DIR``: operators measured on one machine. Options: ``profile:DIR,allow_extrapolation=true,skew=false``.

``custom_all_reduce=false`` is of a server with `disable_custom_all_reduce` (`profiles.links`); ``graph_tokens=N`` of
one whose largest CUDA graph is not vLLM's 512, 0 of one with `enforce_eager` (`profiles.graphs`).
"""

from __future__ import annotations

import dataclasses

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.bundle import read_bundle
from plimsoll.perf.profiles.graphs import DEFAULT_LIMIT_TOKENS
from plimsoll.perf.profiles.links import find_machine
from plimsoll.perf.profiles.model import Profiled, ProfileOptions
from plimsoll.perf.profiles.origin import check_origin, check_precision
from plimsoll.perf.profiles.own_format import is_own, with_options
from plimsoll.perf.profiles.own_model import OwnProfiled, build_own
from plimsoll.perf.profiles.plausible import check_plausible
from plimsoll.perf.profiles.vidur import build_vidur, is_vidur
from plimsoll.perf.profiles.whole import check_whole
from plimsoll.perf.request import StepModelRequest


def build(request: StepModelRequest) -> Profiled | OwnProfiled:
    """The profiled step model of a deployment; `profiles.own_model` where the folder is Plimsoll's own form.

    Raises:
        InputError: no folder given, or a profile that cannot be read, has holes, is of another model or GPU, or is not
            in microseconds; an unknown option.
        OutOfRangeError: the profile lacks the tensor-parallel degree.
        InfeasibleError: pipeline stages, or another precision than the profile's.
    """
    request = with_options(_with_graph_tokens(request))
    request.check_options("allow_extrapolation", "skew", "custom_all_reduce", "graph_tokens")
    if request.argument and is_own(request.argument):
        return build_own(request)
    if request.argument and is_vidur(request.argument):
        return build_vidur(request)
    if not request.argument:
        raise InputError("--step-model", "profile", "name the folder of the profile: profile:DIR")
    graph_tokens = request.options.get("graph_tokens", DEFAULT_LIMIT_TOKENS)
    if isinstance(graph_tokens, bool) or not isinstance(graph_tokens, int) or graph_tokens < 0:
        raise InputError("--step-model profile, graph_tokens", graph_tokens, "write a number of tokens from 0")
    bundle = read_bundle(request.argument, request.parallelism.tp)
    check_origin(bundle, request.model, request.gpu)
    asked = (request.precision, request.kv_precision)
    check_precision(bundle.folder, (bundle.precision, bundle.kv_precision), asked)
    options = ProfileOptions(
        allow_extrapolation=bool(request.options.get("allow_extrapolation", False)),
        use_skew=bool(request.options.get("skew", True)),
        machine=find_machine(bundle.folder, request.gpu),
        custom_all_reduce=bool(request.options.get("custom_all_reduce", True)),
        graph_tokens=graph_tokens,
        overheads=request.overheads,
    )
    built = Profiled(bundle, request.model, request.gpu, request.parallelism, options)
    check_whole(bundle, request.model)
    check_plausible(bundle, request.model, request.gpu, request.precision)
    return built


def _with_graph_tokens(request: StepModelRequest) -> StepModelRequest:
    """The request with ``,graph_tokens=N`` behind the folder as an option: the only one that is a number."""
    folder, *pairs = request.argument.split(",")
    given = [pair.partition("=")[2] for pair in pairs if pair.startswith("graph_tokens=")]
    if not given:
        return request
    rest = [pair for pair in pairs if not pair.startswith("graph_tokens=")]
    value: int | str = int(given[-1]) if given[-1].isdecimal() else given[-1]
    options = {**request.options, "graph_tokens": value}
    return dataclasses.replace(request, argument=",".join([folder, *rest]), options=options)
