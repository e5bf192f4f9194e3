"""Python objects by name: ``package.module:name``, the current directory being importable."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from graphfuse.errors import GraphFuseError

REFERENCE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


def looks_like_reference(text: str) -> bool:
    """Whether a text has the form ``package.module:name``."""
    return REFERENCE.fullmatch(text) is not None


def find(reference: str, error: type[GraphFuseError]) -> Any:
    """Import the module of ``package.module:name`` and return what the name stands for.

    Raises
    ------
    GraphFuseError
        Of the class ``error``: there is no such module or name, or importing the module fails.
    """
    matched = REFERENCE.fullmatch(reference)
    if matched is None:
        raise error(f"{reference!r} is no reference.\n  expected: package.module:name")
    name, path = matched["module"], matched["name"]
    value = _import(name, error)
    for part in path.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, [word for word in vars(value) if not word.startswith("_")], 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise error(f"{name} has no {path!r}{hint}\n  got: {reference}\n  looked in: {_file(sys.modules[name])}")
        value = getattr(value, part)
    return value


def _import(name: str, error: type[GraphFuseError]) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and f"{name}.".startswith(f"{missing.name}."):
            raise error(
                f"there is no module {name!r}.\n  looked in: {here} and the installed packages\n"
                "  what to do: run from the directory that holds it, or install its package"
            ) from missing
        raise error(f"importing {name} failed: {missing}") from missing
    except Exception as failure:
        raise error(f"importing {name} failed: {describe(failure)}") from failure


def describe(failure: BaseException) -> str:
    """Type, message and innermost line of a failure in somebody else's code."""
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = bool(frames) and Path(frames[-1].filename).parent != Path(__file__).parent
    at = f"\n    at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if theirs else ""
    return f"{type(failure).__name__}: {failure}{at}"


def _file(module: Any) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)
