"""The commands, all thin: what is done is done elsewhere."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from graphfuse import __version__
from graphfuse.cli import applying, console, fusing, graphs, measuring
from graphfuse.cli.configs import config_app
from graphfuse.cli.options import MODEL, Debug, Json, Seed, Verbose
from graphfuse.cli.plots import plot_app
from graphfuse.cli.rules import rules_app
from graphfuse.cli.steps import print_json
from graphfuse.demo import run as run_demo

CODES = (
    "Start with: [cyan]graphfuse demo[/]\n\nExit codes: [bold]0[/] all is well; [bold]1[/] an error, or a check that "
    "failed (verify, rules, config validate); [bold]2[/] wrong usage; [bold]130[/] stopped by the keyboard. An error "
    "is one message on standard error, or with [cyan]--json[/] an object "
    '{"error": {"type", "message"}} on standard output.'
)

app = typer.Typer(
    help="Fuse independently trained PyTorch models of any architecture into one.",
    epilog=CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.out.print(__version__, highlight=False)
        raise typer.Exit


@app.command(epilog="Example: [cyan]graphfuse demo --out demo-out[/]")
def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Gets demo.html and demo.json.")] = Path("demo-out"),
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Train small models of several kinds and widths on handwritten digits, and fuse them.

    The first run trains the models (a few minutes on two cores) and keeps them; later runs take under a minute.
    """
    result = run_demo(folder, seed or 0, Console(quiet=True) if as_json else console.out)
    if as_json:
        print_json(result.to_json())


def _examples(*lines: str) -> str:
    """What a model's name may be, and commands to start from."""
    return "\n\n".join([MODEL, *(f"Example: [cyan]graphfuse {line}[/]" for line in lines)])


def _flowing(text: str) -> str:
    """Paragraphs as one line each, to be broken where the terminal ends."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


for command, lines in (
    (graphs.inspect, ["inspect nets:net@a.safetensors --html net.html"]),
    (graphs.verify, ["verify path/to/directory --trials 5"]),
    (fusing.align, ["align nets:net@a.safetensors nets:net@b.safetensors --data digits.npz -o ab.safetensors"]),
    (
        fusing.fuse,
        [
            "fuse nets:net@a.safetensors nets:net@b.safetensors --data digits.npz -o fused",
            "fuse --config run.yaml",
        ],
    ),
    (
        measuring.evaluate,
        [
            "evaluate --run fused --data test.npz",
            "evaluate nets:net@a.safetensors nets:net@b.safetensors --data test.npz --metric nets:f1",
        ],
    ),
    (measuring.compare, ["compare nets:net@a.safetensors nets:net@b.safetensors --data digits.npz"]),
    (
        applying.apply,
        [
            "apply ab.safetensors b-later.safetensors -o moved.safetensors",
            "apply ab.safetensors tuned-b.safetensors --base b.safetensors --add-to a.safetensors -o tuned.safetensors",
        ],
    ),
):
    app.command(help=_flowing(command.__doc__ or ""), epilog=_examples(*lines))(command)
app.add_typer(config_app, name="config")
app.add_typer(plot_app, name="plot")
app.add_typer(rules_app, name="rules")
