"""Suite `guide-grid`: GUIDE's grid of batches against a real vLLM on this machine's CPU, from its profile alone.

`--data` takes the folder that ``make verify-vllm`` fills: per model a ``profile`` of the running server, ``grid`` with
the result files of vLLM's own benchmark client, and ``run.json`` with the server's limits. Every batch is sent at once.
Nothing is fitted to the grid: operators were timed step by step, and host times come from batches of other sizes
(`plimsoll.profiler.serving`).

Half of the repetitions come before the profile and half after it, so that a machine that becomes slower or faster
meanwhile does so on both sides. How far a batch's two halves lie apart is printed beside the errors (*drift*): where
the server does not repeat its own times, no prediction of them can be judged.

Three figures per batch, as GUIDE judges itself by, ours over measured less one: *batch latency*, from the first request
sent to the last token received; *TTFT*, the mean over the batch; *decode throughput*, the batch over its mean time per
output token.

What a client sees beside the engine. The API server takes requests in one after another, each in
``per_request + per_prompt_token · prompt``; it is one thread, so that no first token leaves before the whole burst is
in; and a fixed time passes on the way in and out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.api.scenario import SimulateScenario
from plimsoll.api.simulation import simulate
from plimsoll.core.errors import InputError
from plimsoll.core.units import US_PER_S

FIGURES = ("batch latency", "ttft", "decode throughput")
TARGET = 0.08
STEADY = TARGET
"""Mean drift beyond which nothing can be judged: what is measured is the middle, uncertain by half the drift."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch as somebody saw it.

    Attributes:
        latency_s: from the first request sent to the last token received.
        ttft_s: mean over the requests.
        decode_tokens_per_s: requests over their mean time per output token.
    """

    latency_s: float
    ttft_s: float
    decode_tokens_per_s: float

    def figures(self) -> tuple[float, float, float]:
        """In the order of `FIGURES`."""
        return self.latency_s, self.ttft_s, self.decode_tokens_per_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A model that was served: its folder and what is known of the server."""

    folder: Path
    run: Mapping[str, Any]
    header: Mapping[str, Any]

    @property
    def profile(self) -> Path:
        """The profile's folder."""
        return self.folder / "profile"


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Predict every batch of every model.

    Raises:
        InputError: a folder that is not whole.
    """
    rows: list[dict[str, Any]] = []
    for served in (read(folder) for folder in _folders(paths)):
        rows += rows_of(served)
    figures: dict[str, Any] = {}
    sentences, passed = [], bool(rows)
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        means = {name: statistics.fmean(abs(row[f"{name} error"]) for row in mine) for name in FIGURES}
        worst = {name: max((row[f"{name} error"] for row in mine), key=abs) for name in FIGURES}
        drifts = {name: statistics.fmean(abs(row[f"{name} drift"]) for row in mine) for name in FIGURES}
        figures[model] = {
            name: {"mean_abs_error": means[name], "worst_error": worst[name], "mean_abs_drift": drifts[name]}
            for name in FIGURES
        }
        passed &= max(means.values()) <= TARGET
        said = ", ".join(f"{name} {means[name]:.1%}" for name in FIGURES)
        sentences.append(
            f"{model} mean error of {len(mine)} batches: {said} (to reach {TARGET:.0%} each); {_steadiness(drifts)}"
        )
    return {"passed": passed, "summary": "; ".join(sentences) or "no batches", "figures": {**figures, "batches": rows}}


def _steadiness(drifts: Mapping[str, float]) -> str:
    said = ", ".join(f"{drifts[name]:.1%}" for name in FIGURES)
    verdict = "" if max(drifts.values()) <= STEADY else f" (over {STEADY:.0%}: run it on a quieter machine)"
    return f"the server's own times before and after the profile differ by {said}{verdict}"


def rows_of(served: Served) -> list[dict[str, Any]]:
    """One row a batch, for the table."""
    rows = []
    for batch, prompt in served.run["grid"]:
        real, ours = measured(served, batch, prompt), predicted(served, batch, prompt)
        before, after = (measured(served, batch, prompt, repeats) for repeats in served.run["rounds"])
        row: dict[str, Any] = {"model": served.folder.name, "batch": batch, "prompt": prompt}
        for name, theirs, mine in zip(FIGURES, real.figures(), ours.figures(), strict=True):
            row |= {f"{name} measured": theirs, f"{name} predicted": mine, f"{name} error": mine / theirs - 1}
        for name, first, second in zip(FIGURES, before.figures(), after.figures(), strict=True):
            row[f"{name} drift"] = second / first - 1
        rows.append(row)
    return rows


def measured(served: Served, batch: int, prompt: int, repeats: Sequence[int] | None = None) -> Batch:
    """What vLLM's client saw: medians over some repetitions of a batch, or over all of them.

    Raises:
        InputError: a result that is missing, or in which requests failed.
    """
    found = []
    for repeat in repeats if repeats is not None else itertools.chain(*served.run["rounds"]):
        file = served.folder / "grid" / f"{name_of(batch, prompt, repeat)}.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            ttfts, gaps = document["ttfts"], document["itls"]
            whole = set(document["output_lens"]) == {served.run["output_tokens"]} and len(ttfts) == batch
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(str(file), str(error), "run `make verify-vllm` again: it goes on") from error
        if not whole or set(document["input_lens"]) != {prompt}:
            raise InputError(str(file), f"{len(ttfts)} requests", "every request has the lengths that its name says")
        per_token_s = [sum(gap) / (served.run["output_tokens"] - 1) for gap in gaps]
        found.append((float(document["duration"]), statistics.fmean(ttfts), batch / statistics.fmean(per_token_s)))
    latency_s, ttft_s, throughput = (statistics.median(values) for values in zip(*found, strict=True))
    return Batch(latency_s=latency_s, ttft_s=ttft_s, decode_tokens_per_s=throughput)


def predicted(served: Served, batch: int, prompt: int) -> Batch:
    """What `plimsoll simulate` says of the same batch, with the server's way in and out around it."""
    output = served.run["output_tokens"]
    fixed_s, intake_s = way_in_s(served.header["server"], prompt)
    result = simulate(
        SimulateScenario(
            model=str(served.folder / "model" / "config.json"),
            gpu=str(served.profile / "device.toml"),
            step_model=f"profile:{served.profile}",
            precision=served.header["run"]["dtype"],
            max_num_seqs=served.run["max_num_seqs"],
            max_num_batched_tokens=served.run["max_num_batched_tokens"],
            max_model_len=served.run["max_model_len"],
            block_size=served.run["block_size"],
            kv_blocks=served.run["num_blocks"],
            prompt_tokens=prompt,
            output_tokens=output,
            num_requests=batch,
            **({"rate_per_s": 1 / intake_s, "arrivals": "constant"} if intake_s else {"at_once": True}),
        )
    )
    run = result.run
    # The engine's clock starts when the first request is in, which is after one of `batch` intakes.
    first_s = np.maximum(intake_s + run.first_token_s, batch * intake_s) + fixed_s - intake_s
    finish_s = np.maximum(run.finish_s + fixed_s, first_s)
    return Batch(
        latency_s=float(finish_s.max()),
        ttft_s=float(first_s.mean()),
        decode_tokens_per_s=batch / float(((finish_s - first_s) / (output - 1)).mean()),
    )


def way_in_s(server: Mapping[str, float], prompt: int) -> tuple[float, float]:
    """Fixed seconds of a request, its own intake included, and seconds of one intake."""
    intake_s = (server["per_request_us"] + server["per_prompt_token_us"] * prompt) / US_PER_S
    fixed_s = (server["fixed_us"] + server["per_prompt_token_us"] * prompt) / US_PER_S
    return max(fixed_s, intake_s), intake_s


def name_of(batch: int, prompt: int, repeat: int) -> str:
    """File name of a result, without its ending."""
    return f"batch{batch}-prompt{prompt}-{repeat}"


def read(folder: Path) -> Served:
    """A model's folder.

    Raises:
        InputError: it is not whole.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        header = tomllib.loads((folder / "profile" / "profile.toml").read_text(encoding="utf-8"))
        for name in ("grid", "rounds", "output_tokens", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            run[name]
        header["server"]["per_request_us"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(folder), str(error), "run `make verify-vllm` again: it goes on where it stopped"
        ) from error
    return Served(folder=folder, run=run, header=header)


def _folders(paths: Sequence[Path]) -> list[Path]:
    found = []
    for path in paths:
        inside = sorted(entry.parent for entry in path.glob("*/run.json"))
        if not inside and not (path / "run.json").is_file():
            raise InputError("--data", str(path), "give the folder that `make verify-vllm` fills")
        found += inside or [path]
    return found
