"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    list[str] | None,
    typer.Option("--rules", metavar="RULES", help="PACK.yaml, or module:table of rules in Python; may be repeated."),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", help="Of the outputs only this one is used (logits); may be repeated."),
]
Fold = Annotated[bool, typer.Option("--fold", help="First fold the gains of norms into the layers that read them.")]
Device = Annotated[str, typer.Option("--device", help="Where models run: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the graph as an HTML page.")]
