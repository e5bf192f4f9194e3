"""``graphfuse inspect`` and ``verify``: the symmetries of one model, and whether they hold."""

from __future__ import annotations

from typing import Annotated

import typer

from graphfuse.cli import console
from graphfuse.cli.options import (
    Allow,
    BatchSize,
    Data,
    Debug,
    Device,
    Dtype,
    Fold,
    Html,
    Json,
    Length,
    Model,
    Outputs,
    Rules,
    Seed,
    Verbose,
)
from graphfuse.cli.steps import notes_of, print_json, print_notes, print_written, progress, traced
from graphfuse.folding import fold_gains
from graphfuse.report import terminal
from graphfuse.report.graphdata import graph_json
from graphfuse.report.pages import graph_page
from graphfuse.symmetry import SymmetryGraph
from graphfuse.verify import verify as verify_graph
from graphfuse.writing import new_file


def inspect(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = None,
    length: Length = None,
    rules: Rules = None,
    outputs: Outputs = None,
    fold: Fold = False,
    every: Annotated[bool, typer.Option("--all", help="One row for each axis, alike layers not together.")] = False,
    html: Html = None,
    device: Device = None,
    dtype: Dtype = None,
    allow: Allow = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Show which dimensions of which weights may be permuted together, and why the others may not."""
    graph, loaded = traced(model, data, batch_size, rules, device, seed, outputs, dtype, allow, length)
    graph = _folded(graph, rules) if fold else graph
    if html is not None:
        with new_file(html) as work:
            work.write_text(graph_page(graph), encoding="utf-8")
    if as_json:
        print_json(graph_json(graph))
        return
    print_notes(notes_of(loaded))
    console.out.print(terminal.graph_view(graph, every))
    if html is not None:
        print_written(html)


def verify(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = None,
    length: Length = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many random elements of the group.")] = 3,
    classes: Annotated[
        bool, typer.Option("--classes", help="Draw signs, scales, rotations too, where an axis admits them.")
    ] = False,
    fold: Fold = False,
    rules: Rules = None,
    outputs: Outputs = None,
    device: Device = None,
    dtype: Dtype = None,
    allow: Allow = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Check by force that what inspect shows is true: random maps on every free axis must not change the outputs.

    Exit code 1 when they do.
    """
    graph, loaded = traced(model, data, batch_size, rules, device, seed, outputs, dtype, allow, length)
    graph = _folded(graph, rules) if fold else graph
    with progress(as_json) as advance:
        found = verify_graph(graph, trials, seed or 0, advance, classes=classes)
    if as_json:
        print_json({"model": model, **found.to_json()})
    else:
        print_notes(notes_of(loaded))
        console.out.print(terminal.verification_view(found))
    if not found.ok:
        raise typer.Exit(1)


def _folded(graph: SymmetryGraph, rules: list[str] | None) -> SymmetryGraph:
    return fold_gains(graph, rules=rules or ()).graph
