"""Charts as inline SVG: lines with marked points, axes labelled, values shown when pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 340.0, 246.0
LEFT, RIGHT, TOP, BOTTOM = 34.0, 12.0, 26.0, 40.0


@dataclass(frozen=True)
class Line:
    """A curve: its name in the legend, a style (``a`` to ``d`` of the style sheet), and its (x, y) points."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


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
        plot += [_point(grid, line.name, line.style, point, across[0], unit, "circle") for point in line.points]
    plot += [_point(grid, mark.name, mark.style, mark.point, across[0], unit, "diamond") for mark in marks]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        f"{_axes(grid, across, up)}{''.join(plot)}</svg>"
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


def _point(grid: _Scale, name: str, style: str, point: tuple[float, float], across: str, unit: str, shape: str) -> str:
    x, y = grid.place(point)
    tip = (
        f"{name}\n{point[1]:.1f}{unit} at {across} {point[0]:g}"
        if shape == "circle"
        else f"{name}\n{point[1]:.1f}{unit}"
    )
    drawn = (
        f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
        if shape == "circle"
        else f'<path class="dot diamond {style}" d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"/>'
    )
    target = f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
    return f'<g class="mark" data-tip="{escape(tip)}">{target}{drawn}</g>'


def _axes(grid: _Scale, across: tuple[str, float, float], up: tuple[str, float, float]) -> str:
    parts = []
    for k in range(5):
        value = up[1] + (up[2] - up[1]) * k / 4
        x, y = grid.place((across[1], value))
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
        value = across[1] + (across[2] - across[1]) * k / 4
        x, y = grid.place((value, up[1]))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
    middle, base = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6
    parts.append(f'<text class="label" x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{escape(across[0])}</text>')
    parts.append(f'<text class="label" x="2" y="{TOP - 15:.1f}">{escape(up[0])}</text>')
    return "".join(parts)
