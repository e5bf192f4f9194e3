"""A symmetry graph as a picture (inline SVG): cards for ops, tiles for parameters, strands for axes.

A parameter is a tile whose left edge is coloured by the axes of its rows and whose top edge by those of its columns; a
wire carries one strand for each free axis of its value. Whatever shows an axis lists it in ``data-axes``, by which the
page's script lights it up. Colours are the style sheet's: one custom property per role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graphfuse.report.cards import Card, cards_of
from graphfuse.report.columns import columns_of
from graphfuse.report.graphdata import Json, describe, leaves
from graphfuse.report.layering import Box
from graphfuse.report.paths import path_of
from graphfuse.report.scene import Panel, Point, Scene, Wire, scene_of

STRAND = 3.4  # between neighbouring strands of a wire
STRANDS = 5  # shown side by side at most
TILE = 20.0
BAR = 6.0
LETTER = 7.0  # mean width of a letter of a card's title
SMALL = 5.6
SHOWN = 34  # letters of a line of a card


def picture(graph: Json) -> str:
    """The picture of a graph.

    Parameters
    ----------
    graph : dict
        As :func:`graphfuse.report.graphdata.graph_json` makes it.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    cards = cards_of(graph["nodes"])
    if not cards:
        return ""
    axes = {axis["id"]: axis for axis in graph["axes"]}
    free = frozenset(id for id, axis in axes.items() if axis["free"])
    tensors = {tensor["name"]: tensor for tensor in graph["tensors"]}
    columns = columns_of(cards)
    drawn = {card.id: _Face(card, column.path, tensors, axes) for column in columns for card in column.cards}
    scene = scene_of(columns, free, {name: face.box for name, face in drawn.items()})
    parts = [_panel(panel) for panel in scene.panels]
    parts += [_group(path, box) for panel in scene.panels for path, box in _groups(panel, scene)]
    parts += [_wire(wire, axes) for wire in sorted(scene.wires, key=lambda wire: len(wire.axes))]
    parts += [_heading(panel) for panel in scene.panels]
    parts += [
        drawn[name].render(panel.at(place))
        for panel in scene.panels
        for name, place in panel.drawing.places.items()
        if name in drawn
    ]
    width, height = scene.width + 40, scene.height + 24
    label = escape(f"The labelled graph of {graph['name']}: {len(cards)} steps, {len(free)} free axes")
    return (
        f'<svg class="graph" viewBox="-12 -12 {width:.0f} {height:.0f}" role="group" aria-label="{label}" '
        f'style="--ratio:{width / height:.3f};--tall:{1.2 * height:.0f}px">{"".join(parts)}</svg>'
    )


class _Face:
    """How one card looks: its lines of text and its tiles."""

    def __init__(self, card: Card, path: str, tensors: Mapping[str, Json], axes: Mapping[int, Json]) -> None:
        self.card = card
        self.names = {id: axis["name"] for id, axis in axes.items() if axis["free"]}
        self.tensors = [tensors[name] for name in dict.fromkeys(card.tensors)]
        module = (card.module.removeprefix(path).strip(".") or card.module).split(".")
        title = ".".join(module[-2:]) if self.tensors else ""
        ops = " → ".join(_plain(card.ops))
        self.title, self.line = _cut(title or ops), _cut(ops) if title else ""
        if card.kind == "input":
            self.title = _cut(card.id)
        self.tiles = [_Tile(tensor, axes) for tensor in self.tensors]
        text = max(LETTER * len(self.title), SMALL * len(self.line)) + 20
        tiles = sum(tile.width + 4 for tile in self.tiles)
        self.box = Box(max(text + tiles + (6 if tiles else 0), 48.0), 40.0 if self.line or self.tiles else 26.0)

    def render(self, centre: Point) -> str:
        """The card as SVG, around its centre."""
        left, top = centre[0] - self.box.width / 2, centre[1] - self.box.height / 2
        shown = dict.fromkeys(leaves([tensor["dims"] for tensor in self.tensors]) + leaves(self.card.dims))
        middle = self.box.height / 2
        lines = [f'<text class="name" x="10" y="{middle - (3 if self.line else -4):.1f}">{escape(self.title)}</text>']
        if self.line:
            lines.append(f'<text class="ops" x="10" y="{middle + 11:.1f}">{escape(self.line)}</text>')
        x, tiles = self.box.width - 6, []
        for tile in reversed(self.tiles):
            x -= tile.width + 4
            tiles.append(tile.render(x + 4, middle - TILE / 2))
        return (
            f'<g class="card {self.card.kind}" data-axes="{_list(shown)}" data-find="{escape(self._find())}" '
            f'data-tip="{escape(self._tip())}" transform="translate({left:.1f} {top:.1f})">'
            f'<rect class="face" width="{self.box.width:.1f}" height="{self.box.height:.1f}" rx="7"/>'
            f"{''.join(lines)}{''.join(tiles)}</g>"
        )

    def _find(self) -> str:
        return " ".join([self.card.module, *self.card.ops, *self.card.tensors, *self.card.nodes]).lower()

    def _tip(self) -> str:
        lines = [f"{self.card.module or 'the top module'}: {' → '.join(self.card.ops)}"]
        if value := describe(self.card.dims, self.card.shape, self.names):
            lines.append(f"gives {value}")
        for tensor in self.tensors:
            shape = " x ".join(map(str, tensor["shape"]))
            lines.append(f"{tensor['name']}  {shape}  {describe(tensor['dims'], tensor['shape'], self.names)}")
        return "\n".join([*lines, *filter(None, [self.card.source])])


class _Tile:
    """One parameter: a square for a matrix (or more dims), a bar for a vector."""

    def __init__(self, tensor: Json, axes: Mapping[int, Json]) -> None:
        self.tensor, self.axes = tensor, axes
        sized = [d for d, size in enumerate(tensor["shape"]) if size > 1]
        moving = [d for d in sized if any(axes[a]["free"] for a in leaves(tensor["dims"][d]) if a in axes)]
        chosen = sorted((moving + [d for d in sized if d not in moving])[:2])
        self.rows, self.columns = (chosen[0] if chosen else None), (chosen[1] if len(chosen) > 1 else None)
        self.width = BAR if self.columns is None else TILE

    def render(self, x: float, y: float) -> str:
        """The tile as SVG, from its upper left corner."""
        parts = [f'<rect class="tile" width="{self.width:.0f}" height="{TILE:.0f}" rx="2"/>']
        if self.rows is not None:
            wide = self.width if self.columns is None else BAR
            parts += _strips(self.tensor["dims"][self.rows], self.axes, 0, 0, wide, TILE, down=True)
        if self.columns is not None:
            parts += _strips(self.tensor["dims"][self.columns], self.axes, BAR + 1, 0, TILE - BAR - 1, BAR, down=False)
        shown = _list(leaves(self.tensor["dims"]))
        return f'<g class="param" data-axes="{shown}" transform="translate({x:.1f} {y:.1f})">{"".join(parts)}</g>'


def _strips(
    dim: Any, axes: Mapping[int, Json], x: float, y: float, width: float, height: float, *, down: bool
) -> list[str]:
    """A dim drawn along an edge: blocks of a sum one after the other, factors of a product side by side."""
    factors = [factor for factor in dim if not isinstance(factor, int) or factor in axes]
    if not factors:
        return [_strip(None, axes, x, y, width, height)]
    parts = []
    for i, factor in enumerate(factors):
        n = len(factors)
        fx, fy, fw, fh = (
            (x + i * width / n, y, width / n, height) if down else (x, y + i * height / n, width, height / n)
        )
        if isinstance(factor, int):
            parts.append(_strip(factor, axes, fx, fy, fw, fh))
            continue
        blocks = factor.get("sum") or [branch for _, branch in factor["case"]]
        for k, block in enumerate(blocks):
            m = len(blocks)
            if down:
                parts += _strips(block, axes, fx, fy + k * fh / m, fw, fh / m - (k < m - 1), down=down)
            else:
                parts += _strips(block, axes, fx + k * fw / m, fy, fw / m - (k < m - 1), fh, down=down)
    return parts


def _strip(axis: int | None, axes: Mapping[int, Json], x: float, y: float, width: float, height: float) -> str:
    free = axis is not None and axes[axis]["free"]
    role = axes[axis]["role"] if axis is not None and free else "fixed"
    shown = f' data-axes="{axis}"' if free else ""
    return (
        f'<rect class="strip" style="fill:var(--{_css(role)})"{shown} x="{x:.1f}" y="{y:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}"/>'
    )


def _wire(wire: Wire, axes: Mapping[int, Json]) -> str:
    """A wire: one strand for each axis, or a thin line where the value has none."""
    if not wire.axes:
        return f'<path class="wire bare" d="{path_of(wire, 0.0)}"/>'
    shown = wire.axes[:STRANDS]
    strands = (
        f'<path class="wire" data-axes="{axis}" style="stroke:var(--{_css(axes[axis]["role"])})" '
        f'd="{path_of(wire, (i - (len(shown) - 1) / 2) * STRAND)}"/>'
        for i, axis in enumerate(shown)
    )
    return "".join(strands)


def _panel(panel: Panel) -> str:
    return (
        f'<g transform="translate({panel.left:.1f} {panel.top:.1f})"><rect class="panel" width="{panel.width:.1f}" '
        f'height="{panel.height:.1f}" rx="12"/></g>'
    )


def _heading(panel: Panel) -> str:
    if not panel.column.title:
        return ""
    x, y = panel.left + 10, panel.top + 19
    return f'<text class="column" x="{x:.1f}" y="{y:.1f}">{escape(panel.column.title)}</text>'


def _groups(panel: Panel, scene: Scene) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Modules within a column whose cards, and no others, fill a rectangle."""
    corners = {}
    for card in panel.column.cards:
        (x, y), box = panel.at(panel.drawing.places[card.id]), scene.boxes[card.id]
        corners[card.id] = (x - box.width / 2, y - box.height / 2, x + box.width / 2, y + box.height / 2)
    depth = len(panel.column.path.split(".")) if panel.column.path else 0
    members: dict[str, list[str]] = {}
    for card in panel.column.cards:
        words = card.module.split(".")
        if len(words) > depth and card.module:
            members.setdefault(".".join(words[: depth + 1]), []).append(card.id)
    found = []
    for path, inside in members.items():
        if not 1 < len(inside) < len(panel.column.cards):
            continue
        xs0, ys0, xs1, ys1 = zip(*(corners[name] for name in inside), strict=True)
        box = (min(xs0) - 8, min(ys0) - 9, max(xs1) + 8, max(ys1) + 9)
        others = (corners[name] for name in corners if name not in inside)
        if not any(a < box[2] and c > box[0] and b < box[3] and d > box[1] for a, b, c, d in others):
            found.append((path, box))
    return found


def _group(path: str, box: tuple[float, float, float, float]) -> str:
    x, y, u, v = box
    return (
        f'<rect class="module" x="{x:.1f}" y="{y:.1f}" width="{u - x:.1f}" height="{v - y:.1f}" rx="10">'
        f"<title>{escape(path)}</title></rect>"
    )


def _plain(ops: Sequence[str]) -> list[str]:
    """Ops without those that only tidy memory, and without repetitions."""
    kept = [op for op in ops if op not in ("clone", "contiguous", "alias", "detach", "getitem")] or list(ops)
    return [op for i, op in enumerate(kept) if i == 0 or kept[i - 1] != op]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _list(axes: Any) -> str:
    return " ".join(map(str, axes))


def _css(role: str) -> str:
    return "role-" + role.replace("_", "-")
