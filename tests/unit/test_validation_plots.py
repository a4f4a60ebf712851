"""The plots of docs/validation.md: well-formed, inside their frame, and true to their figures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from validation._plots import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, to_svg

SVG = "{http://www.w3.org/2000/svg}"
SCATTER: dict[str, Any] = {
    "kind": "scatter",
    "title": "TTFT & more",
    "x": "measured, s",
    "y": "predicted, s",
    "series": {"a": [[0.01, 0.012], [1.0, 0.8], [0.0, 3.0]], "b": [[9.0, 9.0]]},
}
ERRORS: dict[str, Any] = {
    "kind": "errors",
    "title": "errors",
    "bound": 0.2,
    "series": {"TPOT": [0.01 * k * (-1) ** k for k in range(101)], "none": []},
}
BARS: dict[str, Any] = {
    "kind": "bars",
    "title": "bars",
    "bound": 0.05,
    "series": {"run": {"mean": 0.02, "p99": -0.04}, "other": {"mean": -0.01, "p99": 0.0}},
}


def drawn(plot: dict[str, Any], tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(to_svg(plot)).iter(f"{SVG}{tag}"))


@pytest.mark.parametrize("plot", [SCATTER, ERRORS, BARS])
def test_well_formed_deterministic_and_labelled(plot: dict[str, Any]) -> None:
    assert to_svg(plot) == to_svg(plot)
    texts = [element.text or "" for element in drawn(plot, "text")]
    assert texts[0] == plot["title"]
    for label in plot["series"]:
        assert any(text.startswith(label) for text in texts)


def test_points_lie_inside_the_frame_and_zeros_are_left_out() -> None:
    circles = drawn(SCATTER, "circle")
    assert len(circles) == 3
    for circle in circles:
        assert LEFT <= float(circle.get("cx", "nan")) <= WIDTH - RIGHT
        assert TOP <= float(circle.get("cy", "nan")) <= HEIGHT - BOTTOM


def test_a_point_on_the_diagonal_is_drawn_on_it() -> None:
    diagonal = {**SCATTER, "series": {"a": [[0.1, 0.1], [10.0, 10.0]]}}
    first, last = drawn(diagonal, "circle")
    assert (float(first.get("cx", "")), float(first.get("cy", ""))) == (LEFT, HEIGHT - BOTTOM)
    assert (float(last.get("cx", "")), float(last.get("cy", ""))) == (WIDTH - RIGHT, TOP)


def test_many_points_are_thinned() -> None:
    many = {**SCATTER, "series": {"a": [[1.0 + k, 2.0 + k] for k in range(10_000)]}}
    assert MOST_POINTS / 2 < len(drawn(many, "circle")) <= MOST_POINTS + 1


def test_the_cumulative_curve_names_the_median_and_reaches_the_top() -> None:
    texts = [element.text for element in drawn(ERRORS, "text")]
    assert "TPOT 50.0%" in texts
    path = drawn(ERRORS, "path")[0].get("d", "")
    assert path.endswith(f"{WIDTH - RIGHT:.1f},{float(TOP):.1f}")


def test_bars_start_at_zero() -> None:
    bars = [bar for bar in drawn(BARS, "rect") if bar.get("y") != "36"]
    edges = [(float(bar.get("y", "")), float(bar.get("y", "")) + float(bar.get("height", ""))) for bar in bars]
    zero = edges[0][1]
    assert edges[1][0] == pytest.approx(zero, abs=0.11)
    assert edges[0][1] - edges[0][0] == pytest.approx((edges[1][1] - edges[1][0]) / 2, abs=0.11)
    assert edges[3][1] - edges[3][0] == 0.0


def test_an_unknown_kind_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        to_svg({"kind": "pie", "title": "", "series": {}})
