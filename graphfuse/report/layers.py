"""Numbers of layers in order of depth: how well axes are matched, and what calibration made of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphfuse.report.charts import Line, chart, legend, rounded
from graphfuse.report.graphdata import Json
from graphfuse.report.html import Cell, bullets, figures, folded, table

STYLES = "bcd"
BEFORE = "unit i with unit i"


def by_depth(report: Mapping[str, Any], graph: Json) -> list[Json]:
    """The axes of a report's alignment, those first that the graph's first ops read or write."""
    place = {name: i for i, node in reversed([*enumerate(graph["nodes"])]) for name in node["tensors"]}
    depths = {
        axis["name"]: min((place[touch["tensor"]] for touch in axis["touches"] if touch["tensor"] in place), default=0)
        for axis in graph["axes"]
    }
    return sorted(report["alignment"]["axes"], key=lambda axis: depths.get(axis["name"], len(graph["nodes"])))


def matching(report: Mapping[str, Any], axes: Sequence[Json]) -> str:
    """Charts of the agreement by role, and the table of all axes; axes come in order of depth."""
    models = [(k, model["agreement"]) for k, model in enumerate(report["alignment"]["models"]) if model["agreement"]]
    roles: dict[str, list[str]] = {}
    for axis in axes:
        if any(axis["name"] in found for _, found in models):
            roles.setdefault(axis["role"], []).append(axis["name"])
    charts = [(role.replace("_", " "), _chart(role, names, models), "") for role, names in roles.items() if names[1:]]
    alone = [name for names in roles.values() if not names[1:] for name in names]
    said = [_said(name, k, found[name]) for name in alone for k, found in models if name in found]
    key = [(BEFORE, "a", "line"), *((f"model {k}, matched", _style(i), "line") for i, (k, _) in enumerate(models))]
    shown = _table(report["alignment"], axes)
    if not charts:
        return shown
    return bullets(said) + legend(key) + figures(charts) + folded("Every axis in numbers", shown)


def _said(name: str, k: int, found: Mapping[str, Any]) -> str:
    before = f" ({BEFORE}: {found['before']:.3f})" if found["before"] is not None else ""
    return f"{name} of model {k}: {found['value']:.3f}{before}"


def calibration(report: Mapping[str, Any]) -> str:
    """What calibration made of each layer, in the order in which it solved them; empty when nothing was solved."""
    found = report.get("calibration")
    if not found or not found["solved"]:
        return ""
    rows: list[list[Cell]] = [
        [one["module"] or one["weight"], one["before"], one["after"], f"{one['step']:.0%}"] for one in found["solved"]
    ]
    shown = table(["layer", "error of the average", "calibrated", "step"], rows, strong=[2], digits=4)
    if len(rows) < 2:
        return shown
    names = [str(row[0]) for row in rows]
    drawn = [("averaged", "a", "before"), ("calibrated", "b", "after")]
    lines = [_line(name, style, names, [one[key] for one in found["solved"]]) for name, style, key in drawn]
    picture = _by_layer("Error by layer", lines, "error, share of the mean square")
    key = legend([(line.name, line.style, "line") for line in lines])
    return key + figures([("Layers, in the order of the graph", picture, "")]) + folded("Every layer in numbers", shown)


def _chart(role: str, names: Sequence[str], models: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    lines = []
    for i, (k, found) in enumerate(models):
        here = [name for name in names if name in found]
        before = [found[name]["before"] for name in here]
        if all(value is not None for value in before):
            lines.append(_line(f"model {k}, {BEFORE}", "a", here, before))
        lines.append(_line(f"model {k}, matched", _style(i), here, [found[name]["value"] for name in here]))
    return _by_layer(f"Agreement of {role} by layer", lines, "mean correlation of matched units", 1.0)


def _by_layer(title: str, lines: Sequence[Line], up: str, top: float = 0.0) -> str:
    points = [point for line in lines for point in line.points]
    across = ("in order of depth", 0.0, max(1.0, *(x for x, _ in points)))
    reach = rounded([0.0, top, *(y for _, y in points)])
    return chart(title, lines, across=across, up=(up, *reach), unit="", digits=3, whole=True)


def _line(name: str, style: str, names: Sequence[str], values: Sequence[float]) -> Line:
    points = tuple((float(i), value) for i, value in enumerate(values))
    return Line(name, style, points, tuple(f"{one}: {value:.3f}" for one, value in zip(names, values, strict=True)))


def _style(i: int) -> str:
    return STYLES[i % len(STYLES)]


def _table(alignment: Mapping[str, Any], axes: Sequence[Json]) -> str:
    rows: list[list[Cell]] = []
    for k, model in enumerate(alignment["models"]):
        for axis in axes:
            found = model["agreement"].get(axis["name"])
            if found is not None:
                sizes = str(axis["size"]), str(model["sizes"][axis["name"]])
                rows.append([f"{k}: {axis['name']}", *sizes, found["value"], found["before"], f"{found['moved']:.0%}"])
    head = ["model: axis", "size", "from", "agreement", "before", "units moved"]
    return table(head, rows, strong=[3], digits=3) if rows else "<p>Nothing was measured.</p>"
