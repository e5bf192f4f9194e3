"""The libraries that the zoo's models come from, imported so that none of them looks for a GPU or a model hub."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from graphfuse.io.pretrained import import_transformers

LIBRARIES = ("einops", "timm", "torchvision", "transformers")
_declared: list[torch.library.Library] = []


def missing() -> list[str]:
    """The libraries that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


@cache
def library(name: str) -> Any:
    """A library by name."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if name != "einops":
        declare_vision_operators()
    if name == "transformers":
        transformers = import_transformers()
        transformers.logging.set_verbosity_error()
        return transformers
    return importlib.import_module(name)


@cache
def declare_vision_operators() -> None:
    """torchvision's own operators live in a library built for CUDA; beside a CPU torch they have to be declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or hasattr(torch.ops.torchvision, "nms"):
        return
    (folder,) = spec.submodule_search_locations or ("",)
    text = (Path(folder) / "_meta_registrations.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"torchvision::(\w+)"', text)) | set(re.findall(r'register_meta\("(\w+)"\)', text))
    declared = torch.library.Library("torchvision", "DEF")
    _declared.append(declared)  # the operators live as long as this
    for name in sorted(names):
        declared.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
