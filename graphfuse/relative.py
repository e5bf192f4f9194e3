"""Maps between two models that are both mapped onto a third: composed, so that going round a circle changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from graphfuse.axes import Leaf
from graphfuse.carry import transform
from graphfuse.cells import Sizes
from graphfuse.maps import AxisMap, Maps


def relative(a: Maps, b: Maps, axes: Iterable[int], sizes: Sizes) -> dict[int, AxisMap]:
    """What brings model b into the order of model a, given what brings each into the order of a third.

    Parameters
    ----------
    a, b :
        Axis number -> one-to-one map onto the third; an axis without one keeps its order.
    axes :
        Numbers of the axes wanted.
    sizes :
        Axis number -> size, the same in all three.

    Returns
    -------
    dict
        One-to-one maps; of a family, the members whose contexts are not matched with each other keep the order.

    Raises
    ------
    ValueError
        A map is a coupling, which has no inverse.
    """
    for id, found in (*a.items(), *b.items()):
        if not found.hard:
            raise ValueError(f"the map of axis {id} is no permutation, so it cannot be turned round")
    return {id: _between(a, b, id, sizes) for id in axes}


def _between(a: Maps, b: Maps, id: int, sizes: Sizes) -> AxisMap:
    family = b.get(id) or a.get(id)
    along, context = (family.along, family.context) if family is not None else ((), ())
    keys = (*along, *context, id)
    shape = tuple(sizes[key] for key in keys)
    places = _places(a, keys, shape), _places(b, keys, shape)
    order = torch.empty_like(places[0]).scatter_(0, places[0], places[1])  # of a's places: the place in b
    where = torch.unravel_index(order.view(shape), shape)
    outer = tuple(sizes[key] for key in context)
    index = torch.arange(shape[-1]).repeat(*shape[:-1], *outer, 1)
    lead = torch.meshgrid(*(torch.arange(size) for size in shape[:-1]), indexing="ij") if len(shape) > 1 else ()
    partners = tuple(x[..., 0] for x in where[len(along) : -1])
    index[(*lead, *partners)] = where[-1]
    scales = None
    if any(maps[id].scales is not None for maps in (a, b) if id in maps):
        mine, other = (_factors(maps, keys, shape, at) for maps, at in zip((a, b), places, strict=True))
        first = len(along)
        for d in range(len(context)):  # a's scales do not differ along b's contexts, nor b's along a's
            mine, other = mine.unsqueeze(first + len(context) + d), other.unsqueeze(first)
        scales = mine.expand(index.shape).contiguous(), other.expand(index.shape).contiguous()
    return AxisMap(id, context, along, index=index, scales=scales)


def _factors(maps: Maps, keys: tuple[int, ...], shape: tuple[int, ...], places: Tensor) -> Tensor:
    """What each unit of a model, in its own order, is multiplied by on its way to the third."""
    dims = tuple((Leaf(key, size),) for key, size in zip(keys, shape, strict=True))
    sizes = dict(zip(keys, shape, strict=True))
    found = transform(torch.ones(shape), dims, (False,) * len(keys), maps, sizes, sizes).reshape(-1)
    return torch.empty_like(found).scatter_(0, places, found).view(shape)


def _places(maps: Maps, keys: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """For each place in the third's order, row-major over the axes ``keys``, the place in the model's own."""
    numbers = torch.arange(math.prod(shape)).view(shape)
    sizes = dict(zip(keys, shape, strict=True))
    dims = tuple((Leaf(key, size),) for key, size in sizes.items())
    plain = {id: found.unscaled() for id, found in maps.items()}
    return transform(numbers, dims, (False,) * len(keys), plain, sizes, sizes).reshape(-1)
