"""The geometry of a graph's picture: columns of cards side by side, and the wires between them.

Inside a column cards flow downwards (:mod:`graphfuse.report.layering`). A value that is read in another column leaves
at the bottom, climbs the gutter beside its column, runs along a track above the columns, and drops in from the top.
When there are many columns they continue in a further band below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphfuse.report.columns import Column
from graphfuse.report.graphdata import leaves
from graphfuse.report.layering import Box, Drawing, draw

Point = tuple[float, float]

TRACK = 14.0  # between neighbouring tracks
PAD = 14.0  # inside a column's panel
HEADER = 30.0  # of a column's panel
SHAPE = 1.4  # wished width / height
PORT = 24.0  # between two inputs of a card


@dataclass(frozen=True)
class Wire:
    """One way of a value: corner points, the axes that run along it, the ends it joins."""

    points: tuple[Point, ...]
    axes: tuple[int, ...]
    ends: tuple[str, str]
    orthogonal: bool


@dataclass
class Panel:
    """A column in its place; ``left``, ``top`` are its corner, ``offset`` is where its drawing begins."""

    column: Column
    drawing: Drawing
    band: int = 0
    left: float = 0.0
    top: float = 0.0

    @property
    def width(self) -> float:
        return max(self.drawing.width + 2 * PAD, 8.0 * len(self.column.title) + 2 * PAD)

    @property
    def height(self) -> float:
        return self.drawing.height + HEADER + PAD

    @property
    def offset(self) -> Point:
        return self.left + (self.width - self.drawing.width) / 2, self.top + HEADER

    def at(self, point: Point) -> Point:
        """A point of the drawing, in the picture."""
        return point[0] + self.offset[0], point[1] + self.offset[1]


@dataclass
class Scene:
    """Everything that a picture shows, in its place."""

    panels: list[Panel] = field(default_factory=list)
    boxes: dict[str, Box] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Net:
    """A value that leaves its column: where from, the columns that read it, the axes it carries."""

    source: str
    home: int
    readers: tuple[int, ...]
    axes: tuple[int, ...]


def scene_of(columns: Sequence[Column], free: frozenset[int], size: Mapping[str, Box]) -> Scene:
    """Lay out a whole graph.

    Parameters
    ----------
    columns : sequence of Column
    free : frozenset of int
        The axes that wires show.
    size : mapping
        How large each card is.
    """
    home = {card.id: i for i, column in enumerate(columns) for card in column.cards}
    wired: dict[tuple[str, str], dict[int, None]] = {}
    for card in (card for column in columns for card in column.cards):
        for source, dims in card.inputs:
            axes = wired.setdefault((source, card.id), {})
            axes.update((axis, None) for axis in leaves(dims) if axis in free)
    nets = _nets(wired, home)
    panels = [Panel(column, _draw(i, column, wired, nets, home, size)) for i, column in enumerate(columns)]
    scene = Scene(panels=panels, boxes=dict(size))
    tracks = _arrange(scene, nets)
    for i, panel in enumerate(panels):
        scene.wires += _inside(i, panel, wired, nets, home, size)
    scene.wires += _between(panels, nets, tracks, scene.width)
    return scene


def _nets(wired: Mapping[tuple[str, str], dict[int, None]], home: Mapping[str, int]) -> list[Net]:
    found: dict[str, tuple[dict[int, None], dict[int, None]]] = {}
    for (source, target), axes in wired.items():
        if home[source] != home[target]:
            readers, carried = found.setdefault(source, ({}, {}))
            readers[home[target]] = None
            carried.update(axes)
    return [Net(name, home[name], tuple(readers), tuple(axes)) for name, (readers, axes) in found.items()]


def _edges(
    i: int, wired: Mapping[tuple[str, str], dict[int, None]], nets: Sequence[Net], home: Mapping[str, int]
) -> dict[tuple[str, str], tuple[int, ...]]:
    """The edges of column ``i``, those from its inlets and to its outlets included."""
    edges = {}
    for (source, target), axes in wired.items():
        if home[target] == i:
            edges[source if home[source] == i else f"in:{source}", target] = tuple(axes)
    edges.update({(net.source, f"out:{net.source}"): net.axes for net in nets if net.home == i})
    return edges


def _draw(
    i: int,
    column: Column,
    wired: Mapping[tuple[str, str], dict[int, None]],
    nets: Sequence[Net],
    home: Mapping[str, int],
    size: Mapping[str, Box],
) -> Drawing:
    inlets = [f"in:{net.source}" for net in nets if i in net.readers]
    outlets = [f"out:{net.source}" for net in nets if net.home == i]
    boxes = {
        **dict.fromkeys(inlets, Box(TRACK, 0.0)),
        **{card.id: size[card.id] for card in column.cards},
        **dict.fromkeys(outlets, Box(TRACK, 0.0)),
    }
    return draw(boxes, list(_edges(i, wired, nets, home)), frozenset(outlets))


def _inside(
    i: int,
    panel: Panel,
    wired: Mapping[tuple[str, str], dict[int, None]],
    nets: Sequence[Net],
    home: Mapping[str, int],
    size: Mapping[str, Box],
) -> list[Wire]:
    """The wires within a column, each into its own port at the top of its reader."""
    edges = _edges(i, wired, nets, home)
    readers: dict[str, list[tuple[str, str]]] = {}
    for edge in edges:
        readers.setdefault(edge[1], []).append(edge)
    wires = []
    for target, incoming in readers.items():
        incoming.sort(key=lambda edge: panel.drawing.ways[edge][-2])
        target_x, target_y = panel.drawing.places[target]
        straightest = min(range(len(incoming)), key=lambda k: abs(panel.drawing.ways[incoming[k]][-2][0] - target_x))
        for k, edge in enumerate(incoming):
            way, shift = list(panel.drawing.ways[edge]), (k - straightest) * PORT
            source_x, source_y = panel.drawing.places[edge[0]]
            box = size.get(target, Box(0.0, 0.0))
            way[-1] = (target_x + shift, way[-1][1])
            way = [(source_x, source_y), *way, (target_x + shift, target_y - box.height / 2)]
            ends = edge[0].removeprefix("in:"), edge[1].removeprefix("out:")
            wires.append(Wire(tuple(panel.at(point) for point in way), edges[edge], ends, orthogonal=False))
    return wires


def _arrange(scene: Scene, nets: Sequence[Net]) -> dict[tuple[str, int], float]:
    """Give every panel its place; answers the height of each net's track above each band that it runs over."""
    panels = scene.panels
    gutters = [TRACK * (sum(net.home == i for net in nets) + 2) for i in range(len(panels))]
    bands = _bands(panels, gutters)
    tracks: dict[tuple[str, int], float] = {}
    top = 0.0
    for band, members in enumerate(bands):
        left = 0.0
        for i in members:
            panels[i].band, panels[i].left = band, left
            left += panels[i].width + gutters[i]
        scene.width = max(scene.width, left)
    for band, members in enumerate(bands):
        spans = _spans(panels, nets, band, scene.width)
        levels = _levels(spans)
        ceiling = top + TRACK * (max(levels.values(), default=-1) + 1.5)
        for name, level in levels.items():
            tracks[name, band] = ceiling - TRACK * (level + 1)
        for i in members:
            panels[i].top = ceiling
        outlets = max(sum(net.home == i for net in nets) for i in members)
        top = max(panels[i].top + panels[i].height for i in members) + TRACK * (outlets + 1.5)
    scene.height = top
    return tracks


def _bands(panels: Sequence[Panel], gutters: Sequence[float]) -> list[list[int]]:
    """The columns cut into as many bands as give the picture about the wished shape."""
    widths = [panel.width + gutter for panel, gutter in zip(panels, gutters, strict=True)]
    best, error = [list(range(len(panels)))], float("inf")
    for count in range(1, len(panels) + 1):
        bands = _fill(widths, max(max(widths), sum(widths) / count * 1.02))
        width = max(sum(widths[i] for i in band) for band in bands)
        height = sum(max(panels[i].height for i in band) + 4 * TRACK for band in bands)
        ratio = width / height / SHAPE
        if max(ratio, 1 / ratio) < error:
            best, error = bands, max(ratio, 1 / ratio)
    return best


def _fill(widths: Sequence[float], limit: float) -> list[list[int]]:
    """Columns in order, a new band begun where the limit would be passed by more than it was missed."""
    bands: list[list[int]] = [[]]
    reach = 0.0
    for i, width in enumerate(widths):
        if bands[-1] and reach + width / 2 > limit:
            bands.append([])
            reach = 0.0
        bands[-1].append(i)
        reach += width
    return bands


def _inlet(panel: Panel, net: Net) -> Point:
    return panel.at(panel.drawing.places[f"in:{net.source}"])


def _outlet(panel: Panel, net: Net) -> Point:
    return panel.at(panel.drawing.places[f"out:{net.source}"])


def _spans(panels: Sequence[Panel], nets: Sequence[Net], band: int, margin: float) -> dict[str, tuple[float, float]]:
    """How far along the top of a band each net runs."""
    spans = {}
    for net in nets:
        home = panels[net.home]
        here = [_inlet(panels[i], net)[0] for i in net.readers if panels[i].band == band]
        if not here:
            continue
        if home.band == band:
            here.append(home.left + home.width)
        else:
            here.append(_outlet(home, net)[0] if home.band == band - 1 else margin)
        spans[net.source] = (min(here), max(here))
    return spans


def _levels(spans: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Tracks for intervals: short ones low, none overlapping on one track."""
    taken: list[list[tuple[float, float]]] = []
    levels = {}
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        level = next(
            (k for k, row in enumerate(taken) if all(end + TRACK < a or b + TRACK < start for a, b in row)), len(taken)
        )
        taken += [[]] if level == len(taken) else []
        taken[level].append((start, end))
        levels[name] = level
    return levels


def _between(
    panels: Sequence[Panel], nets: Sequence[Net], tracks: Mapping[tuple[str, int], float], margin: float
) -> list[Wire]:
    """The wires from column to column."""
    wires = []
    seen: dict[int, int] = {}
    for net in nets:
        home = panels[net.home]
        k = seen.setdefault(net.home, 0)
        seen[net.home] += 1
        start = _outlet(home, net)
        below = home.top + home.height + TRACK * (k + 0.5)
        gutter = home.left + home.width + TRACK * (k + 1)
        for reader in net.readers:
            panel = panels[reader]
            inlet, bus = _inlet(panel, net), tracks[net.source, panel.band]
            if panel.band == home.band:
                way = [start, (start[0], below), (gutter, below), (gutter, bus)]
            elif panel.band == home.band + 1:
                way = [start, (start[0], bus)]
            else:
                floor = TRACK * (k + 0.5) + max(other.top + other.height for other in panels if other.band == home.band)
                edge = margin + TRACK * (k + 1)
                way = [start, (start[0], floor), (edge, floor), (edge, bus)]
            way += [(inlet[0], bus), inlet]
            wires.append(Wire(tuple(way), net.axes, (net.source, f"column {reader}"), orthogonal=True))
    return wires
