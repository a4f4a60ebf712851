"""Line charts in SVG, and pages of them, without a plotting library."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 60, 44, 34, 150
COLOURS = ("#3465a4", "#c4650e", "#4e9a06", "#a03060", "#75507b", "#8a7000", "#2f8f8f", "#606060")
NUM_TICKS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineChart:
    """Named lines over one axis.

    Attributes:
        title, x_label, y_label: what stands where, units included.
        lines: name → points ``(x, y)``, ascending in x. There must be a point.
        y_max: upper end of the y axis; None is the largest value. It begins at zero.
    """

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Sequence[tuple[float, float]]]
    y_max: float | None = None

    def to_svg(self) -> str:
        """The chart as an ``<svg>`` element."""
        points = [point for line in self.lines.values() for point in line]
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        top = self.y_max or max(y for _, y in points) or 1.0
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def place(x: float, y: float) -> tuple[float, float]:
            share = (x - low) / (high - low) if high > low else 0.5
            return LEFT + wide * share, HEIGHT - BOTTOM - tall * y / top

        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(self.title)}" {size}>',
            f'<text x="{LEFT}" y="18" font-weight="bold">{html.escape(self.title)}</text>',
            *self._axes(low, high, top),
        ]
        for k, (name, line) in enumerate(self.lines.items()):
            colour = COLOURS[k % len(COLOURS)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
            y = TOP + 16 * k
            parts.append(f'<rect x="{WIDTH - RIGHT + 10}" y="{y}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{WIDTH - RIGHT + 26}" y="{y + 10}">{html.escape(name)}</text>')
        return "\n".join([*parts, "</svg>"])

    def _axes(self, low: float, high: float, top: float) -> list[str]:
        """Ticks, their figures and the labels of both axes."""
        parts = []
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for k in range(NUM_TICKS):
            share = k / (NUM_TICKS - 1)
            x, y = LEFT + (right - LEFT) * share, floor - (floor - TOP) * share
            parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
            figure = f"{low + (high - low) * share:.4g}"
            parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{figure}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(self.x_label)}</text>')
        turn = f"rotate(-90 14 {(TOP + floor) / 2})"
        label = html.escape(self.y_label)
        parts.append(f'<text x="14" y="{(TOP + floor) / 2}" text-anchor="middle" transform="{turn}">{label}</text>')
        return parts


def to_page(title: str, text: str, charts: Sequence[LineChart]) -> str:
    """A self-contained HTML page: a title, a paragraph, the charts."""
    figures = "\n".join(f"<figure>{chart.to_svg()}</figure>" for chart in charts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body {{ font: 14px sans-serif; margin: 2em; max-width: 1380px; }}
figure {{ display: inline-block; margin: 1em; }}
svg text {{ font: 12px sans-serif; fill: currentColor; }} @media (prefers-color-scheme: dark) {{
body {{ background: #1c1c1c; color: #ddd; }} }}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(text)}</p>
{figures}
</body></html>
"""
