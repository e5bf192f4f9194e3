"""Partial fusion: units that match are averaged, those that match worst are kept from both, in a wider model.

A kept unit reads what its own parent's unit reads; what reads it gets its outgoing weights in its parent's share. With
all units kept the result gives the mean of its parents' hidden features, and where a single output layer reads them, of
their outputs. Sources: Stoica et al., ZipIt! (arXiv 2305.03053), whose partial zipping keeps whole layers apart; Nasery
et al., PLeaS (arXiv 2407.02447), which merges only the units of a layer that match.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligned import Aligned, Alignment
from graphfuse.capture import canonical_names
from graphfuse.carry import movable, transform
from graphfuse.cells import cells, shape_of
from graphfuse.costs.sites import sites
from graphfuse.errors import ConfigError, GraphFuseError
from graphfuse.maps import AxisMap
from graphfuse.prepared import Prepared, prepare
from graphfuse.symmetry import Axis, TensorLabel

Kept = Mapping[int, Sequence[tuple[int, int]]]
"""Axis number -> units of the target's order that are kept apart: (model, unit)."""


def extra(prepared: Prepared) -> dict[int, int]:
    """Axis number -> units that the result has beyond the target's; empty where nothing is to be kept apart."""
    relation, config = prepared.correspondence, prepared.config
    wanted = {axis.id: round((config.for_axis(axis.name, axis.role).keep or 0) * axis.size) for axis in relation.free}
    return {id: count for id, count in wanted.items() if count}


def widened(
    prepared: Prepared, alignment: Alignment, count: Mapping[int, int], rules: Iterable[Any] = ()
) -> tuple[Prepared, Alignment]:
    """A wider target for aligned models, and their maps into it.

    Parameters
    ----------
    prepared, alignment :
        The models, and their maps onto the target.
    count : mapping
        Axis number -> units to be added.
    rules :
        The rules that the models were traced with.

    Returns
    -------
    Prepared, Alignment
        Of [a wider copy of the target, *models]; the copy has no share, and its weights do not count.

    Raises
    ------
    ConfigError
        An axis has no one-to-one map, or the model has a width built in.
    """
    relation, config = prepared.correspondence, prepared.config
    _check(prepared, alignment, count)
    kept = _worst(prepared, alignment, count)
    sizes = {id: relation.graph.axis(id).size + len(units) for id, units in kept.items()}
    graph = relation.graph
    settings = config.model_copy(update={"target": 0, "weights": (0.0, *config.shares(len(prepared.models)))})
    try:
        blank = _grown(prepared.models[relation.target], graph.tensors, sizes)
        data = prepared.data or None
        wide = prepare([blank, *prepared.models], graph.args, graph.kwargs, data=data, config=settings, rules=rules)
    except (GraphFuseError, RuntimeError) as error:
        raise ConfigError(
            f"config: keep: {type(prepared.models[relation.target]).__name__} does not run with other widths, as they "
            f"are built in: {str(error).splitlines()[0]}\n  what to do: leave keep out, or name under roles the axes "
            "that may grow"
        ) from error
    known = wide.correspondence.axes[1 + relation.target]
    new = {old: id for id, old in known.items()}
    models = [Aligned(dict(wide.correspondence.sizes[0]))]
    for k, part in enumerate(alignment.models):
        maps = {new[id]: _renumbered(found, new) for id, found in part.maps.items() if id in new}
        maps |= {new[id]: _apart(id, new[id], k, part, relation.graph.axis(id).size, units)
                 for id, units in kept.items()}  # fmt: skip
        models.append(replace(part, sizes=dict(wide.correspondence.sizes[1 + k]), maps=maps,
                              agreement={new[id]: x for id, x in part.agreement.items() if id in new}))  # fmt: skip
    result = replace(
        alignment,
        target=0,
        axes=wide.correspondence.free,
        labels=dict(wide.correspondence.graph.tensors),
        models=tuple(models),
        nodes={},
    )
    return wide, result


def _check(prepared: Prepared, alignment: Alignment, count: Mapping[int, int]) -> None:
    """Kept axes must be matched one to one, and every model must have all of them."""
    if any(prepared.correspondence.absent):
        raise ConfigError("config: keep: needs models of one depth.\n  what to do: leave keep out")
    for id in count:
        axis = prepared.correspondence.graph.axis(id)
        for part in alignment.models:
            found = part.maps.get(id)
            if axis.context or (found is not None and not found.hard) or part.sizes[id] != axis.size:
                why = "its map differs along other axes" if axis.context else "its units are not matched one to one"
                raise ConfigError(
                    f"config: keep: {axis.name} cannot be kept apart, as {why}.\n"
                    "  what to do: use solver assignment and models of one width, or keep: 0 for it under roles"
                )


def _apart(id: int, new: int, k: int, part: Aligned, n: int, units: Sequence[tuple[int, int]]) -> AxisMap:
    """One model's map into the wider axis: nothing where the unit is another model's alone."""
    found = part.maps.get(id)
    index = torch.arange(n) if found is None or found.index is None else found.index.cpu()
    plan = torch.zeros(n + len(units), n)
    plan[torch.arange(n), index] = 1
    scales = None if found is None or found.scales is None else [scale.cpu() for scale in found.scales]
    left = torch.cat([scales[0] if scales else torch.ones(n), torch.ones(len(units))])
    for place, (model, unit) in enumerate(units, start=n):
        if model == k:
            plan[unit] = 0
            plan[place, index[unit]] = 1
            left[place] = scales[1][index[unit]] if scales else 1
    return AxisMap(new, plan=plan / n, scales=(left, scales[1]) if scales else None)


def _renumbered(found: AxisMap, new: Mapping[int, int]) -> AxisMap:
    context, along = (tuple(new[key] for key in keys) for keys in (found.context, found.along))
    return replace(found, axis=new[found.axis], context=context, along=along)


# ----------------------------------------------------------------------- choice


def _worst(prepared: Prepared, alignment: Alignment, count: Mapping[int, int]) -> Kept:
    """The units that are least like the target's unit that they are matched with, as many as there is room for."""
    target, others = alignment.target, [k for k in range(len(alignment.models)) if k != alignment.target]
    axes = {id: prepared.correspondence.graph.axis(id) for id in count}
    seen = {(k, id): list[Tensor]() for k in others for id in axes}
    for k in others:
        for id, found in _alike(prepared, alignment, axes, target, k).items():
            seen[k, id] = found
    kept: dict[int, list[tuple[int, int]]] = {}
    for id, number in count.items():
        table = torch.stack([torch.stack(seen[k, id]).mean(0) for k in others])
        order = table.flatten().argsort(stable=True)[: min(number, table.numel())].tolist()
        n = table.shape[1]
        kept[id] = sorted((others[place // n], place % n) for place in order)
    return kept


def _alike(
    prepared: Prepared, alignment: Alignment, axes: Mapping[int, Axis], target: int, k: int
) -> dict[int, list[Tensor]]:
    """For each axis the correlation of each pair of units: by each node that writes it, else by all its weights."""
    sums: dict[int, dict[str, Tensor]] = {id: {} for id in axes}
    maps = alignment.models[k].maps
    if prepared.data and prepared.method != "weights":
        shown = sites(prepared.correspondence.graph, prepared.config.cost.site)
        nodes = {name for id in axes for name in shown.get(id, ())}
        for batch in prepared.data:
            for moment in prepared.lockstep.run(batch, nodes):
                if moment.values[k].is_floating_point() and movable(moment.dims, maps):
                    flat, wide, narrow = (False,) * len(moment.dims), moment.sizes[k], moment.sizes[target]
                    other = transform(moment.values[k], moment.dims, flat, maps, wide, narrow)
                    for id in axes:
                        if moment.node in shown.get(id, ()):
                            _add(sums[id], moment.node, (moment.values[target], other), moment.dims, narrow, id)
    for id, axis in axes.items():
        for name in {touch.tensor for touch in axis.touches} if not sums[id] else ():
            label = prepared.correspondence.graph.tensors[name]
            own, other = prepared.states[target][name], prepared.states[k][name]
            other = transform(other, label.dims, label.consumed, maps, alignment.models[k].sizes, gains=label.gains)
            scale = max(float(own.double().square().mean()), 1e-300) ** -0.5
            _add(sums[id], "", (own * scale, other * scale), label.dims, alignment.models[target].sizes, id)
    return {id: [_correlation(entry) for entry in found.values()] for id, found in sums.items()}


def _add(
    sums: dict[str, Tensor], key: str, pair: tuple[Tensor, Tensor], dims: Any, sizes: Mapping[int, int], id: int
) -> None:
    """Sums of 1, a, b, aa, bb, ab for each unit, shape (6, n)."""
    for cell in cells(pair, dims, (sizes, sizes)):
        for position, axis in enumerate(cell.axes):
            if axis == id:
                a, b = (
                    view.detach().double().movedim(position, 0).flatten().view(view.shape[position], -1)
                    for view in cell.views
                )
                terms = (torch.ones_like(a), a, b, a * a, b * b, a * b)
                found = torch.stack([term.sum(1) for term in terms]).cpu()
                sums[key] = sums[key] + found if key in sums else found


def _correlation(sums: Tensor) -> Tensor:
    count, a, b, aa, bb, ab = sums
    var_a, var_b = aa - a * a / count, bb - b * b / count
    scale = (var_a * var_b).clamp(min=0).sqrt()
    return torch.where(scale > 0, (ab - a * b / count) / torch.where(scale > 0, scale, 1.0), 0.0)


# ---------------------------------------------------------------------- growing


def _grown(model: nn.Module, labels: Mapping[str, TensorLabel], sizes: Mapping[int, int]) -> nn.Module:
    """A copy of a model whose parameters and buffers have other sizes along some axes; their values do not count."""
    result = copy.deepcopy(model).eval()
    made: dict[str, Tensor] = {}
    for name, first in canonical_names(result).items():
        owner, _, own = name.rpartition(".")
        module = result.get_submodule(owner)
        if first not in labels or shape_of(labels[first].dims, sizes) == labels[first].shape:
            continue
        for table in (module._parameters, module._buffers):
            old = table.get(own)
            if old is not None:
                value = made.get(first)
                if value is None:
                    value = old.detach().new_ones(shape_of(labels[first].dims, sizes))
                    value = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
                table[own] = made[first] = value  # pyright: ignore[reportArgumentType]
        _told(module)
    return result


def _told(module: nn.Module) -> None:
    """What torch's own layers say of their widths."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and weight is not None:
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and weight is not None:
        module.num_features = len(weight)
