"""The command line: ``graphfuse demo | inspect | verify | fuse | rules``. Thin: what is done is done elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich.progress
import torch
import typer
from rich.console import Console
from torch.utils import _pytree as pytree

from graphfuse import __version__
from graphfuse.config import FuseConfig
from graphfuse.demo import run as run_demo
from graphfuse.errors import ConfigError, DataError, GraphFuseError
from graphfuse.fuse import fuse as fuse_models
from graphfuse.io.batches import Batches, load_data
from graphfuse.io.models import LoadedModel, as_call, load_model, save_model
from graphfuse.io.outputs import ensure_new, new_directory
from graphfuse.report import terminal
from graphfuse.report.graphdata import graph_json
from graphfuse.report.pages import fuse_page, graph_page
from graphfuse.rulebook.check import check_pack
from graphfuse.symmetry import SymmetryGraph, trace
from graphfuse.verify import verify as verify_graph

app = typer.Typer(
    help="Fuse independently trained PyTorch models of any architecture into one.",
    epilog="Start with: graphfuse demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
rules_app = typer.Typer(help="Rule packs: what graphfuse knows about single operators.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")

out = Console()
err = Console(stderr=True)

MODEL = """\
[bold]MODEL[/] is one of

[cyan]package.module:factory@weights.safetensors[/]  a function without arguments that builds the model, and its weights
[cyan]package.module:factory[/]                      the same, with the weights that the function gives it
[cyan]path/to/directory[/]                           as transformers saves it (config.json, *.safetensors)

Example inputs come from [cyan]example_inputs()[/] beside the factory (a tensor, a tuple, a dict, or (args, kwargs)),
or from --data."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:factory[@WEIGHTS], or a directory.")]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Two or more, of one architecture.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="Unlabelled inputs: FILE.npz, FILE.safetensors, or module:function."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Of the arrays in a file of --data.")]
Rules = Annotated[
    list[str] | None, typer.Option("--rules", metavar="PACK.yaml", help="A rule pack of one's own; may be repeated.")
]
Device = Annotated[str, typer.Option("--device", help="Where models run: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the graph as an HTML page.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(__version__, highlight=False)
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
    result = run_demo(folder, seed, Console(quiet=True) if as_json else out)
    if as_json:
        _print_json(result.to_json())


@app.command(epilog=MODEL + "\n\nExample: [cyan]graphfuse inspect nets:net@a.safetensors --html net.html[/]")
def inspect(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = 2,
    rules: Rules = None,
    every: Annotated[bool, typer.Option("--all", help="One row for each axis, alike layers not together.")] = False,
    html: Html = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which dimensions of which weights may be permuted together, and why the others may not."""
    graph, loaded = _traced(model, data, batch_size, rules, device, seed)
    if html is not None:
        html.write_text(graph_page(graph), encoding="utf-8")
    if as_json:
        _print_json(graph_json(graph))
        return
    _print_notes(loaded)
    out.print(terminal.graph_view(graph, every))
    if html is not None:
        out.print(f"written: {html}")


@app.command(epilog=MODEL + "\n\nExample: [cyan]graphfuse verify path/to/directory --trials 5[/]")
def verify(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = 2,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many random elements of the group.")] = 3,
    rules: Rules = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check by force that what inspect shows is true: random maps on every free axis must not change the outputs.

    Exit code 1 when they do.
    """
    graph, loaded = _traced(model, data, batch_size, rules, device, seed)
    with _progress(as_json) as advance:
        found = verify_graph(graph, trials, seed, lambda done, total: advance("verify", done, total))
    if as_json:
        _print_json({"model": model, **found.to_json()})
    else:
        _print_notes(loaded)
        out.print(terminal.verification_view(found))
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
    rules: Rules = None,
    device: Device = "cpu",
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same result; by default the config's.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuse two or more trained models of one architecture into one.

    With --data (a few hundred unlabelled inputs) units are matched by what they do and the result is calibrated;
    without, by their weights alone. OUT gets the model, the alignment, report.json and report.html.
    """
    ensure_new(folder)
    settings = FuseConfig.parse(config)
    settings = settings if seed is None else settings.model_copy(update={"seed": seed})
    torch.manual_seed(settings.seed)
    place = _device(device)
    batches = load_data(data, batch_size) if data is not None else None
    loaded = [load_model(spec, settings.seed) for spec in models]
    args, kwargs = _moved(_inputs(loaded, batches), place)
    nets = [one.model.to(place) for one in loaded]
    fed = Batches(lambda: (_moved(batch, place) for batch in batches)) if batches is not None else None
    with new_directory(folder) as work:
        with _progress(as_json) as advance:
            result = fuse_models(nets, args, kwargs, data=fed, config=settings, rules=rules or (), progress=advance)
        save_model(loaded[settings.target], result.model, work)
        result.alignment.save(work / "alignment.safetensors")
        report = {"specs": models, **result.report}
        (work / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        graph = trace(result.model, args, kwargs, rules=rules or ())
        (work / "report.html").write_text(fuse_page(graph, report), encoding="utf-8")
    if as_json:
        _print_json(report)
        return
    _print_notes(*loaded)
    out.print(terminal.fuse_view(report, result.alignment))
    out.print(f"written: {', '.join(str(path) for path in sorted(folder.iterdir()))}", soft_wrap=True)


@rules_app.command(epilog="Example: [cyan]graphfuse rules check mine.yaml[/]")
def check(pack: Path, seed: Seed = 0, as_json: Json = False, debug: Debug = False) -> None:
    """Let every rule of a pack prove itself on its own examples: sound, complete, and of the class it claims."""
    results = check_pack(pack, seed=seed)
    if as_json:
        _print_json(
            [
                {"ops": one.ops, "ok": one.ok, "problems": [str(p) for p in one.problems], "notes": one.findings}
                for one in results
            ]
        )
    else:
        for one in results:
            out.print(str(one), style=None if one.ok else "red", markup=False, highlight=False)
        out.print(f"{sum(one.ok for one in results)} of {len(results)} entries hold")
    if not all(one.ok for one in results):
        raise typer.Exit(1)


# ---------------------------------------------------------------------- steps


def _traced(
    spec: str, data: str | None, batch_size: int, rules: list[str] | None, device: str, seed: int
) -> tuple[SymmetryGraph, LoadedModel]:
    torch.manual_seed(seed)
    place = _device(device)
    loaded = load_model(spec, seed)
    args, kwargs = _moved(_inputs([loaded], load_data(data, batch_size) if data is not None else None), place)
    with err.status("tracing"):
        return trace(loaded.model.to(place), args, kwargs, rules=rules or ()), loaded


def _inputs(loaded: Sequence[LoadedModel], batches: Batches | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs: the first batch of the data, or those that a model's makers gave."""
    if batches is not None:
        return as_call(next(iter(batches)))
    for one in loaded:
        if one.example is not None:
            return one.example
    raise DataError(
        f"no example inputs for {loaded[0].spec.text}.\n"
        f"  what to do: define example_inputs() beside {loaded[0].spec.target}, or give --data"
    )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"the device {name!r} cannot be used: {reason}\n  what to do: try --device cpu") from error


def _moved(inputs: Any, place: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(place), inputs)


@contextlib.contextmanager
def _progress(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on standard error; gone when all is done."""
    columns = (
        rich.progress.TextColumn("{task.description:<12}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    tasks: dict[str, rich.progress.TaskID] = {}
    with rich.progress.Progress(*columns, console=err, transient=True, disable=silent) as bars:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def _print_notes(*loaded: LoadedModel) -> None:
    for note in dict.fromkeys(note for one in loaded for note in one.notes):
        out.print(terminal.note_view(note))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


# ----------------------------------------------------------------------- main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error or a check that failed, 2 for wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=words, prog_name="graphfuse")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except GraphFuseError as error:
        return _fail(type(error).__name__, str(error), words)
    except KeyboardInterrupt:
        err.print("stopped")
        return 130
    except Exception as error:
        advice = "" if "--debug" in words else "\nThis is a defect of graphfuse; --debug shows where."
        return _fail(f"unexpected {type(error).__name__}", f"{error}{advice}", words)
    return 0


def _fail(title: str, message: str, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    if "--json" in words:
        _print_json({"error": {"type": title, "message": message}})
    else:
        err.print(terminal.error_view(title, message))
    return 1


if __name__ == "__main__":
    sys.exit(main())
