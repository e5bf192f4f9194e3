"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from graphfuse.cli import console

MODEL = """\
[bold]MODEL[/] is one of

[cyan]package.module:factory@weights.safetensors[/]  a function that builds the model, and its weights
[cyan]package.module:factory,width=64@last.ckpt[/]   the same, with arguments for the function
[cyan]package.module:factory[/]                      the same, with the weights that the function gives it
[cyan]timm:NAME@weights[/]  [cyan]torchvision:NAME@weights[/]    a model of these libraries (also with ,num_classes=10)
[cyan]path/to/model.pt2[/]                           a program, as torch.export.save writes it
[cyan]path/to/directory[/]                           as transformers saves it (config.json, *.safetensors)

Weights are safetensors (a file, or shards by their directory) or a torch file of tensors; a pickle is refused.
Example inputs come from [cyan]example_inputs()[/] beside the factory (a tensor, a tuple, a dict, or (args, kwargs)),
from what the library says of the model, or from --data."""

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:factory@WEIGHTS, timm:NAME@WEIGHTS, a directory; see below."),
]
Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", show_default=False, help="Two or more; by default those of --config."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Unlabelled inputs: FILE.npz or FILE.safetensors (named arrays), a FOLDER of images (also one for each "
        "class) or saved by datasets, FILE.txt (with a transformers directory), or package.module:function.",
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        "--length", min=1, metavar="N", help="Tokens in a window of text; by default 128, or what the model can take."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, metavar="N", help="Inputs in a batch of --data, where it is a file."),
]
Samples = Annotated[
    int | None, typer.Option("--samples", min=1, metavar="N", help="How many inputs of --data are used.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Compute and write in float16, bfloat16, float32 or float64; by default float16 and bfloat16 are computed "
        "in float32, and all is written as it was stored.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        help="Tensors whose names begin so may be missing from weights, or left over (head.); may be repeated.",
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Larger weights are written in several files (5GB)."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="YAML", help="Settings, also those of other options, which come first."),
]
Rules = Annotated[
    list[str] | None,
    typer.Option("--rules", metavar="RULES", help="PACK.yaml, or module:table of rules in Python; may be repeated."),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", help="Of the outputs only this one is used (logits); may be repeated."),
]
Fold = Annotated[bool, typer.Option("--fold", help="First fold the gains of norms into the layers that read them.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="Where models run: cpu (default), cuda, cuda:1, mps.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Same seed, same result; by default 0.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the graph as an HTML page.")]
AlignmentFile = Annotated[
    Path | None, typer.Option("--alignment", metavar="FILE", help="An alignment of these models that was saved.")
]


def _log(context: typer.Context, count: int) -> int:
    if count:
        context.with_resource(console.logged(logging.INFO if count == 1 else logging.DEBUG))
    return count


Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        callback=_log,
        show_default=False,
        help="Show what is done and chosen; twice (-vv), in detail.",
    ),
]
