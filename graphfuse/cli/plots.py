"""``graphfuse plot``: pictures for papers, and the report page with what was measured on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from graphfuse.aligned import Alignment
from graphfuse.cli.measuring import alignment_of, fused_spec, labelled, metrics_of
from graphfuse.cli.options import BatchSize, Data, Debug, Device, Json, Model, Rules, Samples, Seed
from graphfuse.cli.steps import device_of, expect_models, load, print_json, print_written, progress, settled, traced
from graphfuse.config import RunConfig
from graphfuse.errors import DataError, kind_of
from graphfuse.evaluation import Metric, evaluate
from graphfuse.evaluation.states import restated
from graphfuse.landscape import landscape as landscape_of
from graphfuse.report import plots
from graphfuse.report.pages import fuse_page
from graphfuse.writing import new_file

plot_app = typer.Typer(
    help="Draw pictures for papers (PNG, SVG, PDF), and the report page anew. Needs the extra graphfuse\\[plots].",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Picture = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="The picture: .png, .svg or .pdf by its ending.")
]
Run = Annotated[Path, typer.Argument(metavar="OUT", help="What [cyan]graphfuse fuse[/] wrote.")]
Evaluation = Annotated[
    Path, typer.Argument(metavar="EVALUATION", help="What [cyan]graphfuse evaluate --json[/] printed, in a file.")
]


@plot_app.command(epilog="Example: [cyan]graphfuse plot curve evaluation.json -o curve.svg[/]")
def curve(evaluation: Evaluation, out: Picture, as_json: Json = False, debug: Debug = False) -> None:
    """Draw a metric along the line between two models, before and after alignment, with its barriers."""
    plots.plot_curve(_evaluation(evaluation), out)
    _say(as_json, out)


@plot_app.command(epilog="Example: [cyan]graphfuse plot couplings fused/alignment.safetensors -o couplings.png[/]")
def couplings(
    alignment: Annotated[Path, typer.Argument(metavar="ALIGNMENT", help="A saved alignment.")],
    out: Picture,
    axes: Annotated[
        list[str] | None,
        typer.Option("--axis", metavar="NAME", help="Only this axis, with all its maps; may be repeated."),
    ] = None,
    model: Annotated[int, typer.Option("--model", metavar="K", help="Whose maps, counted from 0.")] = 1,
    own: Annotated[bool, typer.Option("--own-order", help="Units in their own order, not as they match.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the maps of a model onto the target as matrices, axis by axis."""
    plots.plot_couplings(Alignment.load(alignment), out, model=model, axes=axes, matched=not own)
    _say(as_json, out)


@plot_app.command(epilog="Example: [cyan]graphfuse plot symmetry nets:net -o symmetry.svg[/]")
def symmetry(
    model: Model,
    out: Picture,
    data: Data = None,
    batch_size: BatchSize = None,
    rules: Rules = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the axes of a model that may be permuted, and the tensors that they run along."""
    plots.plot_symmetry(traced(model, data, batch_size, rules, device, seed)[0], out)
    _say(as_json, out)


@plot_app.command(
    epilog="Example: [cyan]graphfuse plot landscape fused --data test.npz --third-fused -o landscape.png[/]"
)
def landscape(
    folder: Run,
    out: Picture,
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="Labelled inputs, as evaluate takes them.")],
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="METRIC", help="As evaluate takes it; by default loss or mse.")
    ] = None,
    fused: Annotated[
        bool, typer.Option("--third-fused", help="The third point is the fused model, not the other model as it is.")
    ] = False,
    points: Annotated[int, typer.Option("--points", min=2, metavar="N", help="Of the grid along each side.")] = 21,
    samples: Samples = None,
    batch_size: BatchSize = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw a metric over the plane through the target, another model aligned with it, and a third one.

    Batch norms are re-estimated on the inputs everywhere.
    """
    run, _ = settled(folder / "config.yaml", batch_size=batch_size, device=device)
    expect_models(run)
    loaded, place = [load(spec, run) for spec in run.models], device_of(run.device)
    nets = [one.model.to(place) for one in loaded]
    third = load(fused_spec(run, folder), run).model.to(place) if fused else None
    alignment = alignment_of(run, folder)
    assert alignment is not None  # a run has one
    pairs = list(labelled(data, run, loaded[0], samples, None))
    named = metrics_of([metric], False) if metric is not None else None
    name = _judging(evaluate(nets[:1], None, pairs, named).metrics)
    judged: list[str | Metric] = [name] if named is None else named
    inputs = [batch for batch, _ in pairs]

    def value(net: nn.Module) -> float:
        return evaluate([restated(net, inputs)], None, pairs, judged).parents[0][name]

    with progress(as_json) as advance:
        found = landscape_of(nets, alignment, value, third=third, points=points, progress=advance)
    higher = name == "accuracy" or (isinstance(judged[0], Metric) and judged[0].higher)
    plots.plot_landscape(found, out, metric=name, higher_is_better=higher)
    _say(as_json, out, metric=name, landscape=found.to_json())


@plot_app.command(epilog="Example: [cyan]graphfuse plot page fused evaluation.json[/]")
def page(folder: Run, evaluation: Evaluation, as_json: Json = False, debug: Debug = False) -> None:
    """Draw OUT/report.html anew, with what evaluate measured first; OUT/report.json gets it, too."""
    run = RunConfig.parse(folder / "config.yaml")
    report = {**_json(folder / "report.json"), "evaluation": _evaluation(evaluation)}
    torch.manual_seed(run.seed)
    graph, _ = traced(
        fused_spec(run, folder), run.data, run.batch_size, list(run.rules), run.device, run.seed, list(run.outputs)
    )
    alignment = Alignment.load(folder / "alignment.safetensors")
    for name, text in (
        ("report.html", fuse_page(graph, report, alignment)),
        ("report.json", json.dumps(report, indent=2, default=str) + "\n"),
    ):
        with new_file(folder / name) as work:
            work.write_text(text, encoding="utf-8")
    _say(as_json, folder / "report.html", folder / "report.json")


def _say(as_json: bool, *written: Path, **more: Any) -> None:
    if as_json:
        print_json({"written": [str(path) for path in written], **more})
    else:
        print_written(*written)


def _judging(names: tuple[str, ...]) -> str:
    """What shows most over a plane: the loss, where it is among the metrics."""
    return "loss" if "loss" in names else names[0]


def _evaluation(path: Path) -> dict[str, Any]:
    """An evaluation, alone or in a report.

    Raises
    ------
    DataError
        There is none.
    """
    document = _json(path)
    found = document.get("evaluation", document)
    if "metrics" not in found:
        raise DataError(
            f"{path} has no evaluation.\n  what to do: graphfuse evaluate --run OUT --data DATA --json > FILE"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    """A document.

    Raises
    ------
    DataError
        There is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}\n  expected: JSON, as graphfuse evaluate --json prints it"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object but {kind_of(found)}")
    return found
