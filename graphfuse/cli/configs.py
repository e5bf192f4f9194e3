"""``graphfuse config``: a file to start from, its schema for editors, and whether a file is right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from graphfuse.cli import console
from graphfuse.cli.options import Debug, Json
from graphfuse.cli.steps import expect_new_file, print_json
from graphfuse.config import RunConfig
from graphfuse.config.reading import problems, read
from graphfuse.config.starter import schema as run_schema
from graphfuse.config.starter import starter
from graphfuse.errors import ConfigError
from graphfuse.writing import new_file

config_app = typer.Typer(
    help="One YAML file for a whole run: start one, check one, complete one in an editor.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@config_app.command(epilog="Example: [cyan]graphfuse config init run.yaml --full[/]")
def init(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A new file; by default it is printed.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every key there is, not only the usual ones.")] = False,
    schema_file: Annotated[
        str | None, typer.Option("--schema", metavar="SCHEMA", help="Name this schema, for editors, in the first line.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A commented config file: each key with what it means and its default."""
    text = starter(full, schema_file)
    if file is not None:
        expect_new_file(file)
        with new_file(file) as work:
            work.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"file": None if file is None else str(file), "text": text})
    elif file is None:
        console.out.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    else:
        console.out.print(f"written: {file}; fill it in, then: graphfuse fuse --config {file}", soft_wrap=True)


@config_app.command(epilog="Example: [cyan]graphfuse config schema > graphfuse.schema.json[/]")
def schema(as_json: Json = False, debug: Debug = False) -> None:
    """The JSON schema of a config file, by which editors complete and check one.

    Editors with the YAML language server read it where the file begins with `# yaml-language-server: $schema=FILE`,
    which `graphfuse config init --schema FILE` writes. It is JSON with and without --json.
    """
    print_json(run_schema())


@config_app.command(epilog="Example: [cyan]graphfuse config validate run.yaml[/]")
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A config file.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a config file: every error with its line, its key and the nearest valid key.

    Exit code 1 when there is one.
    """
    found = problems(RunConfig, read(file))
    wrong = found if isinstance(found, tuple) else ()
    if as_json:
        print_json({"file": str(file), "ok": not wrong, "problems": [asdict(problem) for problem in wrong]})
    elif wrong:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in wrong))
    else:
        console.out.print(f"{file}: valid", highlight=False)
    if wrong:
        raise typer.Exit(1)
