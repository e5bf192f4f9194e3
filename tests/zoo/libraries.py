"""The libraries that the zoo's models come from, imported so that none of them looks for a GPU or a model hub."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

from graphfuse.io.importing import import_library

LIBRARIES = ("einops", "timm", "torchvision", "transformers")


def missing() -> list[str]:
    """The libraries that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


@cache
def library(name: str) -> Any:
    """A library by name."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = import_library(name)
    if name == "transformers":
        found.logging.set_verbosity_error()
    return found
