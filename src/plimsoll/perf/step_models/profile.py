"""``profile:DIR``: operators measured on one machine. Options: ``profile:DIR,allow_extrapolation=true,skew=false``."""

from __future__ import annotations

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.bundle import read_bundle
from plimsoll.perf.profiles.links import find_machine
from plimsoll.perf.profiles.model import Profiled, ProfileOptions
from plimsoll.perf.profiles.origin import check_origin
from plimsoll.perf.profiles.own_format import is_own, with_options
from plimsoll.perf.profiles.own_model import OwnProfiled, build_own
from plimsoll.perf.profiles.plausible import check_plausible
from plimsoll.perf.profiles.vidur import build_vidur, is_vidur
from plimsoll.perf.request import StepModelRequest


def build(request: StepModelRequest) -> Profiled | OwnProfiled:
    """The profiled step model of a deployment; `profiles.own_model` where the folder is Plimsoll's own form.

    Raises:
        InputError: no folder given, or a profile that cannot be read, is of another model or GPU, or is not in
            microseconds; an unknown option.
        OutOfRangeError: the profile lacks the tensor-parallel degree.
        InfeasibleError: pipeline stages.
    """
    request = with_options(request)
    request.check_options("allow_extrapolation", "skew")
    if request.argument and is_own(request.argument):
        return build_own(request)
    if request.argument and is_vidur(request.argument):
        return build_vidur(request)
    if not request.argument:
        raise InputError("--step-model", "profile", "name the folder of the profile: profile:DIR")
    bundle = read_bundle(request.argument, request.parallelism.tp)
    check_origin(bundle, request.model, request.gpu)
    options = ProfileOptions(
        allow_extrapolation=bool(request.options.get("allow_extrapolation", False)),
        use_skew=bool(request.options.get("skew", True)),
        machine=find_machine(bundle.folder, request.gpu),
        overheads=request.overheads,
    )
    built = Profiled(bundle, request.model, request.gpu, request.parallelism, options)
    check_plausible(bundle, request.model, request.gpu, request.precision)
    return built
