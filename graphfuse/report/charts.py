"""Charts as inline SVG: lines with marked points, axes labelled, values shown when pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 340.0, 246.0
LEFT, RIGHT, TOP, BOTTOM = 34.0, 12.0, 26.0, 40.0


@dataclass(frozen=True)
class Line:
    """A curve: its name in the legend, a style (``a`` to ``d`` of the style sheet), and its (x, y) points.

    ``tips`` say what a point is, one for each; by default its value and place.
    """

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    tips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A single point, and a sentence about it."""

    name: str
    style: str
    point: tuple[float, float]


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    across: tuple[str, float, float] = ("", 0.0, 1.0),
    up: tuple[str, float, float] = ("", 0.0, 100.0),
    unit: str = "%",
    digits: int = 1,
    whole: bool = False,
) -> str:
    """A chart of a few curves over a common range.

    Parameters
    ----------
    title : str
        For people who cannot see it.
    lines, marks :
        What is drawn; points outside the ranges are drawn at the border.
    across, up : (name, lowest, highest)
        The axes.
    unit : str
        Follows the values that are shown when a point is pointed at.
    digits : int
        Decimals of these values.
    whole : bool
        Whether the axis across counts, so that only whole numbers are marked on it.

    Returns
    -------
    str
        An ``<svg>`` element; the legend is separate (:func:`legend`), so that several charts can share one.
    """
    grid, plot = _Scale(across[1:], up[1:]), []
    for line in lines:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(grid.place, line.points))
        plot.append(f'<path class="line {line.style}" d="M{path}"/>')
    for line in lines:
        told = line.tips or [f"{y:.{digits}f}{unit} at {across[0]} {x:g}" for x, y in line.points]
        tips = [f"{line.name}\n{words}" for words in told]
        plot += [_point(grid, line.style, *pair, "circle") for pair in zip(line.points, tips, strict=True)]
    for mark in marks:
        tip = f"{mark.name}\n{mark.point[1]:.{digits}f}{unit}"
        plot.append(_point(grid, mark.style, mark.point, tip, "diamond"))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="group" aria-label="{escape(title)}">'
        f"{_axes(grid, across, up, whole)}{''.join(plot)}</svg>"
    )


def legend(items: Sequence[tuple[str, str, str]]) -> str:
    """A legend for charts: (name, style, ``line`` or ``diamond``) of each curve and mark."""
    keys = {
        "line": '<path class="line {0}" d="M1 6H25"/><circle class="dot {0}" cx="13" cy="6" r="3.2"/>',
        "diamond": '<path class="dot diamond {0}" d="M13 0.5l5.5 5.5-5.5 5.5-5.5-5.5z"/>',
    }
    entries = (
        f'<li><svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{keys[shape].format(style)}</svg>'
        f"{escape(name)}</li>"
        for name, style, shape in items
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


class _Scale:
    """From values to places in the chart."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.across, self.up = across, up

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.across, self.up
        x, y = (min(max(value, low), high) for value, low, high in zip(point, (x0, y0), (x1, y1), strict=True))
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )


def _point(grid: _Scale, style: str, point: tuple[float, float], tip: str, shape: str) -> str:
    x, y = grid.place(point)
    drawn = (
        f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
        if shape == "circle"
        else f'<path class="dot diamond {style}" d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"/>'
    )
    target = f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
    return f'<g class="mark" role="img" aria-label="{escape(tip)}" data-tip="{escape(tip)}">{target}{drawn}</g>'


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round values in a range.

    >>> ticks(0, 100), ticks(0, 11, whole=True)
    ([0.0, 25.0, 50.0, 75.0, 100.0], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """
    step = _step(high - low, whole)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def rounded(values: Sequence[float]) -> tuple[float, float]:
    """The range of some values, out to round ones.

    >>> rounded([61.2, 97.3])
    (60.0, 100.0)
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    step = _step(high - low or abs(high) or 1.0)
    return step * math.floor(low / step), step * (math.floor(high / step) + (high % step > 0 or high == low))


def _step(span: float, whole: bool = False) -> float:
    """The round step that cuts a range into four parts, about."""
    decade = 10.0 ** math.floor(math.log10(span / 4))
    steps = [factor * decade for factor in (1, 2, 2.5, 5, 10)]
    steps = [step for step in steps if step >= 1 and step == int(step)] or [1.0] if whole else steps
    return min(steps, key=lambda step: abs(span / step - 4))


def _axes(grid: _Scale, across: tuple[str, float, float], up: tuple[str, float, float], whole: bool) -> str:
    parts = []
    for value in ticks(*up[1:]):
        x, y = grid.place((across[1], value))
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in ticks(*across[1:], whole):
        x, y = grid.place((value, up[1]))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:.4g}</text>')
    middle, base = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6
    parts.append(f'<text class="label" x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{escape(across[0])}</text>')
    parts.append(f'<text class="label" x="2" y="{TOP - 15:.1f}">{escape(up[0])}</text>')
    return "".join(parts)
