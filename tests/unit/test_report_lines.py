"""Line charts: points where they belong, text that cannot break the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from plimsoll.report.lines import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, LineChart, to_page


def chart(**fields: object) -> LineChart:
    values = {"title": "a", "x_label": "x", "y_label": "y", "lines": {"one": [(0.0, 0.0), (1.0, 2.0), (2.0, 4.0)]}}
    return LineChart(**{**values, **fields})


def points(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def test_the_corners_of_the_data_are_the_corners_of_the_frame() -> None:
    (line,) = points(chart().to_svg())
    assert line[0] == (LEFT, HEIGHT - BOTTOM)
    assert line[2] == (WIDTH - RIGHT, TOP)
    assert line[1] == ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)


def test_a_given_top_scales_all_lines() -> None:
    two = {"one": [(0.0, 1.0), (1.0, 1.0)], "two": [(0.0, 0.5), (1.0, 0.25)]}
    one, other = points(chart(lines=two, y_max=1.0).to_svg())
    assert [y for _, y in one] == [TOP, TOP]
    assert other[0][1] == (TOP + HEIGHT - BOTTOM) / 2


def test_one_point_and_zeros_do_not_divide_by_zero() -> None:
    assert points(chart(lines={"one": [(3.0, 0.0)]}).to_svg())


def test_the_page_is_well_formed_and_escaped() -> None:
    odd = chart(title="<b> & co", lines={"a<b": [(0.0, 1.0), (1.0, 2.0)]})
    page = to_page("t & t", "x < y", [odd, chart()])
    assert "<b> & co" not in page
    assert page.count("<svg") == 2
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
