"""A study on a terminal, and as one self-contained HTML file with bar charts drawn in SVG."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from plimsoll.report.text import number, seconds, share

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

COLUMNS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("requests_per_s", "req/s", number),
    ("output_tokens_per_s", "tokens/s", number),
    ("ttft_mean_s", "TTFT mean", seconds),
    ("ttft_p99_s", "TTFT p99", seconds),
    ("tpot_mean_s", "TPOT mean", seconds),
    ("itl_p99_s", "ITL p99", seconds),
    ("normalized_latency_mean_s_per_token", "norm./token", seconds),
    ("batch_mean", "batch", number),
    ("kv_use_mean_frac", "KV use", share),
    ("preemptions", "preempted", number),
)
CHARTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("output_tokens_per_s_per_gpu", "Output tokens per second and GPU", number),
    ("ttft_p99_s", "Time to first token, p99", seconds),
    ("itl_p99_s", "Inter-token latency, p99", seconds),
    ("normalized_latency_mean_s_per_token", "Normalized latency, mean per token", seconds),
    ("batch_mean", "Batch size, mean over time", number),
    ("kv_use_mean_frac", "KV memory in use, mean over time", share),
)
BARS = tuple(CHARTS[k] for k in (0, 1))
"""Those that the terminal draws too."""
BLOCKS = " ▏▎▍▌▋▊▉"
BAR_CELLS = 50
WIDEST = 1000
"""Cells that a table may take before its columns are cut."""
WIDTH, LABEL, BAR, GAP, TOP = 560, 170, 18, 8, 30
LETTER, MARKS = 7, 32
"""Pixels of a letter of a name, and of the marks behind it: two names may differ in their last option only."""
COLOURS = ("#3465a4", "#c4650e", "#4e9a06", "#a03060", "#75507b", "#8a7000", "#2f8f8f", "#606060")


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a study's document."""
    from rich.table import Table

    load = document["load"]
    rate = load["realised_rate_per_s"]
    how = f"{number(rate)} requests/s" if load["kind"] == "open" else f"{load['concurrency']} users"
    count = document["workload"]["num_requests"]
    console.print(
        f"[bold]{document['model']} on {document['gpu']}: {len(document['rows'])} engines on the same "
        f"{count:,} requests, {how}[/bold]",
        soft_wrap=True,
    )
    console.print(document["workload"]["description"], soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("engine", no_wrap=True)
    several = len({row["num_gpus"] for row in document["rows"]}) > 1
    if several:
        table.add_column("GPUs", justify="right")
    for _, title, _ in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in document["rows"]:
        cells = [text(row[key]) for key, _, text in COLUMNS]
        table.add_row(_marked(row), *([str(row["num_gpus"])] if several else []), *cells)
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table)
    for key, title, text in BARS:
        console.print(f"\n{title}")
        for line in bars([(row["engine"] + _refusing(row), row[key]) for row in document["rows"]], text):
            console.print(line, soft_wrap=True)
    console.print()
    for name, reason in document["refused"].items():
        console.print(f"{name} did not run: {reason}", soft_wrap=True)
    for note in document["notes"]:
        console.print(f"[dim]note: {note}[/dim]", soft_wrap=True)


def _marked(row: dict[str, Any]) -> str:
    """``orca (overloaded)``, ``trtllm (rejects 148 of 300)``."""
    return str(row["engine"]) + (" (overloaded)" if row["queue_grows"] else "") + _refusing(row)


def _refusing(row: dict[str, Any]) -> str:
    return f" (rejects {row['rejected']:,} of {row['num_requests']:,})" if row["rejected"] else ""


def bars(values: list[tuple[str, float | None]], text: Callable[[float | None], str]) -> list[str]:
    """Horizontal bars from zero in text, an eighth of a cell fine; what does not exist has a dash and no bar."""
    longest = max((value for _, value in values if value is not None), default=0.0) or 1.0
    widest = max((len(name) for name, _ in values), default=0)
    lines = []
    for name, value in values:
        eighths = round(8 * BAR_CELLS * (value or 0.0) / longest)
        bar = "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()
        lines.append(f"{name:<{widest}}  {bar}{' ' if bar else ''}{text(value)}")
    return lines


def to_html(document: dict[str, Any]) -> str:
    """The charts of a study as one HTML page that needs nothing else."""
    title = f"{document['model']} on {document['gpu']}: engines on the same requests"
    overloaded = any(row["queue_grows"] for row in document["rows"])
    legend = (
        "<p>* overloaded: the queue kept growing, so its times only tell how long the run was.</p>"
        if overloaded
        else ""
    )
    refusing = [row["engine"] + _refusing(row) for row in document["rows"] if row["rejected"]]
    if refusing:
        text = html.escape("; ".join(refusing))
        legend += f"<p>† answers only a part of the requests, so its figures are not those of the others: {text}.</p>"
    charts = "\n".join(_chart(document["rows"], key, name, text) for key, name, text in CHARTS)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body {{ font: 14px sans-serif; margin: 2em; max-width: 1180px; }}
figure {{ display: inline-block; margin: 1em; }}
svg text {{ font: 13px sans-serif; fill: currentColor; }} @media (prefers-color-scheme: dark) {{
body {{ background: #1c1c1c; color: #ddd; }} }}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(document["workload"]["description"])}</p>
{charts}
{legend}
<p>Plimsoll {html.escape(document["version"])}; seed {document["load"]["seed"]}.</p>
</body></html>
"""


def _chart(rows: list[dict[str, Any]], key: str, title: str, text: Callable[[float | None], str]) -> str:
    """Horizontal bars from zero, each with its figure; one that does not exist has a dash and no bar."""
    values = [row[key] for row in rows]
    longest = max((value for value in values if value is not None), default=0.0) or 1.0
    height = TOP + len(rows) * (BAR + GAP)
    left = max(LABEL, LETTER * max(len(row["engine"]) for row in rows) + MARKS)
    full = WIDTH - LABEL + left
    size = f'width="{full}" height="{height}" viewBox="0 0 {full} {height}"'
    parts = [
        f'<figure><svg role="img" aria-label="{html.escape(title)}" {size}>',
        f'<text x="0" y="16" font-weight="bold">{html.escape(title)}</text>',
    ]
    for k, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = TOP + k * (BAR + GAP)
        width = 0.0 if value is None else (WIDTH - LABEL - 90) * value / longest
        label = html.escape(row["engine"] + (" *" if row["queue_grows"] else "") + (" †" if row["rejected"] else ""))
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[k % len(COLOURS)]}">'
            f"<title>{html.escape(row['engine'])}: {text(value)}</title></rect>"
        )
        parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 14}">{text(value)}</text>')
    return "\n".join([*parts, "</svg></figure>"])
