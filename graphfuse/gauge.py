"""Normal forms: each model is brought to a canonical scale and basis along its axes before units are matched.

An axis that admits positive scales or any invertible map has many weights for one function. Of these, one is chosen for
each model by itself; two models that differ by such a map alone then differ by a permutation or a rotation, which
matching finds. What was done to each is put into the maps afterwards, so that all stays in the target's own scale.

Sources: Stock et al., Equi-normalization of Neural Networks (arXiv 1902.10416): for scales, the weights of least norm,
by coordinate descent. For bases the same minimum is where both factors of a product have equal second moments (Srebro
et al., NeurIPS 2004, lemma 1), here by the geometric mean of two matrices (Bhatia, Positive Definite Matrices, 2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphfuse.axes import Layout, SymmetryClass
from graphfuse.cells import Cell, Sizes, cells
from graphfuse.config import FuseConfig
from graphfuse.costs.sites import sites
from graphfuse.groups import Element, apply
from graphfuse.maps import AxisMap, Maps
from graphfuse.prepared import Prepared
from graphfuse.symmetry import Axis

_SWEEPS, _TOLERANCE = 100, 1e-6
_FLOOR = 1e-12  # of the second moments, relative to their mean


Elements = Mapping[int, Element]
"""Axis number of the target -> what brings a model's units to the normal form."""


def normal_forms(prepared: Prepared) -> tuple[Prepared, tuple[Elements, ...]]:
    """The same models in their normal forms, and for each what was done to it; nothing where the config says so."""
    relation, count = prepared.correspondence, len(prepared.models)
    axes = [axis for axis in relation.free if _kind(axis, prepared.config)]
    if not axes:
        return prepared, ({},) * count
    shown = _by_activations(prepared, axes) if prepared.method != "weights" else ({},) * count
    forms, states = [], []
    for k, state in enumerate(prepared.states):
        found = {axis.id: _scaling(axis, *shown[k][axis.id]) for axis in axes if axis.id in shown[k]}
        rest = [axis for axis in axes if axis.id not in found]
        state, more = _balanced(prepared, rest, _moved(prepared, state, found, k), k)
        forms.append({**found, **more})
        states.append(state)
    lockstep = replace(prepared.lockstep, states=tuple(states))
    return replace(prepared, states=tuple(states), lockstep=lockstep), tuple(forms)


def turned_back(maps: Maps, own: Elements, target: Elements) -> dict[int, AxisMap]:
    """Maps between models as they are, given those between their normal forms."""
    return {
        id: _composed(found, own[id], target[id]) if id in own and id in target else found for id, found in maps.items()
    }


def _kind(axis: Axis, config: FuseConfig) -> str:
    """Which normal form an axis has: scaled, linear, or none."""
    if config.symmetry != "full" or config.driver == "flow":
        return ""
    if not config.for_axis(axis.name, axis.role).align:
        return ""
    rotates = config.rotating and bool(axis.symmetry & SymmetryClass.CENTRED)
    if rotates:
        return "linear" if config.linear and axis.symmetry == SymmetryClass.LINEAR else ""
    return "scaled" if config.scaling and axis.symmetry & SymmetryClass.SCALING else ""


# --------------------------------------------------------------------- moments


@dataclass(eq=False)
class _Sums:
    """Second moments of an axis' units where it is written, and on the other side of a contraction; None: nowhere."""

    sides: list[Tensor | None]

    def add(self, found: Tensor, dual: bool) -> None:
        before = self.sides[dual]
        self.sides[dual] = found if before is None else before + found


def _sums(axis: Axis, values: Iterable[tuple[Tensor, Layout, Sequence[bool]]], sizes: Sizes, full: bool) -> _Sums:
    """Over all that these tensors have along an axis, gains left out; whole matrices or their diagonals."""
    total = _Sums([None, None])
    for value, dims, gains in values:
        for cell in cells((value,), dims, (sizes,)):
            for position, id in enumerate(cell.axes):
                gain = bool(gains) and gains[cell.origin[position]]
                if id == axis.id and not gain and all(key in cell.present for key in axis.context):
                    total.add(_second(cell, position, axis, full), cell.duals[position])
    return total


def _second(cell: Cell, position: int, axis: Axis, full: bool) -> Tensor:
    """Second moments of one cell, shape (\\*context, n) or (\\*context, n, n), float64 where there is it."""
    view = cell.views[0].detach()
    view = view.double() if view.device.type != "mps" else view.float()
    lead = [cell.along(position, key) for key in axis.context]
    here = list(range(view.dim()))
    if not full:
        return torch.einsum(view, here, view, here, [*lead, position])
    other = [view.dim() if p == position else p for p in here]
    return torch.einsum(view, here, view, other, [*lead, position, view.dim()])


def _by_activations(prepared: Prepared, axes: Sequence[Axis]) -> tuple[dict[int, tuple[Tensor | None, ...]], ...]:
    """For each model the squared activations of the units of scaled axes, each input and place counting the same."""
    graph, shared = prepared.correspondence.graph, prepared.lockstep.shared
    scaled = {axis.id: axis for axis in axes if _kind(axis, prepared.config) == "scaled"}
    shown = {id: shared.intersection(names) for id, names in sites(graph).items() if id in scaled}
    totals: list[dict[int, _Sums]] = [{} for _ in prepared.models]
    for batch in prepared.data:
        for moment in prepared.lockstep.run(batch, set().union(*shown.values())):
            for k, (value, sizes) in enumerate(zip(moment.values, moment.sizes, strict=True)):
                for id, names in shown.items():
                    if moment.node in names and value.is_floating_point():
                        for dual, part in enumerate(_sums(scaled[id], [(value, moment.dims, ())], sizes, False).sides):
                            if part is not None:
                                totals[k].setdefault(id, _Sums([None, None])).add(part, bool(dual))
    known = set.intersection(*(set(found) for found in totals))
    return tuple({id: tuple(found[id].sides) for id in known} for found in totals)


# ---------------------------------------------------------------- normal forms


def _balanced(
    prepared: Prepared, axes: Sequence[Axis], state: Mapping[str, Tensor], k: int
) -> tuple[Mapping[str, Tensor], dict[int, Element]]:
    """Bring all these axes of a model to the form in which both sides of each have the same second moments."""
    labels, sizes = prepared.correspondence.graph.tensors, prepared.correspondence.sizes[k]
    forms: dict[int, Element] = {}
    for _ in range(_SWEEPS):
        change = 0.0
        for axis in axes:
            names = dict.fromkeys(touch.tensor for touch in axis.touches if touch.tensor in state)
            full = _kind(axis, prepared.config) == "linear"
            values = [(state[name], labels[name].dims, labels[name].gains) for name in names]
            found = _sums(axis, values, sizes, full)
            written, read = found.sides
            if written is None or read is None:
                continue
            step = _basis(axis, written, read) if full else _scaling(axis, written, read)
            state = _moved(prepared, state, {axis.id: step}, k, names)
            forms[axis.id] = _product(step, forms[axis.id]) if axis.id in forms else step
            still = torch.ones_like(step.value) if step.diagonal else torch.eye(step.value.shape[-1]).to(step.value)
            change = max(change, float((step.value - still).abs().max()))
        if change < _TOLERANCE or len(axes) < 2:
            break
    return state, forms


def _scaling(axis: Axis, written: Tensor | None, read: Tensor | None) -> Element:
    """Scales under which both sides have the same norm, or the one that there is has norm 1; 1 where one is zero."""
    one = torch.ones_like(written if written is not None else read if read is not None else torch.ones(()))
    written, read = (one if side is None else side for side in (written, read))
    power = 0.25 if written is not one and read is not one else 0.5
    usable = (written > 0) & (read > 0)
    value = torch.where(usable, (read / torch.where(usable, written, 1.0)).pow(power), 1.0)
    return Element(axis.id, axis.context, value, 1 / value)


def _basis(axis: Axis, written: Tensor, read: Tensor) -> Element:
    """G with G P G' = G'^-1 S G^-1: the root of the geometric mean of P^-1 and S."""
    p, s = (_regular(side) for side in (written, read))
    root, inverse = _power(p, 0.5), _power(p, -0.5)
    mean = inverse @ _power(root @ s @ root, 0.5) @ inverse
    return Element(axis.id, axis.context, _power(mean, 0.5), _power(mean, -0.5))


def _regular(moments: Tensor) -> Tensor:
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    scale = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return moments + torch.where(scale > 0, _FLOOR * scale, 1.0) * eye


def _power(matrix: Tensor, power: float) -> Tensor:
    """A power of symmetric positive matrices."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp(min=torch.finfo(values.dtype).tiny).pow(power).unsqueeze(-2)) @ vectors.mT


def _moved(
    prepared: Prepared, state: Mapping[str, Tensor], elements: Elements, k: int, names: Iterable[str] | None = None
) -> Mapping[str, Tensor]:
    labels, sizes = prepared.correspondence.graph.tensors, prepared.correspondence.sizes[k]
    names = [name for name in (labels if names is None else names) if name in state] if elements else []
    return {**state, **{name: apply(state[name].detach(), labels[name], elements, sizes) for name in names}}


# ------------------------------------------------------------------ composition


def _product(second: Element, first: Element) -> Element:
    if first.diagonal:
        return replace(first, value=second.value * first.value, dual=second.dual * first.dual)
    return replace(first, value=second.value @ first.value, dual=second.dual @ first.dual)


def _composed(found: AxisMap, own: Element, target: Element) -> AxisMap:
    """To the normal form of the one, along the map, and back from the normal form of the other."""
    first, count = len(found.along), len(found.context)

    def spread(element: Element, value: Tensor, source: bool) -> Tensor:
        keys = (*found.along, *found.context)
        rest = range(len(keys), value.dim())
        value = value.to(found.values.device).permute(*(element.context.index(key) for key in keys), *rest)
        for d in range(count):
            value = value.unsqueeze(first if source else first + count + d)
        return value

    if own.diagonal:
        a, b = spread(target, target.value, False), spread(own, own.value, True)
        lead = found.lead
        return replace(found, scales=tuple(x.expand(*lead, x.shape[-1]).float().contiguous() for x in (a, b)))
    middle = found.matrix if found.matrix is not None else torch.stack([found.rows(), found.columns()], -3)
    one, two = middle.to(own.value.dtype).unbind(-3)
    value = spread(target, target.dual.mT, False) @ one @ spread(own, own.value, True)
    dual = spread(target, target.value.mT, False) @ two @ spread(own, own.dual, True)
    return replace(found, plan=None, index=None, matrix=torch.stack([value, dual], -3).float())
