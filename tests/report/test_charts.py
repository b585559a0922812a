"""Axes and lines: every value is on the chart, and what is written there can be read."""

import math
import re

import pytest

from xtra_jax.report.charts import HEIGHT, WIDTH, Series, chart
from xtra_jax.report.scales import linear_scale, log_scale, written

RATES = (1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, 8e-3, 1e-2, 1e-1)


@pytest.mark.parametrize(
    "values",
    [(0.16, 0.88), (0, 450), (10, 600_000), (-3, 4), (97.2, 97.4), (5,), (0,), (1e-9, 2e-9)],
)
def test_all_values_lie_on_a_linear_axis_of_a_few_round_ticks(values):
    scale = linear_scale(values)
    assert all(0 <= scale.at(value) <= 1 for value in values)
    assert 2 <= len(scale.ticks) <= 8
    assert all(0 <= scale.at(tick) <= 1 + 1e-9 for tick in scale.ticks)
    assert len({written(tick) for tick in scale.ticks}) == len(scale.ticks)


def test_a_tight_axis_ends_where_its_values_do():
    scale = linear_scale((10, 450), most_ticks=7, tight=True)
    assert (scale.low, scale.high) == (10, 450)
    assert scale.ticks == (100, 200, 300, 400)


@pytest.mark.parametrize("values", [RATES[:3], RATES[:7], RATES, (1e-3,)])
def test_all_values_lie_inside_a_logarithmic_axis(values):
    scale = log_scale(values)
    assert all(0 < scale.at(value) < 1 for value in values)
    assert 1 <= len(scale.ticks) <= 6
    assert scale.at(math.sqrt(scale.low * scale.high)) == pytest.approx(0.5)


def test_numbers_on_an_axis_are_short():
    numbers = (0, 0.2, 0.002, 1e-5, 3e-5, 400, 12_000, 1_500_000, 0.1 + 0.2)
    said = ["0", "0.2", "0.002", "1e-5", "3e-5", "400", "12,000", "1.5M", "0.3"]
    assert [written(number) for number in numbers] == said


def corners(svg, shape="polyline"):
    found = re.findall(rf'<{shape} class="[^"]*" points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_a_line_goes_up_where_its_values_do_and_stays_inside():
    svg = chart("t", [Series("a", [(1, 2), (2, 5), (3, 3)])], x_label="x", y_label="y")
    (line,) = corners(svg)
    assert line[1][1] < line[2][1] < line[0][1]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
    assert svg.count("<circle") == 3 and "<title>a: 5 at 2</title>" in svg


def test_a_gap_divides_a_line():
    points = [(1, 1.0), (2, math.nan), (3, 1.0), (4, 2.0)]
    svg = chart("t", [Series("a", points)], x_label="x", y_label="y")
    assert [len(line) for line in corners(svg)] == [1, 2]


def test_a_long_line_is_averaged_and_says_so():
    points = [(step, step % 2) for step in range(6000)]
    svg = chart("t", [Series("a", points)], x_label="x", y_label="y")
    (line,) = corners(svg)
    assert len(line) == 300 and len({y for _, y in line}) == 1
    assert "mean of up to 20 logged values" in svg and "<circle" not in svg


def test_star_and_band_are_drawn_and_explained():
    line = Series("a", [(1e-3, 50), (1e-2, 60)], band=[(45, 55), (55, 65)], star=1)
    svg = chart("t", [line], x_label="rate", y_label="top-1 accuracy, %", log_x=True)
    (band,) = corners(svg, "polygon")
    assert len(band) == 4
    assert 'class="star c0"' in svg
    assert "chosen</li>" in svg and "95 % bootstrap interval</li>" in svg


def test_names_are_escaped():
    svg = chart("<t>", [Series("<a>", [(1, 1)]), Series("b", [(1, 2)])], x_label="<", y_label='"')
    assert "<t>" not in svg and "<a>" not in svg and "&lt;a&gt;" in svg
