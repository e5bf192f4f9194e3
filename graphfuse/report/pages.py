"""Whole HTML pages: the graph of one model, and what a fusion did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphfuse.aligned import Alignment
from graphfuse.report.explorer import explorer
from graphfuse.report.graphdata import graph_json
from graphfuse.report.heatmaps import heatmaps
from graphfuse.report.html import Cell, Section, bullets, page, table
from graphfuse.report.layers import by_depth, calibration, matching
from graphfuse.report.outcome import outcome, outcome_words
from graphfuse.report.words import reasons, sizes_of, starred, structure
from graphfuse.symmetry import Axis, SymmetryGraph

Json = Mapping[str, Any]
SHOWN = 4

GRAPH = (
    "A card is an op, a tile on it a parameter, coloured along its rows and columns; a wire carries a strand for each "
    "axis that may be permuted. Pick an axis to see what it moves, or click a card to step through its axes."
)
COUPLINGS = (
    "Which units of a model the target's units are made of, axis by axis: rows are the target's units, columns the "
    "model's, and each row sums to one. Of a rotation these are the squared entries."
)
MATCHING = "Agreement is the mean correlation of matched units; before is that of unit i with unit i."
CALIBRATION = (
    "The squared error of each solved layer's output on held-out inputs, as a share of the mean square of what it "
    "should be, with the averaged and with the calibrated weight."
)
FIXED = "What keeps axes from being permuted; they are averaged as they are."


def graph_page(graph: SymmetryGraph) -> str:
    """One model's labelled graph: which dimensions may be permuted together, and why the others may not."""
    name = type(graph.model).__name__
    notes = [note.message for note in graph.notes]
    sections = [
        Section("Labelled graph", explorer(graph_json(graph), "graph"), GRAPH),
        Section("In words", bullets(structure(graph))),
        Section("What is fixed, and why", _fixed(graph), FIXED),
        Section("Notes", bullets(notes)),
    ]
    return page(f"{name}: symmetries", _filled(sections), facts=_facts(graph))


def fuse_page(graph: SymmetryGraph, report: Json, alignment: Alignment | None = None) -> str:
    """What a fusion did: how good the result is, how units were matched, what was fixed, seconds and memory.

    Parameters
    ----------
    graph : SymmetryGraph
        Of the fused model.
    report : dict
        As :func:`graphfuse.fuse` returns it. ``specs`` may name the models, ``evaluation`` may have what they reach by
        a metric, as :mod:`graphfuse.report.outcome` says.
    alignment : Alignment, optional
        The maps, which are shown as heat maps.
    """
    data = graph_json(graph)
    sections = [
        Section("Outcome", outcome(report)),
        Section("Models", _models(report)),
        Section("Labelled graph", explorer(data, "graph"), GRAPH),
        Section("Couplings", heatmaps(alignment, "maps") if alignment is not None else "", COUPLINGS),
        Section("Matching by layer", matching(report, by_depth(report, data)), MATCHING),
        Section("Calibration by layer", calibration(report), CALIBRATION),
        Section("Into another width", _resized(report.get("into"))),
        Section("What is fixed, and why", _fixed(graph), FIXED),
        Section("What was tried", _tried(report)),
        Section("Time and memory", _costs(report)),
        Section("Notes", bullets(report["notes"])),
    ]
    facts = {"inputs": str(report["inputs"]), **_facts(graph), "seconds": f"{report['seconds']['total']:.1f}"}
    return page("Fusion", _filled(sections), lead=f"{_done(report)} {outcome_words(report)}".strip(), facts=facts)


def _done(report: Json) -> str:
    """What was done, in a sentence."""
    method = report["alignment"]["method"]
    by = "activations and weights" if method == "both" else method
    count = sum(model["share"] > 0 for model in report["models"])
    if count == 1:
        return f"One model written into another width, matched by {by}."
    return f"{count} models of the class {report['models'][0]['class']} fused, matched by {by}."


def _filled(sections: list[Section]) -> list[Section]:
    return [section for section in sections if section.body]


def _facts(graph: SymmetryGraph) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in graph.model.parameters())
    return {
        "parameters": f"{parameters:,}",
        "free axes": str(len(graph.axes)),
        "parameters that move": f"{graph.free_fraction:.1%}",
    }


def _models(report: Json) -> str:
    specs = report.get("specs") or [f"model {k}" for k in range(len(report["models"]))]
    rows: list[list[Cell]] = [
        [
            f"{k}: {spec}" if report.get("specs") else str(spec), model["class"], f"{model['parameters']:,}",
            f"{model['share']:.0%}", "the result has its shape" if model["target"] else "",
        ]
        for k, (spec, model) in enumerate(zip(specs, report["models"], strict=True))
    ]  # fmt: skip
    return table(["model", "class", "parameters", "share", "role"], rows)


def _resized(report: Json | None) -> str:
    """What became of the fused model in the width that it was written into."""
    apart = report["outputs"] if report else None
    words = f"{apart['fused']:.4f}, and {apart['average']:.4f} before calibration" if apart else ""
    said = bullets([f"Distance of the outputs from those in the models' width: {words}."]) if words else ""
    return said + calibration(report) if report else ""


def _fixed(graph: SymmetryGraph) -> str:
    rows: list[list[Cell]] = [
        [why, str(len(axes)), sizes_of(axes), ", ".join(_examples(axes))] for why, axes in reasons(graph)
    ]
    return table(["reason", "axes", "sizes", "for example"], rows) if rows else ""


def _examples(axes: Sequence[Axis]) -> list[str]:
    """Where axes are, one of those that differ only in the number of a layer."""
    places = [f"{axis.touches[0].tensor}[{axis.touches[0].dim}]" if axis.touches else axis.name for axis in axes]
    return list({starred(place): place for place in reversed(places)}.values())[::-1][:SHOWN]


def _tried(report: Json) -> str:
    rows: list[list[Cell]] = [
        [
            ", ".join(f"{name} {value}" for name, value in entry["settings"].items()) or "as it is by default",
            entry["score"], f"{entry['seconds']:.1f}", entry["reason"] or "",
        ]
        for entry in report.get("tried") or ()
    ]  # fmt: skip
    return table(["settings", "score", "seconds", ""], rows, strong=[1], digits=4) if rows else ""


def _costs(report: Json) -> str:
    rows: list[list[Cell]] = [[stage.replace("_", " "), seconds] for stage, seconds in report["seconds"].items()]
    shown = table(["stage", "seconds"], rows, digits=2)
    names = {"models": "tensors of the models", "process": "most that the process held", "device": "most on the device"}
    memory: list[list[Cell]] = [
        [names.get(key, key), size / 2**20] for key, size in (report.get("memory") or {}).items() if size is not None
    ]
    return f'<div class="beside">{shown}{table(["memory", "MiB"], memory, digits=2)}</div>' if memory else shown
