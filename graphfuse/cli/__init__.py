"""The command line: ``graphfuse demo | inspect | verify | fuse | rules``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from graphfuse.cli import console
from graphfuse.cli.commands import app
from graphfuse.cli.steps import print_json
from graphfuse.errors import GraphFuseError
from graphfuse.report import terminal

__all__ = ["main"]


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
        console.err.print("stopped")
        return 130
    except Exception as error:
        advice = "" if "--debug" in words else "\nThis is a defect of graphfuse; --debug shows where."
        return _fail(f"unexpected {type(error).__name__}", f"{error}{advice}", words)
    return 0


def _fail(title: str, message: str, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    if "--json" in words:
        print_json({"error": {"type": title, "message": message}})
    else:
        console.err.print(terminal.error_view(title, message))
    return 1
