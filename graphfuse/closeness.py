"""How far the outputs of the averaged and of the finished model are from their parents' mean outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.average import shares_of
from graphfuse.errors import DataError
from graphfuse.lockstep import first
from graphfuse.prepared import Prepared
from graphfuse.teacher import Teacher

JUDGED = 128
"""Inputs on which outputs are compared, about: whole batches are."""


@torch.no_grad()
def closeness(prepared: Prepared, average: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any] | None:
    """Squared distances from the parents' mean outputs, as shares of the variance of these; without labels.

    Parameters
    ----------
    prepared : Prepared
        The parents and the inputs, of which the first are used.
    average : mapping
        Canonical name -> tensor: what the aligned parents' average was before it was calibrated, in the model's shapes.
    model : nn.Module
        The finished model.

    Returns
    -------
    dict or None
        ``inputs`` that were used, ``models`` (one distance for each parent, None for one without a share), ``average``
        and ``fused``, each None where it is not finite; None where there are no inputs, or outputs cannot be compared.
    """
    some = first(prepared.data, JUDGED)
    if not some:
        return None
    shares = shares_of(prepared)

    def distance(one: nn.Module, state: Mapping[str, Tensor] | None = None) -> float | None:
        found = teacher.distance(one, state)
        return found if math.isfinite(found) else None

    try:
        teacher = Teacher.of(prepared.models, shares, some, "squared")
        return {
            "inputs": sum(batch.count for batch in some),
            "models": [distance(m) if share else None for m, share in zip(prepared.models, shares, strict=True)],
            "average": distance(model, average),
            "fused": distance(model),
        }
    except DataError:  # no outputs that could be compared
        return None
