"""Carry tensors of model B into the coordinates of model A: maps applied along every axis of every cell.

Inside a cell each dimension has two coordinates, that of A and that of B; a tensor is followed by the *labels* of its
dimensions (position p has label 2p in A, 2p + 1 in B). A map turns label 2p + 1 into 2p. A map that depends on another
axis needs that axis in both coordinates, which is why maps are applied from the inside out, unless the outer map is a
permutation: then each A-index has one B-index, and the family's member is looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphfuse.axes import Layout, walk_leaves
from graphfuse.cells import Cell, Sizes, cells, shape_of
from graphfuse.maps import AxisMap, Maps

Labels = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor and the label of each of its dimensions."""

    value: Tensor
    labels: Labels


@dataclass(frozen=True, eq=False)
class Slot:
    """One dimension of a cell: the map along it and where its family's axes stand (None: the map has no such dim)."""

    position: int
    map: AxisMap | None
    consumed: bool
    along: tuple[int, ...] = ()
    context: tuple[int, ...] = ()
    dual: bool = False


def in_target(position: int) -> int:
    """Label of a position in the coordinates of A."""
    return 2 * position


def in_source(position: int) -> int:
    """Label of a position in the coordinates of B."""
    return 2 * position + 1


def transform(
    tensor: Tensor,
    dims: Layout,
    consumed: Sequence[bool],
    maps: Maps,
    sizes: Sizes | None = None,
    target_sizes: Sizes | None = None,
    gains: Sequence[bool] = (),
) -> Tensor:
    """A tensor of model B in the coordinates of model A.

    Parameters
    ----------
    tensor :
        A parameter, moved buffer or activation of B. Any device and floating dtype; both are kept.
    dims, consumed :
        Its label in A, and for each dim whether it is contracted away (``columns``) or written (``rows``).
        Activations are written.
    maps :
        Axis -> map; axes without one keep their order and must have equal sizes.
    sizes, target_sizes :
        Axis -> size in B and in A; by default those of the label's leaves.
    gains :
        For each dim whether the tensor only multiplies data along it, so that scales leave it as it is.

    Returns
    -------
    Tensor
        Of A's shape; the given tensor itself when no axis of it has a map.
    """
    sizes, target_sizes = sizes or {}, target_sizes or {}
    if not any(leaf.id in maps for dim in dims for leaf in walk_leaves(dim)):
        return tensor
    result = tensor.new_empty(shape_of(dims, target_sizes))
    for cell in cells((result, tensor), dims, (target_sizes, sizes)):
        target, source = cell.views
        carried = carry(source, slots_of(cell, consumed, maps, gains))
        target.copy_(arranged(carried, tuple(in_target(p) for p in range(target.dim()))))
    return result


def movable(dims: Layout, maps: Maps) -> bool:
    """Whether a tensor with this label can be transformed: all that its axes' maps depend on is part of it.

    Always so for parameters. An activation that was gathered (units of the chosen experts) may lack the axis that it
    was gathered from.
    """
    for cell in cells((), dims, ()):
        for axis in cell.axes:
            found = maps.get(axis)
            keys = (*found.along, *found.context, *found.context) if found is not None else ()
            if found is not None and any(
                key not in cell.present and size != 1 for key, size in zip(keys, found.lead, strict=True)
            ):
                return False
    return True


def slots_of(
    cell: Cell, consumed: Sequence[bool], maps: Maps, gains: Sequence[bool] = (), keep: Collection[int] = ()
) -> list[Slot]:
    """For each dimension of a cell, its map and the dimensions that the map depends on; those to ``keep`` have none."""
    slots = []
    for position, axis in enumerate(cell.axes):
        found, side = None if position in keep else maps.get(axis), consumed[cell.origin[position]]
        if found is None:
            slots.append(Slot(position, None, side))
            continue
        found = _without_missing(found.unscaled() if gains and gains[cell.origin[position]] else found, cell)
        along = tuple(cell.along(position, key) for key in found.along)
        context = tuple(cell.along(position, key) for key in found.context)
        slots.append(Slot(position, found, side, along, context, bool(cell.duals) and cell.duals[position]))
    return slots


def _without_missing(found: AxisMap, cell: Cell) -> AxisMap:
    """A map without the family dims whose axis is not in the cell; these have size 1 there."""
    keys = (*found.along, *found.context, *found.context)
    missing = [d for d, key in enumerate(keys) if key not in cell.present]
    if not missing:
        return found
    if any(found.values.shape[d] != 1 for d in missing):
        raise ValueError(f"the map of axis {found.axis} depends on axes {keys}, but the block has only {cell.axes}")
    values = found.values.squeeze(tuple(missing))
    scales = None if found.scales is None else tuple(scale.squeeze(tuple(missing)) for scale in found.scales)
    context = tuple(key for key in found.context if key in cell.present)
    along = tuple(key for key in found.along if key in cell.present)
    return AxisMap(found.axis, context, along, **{found.kind: values, "scales": scales})


def carry(source: Tensor, slots: Sequence[Slot], keep: Collection[int] = ()) -> Labelled:
    """Apply the maps along all dimensions of one cell's view, except those in ``keep``.

    Returns
    -------
    Labelled
        Positions that were carried (or have no map) have their label in A, kept ones that in B; a kept position that
        a carried one depends on has both.
    """
    order = _outermost_first(slots)
    todo = [p for p in order if slots[p].map is not None and p not in keep]
    labels = tuple(in_source(s.position) if s.map or s.position in keep else in_target(s.position) for s in slots)
    now = Labelled(source, labels)
    known: dict[int, Labelled] = {}
    outer = {q for p in todo for q in slots[p].context}
    for p in list(todo):
        slot = slots[p]
        if slot.map is not None and all(q in known for q in slot.context) and (slot.map.hard or p not in outer):
            member = _members(slot, known, source)
            if slot.map.hard:
                known[p] = member
            now = _gather(now, member, p) if slot.map.hard else _contract(now, {p: member})
            factors = slot.map.factors(slot.dual)
            if factors is not None:
                scale = _selected(slot, known, Labelled(factors.to(source), (in_target(p),)))
                now = Labelled(now.value * _spread(scale, now.labels), now.labels)
            todo.remove(p)
    while todo:
        p = todo.pop()
        # an outer map that only this one depends on goes along: nothing then has both its coordinates
        alone = [q for q in slots[p].context if q in todo and not any(q in slots[other].context for other in todo)]
        todo = [q for q in todo if q not in alone]
        now = _contract(now, {q: _members(slots[q], known, source, dense=True) for q in (p, *alone)})
    return now


def _outermost_first(slots: Sequence[Slot]) -> list[int]:
    return sorted(range(len(slots)), key=lambda p: _depth(slots, p))


def _depth(slots: Sequence[Slot], p: int) -> int:
    return 1 + max((_depth(slots, q) for q in slots[p].context), default=0)


def _members(slot: Slot, known: Mapping[int, Labelled], like: Tensor, dense: bool = False) -> Labelled:
    """A slot's map as a labelled tensor; where an outer axis is a known permutation, only the members it selects."""
    assert slot.map is not None
    p = slot.position
    if slot.map.hard and not dense:
        return _selected(slot, known, Labelled(slot.map.values.to(like.device), (in_target(p),)))
    matrix = slot.map.acting(slot.consumed, slot.dual, like.dtype)
    return _selected(slot, known, Labelled(matrix.to(like.device), (in_target(p), in_source(p))))


def _selected(slot: Slot, known: Mapping[int, Labelled], family: Labelled) -> Labelled:
    """Of a family's values, labelled along its units alone, the members that the known outer permutations select."""
    values, own, q = family.value, family.labels, slot.context
    lead = (*map(in_target, slot.along), *map(in_target, q), *map(in_source, q))
    if not any(x in known for x in q):
        return Labelled(values, (*lead, *own))
    picks = [known[(x - 1) // 2] if x % 2 and (x - 1) // 2 in known else None for x in lead]
    labels = tuple(
        dict.fromkeys(label for x, pick in zip(lead, picks, strict=True) for label in (pick.labels if pick else (x,)))
    )
    index = []
    for d, (x, pick) in enumerate(zip(lead, picks, strict=True)):
        entry = pick or Labelled(torch.arange(values.shape[d], device=values.device), (x,))
        index.append(_spread(entry, labels))
    return Labelled(values[tuple(index)], (*labels, *own))


def _gather(now: Labelled, member: Labelled, p: int) -> Labelled:
    """Reorder position p by a permutation that may differ along other positions."""
    d = now.labels.index(in_source(p))
    labels = tuple(in_target(p) if label == in_source(p) else label for label in now.labels)
    if len(member.labels) == 1:
        return Labelled(now.value.index_select(d, member.value), labels)
    return Labelled(now.value.take_along_dim(_spread(member, labels), d), labels)


def _contract(now: Labelled, members: Mapping[int, Labelled]) -> Labelled:
    """Apply a matrix along each of these positions; what they depend on and is still in B, is in both coordinates then.

    The matrices are multiplied with each other first.
    """
    done = {in_source(p): in_target(p) for p in members}
    held = dict.fromkeys(x for member in members.values() for x in member.labels)
    extra = tuple(x for x in held if x not in now.labels and x not in done.values())
    labels = (*extra, *(done.get(x, x) for x in now.labels if x not in done.values()))
    flat = [part for member in members.values() for part in (member.value, list(member.labels))]
    return Labelled(torch.einsum(*flat, now.value, list(now.labels), list(labels)), labels)


def _spread(entry: Labelled, labels: Labels) -> Tensor:
    """Permute and unsqueeze a labelled tensor so that it broadcasts over the given labels."""
    order = [entry.labels.index(x) for x in labels if x in entry.labels]
    value = entry.value.permute(order)
    for d, x in enumerate(labels):
        if x not in entry.labels:
            value = value.unsqueeze(d)
    return value


def arranged(entry: Labelled, labels: Labels) -> Tensor:
    """A labelled tensor with its dimensions in the given order."""
    return entry.value.permute([entry.labels.index(x) for x in labels])
