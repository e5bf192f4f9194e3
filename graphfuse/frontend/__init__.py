"""The only package that talks to torch's capture front ends (``torch.export``, ``make_fx``).

:func:`program` turns a module and example inputs into a :class:`Program`: an ATen-level graph module together with
what each of its placeholders stands for. :mod:`graphfuse.capture` makes the value that the rest of graphfuse reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.errors import CaptureError, RuleError
from graphfuse.frontend.atoms import AtomCall, AtomOf, in_force, taken_whole
from graphfuse.frontend.exporting import by_export
from graphfuse.frontend.lowering import ASSERTIONS, Decompose, Kind, Program, Slot
from graphfuse.frontend.making import by_make_fx
from graphfuse.frontend.packing import packed, unpacked
from graphfuse.frontend.tracing import dotted, evaluating, headline, quiet, restoring, source_in, where
from graphfuse.frontend.writing import written_in_training

__all__ = ["ASSERTIONS", "AtomCall", "AtomOf", "Decompose", "Kind", "Program", "Slot", "dotted", "in_force", "packed",
           "program", "source_in", "taken_whole", "unpacked", "written_in_training"]  # fmt: skip


def program(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], decompose: Decompose) -> Program:
    """Capture a module: by ``torch.export``, and where that refuses by ``make_fx`` on the real inputs.

    Raises
    ------
    CaptureError
        The module cannot run on these inputs, or neither front end can capture it; names the user's source line.
    """
    with evaluating(model), torch.no_grad():
        try:
            with restoring(model):
                return by_export(model, args, kwargs, decompose)
        except RuleError:
            raise  # a rule that takes a module whole does not fit it, whoever captures
        except Exception as error:
            refusal = error
        _must_run(model, args, kwargs)
        try:
            return by_make_fx(model, args, kwargs, decompose, refusal)
        except Exception as error:
            failure = error
    raise CaptureError(
        f"{type(model).__name__} could not be captured as a graph.\n"
        f"  torch.export: {headline(refusal)}\n{where(refusal)}"
        f"  make_fx: {headline(failure)}\n{where(failure)}"
        "  what to do: write that line with tensor operations only (torch.where instead of if, no .item(), "
        "no numpy), or give its module a rule of its own ('module:' in a rule pack), which takes it whole"
    ) from failure.with_traceback(None)  # a hundred frames of torch's own; the user's line is in the message


def _must_run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """When a capture fails, first ask whether the model runs at all on these inputs."""
    try:
        with quiet(), restoring(model), torch.random.fork_rng(devices=[]):
            model(*args, **kwargs)
    except Exception as error:
        tensors = (leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor))
        shapes = [f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tensors]
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs ({'; '.join(shapes) or 'no tensors'}): "
            f"{type(error).__name__}: {headline(error)}\n{where(error)}"
            "  what to do: put right what it says, or pass args and kwargs on which model(*args, **kwargs) runs"
        ) from error
