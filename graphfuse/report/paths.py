"""Wires as SVG paths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graphfuse.report.scene import Point, Wire


def path_of(wire: Wire, shift: float) -> str:
    """The ``d`` of a wire's SVG path, moved sideways by ``shift``: curved within a column, else with round corners."""
    if not wire.orthogonal:
        return _curve([(x + shift, y) for x, y in wire.points])
    return _rounded(_shifted(wire.points, shift))


def _curve(points: Sequence[Point]) -> str:
    words = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (u, v) in pairwise(points):
        middle = (y + v) / 2
        bend = f"C{x:.1f} {middle:.1f} {u:.1f} {middle:.1f} " if abs(x - u) > 0.5 else "L"
        words.append(f"{bend}{u:.1f} {v:.1f}")
    return "".join(words)


def _shifted(points: Sequence[Point], shift: float) -> list[Point]:
    """A path of level and upright pieces, moved sideways by ``shift`` so that strands stay parallel round corners."""
    normals = []
    for (x, y), (u, v) in pairwise(points):
        length = abs(u - x) + abs(v - y) or 1.0
        normals.append(((v - y) / length * shift, -(u - x) / length * shift))
    before, after = [normals[0], *normals], [*normals, normals[-1]]
    moved = []
    for (x, y), a, b in zip(points, before, after, strict=True):
        dx, dy = (a[0] + b[0], a[1] + b[1]) if a != b else a
        moved.append((x + dx, y + dy))
    return moved


def _rounded(points: Sequence[Point], radius: float = 7.0) -> str:
    words = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, corner, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
        near, far = _towards(corner, before, radius), _towards(corner, after, radius)
        words.append(f"L{near[0]:.1f} {near[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {far[0]:.1f} {far[1]:.1f}")
    return "".join([*words, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
