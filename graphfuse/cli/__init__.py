"""The command line: ``graphfuse demo | inspect | verify | align | fuse | config | rules``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from graphfuse.cli import console
from graphfuse.cli.commands import app
from graphfuse.cli.steps import print_json
from graphfuse.errors import GraphFuseError
from graphfuse.report import terminal

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns the exit code: 0, 1 for an error or a check that failed, 2 for wrong usage, 130 when it was stopped.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=words, prog_name="graphfuse", standalone_mode="--json" not in words)
        return code if isinstance(code, int) else 0
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except GraphFuseError as error:
        return _fail(type(error).__name__, str(error), words)
    except KeyboardInterrupt:
        console.err.print("stopped")
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        usage: Any = getattr(error, "format_message", None)  # the command line's own errors
        if usage is not None:
            return _fail("UsageError", usage(), words, code=2)
        advice = "" if "--debug" in words else "\nThis is a defect of graphfuse; --debug shows where."
        return _fail(f"unexpected {type(error).__name__}", f"{error}{advice}", words)


def _fail(title: str, message: str, words: Sequence[str], code: int = 1) -> int:
    if "--debug" in words:
        traceback.print_exc()
    if "--json" in words:
        print_json({"error": {"type": title, "message": message}})
    else:
        console.err.print(terminal.error_view(title, message))
    return code
