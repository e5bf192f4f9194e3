"""Task vectors, what a training added to a model, carried from one model to another by an alignment.

Source: Ilharco et al., Editing Models with Task Arithmetic (arXiv 2212.04089); carried by a re-basin as in Rinaldi et
al., Update Your Transformer to the Latest Release: Re-Basin of Task Vectors (arXiv 2505.22697).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.errors import CheckpointError

State = Mapping[str, Tensor]


def task_vector(alignment: Alignment, checkpoint: State, base: State, model: int = 1) -> dict[str, Tensor]:
    """What training added to a model, in the target's coordinates: both checkpoints carried, then their difference.

    So it also holds where gains are folded into other weights, which is not linear.

    Parameters
    ----------
    alignment : Alignment
        Of the model that ``base`` is, onto a target.
    checkpoint, base :
        State dicts of model ``model`` of the alignment, after training and before.

    Returns
    -------
    dict
        Name -> difference, of floating-point tensors, at least in float32.

    Raises
    ------
    DataError
        There is no such model in the alignment.
    CheckpointError
        A tensor is missing or has another shape.
    """
    after, before = alignment.apply(checkpoint, model), alignment.apply(base, model)
    _expect_same(after, before, "the base")
    return {
        name: _precise(value) - _precise(before[name]) for name, value in after.items() if value.is_floating_point()
    }


def add_task_vector(
    alignment: Alignment, target: State, vector: State, scale: float = 1.0, *, model: int | None = None
) -> dict[str, Tensor]:
    """A checkpoint of the target, plus a task vector that was carried to it.

    Where the alignment folds gains, those of the target are folded, too: the result's gains are ones, and without the
    vector it would compute what the target does.

    Parameters
    ----------
    target :
        State dict of a model like the alignment's target.
    vector :
        From :func:`task_vector`.
    scale : float
        How much of it is added.
    model : int, optional
        Whose coordinates ``target`` has, by default those of the alignment's target.

    Raises
    ------
    CheckpointError
        A tensor is missing or has another shape.
    """
    own = alignment.apply(target, alignment.target if model is None else model)
    _expect_same({name: value for name, value in own.items() if value.is_floating_point()}, vector, "the task vector")
    return {
        name: (_precise(value) + scale * vector[name].to(value.device)).to(value.dtype) if name in vector else value
        for name, value in own.items()
    }


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _expect_same(own: State, other: State, what: str) -> None:
    for name, value in own.items():
        if name not in other or other[name].shape != value.shape:
            got = f"the shape {tuple(other[name].shape)}" if name in other else "no such tensor"
            raise CheckpointError(
                f"{what} does not fit: {name!r} {tuple(value.shape)} has {got} there.\n"
                "  what to do: give whole checkpoints of one and the same model"
            )
