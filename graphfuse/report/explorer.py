"""The graph explorer: the picture of a symmetry graph beside the list of its axes."""

from __future__ import annotations

from collections import Counter
from html import escape

from graphfuse.report.graphdata import Json
from graphfuse.report.picture import picture

LARGEST = 6000  # nodes: a picture of more would be no help


def explorer(graph: Json, key: str) -> str:
    """A picture that can be moved, zoomed and searched, and the axes to pick from.

    Parameters
    ----------
    graph : dict
        As :func:`graphfuse.report.graphdata.graph_json` makes it.
    key : str
        A word that no other explorer on the page has.

    Returns
    -------
    str
        HTML; works with the page's script, and shows everything but the highlights without it.
    """
    free = [axis for axis in graph["axes"] if axis["free"]]
    fixed = [axis for axis in graph["axes"] if not axis["free"] and axis["touches"]]
    return (
        f'<div class="explorer" id="explorer-{escape(key)}">'
        f'<p class="summary">{_summary(graph, len(free))}</p>{_legend(free)}'
        f'<div class="stage">{_stage(graph)}</div>'
        f'<div class="axes"><h3>Free axes</h3>{_table(free, graph)}{_fixed(fixed)}</div></div>'
    )


def _summary(graph: Json, free: int) -> str:
    share = f"{graph['free_fraction']:.1%}".replace("100.0%", "100%")
    axes = f"{free} free {'axis' if free == 1 else 'axes'}"
    return escape(
        f"{graph['parameters']:,} parameters, {axes}; {share} of the parameters move with at least one of them."
    )


def _legend(free: list[Json]) -> str:
    roles = Counter(axis["role"] for axis in free)
    items = (
        f'<li>{_swatch(role)}{escape(role.replace("_", " "))}<span class="count">{count}</span></li>'
        for role, count in roles.items()
    )
    return f'<ul class="legend roles">{"".join(items)}<li>{_swatch("fixed")}fixed</li></ul>'


def _swatch(role: str) -> str:
    return f'<i class="swatch" style="background:var(--role-{escape(role.replace("_", "-"))})"></i>'


def _stage(graph: Json) -> str:
    if len(graph["nodes"]) > LARGEST:
        return f'<p class="hint">{len(graph["nodes"]):,} nodes: too many for a picture; the axes are listed.</p>'
    return (
        '<div class="tools"><input type="search" placeholder="Find an op, module or parameter" '
        'aria-label="Find an op, module or parameter; Enter for the next">'
        '<span class="matches" role="status"></span>'
        '<button type="button" data-zoom="in" aria-label="Zoom in">+</button>'
        '<button type="button" data-zoom="out" aria-label="Zoom out">−</button>'
        '<button type="button" data-zoom="fit">Fit</button></div>'
        f'<div class="canvas" tabindex="0" role="region" aria-label="Graph; drag to move, pinch or Ctrl+wheel to zoom, '
        f'arrow keys and + − too">{picture(graph)}</div>'
    )


def _table(axes: list[Json], graph: Json) -> str:
    names = {axis["id"]: axis["name"] for axis in graph["axes"]}
    shapes = {tensor["name"]: tensor["shape"] for tensor in graph["tensors"]}
    if not axes:
        return '<p class="hint">None: nothing can be permuted without changing what the model computes.</p>'
    return f'<ul class="axis-list">{"".join(_row(axis, names, shapes) for axis in axes)}</ul>'


def _row(axis: Json, names: dict[int, str], shapes: dict[str, list[int]]) -> str:
    """One axis: a button that lights it up, and what it touches."""
    along = [names[id] for id in axis["context"] if id in names]
    notes = f"{axis['class']}" + (f", its own map for each of {', '.join(along)}" if along else "")
    touched: dict[str, list[int]] = {}
    for touch in axis["touches"]:
        touched.setdefault(touch["tensor"], []).append(touch["dim"])
    lines = "".join(
        f"<li><code>{_breakable(name)}</code><span>{_marked(shapes.get(name, []), dims)}</span></li>"
        for name, dims in touched.items()
    )
    count = f"{len(touched)} tensor{'s' * (len(touched) != 1)}"
    return (
        f'<li data-axis="{axis["id"]}"><button type="button" aria-pressed="false">{_swatch(axis["role"])}'
        f'<span class="axis-name">{escape(axis["name"])}</span><span class="axis-size">{axis["size"]}</span>'
        f'<span class="axis-note">{escape(notes)}</span><span class="axis-note end">{count}</span></button>'
        f'<ul class="touches" hidden>{lines}</ul></li>'
    )


def _breakable(name: str) -> str:
    """A dotted name that may be broken after its dots."""
    return escape(name).replace(".", ".<wbr>")


def _marked(shape: list[int], dims: list[int]) -> str:
    """A shape with the dims that an axis runs along set off."""
    return " × ".join(f"<b>{size}</b>" if d in dims else str(size) for d, size in enumerate(shape))


def _fixed(axes: list[Json]) -> str:
    if not axes:
        return ""
    count = f"{len(axes)} fixed {'axis' if len(axes) == 1 else 'axes'}"
    rows = "".join(
        f"<tr><td>{escape(', '.join(dict.fromkeys(t['tensor'] for t in axis['touches'])))}</td>"
        f'<td class="number">{axis["size"]}</td><td>{escape("; ".join(dict.fromkeys(axis["reasons"])))}</td></tr>'
        for axis in axes
    )
    return (
        f'<details><summary>{count} of parameters, and why</summary><div class="scroll"><table>'
        f'<thead><tr><th scope="col">Parameters</th><th scope="col" class="number">Size</th>'
        f'<th scope="col">Fixed by</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )
