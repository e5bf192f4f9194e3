"""``graphfuse rules``: what is known of operators, what is missing for a model, and whether a rule is right."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.syntax import Syntax
from rich.table import Table as Grid
from rich.text import Text

from graphfuse.cli import console
from graphfuse.cli.options import MODEL, BatchSize, Data, Debug, Device, Json, Model, Rules, Seed, Verbose
from graphfuse.cli.steps import expect_new_file, print_json, traced
from graphfuse.errors import RuleError
from graphfuse.missing import MissingRule, missing_rules
from graphfuse.rulebook import load_rules
from graphfuse.rulebook.authoring import catalogue, describe, find, stub
from graphfuse.rulebook.check import check_pack

SHOWN = 5

rules_app = typer.Typer(
    help="What graphfuse knows of single operators: look, see what is missing, write a rule, prove it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Imports = Annotated[
    list[str] | None, typer.Option("--import", metavar="MODULE", help="Imported first: it registers the ops.")
]
OpName = Annotated[str, typer.Argument(metavar="OP", help="namespace.name[.overload], as aten.linear.")]


@rules_app.command("list", epilog="Example: [cyan]graphfuse rules list norm[/]")
def list_rules(
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only ops whose name contains it.")] = "",
    rules: Rules = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Every op with a rule, and where the rule stands. Elementwise ops that torch tags need none."""
    found = catalogue(load_rules(rules or ()), word)
    if as_json:
        print_json([asdict(known) for known in found])
        return
    grid = Grid("op", "kind", "rule", "file", box=None, header_style="bold")
    for known in found:
        grid.add_row(known.op, known.kind, Text(known.text or known.how), known.file)
    console.out.print(grid)
    console.out.print(f"{len(found)} ops")


@rules_app.command(epilog="Example: [cyan]graphfuse rules show aten.layer_norm[/]")
def show(
    op: OpName,
    rules: Rules = None,
    imports: Imports = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """What is known of one op: its rule, the file and the source. Exit code 1 when there is none."""
    _import(imports)
    found = describe(load_rules(rules or ()), op)
    if as_json:
        print_json(asdict(found))
    else:
        console.out.print(found.schema, highlight=False, markup=False)
        place = f" in {found.file}" if found.file else ""
        console.out.print(f"rule: {found.how}{place}", highlight=False, markup=False)
        if found.text:
            console.out.print(Syntax(found.text, "yaml", background_color="default", word_wrap=True))
        if found.source:
            console.out.print(f"source: {found.source}", highlight=False, markup=False)
        if found.hint:
            console.out.print(found.hint, highlight=False, markup=False)
    if found.how == "none":
        raise typer.Exit(1)


@rules_app.command(epilog="Example: [cyan]graphfuse rules check mine.yaml[/]")
def check(
    pack: Path,
    imports: Imports = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Let every rule of a pack prove itself on its own examples: sound, complete, and of the class it claims."""
    _import(imports)
    results = check_pack(pack, seed=seed or 0)
    if as_json:
        print_json(
            [
                {"ops": one.ops, "ok": one.ok, "problems": [str(p) for p in one.problems], "notes": one.findings}
                for one in results
            ]
        )
    else:
        for one in results:
            console.out.print(str(one), style=None if one.ok else "red", markup=False, highlight=False)
        console.out.print(f"{sum(one.ok for one in results)} of {len(results)} entries hold")
    if not all(one.ok for one in results):
        raise typer.Exit(1)


@rules_app.command(epilog="Example: [cyan]graphfuse rules new mine.shift -o mine.yaml[/]")
def new(
    op: OpName,
    file: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file for the stub.")] = None,
    imports: Imports = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """A pack with an entry for one op, to be filled in: its operands, an example, and what the keys mean."""
    _import(imports)
    text = stub(find(op))
    if file is not None:
        expect_new_file(file)
        file.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"op": op, "stub": text, "file": None if file is None else str(file)})
    elif file is None:
        console.out.print(text, highlight=False, markup=False, end="", soft_wrap=True)
    else:
        console.out.print(f"written: {file}; fill it in, then: graphfuse rules check {file}", soft_wrap=True)


@rules_app.command(epilog=MODEL + "\n\nExample: [cyan]graphfuse rules missing nets:net --data inputs.npz[/]")
def missing(
    model: Model,
    data: Data = None,
    batch_size: BatchSize = None,
    rules: Rules = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """The ops of a model for which there is no rule, where they occur, and a stub for each.

    What such an op touches is fixed: never wrong, but less is free than could be. Exit code 1 when there are any.
    """
    graph, _ = traced(model, data, batch_size, rules, device, seed)
    found = missing_rules(graph)
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        console.out.print(f"every op has a rule; {graph.free_fraction:.1%} of the parameters move")
    else:
        for one in found:
            _print_missing(one)
    if found:
        raise typer.Exit(1)


def _print_missing(one: MissingRule) -> None:
    console.out.print(f"{one.op}: {one.why} ({len(one.places)} times)", style="bold", markup=False, highlight=False)
    for place in one.places[:SHOWN]:
        console.out.print(f"  in {place.module or 'the top module'}: {place.source}", markup=False, highlight=False)
    if len(one.places) > SHOWN:
        console.out.print(f"  ... and {len(one.places) - SHOWN} more")
    console.out.print(Syntax(one.stub, "yaml", background_color="default", word_wrap=True))


def _import(modules: list[str] | None) -> None:
    for module in modules or ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RuleError(f"--import {module}: cannot be imported ({error})") from error
