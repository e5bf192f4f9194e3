"""Pictures for papers: curves, landscapes, couplings and symmetry graphs, by matplotlib (the extra ``plots``).

Each function returns a figure, and writes it where ``path`` is given: PNG, SVG or PDF by its ending. The same values
give the same bytes. Colours are told apart by colour-blind people and in grey; lines also differ in dashes and marks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphfuse.aligned import Alignment
from graphfuse.errors import ConfigError, DataError
from graphfuse.landscape import Landscape
from graphfuse.report.bipartite import Bipartite, bipartite
from graphfuse.report.canvas import FAINT, INK, canvas
from graphfuse.report.couplings import Coupling, couplings
from graphfuse.symmetry import SymmetryGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7a7a00")
"""Okabe and Ito's, which colour-blind people tell apart."""
CURVES = (("before", "as they are", FAINT, "o", "--"), ("after", "aligned", COLOURS[0], "s", "-"))
DASHES = {0: "-", 1: "--"}
MOST = 24
"""Matrices in one picture at most, unless they are asked for."""


def plot_curve(evaluation: Mapping[str, Any], path: str | Path | None = None) -> Figure:
    """A metric along the line between two models, before and after alignment, with its barriers.

    Parameters
    ----------
    evaluation : dict
        As :mod:`graphfuse.report.outcome` says, with ``before`` or ``after``.
    path : path, optional
        Where to write it.

    Raises
    ------
    DataError
        There is no curve.
    ConfigError
        matplotlib is not there, or the ending of the path is none of a picture.
    """
    drawn = [(key, *style) for key, *style in CURVES if evaluation.get(key)]
    if not drawn:
        raise DataError(
            "plot: the evaluation has no curve.\n  what to do: evaluate two or more models of one size, or with an "
            "alignment"
        )
    metric = evaluation["metrics"][0]
    with canvas((4.2, 3.1), path) as figure:
        axes = figure.subplots()
        for key, name, colour, mark, dash in drawn:
            values = [math.nan if value is None else value for value in evaluation[key]["values"]]
            points, words = _even(len(values)), f"{name} (barrier {evaluation[key]['barrier']:.3g})"
            axes.plot(points, values, dash, color=colour, marker=mark, markersize=3.5, linewidth=1.6, label=words)
        if evaluation.get("fused"):
            axes.plot([0.5], [evaluation["fused"][metric]], "D", color=COLOURS[1], markersize=6, label="fused")
        axes.set(xlabel="share of the other model", ylabel=metric, xlim=(-0.03, 1.03))
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)  # above: it covers no point
    return figure


def _even(count: int) -> list[float]:
    return [i / (count - 1) for i in range(count)]


def plot_landscape(
    found: Landscape, path: str | Path | None = None, *, metric: str = "loss", higher_is_better: bool = False
) -> Figure:
    """A metric over the plane through three models: level lines over shades, light where it is good.

    Parameters
    ----------
    found : Landscape
        As :func:`graphfuse.landscape` returns it.
    path : path, optional
        Where to write it.
    metric : str
        What the values are.
    higher_is_better : bool
        Whether light shades stand for high values.

    Raises
    ------
    ConfigError
        matplotlib is not there, or the ending of the path is none of a picture.
    """
    values = [[value if math.isfinite(value) else math.nan for value in row] for row in found.values]
    shape = (found.up[-1] - found.up[0]) / (found.across[-1] - found.across[0])
    with canvas((4.8, min(max(3.5 * shape, 1.8), 5.5) + 0.6), path) as figure:
        axes = figure.subplots()
        shades = "cividis" if higher_is_better else "cividis_r"
        filled = axes.contourf(found.across, found.up, values, levels=16, cmap=shades)
        axes.contour(found.across, found.up, values, levels=8, colors="#ffffff", linewidths=0.5, alpha=0.7)
        for (name, x, y, value), mark in zip(found.marks, "os^", strict=True):
            axes.plot([x], [y], mark, color="#ffffff", markeredgecolor="#000000", markersize=7, clip_on=False)
            side = {"xytext": (0, 8), "va": "bottom"} if y == 0 else {"xytext": (0, -8), "va": "top"}
            box = {"facecolor": "#ffffff", "alpha": 0.75, "edgecolor": "none", "pad": 1.2}
            words = f"{name}\n{value:.3g}"
            axes.annotate(words, (x, y), textcoords="offset points", ha="center", fontsize=7.5, bbox=box, **side)
        axes.set(xlabel="distance of weights", ylabel="distance of weights", aspect="equal")
        figure.colorbar(filled, ax=axes, label=metric)
    return figure


def plot_couplings(
    alignment: Alignment,
    path: str | Path | None = None,
    *,
    model: int = 1,
    axes: Iterable[str] | None = None,
    matched: bool = True,
) -> Figure:
    """The maps of one model onto the target as matrices: shares of the model's units in each of the target's.

    Shades grow with the square root of the share, so that small ones are seen; below each stands what black is.

    Parameters
    ----------
    alignment : Alignment
    path : path, optional
        Where to write it.
    model : int
        Whose maps.
    axes : names, optional
        Which axes, every member of their families; by default all, one member of each, 24 at most.
    matched : bool
        Whether the model's units stand in the order in which they match, or in their own.

    Raises
    ------
    DataError
        The model has no maps.
    ConfigError
        There is no such axis; matplotlib is not there, or the ending of the path is none of a picture.
    """
    shown = _chosen(alignment, model, axes)
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    with canvas((2.1 * columns + 0.5, 2.25 * rows + 0.2), path) as figure:
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for place in places[len(shown) :]:
            place.set_axis_off()
        for place, one in zip(places, shown, strict=False):
            _matrix(place, one, matched)
        figure.supxlabel(f"units of model {model}{', as they match' if matched else ''}", fontsize=9)
        figure.supylabel(f"units of model {alignment.target}", fontsize=9)
    return figure


def plot_symmetry(graph: SymmetryGraph, path: str | Path | None = None) -> Figure:
    """The symmetry graph: axes on the left, the tensors that each runs along on the right, alike layers together.

    A line is whole where the axis runs along the first dim, dashed along the second, dotted along a later one.

    Parameters
    ----------
    graph : SymmetryGraph
    path : path, optional
        Where to write it.

    Raises
    ------
    DataError
        No axis is free.
    ConfigError
        matplotlib is not there, or the ending of the path is none of a picture.
    """
    drawn = bipartite(graph)
    if not drawn.axes:
        raise DataError("plot: no axis of this model is free, so there is nothing to draw")
    height = max(1.6, 0.24 * max(len(drawn.axes), len(drawn.tensors)) + 0.6)
    with canvas((7.0, height), path) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        _lines(axes, drawn)
    return figure


def _matrix(place: Axes, one: Coupling, matched: bool) -> None:
    from matplotlib.colors import PowerNorm

    shares = one.matched if matched else one.shares
    norm = PowerNorm(0.5, 0.0, float(shares.max()))
    place.imshow(shares.numpy(), cmap="Greys", norm=norm, aspect="auto", interpolation="nearest")
    place.set_box_aspect(1)
    place.set_xticks([])
    place.set_yticks([])
    place.spines[:].set_visible(True)
    place.set_title("\n".join(filter(None, [one.axis.name, one.label])), fontsize=8)
    place.set_xlabel(f"{one.kind}, {one.sizes[0]} x {one.sizes[1]}, up to {norm.vmax:.2g}", fontsize=7)


def _chosen(alignment: Alignment, model: int, axes: Iterable[str] | None) -> list[Coupling]:
    if not 0 <= model < len(alignment.models):
        raise DataError(f"plot: there is no model {model}; the {len(alignment.models)} models count from 0")
    if axes is None:
        shown = [next(iter(group)) for group in _by_axis(couplings(alignment, model, most=1))][:MOST]
    else:
        wanted, names = list(axes), [axis.name for axis in alignment.axes]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ConfigError(f"plot: there is no axis {unknown[0]!r}.\n  expected: {', '.join(names)}")
        shown = [one for one in couplings(alignment, model) if one.axis.name in wanted]
    if not shown:
        raise DataError(f"plot: model {model} has no maps, as it is the target or nothing was aligned")
    return shown


def _by_axis(found: Iterable[Coupling]) -> list[list[Coupling]]:
    groups: dict[str, list[Coupling]] = {}
    for one in found:
        groups.setdefault(one.axis.name, []).append(one)
    return list(groups.values())


def _lines(axes: Axes, drawn: Bipartite) -> None:
    roles = list(dict.fromkeys(one.role for one in drawn.axes))
    colours = {role: COLOURS[i % len(COLOURS)] for i, role in enumerate(roles)}
    left = {one.name: _height(i, len(drawn.axes)) for i, one in enumerate(drawn.axes)}
    right = {name: _height(i, len(drawn.tensors)) for i, name in enumerate(drawn.tensors)}
    for one in drawn.axes:
        y = left[one.name]
        for name, dim in one.touches:
            axes.plot([0, 1], [y, right[name]], DASHES.get(dim, ":"), color=colours[one.role], linewidth=1.1, zorder=1)
        axes.plot([0], [y], "o", color=colours[one.role], markersize=5, zorder=2)
        axes.text(-0.02, y, f"{one.name}  {one.size}, {one.symmetry}", ha="right", va="center", fontsize=7.5)
    for name, y in right.items():
        axes.plot([1], [y], "s", color=INK, markersize=3.5, zorder=2)
        axes.text(1.02, y, name, ha="left", va="center", fontsize=7.5)
    axes.set(xlim=(-0.75, 1.75), ylim=(-0.03, 1.03))


def _height(i: int, count: int) -> float:
    return 1 - (i + 0.5) / count
