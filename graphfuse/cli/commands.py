"""The commands, all thin: what is done is done elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from graphfuse import __version__
from graphfuse.cli import console
from graphfuse.cli.options import (
    MODEL,
    BatchSize,
    Data,
    Debug,
    Device,
    Fold,
    Html,
    Json,
    Model,
    Models,
    Outputs,
    Rules,
    Seed,
)
from graphfuse.cli.rules import rules_app
from graphfuse.cli.steps import device_of, inputs, moved, print_json, print_notes, progress, traced
from graphfuse.config import FuseConfig
from graphfuse.demo import run as run_demo
from graphfuse.folding import fold_gains
from graphfuse.fuse import fuse as fuse_models
from graphfuse.io.batches import Batches, load_data
from graphfuse.io.models import load_model, save_model
from graphfuse.io.outputs import ensure_new, new_directory
from graphfuse.report import terminal
from graphfuse.report.graphdata import graph_json
from graphfuse.report.pages import fuse_page, graph_page
from graphfuse.symmetry import trace
from graphfuse.verify import verify as verify_graph

app = typer.Typer(
    help="Fuse independently trained PyTorch models of any architecture into one.",
    epilog="Start with: graphfuse demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(rules_app, name="rules")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.out.print(__version__, highlight=False)
        raise typer.Exit


@app.command(epilog="Example: [cyan]graphfuse demo --out demo-out[/]")
def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Gets demo.html and demo.json.")] = Path("demo-out"),
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train small models of several kinds and widths on handwritten digits, and fuse them.

    The first run trains the models (a few minutes on two cores) and keeps them; later runs take under a minute.
    """
    result = run_demo(folder, seed, Console(quiet=True) if as_json else console.out)
    if as_json:
        print_json(result.to_json())


@app.command(epilog=MODEL + "\n\nExample: [cyan]graphfuse inspect nets:net@a.safetensors --html net.html[/]")
def inspect(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = 2,
    rules: Rules = None,
    outputs: Outputs = None,
    fold: Fold = False,
    every: Annotated[bool, typer.Option("--all", help="One row for each axis, alike layers not together.")] = False,
    html: Html = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which dimensions of which weights may be permuted together, and why the others may not."""
    graph, loaded = traced(model, data, batch_size, rules, device, seed, outputs)
    graph = fold_gains(graph, rules=rules or ()).graph if fold else graph
    if html is not None:
        html.write_text(graph_page(graph), encoding="utf-8")
    if as_json:
        print_json(graph_json(graph))
        return
    print_notes(loaded)
    console.out.print(terminal.graph_view(graph, every))
    if html is not None:
        console.out.print(f"written: {html}")


@app.command(epilog=MODEL + "\n\nExample: [cyan]graphfuse verify path/to/directory --trials 5[/]")
def verify(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = 2,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many random elements of the group.")] = 3,
    classes: Annotated[
        bool, typer.Option("--classes", help="Draw signs, scales, rotations too, where an axis admits them.")
    ] = False,
    fold: Fold = False,
    rules: Rules = None,
    outputs: Outputs = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check by force that what inspect shows is true: random maps on every free axis must not change the outputs.

    Exit code 1 when they do.
    """
    graph, loaded = traced(model, data, batch_size, rules, device, seed, outputs)
    graph = fold_gains(graph, rules=rules or ()).graph if fold else graph
    with progress(as_json) as advance:
        found = verify_graph(graph, trials, seed, lambda done, total: advance("verify", done, total), classes=classes)
    if as_json:
        print_json({"model": model, **found.to_json()})
    else:
        print_notes(loaded)
        console.out.print(terminal.verification_view(found))
    if not found.ok:
        raise typer.Exit(1)


@app.command(
    epilog=MODEL
    + "\n\nExample: [cyan]graphfuse fuse nets:net@a.safetensors nets:net@b.safetensors --data digits.npz -o fused[/]"
)
def fuse(
    models: Models,
    folder: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="A new directory for the fused model.")],
    data: Data = None,
    batch_size: BatchSize = 64,
    config: Annotated[Path | None, typer.Option("--config", metavar="YAML", help="Settings; see FuseConfig.")] = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="MODEL", help="A model whose widths, not weights, the result has.")
    ] = None,
    rules: Rules = None,
    device: Device = "cpu",
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same result; by default the config's.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuse two or more trained models of one architecture into one; with --into, one may be written into another width.

    With --data (a few hundred unlabelled inputs) units are matched by what they do and the result is calibrated;
    without, by their weights alone. OUT gets the model, the alignment, report.json and report.html.
    """
    ensure_new(folder)
    settings = FuseConfig.parse(config)
    settings = settings if seed is None else settings.model_copy(update={"seed": seed})
    torch.manual_seed(settings.seed)
    place = device_of(device)
    loaded = [load_model(spec, settings.seed) for spec in models]
    batches = load_data(data, batch_size, model=loaded[0], samples=settings.samples) if data is not None else None
    args, kwargs = moved(inputs(loaded, batches), place)
    nets = [one.model.to(place) for one in loaded]
    shape = load_model(into, settings.seed) if into is not None else None
    blank = shape.model.to(place) if shape is not None else None
    fed = Batches(lambda: (moved(batch, place) for batch in batches)) if batches is not None else None
    with new_directory(folder) as work:
        with progress(as_json) as advance:
            result = fuse_models(
                nets, args, kwargs, data=fed, into=blank, config=settings, rules=rules or (), progress=advance
            )
        save_model(shape or loaded[settings.target], result.model, work)
        result.alignment.save(work / "alignment.safetensors")
        if result.resized is not None and result.resized is not result.alignment:
            result.resized.save(work / "resized.safetensors")
        specs = [into, *models] if into is not None and len(models) == 1 else models
        report = {"specs": specs, **result.report}
        (work / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        graph = trace(result.model, args, kwargs, rules=rules or (), outputs=settings.outputs)
        (work / "report.html").write_text(fuse_page(graph, report), encoding="utf-8")
    if as_json:
        print_json(report)
        return
    print_notes(*loaded, *([batches] if batches is not None else []))
    console.out.print(terminal.fuse_view(report, result.alignment))
    console.out.print(f"written: {', '.join(str(path) for path in sorted(folder.iterdir()))}", soft_wrap=True)
