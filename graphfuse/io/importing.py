"""The libraries that models come from, imported also beside a torchvision that was built for another torch."""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import cache
from typing import Any

import torch

from graphfuse.errors import ModelSpecError

MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
ADVICE = f"install the torchvision that was built for torch {torch.__version__}"


def import_library(name: str) -> Any:
    """A library by name.

    torchvision's operators are compiled for one build of torch; beside another, importing torchvision fails, and with
    it timm and parts of transformers. The operators are then declared: models that compute none of them work as usual,
    the others raise an error that says what to do.

    Raises
    ------
    ModelSpecError
        The library is not installed, or cannot be imported.
    """
    if importlib.util.find_spec(name) is None:
        raise ModelSpecError(f"{name} is not installed.\n  what to do: pip install {name}")
    try:
        if importlib.util.find_spec("torchvision") is not None:
            _import_torchvision()
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise ModelSpecError(
            f"{name} cannot be imported: {str(error).splitlines()[0]}\n  what to do: {ADVICE}"
        ) from error


def declarations() -> tuple[str, ...]:
    """A note on the operators that had to be declared, where there are any."""
    names = sorted(_declared())
    if not names:
        return ()
    return (
        f"torchvision was built for another torch than {torch.__version__}: models that compute its own operators "
        f"({', '.join(names)}, ...) cannot be run; all others can",
    )


@cache
def _declared() -> dict[str, torch.library.Library]:
    """The operators declared so far; each lives as long as its library object."""
    return {}


def _import_torchvision() -> None:
    """Import torchvision; its import names one missing operator at a time."""
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            found = MISSING.search(str(error))
            if found is None or found[1] in _declared():
                raise
            _declare(found[1])


def _declare(name: str) -> None:
    """Make an operator known that refuses to be computed; its arguments do not matter then."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    def refuse(*args: Any) -> None:
        raise RuntimeError(f"torchvision's operator {name} is not there: {ADVICE}")

    for device in ("CPU", "CUDA"):
        operators.impl(name, refuse, device)
    _declared()[name] = operators
