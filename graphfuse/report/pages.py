"""Whole HTML pages: the graph of one model, and what a fusion did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphfuse.report.explorer import explorer
from graphfuse.report.graphdata import graph_json
from graphfuse.report.html import Cell, Section, bullets, page, table
from graphfuse.symmetry import SymmetryGraph

Json = Mapping[str, Any]


def graph_page(graph: SymmetryGraph) -> str:
    """One model's labelled graph: which dimensions may be permuted together, and why the others may not."""
    name = type(graph.model).__name__
    notes = [note.message for note in graph.notes]
    sections = [Section("Labelled graph", explorer(graph_json(graph), "graph"))]
    if notes:
        sections.append(Section("Notes", bullets(notes)))
    return page(f"{name}: symmetries", sections, facts=_facts(graph))


def fuse_page(graph: SymmetryGraph, report: Json) -> str:
    """What a fusion did: the models, how well their units are matched, calibration, seconds, and the labelled graph.

    Parameters
    ----------
    graph : SymmetryGraph
        Of the fused model.
    report : dict
        As :func:`graphfuse.fuse` returns it.
    """
    models = report["models"]
    specs = report.get("specs") or [f"model {k}" for k in range(len(models))]
    rows: list[list[Cell]] = [
        [f"{k}: {spec}", model["class"], f"{model['parameters']:,}", f"{model['share']:.0%}", _shape(model["target"])]
        for k, (spec, model) in enumerate(zip(specs, models, strict=True))
    ]
    sections = [
        Section("Models", table(["model", "class", "parameters", "share", ""], rows)),
        Section(
            "Matching",
            _matching(report["alignment"]),
            "Agreement is the mean correlation of matched units; before is that of unit i with unit i.",
        ),
        Section("Seconds", table(["stage", "seconds"], [[k, v] for k, v in report["seconds"].items()], digits=2)),
        Section("Labelled graph", explorer(graph_json(graph), "graph")),
    ]
    if report["notes"]:
        sections.append(Section("Notes", bullets(report["notes"])))
    lead = f"{len(models)} models of the class {models[0]['class']} fused, matched by {report['alignment']['method']}."
    return page("Fusion", sections, lead=lead, facts={"inputs": str(report["inputs"]), **_facts(graph)})


def _shape(target: bool) -> str:
    return "the result has its shape" if target else ""


def _facts(graph: SymmetryGraph) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in graph.model.parameters())
    return {
        "parameters": f"{parameters:,}",
        "free axes": str(len(graph.axes)),
        "parameters that move": f"{graph.free_fraction:.1%}",
    }


def _matching(alignment: Json) -> str:
    rows: list[list[Cell]] = []
    for k, model in enumerate(alignment["models"]):
        for axis in alignment["axes"]:
            found = model["agreement"].get(axis["name"])
            if found is not None:
                sizes = str(axis["size"]), str(model["sizes"][axis["name"]])
                rows.append([f"{k}: {axis['name']}", *sizes, found["value"], found["before"], f"{found['moved']:.0%}"])
    head = ["model: axis", "size", "from", "agreement", "before", "units moved"]
    return table(head, rows, strong=[3], digits=3) if rows else bullets(["Nothing was measured."])
