"""What several tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and floating buffer random values, positive for variances; returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(value.abs() + 0.5 if name.endswith("var") else value)
    return model.eval()


def assert_same(got: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Two outputs are the same pytree of the same values, tensors within a relative and absolute tolerance."""
    leaves, spec = pytree.tree_flatten(got)
    wanted, wanted_spec = pytree.tree_flatten(expected)
    assert spec == wanted_spec
    for a, b in zip(leaves, wanted, strict=True):
        if isinstance(b, Tensor):
            assert_close(a, b, rtol=tolerance, atol=tolerance)
        else:
            assert a == b


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """While this is open, modules in a folder can be imported; what was imported is forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]
