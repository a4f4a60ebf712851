"""How figures are written: three significant digits, a unit, a dash where there is none."""

from __future__ import annotations

import math
from typing import Any

DASH = "–"


def number(value: float | None, digits: int = 3) -> str:
    """``1,234``, ``12.3``, ``4.00``, ``0.0123``: three significant digits; whole numbers stay whole."""
    if value is None:
        return DASH
    if float(value).is_integer():
        return f"{value:,.0f}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded if decimals else value:,.{decimals}f}"


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best: ``850 µs``, ``42.1 ms``, ``3.20 s``, ``2.10 min``, ``3 h``."""
    if value is None:
        return DASH
    if value == 0:
        return "0 s"
    rounded = float(f"{value:.2e}")
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if rounded < limit:
            return f"{number(value * factor)} {unit}"
    return f"{number(value / 3600)} h"


def dollars(value: float | None) -> str:
    """``$12.34``; below a dollar three significant digits."""
    if value is None:
        return DASH
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${number(value)}"


def interval(bounds: list[Any] | None) -> str:
    """``1.20–1.90``; an open side is ``∞``."""
    if not bounds:
        return ""
    low, high = bounds
    return f"{number(low) if low is not None else '0'}–{number(high) if high is not None else '∞'}"


def interval_s(bounds: list[float | None] | None) -> str:
    """``113 ms … 140 ms``; open above where the sample is too small to bound it, a dash where there is none."""
    if bounds is None:
        return DASH
    low, high = bounds
    return f"{seconds(low)} or more" if high is None else f"{seconds(low)} … {seconds(high)}"


def share(value: float | None) -> str:
    """``42.0 %``."""
    return DASH if value is None else f"{100 * value:.1f} %"


def signed_percent(value: float) -> str:
    """``−22 %``, ``+18 %``."""
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.0f} %"


def band_text(band: dict[str, Any] | None) -> str:
    """``−22 % … +18 %``: where measured step times lie around predicted ones; a dash where nobody compared."""
    return f"{signed_percent(band['low_frac'])} … {signed_percent(band['high_frac'])}" if band else "–"


def band_basis(band: dict[str, Any]) -> str:
    """What a band leaves out: host time, of which the answer has its own, and the factors of a calibration."""
    left_out = ["host time aside"] if "host time" in band["basis"] else []
    left_out += ["before calibration"] if "before calibration" in band["basis"] else []
    return "".join(f", {words}" for words in left_out)
