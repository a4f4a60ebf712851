"""Plots of a suite's errors as SVG files: no dependency, light and dark, the same bytes for the same figures.

A suite hands over ``"plots": {name: plot}`` beside its figures, where a plot is

    {"kind": "scatter", "title", "x", "y", "series": {label: [[measured, predicted], …]}}     logarithmic axes
    {"kind": "errors", "title", "bound", "series": {label: [signed errors]}}                  cumulative shares
    {"kind": "bars", "title", "bound", "series": {label: {name: signed error}}}               one bar a figure
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 76
COLOURS = ("#2f6fb3", "#d1622b", "#3c8f4e", "#8a56ac", "#8c6d31")
MOST_POINTS = 600
STYLE = (
    "text{font:13px sans-serif;fill:#222}.t{font-weight:600}"
    ".g{stroke:#8884}.a{stroke:#888;stroke-dasharray:5 4;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)
Scale = Callable[[float], float]


def to_svg(plot: Mapping[str, Any]) -> str:
    """The text of one SVG file.

    Raises:
        KeyError: a kind of plot that there is not, or a part that is missing.
    """
    draw = {"scatter": _scatter, "errors": _errors, "bars": _bars}[plot["kind"]]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(plot["title"])}" {size}>'
    return (
        "\n".join([head, f"<style>{STYLE}</style>", _text(LEFT, 22, plot["title"], "t"), *draw(plot), "</svg>"]) + "\n"
    )


def _scatter(plot: Mapping[str, Any]) -> list[str]:
    """Predicted over measured; the dashed line is where both agree, the dotted ones are 20 % away."""
    points = [(x, y) for pairs in plot["series"].values() for x, y in pairs if x > 0 and y > 0]
    values = [value for pair in points for value in pair]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    across, up = _linear(low, high, LEFT, WIDTH - RIGHT), _linear(low, high, HEIGHT - BOTTOM, TOP)
    parts = []
    for exponent in range(low, high + 1):
        label = f"{10.0**exponent:g}"
        parts += [
            _line(across(exponent), TOP, across(exponent), HEIGHT - BOTTOM, "g"),
            _line(LEFT, up(exponent), WIDTH - RIGHT, up(exponent), "g"),
            _text(across(exponent), HEIGHT - BOTTOM + 18, label, anchor="middle"),
            _text(LEFT - 8, up(exponent) + 4, label, anchor="end"),
        ]
    for factor in (0.8, 1.0, 1.25):
        shift = math.log10(factor)
        ends = (
            across(low - min(0, shift)),
            up(low + max(0, shift)),
            across(high - max(0, shift)),
            up(high + min(0, shift)),
        )
        parts.append(_line(*ends, "a"))
    for k, (label, pairs) in enumerate(plot["series"].items()):
        for x, y in _thinned(pairs):
            if x > 0 and y > 0:
                at = f'cx="{across(math.log10(x)):.1f}" cy="{up(math.log10(y)):.1f}"'
                parts.append(f'<circle {at} r="2.2" fill="{COLOURS[k % len(COLOURS)]}" fill-opacity=".45"/>')
        parts.append(_legend(k, label))
    return [*parts, *_titles(plot["x"], plot["y"])]


def _errors(plot: Mapping[str, Any]) -> list[str]:
    """Share of rows whose absolute error is below x, to the largest, or to 100 %."""
    largest = max([abs(error) for signed in plot["series"].values() for error in signed] + [plot.get("bound") or 0.0])
    most = next((end for end in (0.1, 0.2, 0.5) if largest <= end), 1.0)
    across, up = _linear(0, most, LEFT, WIDTH - RIGHT), _linear(0, 1, HEIGHT - BOTTOM, TOP)
    parts = []
    for tick in range(0, 101, 20):
        parts += [
            _line(across(most * tick / 100), TOP, across(most * tick / 100), HEIGHT - BOTTOM, "g"),
            _line(LEFT, up(tick / 100), WIDTH - RIGHT, up(tick / 100), "g"),
            _text(across(most * tick / 100), HEIGHT - BOTTOM + 18, f"{most * tick:g} %", anchor="middle"),
            _text(LEFT - 8, up(tick / 100) + 4, f"{tick} %", anchor="end"),
        ]
    if plot.get("bound"):
        parts.append(_line(across(plot["bound"]), TOP, across(plot["bound"]), HEIGHT - BOTTOM, "a"))
    for k, (label, signed) in enumerate(plot["series"].items()):
        errors = sorted(abs(error) for error in signed)
        path = [f"M{across(0):.1f},{up(0):.1f}"]
        for rank, error in enumerate(errors, start=1):
            if error > most:
                break
            path.append(f"L{across(error):.1f},{up(rank / len(errors)):.1f}")
        parts.append(f'<path d="{" ".join(_thinned(path))}" fill="none" stroke="{COLOURS[k % 5]}" stroke-width="2"/>')
        parts.append(_legend(k, f"{label} {errors[len(errors) // 2]:.1%}" if errors else label))
    return [*parts, *_titles("absolute error (medians beside the names)", "share of rows")]


def _bars(plot: Mapping[str, Any]) -> list[str]:
    """Signed errors side by side; dashed lines at plus and minus the bound."""
    series = plot["series"]
    names = list(next(iter(series.values())))
    most = (
        max([abs(error) for row in series.values() for error in row.values()] + [plot.get("bound") or 0]) * 1.1 or 0.01
    )
    up = _linear(-most, most, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(names)
    parts = [_line(LEFT, up(0), WIDTH - RIGHT, up(0), "g")]
    levels = (-most / 1.1, 0.0, most / 1.1)
    parts += [_text(LEFT - 8, up(level) + 4, f"{100 * level:+.1f} %", anchor="end") for level in levels]
    bounds = (-plot["bound"], plot["bound"]) if plot.get("bound") else ()
    parts += [_line(LEFT, up(bound), WIDTH - RIGHT, up(bound), "a") for bound in bounds]
    width = slot * 0.8 / len(series)
    for k, (label, row) in enumerate(series.items()):
        for place, name in enumerate(names):
            top, bottom = sorted((up(row[name]), up(0)))
            at = f'x="{LEFT + slot * (place + 0.1) + k * width:.1f}" y="{top:.1f}"'
            size = f'width="{width:.1f}" height="{bottom - top:.1f}"'
            parts.append(f'<rect {at} {size} fill="{COLOURS[k % 5]}"/>')
        parts.append(_legend(k, label))
    for place, name in enumerate(names):
        x, y = LEFT + slot * (place + 0.5), HEIGHT - BOTTOM + 14
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-35 {x:.1f} {y})">{name}</text>')
    return parts


def _linear(low: float, high: float, begin: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: begin + (value - low) / span * (end - begin)


def _thinned(items: Sequence[Any]) -> Sequence[Any]:
    """Every n-th item, so that a file stays small; the last one stays."""
    if len(items) <= MOST_POINTS:
        return items
    step = -(-len(items) // MOST_POINTS)
    return [*items[::step], items[-1]]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _legend(place: int, label: str) -> str:
    """Side by side in a line of their own, under the title."""
    x = LEFT + 142 * place
    return f'<rect x="{x}" y="36" width="12" height="10" fill="{COLOURS[place % 5]}"/>' + _text(x + 18, 46, label)


def _titles(x: str, y: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<text x="16" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 16 {middle:.1f})">{y}</text>'
    return [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 42, x, anchor="middle"), turned]
