"""Where the cards of one column stand: a layered drawing (Sugiyama's method), sources at the top.

Four steps: ranks by longest path; edges that skip ranks broken up by bends; the order within each rank by repeated
sorting by the mean place of the neighbours; then the places with the least sideways run for that order.

Source: Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures" (1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """The size of one item."""

    width: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """Places of the items' centres, and for each edge the way it takes.

    A way is the points through which an edge runs from below its source to above its target: straight down through
    each rank that it passes, so that what turns does so between two ranks.
    """

    places: Mapping[str, tuple[float, float]]
    ways: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    width: float
    height: float


def draw(
    boxes: Mapping[str, Box],
    edges: Sequence[tuple[str, str]],
    last: frozenset[str] = frozenset(),
    gap: tuple[float, float] = (16.0, 22.0),
) -> Drawing:
    """Lay items out in layers.

    Parameters
    ----------
    boxes : mapping
        Sizes of the items, in an order in which every edge leads from an earlier item to a later one.
    edges : sequence of (source, target)
    last : frozenset
        Items that belong in the last rank, whatever leads to them.
    gap : (float, float)
        Space between neighbours and between ranks.

    Returns
    -------
    Drawing
        Everything within ``(0, 0)`` to ``(width, height)``.
    """
    edges = list(dict.fromkeys(edges))
    ranks = _ranks(boxes, edges, last)
    layers, segments, chains, sizes = _break_up(boxes, edges, ranks)
    layers = _order(layers, segments)
    xs = _place(layers, segments, sizes, gap[0])
    levels = _levels(layers, sizes, gap[1])
    left = min(xs[item] - sizes[item].width / 2 for item in xs)
    right = max(xs[item] + sizes[item].width / 2 for item in xs)
    place = {item: xs[item] - left for item in xs}
    rank_of = {item: rank for rank, layer in enumerate(layers) for item in layer}
    ways = {}
    for (source, target), chain in chains.items():
        passed = [(place[bend], y) for bend in chain for y in levels[rank_of[bend]]]
        ways[source, target] = (
            (place[source], levels[ranks[source]][1]), *passed, (place[target], levels[ranks[target]][0]),
        )  # fmt: skip
    return Drawing(
        places={item: (place[item], sum(levels[ranks[item]]) / 2) for item in boxes},
        ways=ways,
        width=right - left,
        height=levels[-1][1],
    )


def _ranks(boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], last: frozenset[str]) -> dict[str, int]:
    ranks = dict.fromkeys(boxes, 0)
    order = {item: i for i, item in enumerate(boxes)}
    for source, target in sorted(edges, key=lambda edge: order[edge[0]]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    bottom = max((rank for item, rank in ranks.items() if item not in last), default=-1) + 1
    return {item: bottom if item in last else rank for item, rank in ranks.items()}


def _break_up(
    boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], ranks: Mapping[str, int]
) -> tuple[list[list[str]], list[tuple[str, str]], dict[tuple[str, str], list[str]], dict[str, Box]]:
    """Layers with bends in them, edges between neighbouring layers, the bends of each edge, all sizes."""
    layers: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
    for item, rank in ranks.items():
        layers[rank].append(item)
    sizes, segments, chains = dict(boxes), [], {}
    for source, target in edges:
        chain = [f"{source}\0{target}\0{rank}" for rank in range(ranks[source] + 1, ranks[target])]
        for bend, rank in zip(chain, range(ranks[source] + 1, ranks[target]), strict=True):
            layers[rank].append(bend)
            sizes[bend] = Box(10.0, 0.0)
        path = [source, *chain, target]
        segments += list(pairwise(path))
        chains[source, target] = chain
    return layers, segments, chains, sizes


def _neighbours(segments: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for source, target in segments:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    return above, below


def _order(layers: list[list[str]], segments: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The order with the fewest crossings that sorting by neighbours' mean places finds, down and up in turn."""
    above, below = _neighbours(segments)
    best, fewest = layers, _crossings(layers, below)
    current = [list(layer) for layer in layers]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        fixed, order = (above, range(1, len(layers))) if down else (below, range(len(layers) - 2, -1, -1))
        for rank in order:
            place = {item: i for i, item in enumerate(current[rank - 1 if down else rank + 1])}
            own = {item: i for i, item in enumerate(current[rank])}

            def mean(item: str, place: Mapping[str, int] = place, own: Mapping[str, int] = own) -> float:
                near = [place[other] for other in fixed.get(item, []) if other in place]  # noqa: B023
                return sum(near) / len(near) if near else own[item]

            current[rank].sort(key=mean)
        crossings = _crossings(current, below)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in current], crossings
    return best


def _crossings(layers: list[list[str]], below: Mapping[str, list[str]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {item: i for i, item in enumerate(lower)}
        ends = [(i, place[other]) for i, item in enumerate(upper) for other in below.get(item, [])]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    return total


def _place(
    layers: list[list[str]], segments: Sequence[tuple[str, str]], sizes: Mapping[str, Box], gap: float
) -> dict[str, float]:
    """Places along a rank with the least total sideways run, none overlapping: a linear program, solved exactly.

    Variables: a place for each item, and for each segment its sideways run r >= |x_source - x_target|.

    Source: Gansner, Koutsofios, North, Vo, "A technique for drawing directed graphs" (1993), section 4.2.
    """
    items = [item for layer in layers for item in layer]
    number = {item: i for i, item in enumerate(items)}
    weights = [_pull(source, target) for source, target in segments]
    entries: list[tuple[int, int, float]] = []
    bounds: list[float] = []
    for layer in layers:
        for left, right in pairwise(layer):
            entries += [(len(bounds), number[left], 1.0), (len(bounds), number[right], -1.0)]
            bounds.append(-(sizes[left].width + sizes[right].width) / 2 - gap)
    for run, (source, target) in enumerate(segments, start=len(items)):
        for sign in (1.0, -1.0):
            row = len(bounds)
            entries += [(row, number[source], sign), (row, number[target], -sign), (row, run, -1.0)]
            bounds.append(0.0)
    if not segments:
        return _row(layers, sizes, gap)
    rows, columns, values = zip(*entries, strict=True)
    shape = (len(bounds), len(items) + len(segments))
    solution = linprog(
        c=np.array([0.0] * len(items) + weights),
        A_ub=coo_array((values, (rows, columns)), shape=shape).tocsr(),
        b_ub=np.array(bounds),
        bounds=[(0.0, None)] * shape[1],
        method="highs-ds",
    )
    return {item: float(solution.x[i]) for item, i in number.items()}


def _pull(source: str, target: str) -> float:
    """How much a segment wants to run straight: most within a long wire, then from card to card."""
    bends = ("\0" in source) + ("\0" in target)
    return (4.0, 1.0, 16.0)[bends]


def _row(layers: list[list[str]], sizes: Mapping[str, Box], gap: float) -> dict[str, float]:
    """Places of unconnected items: one after the other."""
    xs, reach = {}, 0.0
    for item in (item for layer in layers for item in layer):
        xs[item] = reach + sizes[item].width / 2
        reach += sizes[item].width + gap
    return xs


def _levels(layers: list[list[str]], sizes: Mapping[str, Box], gap: float) -> list[tuple[float, float]]:
    """Top and bottom of each rank."""
    levels, top = [], 0.0
    for layer in layers:
        bottom = top + max(sizes[item].height for item in layer)
        levels.append((top, bottom))
        top = bottom + gap
    return levels
