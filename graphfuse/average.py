"""The weighted mean of aligned models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graphfuse.aligned import Aligned, Alignment
from graphfuse.axes import Layout, walk_leaves
from graphfuse.capture import state_of
from graphfuse.cells import cells
from graphfuse.prepared import Prepared


def shares_of(prepared: Prepared) -> tuple[float, ...]:
    """Each model's weight in the average; they sum to one."""
    return prepared.config.shares(len(prepared.models))


def average(prepared: Prepared, alignment: Alignment, shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the aligned models' parameters and moved buffers; everything else is the target's.

    Of a tensor that some models lack (they are less deep), and of units that only some have (they are kept apart), it
    is the mean over the others, in their relative shares.

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
    result, covered = dict[str, Tensor](), coverage(alignment.models, shares)
    for name, tensor in own.items():
        if name not in alignment.labels or not (tensor.is_floating_point() or tensor.is_complex()):
            result[name] = tensor.clone()
            continue
        kind = torch.promote_types(tensor.dtype, torch.float32)
        having = [k for k, share in enumerate(shares) if share and name not in alignment.models[k].absent]
        total = sum(shares[k] for k in having)
        terms = [shares[k] / total * moved[k][name].to(kind) for k in having]
        label = alignment.labels[name]
        mean = uncovered(torch.stack(terms).sum(0), label.dims, label.consumed, covered) if terms else tensor.clone()
        result[name] = mean.to(tensor.dtype)
    return result


def coverage(models: Sequence[Aligned], shares: Sequence[float]) -> dict[int, Tensor]:
    """Axis number -> the share of the models that have each unit, where that is not all of them."""
    axes = {id for part in models for id, found in part.maps.items() if found.plan is not None and not found.lead}
    result = {}
    for id in axes:
        having = [share * _has(part, id) for part, share in zip(models, shares, strict=True) if share]
        total = torch.as_tensor(sum(having))
        if total.dim() and bool((total < 1 - 1e-9).any()):
            result[id] = torch.where(total > 0, total, 1.0)
    return result


def _has(part: Aligned, id: int) -> Tensor:
    """1 for each unit of an axis that a model has, else 0."""
    found = part.maps.get(id)
    return torch.ones(()) if found is None or found.plan is None else (found.plan.sum(-1) > 0).double()


def uncovered(
    mean: Tensor,
    dims: Layout,
    consumed: Sequence[bool],
    covered: Mapping[int, Tensor],
    sizes: Mapping[int, int] | None = None,
) -> Tensor:
    """A mean over all models of what only some have, as the mean over these: units that are written, not those read."""
    if not any(leaf.id in covered for dim in dims for leaf in walk_leaves(dim)):
        return mean
    result = mean.clone()
    for cell in cells((result,), dims, ({**(sizes or {}), **{id: len(share) for id, share in covered.items()}},)):
        for position, id in enumerate(cell.axes):
            if id in covered and not consumed[cell.origin[position]]:
                shape = [-1 if p == position else 1 for p in range(cell.views[0].dim())]
                cell.views[0].div_(covered[id].to(result).view(shape))
    return result
