"""The weighted mean of aligned models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.capture import state_of
from graphfuse.prepared import Prepared


def shares_of(prepared: Prepared) -> tuple[float, ...]:
    """Each model's weight in the average; they sum to one."""
    return prepared.config.shares(len(prepared.models))


def average(prepared: Prepared, alignment: Alignment, shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the aligned models' parameters and moved buffers; everything else is the target's.

    Of a tensor that some models lack (they are less deep) it is the mean over the others, in their relative shares.

    Parameters
    ----------
    prepared, alignment :
        The models, and their maps into the target's coordinates.
    shares : sequence of float
        One for each model, summing to one.

    Returns
    -------
    dict
        Canonical name -> new tensor, in the target's shapes and dtypes.
    """
    own = prepared.states[alignment.target]
    moved = {k: alignment.apply(state_of(prepared.models[k]), k) for k, share in enumerate(shares) if share}
    result = {}
    for name, tensor in own.items():
        if name not in alignment.labels or not (tensor.is_floating_point() or tensor.is_complex()):
            result[name] = tensor.clone()
            continue
        kind = torch.promote_types(tensor.dtype, torch.float32)
        having = [k for k, share in enumerate(shares) if share and name not in alignment.models[k].absent]
        total = sum(shares[k] for k in having)
        terms = [shares[k] / total * moved[k][name].to(kind) for k in having]
        result[name] = torch.stack(terms).sum(0).to(tensor.dtype) if terms else tensor.clone()
    return result
