"""The demo as one HTML page: the outcome, the curves between the parents, the labelled graphs, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from graphfuse.demo.evaluation import POINTS, RATE
from graphfuse.demo.results import CLOSE, DemoResult, PairResult
from graphfuse.report.charts import Line, Mark, chart, legend
from graphfuse.report.explorer import explorer
from graphfuse.report.html import Cell, Section, bullets, figures, heading, page, table, tabs, text

PLAIN, ALIGNED, FUSED = "B as it is", "B aligned", "Fused (aligned, calibrated)"


def demo_page(result: DemoResult) -> str:
    """The whole page."""
    error = 100 * sqrt(0.96 * 0.04 / result.test_size)
    return page(
        "Networks trained apart, fused",
        [
            Section("One shot", _outcome(result.pairs), _outcome_lead(error)),
            Section("After the same fine-tuning", _tuned(result), _tuned_lead(result)),
            Section("From one parent to the other", _curves(result.pairs), CURVES),
            Section("The labelled graphs", _graphs(result.graphs), GRAPHS),
            Section("What the numbers say", _remarks(result)),
            Section("How it was made", _making(result)),
        ],
        lead=result.summary(),
        facts={
            "Images": f"{result.test_size:,} to test, {result.unlabelled} to fuse",
            "Networks": str(len(result.networks)),
            "This run": f"{result.seconds['total']:.0f} s",
            "Seed": str(result.seed),
        },
    )


CURVES = (
    "Accuracy along the straight line between the weights of the first parent, A, and those of the last, B: as they "
    "are, and after B's units were put in the places of A's. Batch norms are re-estimated at every point between."
)
GRAPHS = (
    "What graphfuse found in each kind of network. A card is an op, a tile on it a parameter, coloured along its "
    "rows and columns; a wire carries a strand for each axis that may be permuted. Pick an axis to see what it moves."
)


def _outcome_lead(error: float) -> str:
    return (
        f"Test accuracy in percent; the standard error of one number is about {error:.1f} points. Fused hard matches "
        "units one to one, soft by entropic transport; both are then calibrated on the unlabelled images. Plain, "
        "calibrated is the plain average calibrated in the same way: what sets it apart from fused, hard is alignment."
    )


def _outcome(pairs: Sequence[PairResult]) -> str:
    head = ["", "Fused, hard", "Fused, soft", "Parents", "Plain average", "Plain, calibrated", "Aligned only",
            "Ensemble", f"Within {CLOSE:.0f} points"]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            pair.title, pair.hard, pair.soft, " / ".join(f"{accuracy:.1f}" for accuracy in pair.accuracies), pair.plain,
            pair.plain_calibrated, pair.aligned, pair.ensemble, _verdict(pair),
        ]
        for pair in pairs
    ]  # fmt: skip
    return table(head, rows, strong=[1])


def _verdict(pair: PairResult) -> str:
    soft = round(pair.gap(pair.soft), 1) <= CLOSE
    if pair.close == soft:
        return "yes" if soft else "no"
    return "soft only" if soft else "hard only"


def _tuned_lead(result: DemoResult) -> str:
    return (
        f"{result.steps} steps of 64 labelled training images, highest learning rate {RATE:g}; every model gets the "
        "same batches in the same order."
    )


def _tuned(result: DemoResult) -> str:
    rows: list[list[Cell]] = [
        [pair.title, pair.tuned["fused"], pair.tuned["parent"], pair.tuned["plain"]] for pair in result.pairs
    ]
    return table(["", "Fused, hard", "Best parent", "Plain average"], rows, strong=[1])


def _curves(pairs: Sequence[PairResult]) -> str:
    key = legend([(ALIGNED, "b", "line"), (PLAIN, "a", "line"), (FUSED, "c", "diamond")])
    return key + figures([(pair.title, _curve(pair), _caption(pair)) for pair in pairs])


def _curve(pair: PairResult) -> str:
    shares = [i / (POINTS - 1) for i in range(POINTS)]
    drawn = [(PLAIN, "a", pair.plain_curve), (ALIGNED, "b", pair.aligned_curve)]
    lines = [Line(name, style, tuple(zip(shares, curve, strict=True))) for name, style, curve in drawn if curve]
    marks = [Mark(FUSED, "c", (0.5, pair.hard))]
    return chart(
        f"{pair.title}: accuracy between the parents", lines, marks,
        across=("share of B", 0.0, 1.0), up=("test accuracy, %", 0.0, 100.0),
    )  # fmt: skip


def _caption(pair: PairResult) -> str:
    middle = POINTS // 2
    words = f"Half way: {pair.aligned_curve[middle]:.1f}% aligned"
    words += f", {pair.plain_curve[middle]:.1f}% as it is." if pair.plain_curve else "; B has another width than A."
    return words + (" B is the third." if len(pair.parents) > 2 else "")


def _graphs(graphs: Mapping[str, Mapping[str, Any]]) -> str:
    return tabs({graph["name"]: _graph(kind, graph) for kind, graph in graphs.items()}, "graph")


def _graph(kind: str, graph: Mapping[str, Any]) -> str:
    found = graph["verified"]
    words = (
        f"Verified: random permutations of all free axes together change the outputs by {found['max_error']:.0e} of "
        "their size."
        if found["ok"]
        else f"Not verified: permuting the axes that were found changes the outputs by {found['max_error']:.0e} of "
        "their size. This is a bug in graphfuse."
    )
    return text(words) + explorer(dict(graph), kind)


def _remarks(result: DemoResult) -> str:
    return "".join(heading(pair.title) + bullets(pair.remarks()) for pair in result.pairs)


def _making(result: DemoResult) -> str:
    rows: list[list[Cell]] = [
        [network["name"], network["parameters"], network["accuracy"], network["seconds"],
         "from the cache" if network["cached"] else "now", network["path"]]
        for network in result.networks
    ]  # fmt: skip
    head = ["Network", "Parameters", "Accuracy, %", "Training, s", "Trained", "Kept as"]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    return table(head, rows) + bullets([*result.notes, f"Time: {seconds}.", f"Made with {versions}."])
