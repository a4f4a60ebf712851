"""The page that describes every metric, made from the docstrings: ``python -m plimsoll.metrics.document``."""

from __future__ import annotations

import inspect
import re
import sys

from plimsoll.metrics.definitions import all_definitions

SECTIONS = ("Formula", "Unit", "Excludes", "Source")

_HEAD = """# Metrics

<!-- Made from docstrings: python -m plimsoll.metrics.document > docs/metrics.md -->

Every metric is defined once, in SI units, by one function in `plimsoll.metrics.definitions`; simulated and measured
runs go through the same one. Percentiles are numpy's linear ones. A figure that does not exist is null, never NaN.

**Targets.** A run meets its targets if each named percentile is within its target, requests that did not finish
(unfinished, rejected, failed) counting as infinitely late. For the pooled ITL such a request counts as many infinite
gaps as the average finished request has. Percentiles in the tables leave such requests out and say how many
(`num_undefined`).

**Intervals** are at 95 % by default and respect autocorrelation: within one run by batches of neighbours in time,
merged while correlated and widened by what correlation is left (`batch-means` for means, `batch-ranks` for
percentiles), never narrower than for independent samples; over seeds by Student's t. An open side (null) means that
the run is too short to bound it. Under heavy load they are still optimistic: at a load of 0.8, a 95 % interval of an
M/M/1 queue's mean wait held the truth in 84 % of runs of 1,000 requests, 89 % of 4,000 and 93 % of 20,000 (an i.i.d.
interval: 10 to 18 %). Where batches stay correlated the interval is listed in `interval_too_narrow`: run longer, or
use seeds.

**Too few samples.** A percentile stands on enough samples if, with 99 % confidence, one of them lies beyond it:
459 for p99, 90 for p95, 44 for p90, 7 for p50. Others are listed in `too_few_samples`.

**Growing queue.** `is_queue_growing` says whether more arrived than was served, over the last three quarters of the
arrivals; such a run has no steady latency. Requests *waiting* that pile up (a significant rise, of at least 2 % of the
arrivals, that never came back down) condemn a run of any length. Requests *in the system* that pile up need a reason,
since a batch that fills grows too: either they wait for their second token (their KV queues for a link between two
pools), which again condemns a run of any length, or they take longer than the early ones did, which counts where the
arrivals last five times as long as those stayed. A run too short for that, or with ever more requests that hardly take
longer, is not called growing, and `conclusive` is false. In a closed loop, and of requests that come all at once,
nothing grows. The docstring has how often it is right on queues whose answer is known.
"""


def to_markdown() -> str:
    """The page, ending in a newline. Every definition's docstring must have the sections `SECTIONS`."""
    parts = [_HEAD]
    for name, define in all_definitions().items():
        text = inspect.getdoc(define) or ""
        title, *rest = re.split(rf"^({'|'.join(SECTIONS)}): ", text, flags=re.MULTILINE)
        found = dict(zip(rest[::2], rest[1::2], strict=True))
        lines = [f"## `{name}`", "", _flat(title), ""]
        lines += [f"- **{section}**: {_flat(found[section])}" for section in SECTIONS]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _flat(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
