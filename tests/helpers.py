"""What several tests share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from graphfuse.io.checkpoints import save_state
from graphfuse.io.importing import import_library
from graphfuse.io.models import load_model

Run = Callable[..., tuple[int, str, str]]
"""The command line: words -> exit code, standard output, standard error."""

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.up, self.norm = nn.Linear(5, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        h = self.norm(self.up(x))
        for layer in self.layers:
            h = torch.relu(layer(h))
        return self.down(h)

def net():
    return Net()

def wide():
    return Net(20)

def narrow():
    return Net(8)

def other():
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls

def example_inputs():
    return torch.ones(2, 5)

def loader():
    torch.manual_seed(3)
    return [torch.randn(16, 5) for _ in range(4)]

def empty():
    return []
"""
BARE = "from torch import nn\n\ndef net():\n    return nn.Linear(4, 2)\n"


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


def parents(folder: Path, *factories: str) -> list[str]:
    """Models of the command line's tests (see NETS), each saved in a folder; returns their names."""
    specs = []
    for i, factory in enumerate(factories):
        torch.manual_seed(i)
        save_state(folder / f"{i}.safetensors", load_model(f"cli_nets:{factory}").model.state_dict())
        specs.append(f"cli_nets:{factory}@{i}.safetensors")
    return specs


def needs(*names: str) -> Any:
    """The last of these libraries, imported as graphfuse does; the test is skipped where one is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return [import_library(name) for name in names][-1]
