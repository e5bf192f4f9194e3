"""Programs that ``torch.export.save`` wrote (``.pt2``): read without running code, traced like any module."""

from __future__ import annotations

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from graphfuse.errors import CheckpointError, ModelSpecError
from graphfuse.io.safety import unsafe
from graphfuse.writing import new_file

SUFFIX = ".pt2"
PROGRAM = "model.pt2"


def load(path: Path) -> tuple[nn.Module, tuple[tuple[Any, ...], dict[str, Any]] | None]:
    """The module of a program, and the example inputs that it was exported with.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or holds what would run code when loaded.
    """
    program = _program(path)
    inlined = program.module(check_guards=False)
    module = fx.GraphModule(inlined, inlined.graph, type(inlined).__name__)  # its eval() can be called
    found = program.example_inputs
    return module, (tuple(found[0]), dict(found[1])) if found is not None else None


def save(model: nn.Module, source: Path, folder: Path) -> bool:
    """Write the program of ``source`` with the weights of ``model`` as ``model.pt2``; False where shapes differ."""
    program = _program(source)
    own, state = program.state_dict, model.state_dict()
    if any(name not in state or state[name].shape != value.shape for name, value in own.items()):
        return False
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    with new_file(folder / PROGRAM) as work:
        named = work.with_suffix(SUFFIX)  # torch wants the ending
        torch.export.save(program, named)
        named.replace(work)
    return True


def _program(path: Path) -> ExportedProgram:
    try:
        with zipfile.ZipFile(path) as file:
            danger = unsafe(file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no program, or a damaged one: {(str(error).splitlines() or [''])[0]}\n"
            "  expected: a file that torch.export.save wrote"
        ) from error
    if danger is None:
        return _loaded(path)
    raise CheckpointError(
        f"{path} was not loaded, because that could run code that the file brings: {danger}.\n"
        "  what to do: where you trust the file, give the module that it was made of as package.module:factory"
    )


def _loaded(path: Path) -> ExportedProgram:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise ModelSpecError(
            f"torch {torch.__version__} cannot load {path}: {(str(error).splitlines() or [''])[0]}\n"
            "  what to do: export it again with this version of torch"
        ) from error
    finally:
        log.setLevel(level)
