"""`plimsoll profile`."""

from __future__ import annotations

from typing import Annotated

from plimsoll.cli import options as o

MEASURING = "Measuring"


def command(
    model: o.Model = None,
    device: Annotated[str | None, o.option("--device", "cpu or cuda. [cpu]", MEASURING)] = None,
    backend: Annotated[
        str | None,
        o.option("--backend", "torch: operators alone; vllm: inside a real vLLM on this CPU. [torch]", MEASURING),
    ] = None,
    tp: o.Tp = None,
    precision: Annotated[str | None, o.option("--precision", "bf16 or fp16. [the checkpoint's own]", MEASURING)] = None,
    max_num_seqs: Annotated[
        int | None, o.option("--max-num-seqs", "The grid's most sequences in a step. [32]", MEASURING)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, o.option("--max-num-batched-tokens", "The grid's most tokens in a step. [2048]", MEASURING)
    ] = None,
    max_model_len: Annotated[
        int | None, o.option("--max-model-len", "The grid's longest sequence. [4096]", MEASURING)
    ] = None,
    threads: Annotated[
        int | None, o.option("--threads", "Cores that compute. [all; vllm: all but one]", MEASURING)
    ] = None,
    vllm_python: Annotated[
        str | None, o.option("--vllm-python", "Python of vLLM's environment. [.venv-vllm/bin/python]", MEASURING)
    ] = None,
    server: Annotated[
        str | None, o.option("--server", "URL of a running vLLM with the probe. [one is started]", MEASURING)
    ] = None,
    out: Annotated[
        str | None, o.option("--out", "The profile's folder; what is measured there is kept. [profile-MODEL]", o.OUTPUT)
    ] = None,
    json_output: o.Json = False,
) -> int:
    """How long do this machine's operators take at this model's sizes?

    Example: plimsoll profile --model Qwen/Qwen2.5-0.5B --device cuda --out profile
    """
    given = dict(locals())
    from plimsoll.api.profiling import ProfileScenario, profile
    from plimsoll.api.scenario import build
    from plimsoll.api.store import check_folder
    from plimsoll.cli.running import progress, show
    from plimsoll.report.profile import render

    if out is not None:
        check_folder("--out", out)
    given["folder"] = given.pop("out")
    del given["json_output"]
    with progress("measuring") as update:
        result = profile(build(ProfileScenario, given), progress=update)
    show(result.to_json_dict(), json_output, render)
    return 0
