"""The answer of `simulate` on a terminal: one line, one table, then what it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.report.text import band_basis, band_text, interval_s, number, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

LATENCIES = (
    ("ttft_s", "TTFT"),
    ("tpot_s", "TPOT"),
    ("itl_s", "ITL"),
    ("e2e_s", "end to end"),
    ("queueing_delay_s", "queueing"),
)
PERCENTILES = ("mean", "p50", "p90", "p95", "p99")


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a simulation's document."""
    from rich.table import Table

    console.print(f"[bold]{verdict_line(document)}[/bold]", soft_wrap=True)
    metrics, narrow = document["metrics"], False
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", *PERCENTILES, "p99, 95 % interval"):
        table.add_column(title, justify="left" if not title else "right")
    for key, title in LATENCIES:
        row = metrics[key]
        cells = [seconds(row[name]) + ("*" if name in row["too_few_samples"] else "") for name in PERCENTILES]
        narrow = narrow or any(cell.endswith("*") for cell in cells)
        table.add_row(title, *cells, interval_s(row["interval"]["p99"]))
    console.print(table)
    if narrow:
        console.print("* too few requests for this percentile at 99 % confidence: take it as a rough figure")
    for line in _figures(document):
        console.print(line, soft_wrap=True)
    for line in footing(document):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)


def verdict_line(document: dict[str, Any]) -> str:
    """One line: deployment, load, whether it holds."""
    deployment, metrics, counts = document["deployment"], document["metrics"], document["counts"]
    every = [kind["deployment"] for kind in document.get("kinds", ())] or [deployment]
    name = f"{deployment['model']} on {' and '.join(map(_machines, every))}"
    done = f"{number(metrics['requests_per_s'])} requests/s, {number(metrics['output_tokens_per_s'])} output tokens/s"
    if not counts["finished"]:
        ends = ", ".join(f"{counts[end]:,} {end}" for end in ("unfinished", "rejected") if counts[end])
        return f"{name} finishes no request ({ends or 'none came'})"
    if document["queue_grows"]:
        return f"{name}: overloaded, the queue keeps growing (it answers {done})"
    verdict = document["verdict"]
    if verdict is not None:
        held = "meets its targets" if verdict["passed"] else "misses its targets"
        return f"{name} {held} at {done}"
    return f"{name}: {done}, p99 TTFT {seconds(metrics['ttft_s']['p99'])} ({counts['finished']} requests)"


def _machines(deployment: dict[str, Any]) -> str:
    """``4 H100-SXM = 2 replicas × TP 2``."""
    gpu, text = deployment["gpu"], str(deployment["arithmetic"])
    return text.replace("GPUs", gpu, 1) if "GPUs" in text else text.replace("GPU", gpu, 1)


def _figures(document: dict[str, Any]) -> list[str]:
    metrics, counts, load = document["metrics"], document["counts"], document["load"]
    batch, kv_use, queue = metrics["batch_size"], metrics["kv_use_frac"], metrics["queue_length"]
    ends = ", ".join(f"{counts[name]:,} {name}" for name in ("finished", "unfinished", "rejected"))
    lines = [f"requests: {ends}; {counts['preemptions']:,} preemptions"]
    lines.append(
        f"batch {number(batch['mean'])} mean, {number(batch['max'])} most; KV use {share(kv_use['mean'])} mean, "
        f"{share(kv_use['max'])} most; queue {number(queue['mean'])} mean"
    )
    found = document["prefix_cache"]
    if found["hit_tokens"]:
        lines.append(f"prefix cache: {share(found['hit_frac'])} of the prompt tokens found")
    workload = document["workload"]
    if load["kind"] == "open":
        asked = "" if load["asked_rate_per_s"] is None else f", {load['asked_rate_per_s']:g} asked for"
        lines.append(f"load: open loop, {number(load['realised_rate_per_s'])} requests/s realised{asked}")
    else:
        lines.append(f"load: closed loop, {load['concurrency']} users")
    lines.append(f"workload: {workload['description']}; seed {load['seed']}")
    lines.append(
        f"lengths: prompt {number(workload['prompt']['mean_tokens'])} mean, {number(workload['prompt']['p99_tokens'])} "
        f"p99; output {number(workload['output']['mean_tokens'])} mean, {number(workload['output']['p99_tokens'])} p99"
    )
    verdict = document["verdict"]
    if verdict is not None:
        for target in verdict["targets"]:
            held = "holds: " if target["passed"] else "MISSES:"
            name = target["name"].removesuffix("_s").upper()
            lines.append(
                f"{held} p{verdict['percentile']:g} {name} {seconds(target['value_s'])} "
                f"against {seconds(target['target_s'])}"
            )
        lines.append(f"goodput: {number(metrics['goodput_per_s'])} requests/s within all targets")
    return lines


def footing(document: dict[str, Any]) -> list[str]:
    """What the answer stands on: settings, memory, sources, notes."""
    lines = []
    where = " at the highest load that held" if "max_load" in document else ""
    for kind in document.get("kinds", ()):
        gpu, count = kind["deployment"]["gpu"], kind["num_requests"]
        times = f"TTFT {seconds(kind['ttft_p50_s'])} p50, {seconds(kind['ttft_p99_s'])} p99" if count else "none"
        lines += [] if count is None else [f"{gpu}: {count:,} of the requests{where}, {times}"]
        lines += [f"{gpu}: {line}" for line in _stands_on(kind)]
    lines += [] if document.get("kinds") else _stands_on(document)
    lines += [f"note: {note}" for note in document["notes"]]
    if "num_steps" in document:
        lines.append(
            f"{document['num_steps']:,} steps, {seconds(document['simulated_s'])} simulated "
            f"in {seconds(document['wall_s'])}"
        )
    return lines


def _stands_on(document: dict[str, Any]) -> list[str]:
    """Settings, memory and sources of one kind of replica."""
    deployment = document["deployment"]
    settings = deployment["settings"]
    weights = f"{deployment['precision']} weights, {deployment['kv_precision']} cache"
    seats = f"{settings['max_num_seqs']:,} seats, {settings['max_num_batched_tokens']:,} tokens a step"
    return [
        f"{deployment['engine']}, {weights}, {seats}, max length {settings['max_model_len']:,}",
        f"memory: {deployment['memory']['breakdown']}",
        _sources_line(document["sources"]),
        _host_line(document["sources"]["host_time"]),
    ]


def _host_line(host_time: dict[str, Any]) -> str:
    """``host time: vllm-v1 (300 µs a step)``."""
    line = f"host time: {host_time['name']}{_spent(host_time)}"
    server = host_time.get("api_server")
    return f"{line}; API server: {server['name']}{_spent(server)}" if server else line


def _spent(figures: dict[str, Any]) -> str:
    names = {"per_step_s": "step", "per_sequence_s": "sequence of a step", "per_prefill_token_s": "prompt token"}
    names |= {"per_request_s": "request", "per_request_token_s": "token of its prompt"}
    parts = [f"{seconds(figures[key])} a {name}" for key, name in names.items() if figures.get(key)]
    return f" ({', '.join(parts)})" if parts else ""


def _sources_line(sources: dict[str, Any]) -> str:
    name = sources["step_model"].get("step_model", "")
    band = sources["error_band"]
    extrapolated = sources["step_model"].get("extrapolates")
    unknown = "extrapolated, how far off is not known" if extrapolated else "never compared with runs"
    known = f"measured {band_text(band)} around it in four runs of five{band_basis(band)}" if band else unknown
    return f"step cost: {name} ({sources['step_cost']}, {known}); KV blocks: {sources['kv_blocks']}"
