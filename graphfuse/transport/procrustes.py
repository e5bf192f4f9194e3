"""Rotations of one axis: the orthogonal map that makes B's units most like A's, from their cross moments."""

from __future__ import annotations

import torch
from torch import Tensor

from graphfuse.axes import SymmetryClass
from graphfuse.maps import AxisMap
from graphfuse.symmetry import Axis


def rotates(axis: Axis) -> bool:
    """Whether an axis' class holds rotations."""
    return bool(axis.symmetry & SymmetryClass.CENTRED)


def procrustes(cross: Tensor, keeps_sum: bool = False) -> Tensor:
    """The semi-orthogonal Q of the largest inner product with the cross moments.

    Parameters
    ----------
    cross : Tensor, shape (..., n, m)
        Sums of x_A x_B^T; each leading index is a problem of its own.
    keeps_sum : bool
        Only rotations that map the all-ones vector onto the all-ones vector (layer norms take the mean away).

    Returns
    -------
    Tensor, shape (..., n, m)
        Q Q^T = I where n <= m, else Q^T Q = I.

    Notes
    -----
    Source: Schönemann, A generalized solution of the orthogonal Procrustes problem (Psychometrika 1966); for unequal
    sizes the polar factor of the cross moments is optimal among semi-orthogonal maps.

    Examples
    --------
    >>> procrustes(torch.tensor([[0.0, 2.0], [-1.0, 0.0]])).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    n, m = cross.shape[-2:]
    given = cross.detach().to(torch.float64 if cross.device.type != "mps" else torch.float32)
    if keeps_sum:
        given = given - given.mean(-1, keepdim=True)
        given = given - given.mean(-2, keepdim=True)
        # the direction of the means is matched with itself, above all else
        given = given + (1 + given.norm(dim=(-2, -1), keepdim=True)) / (n * m) ** 0.5
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    return (left @ right).to(cross.dtype)


def rotation(axis: Axis, cross: Tensor, context: tuple[int, ...], along: tuple[int, ...]) -> AxisMap:
    """The map of an axis by Procrustes. Where widths differ, units are scaled so that norms over the axis keep.

    x / rms(x) has length sqrt(n): B's units come down by sqrt(n / m) where they are written, and up where they are
    read.
    """
    q = procrustes(cross, keeps_sum=axis.symmetry == SymmetryClass.CENTRED)
    scale = (q.shape[-2] / q.shape[-1]) ** 0.5
    return AxisMap(axis.id, context, along, matrix=torch.stack([q * scale, q / scale], -3).float())
