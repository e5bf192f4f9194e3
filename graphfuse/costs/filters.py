"""Which inputs and tokens count: truth values along fixed axes, known from their labels, cut out of every activation.

A *keep* holds, for a combination of fixed axes (inputs; tokens; both), which of its elements count. A cell of an
activation that has these axes is reduced to them, whatever the order and wherever a view has merged them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphfuse.axes import Dim, Layout, Sum, dim_size, walk_leaves
from graphfuse.capture import state_of
from graphfuse.cells import Cell, Sizes, cells, size_of
from graphfuse.config import FilterConfig, LossFilter, Window, nearest
from graphfuse.correspond import node_layouts
from graphfuse.errors import ConfigError, DataError
from graphfuse.lockstep import Batch, Lockstep
from graphfuse.symmetry import SymmetryGraph


@dataclass(frozen=True, eq=False)
class Keep:
    """Which elements count along some fixed axes: one dim of ``flags`` for each of ``axes``."""

    axes: tuple[int, ...]
    flags: Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """A filter made ready for a model: its token dims, the input that is the mask, and the sure inputs of each batch.

    ``tokens`` says of each dim whether it is a side of an image; ``sure[i]`` has shape (inputs,), empty when all count.
    """

    config: FilterConfig
    inputs: Dim = ()
    tokens: Mapping[Dim, bool] = field(default_factory=dict)
    mask: tuple[str, Layout] | None = None
    sure: tuple[Tensor, ...] = ()

    def keeps(self, number: int, tensors: Mapping[str, Tensor], sizes: Sizes) -> list[Keep]:
        """What counts of one batch; ``tensors`` are its own, by the names of the captured inputs."""
        found: list[Keep] = []
        for dim, side in self.tokens.items():
            found += _along(_places(self.config.tokens, dim, side, sizes), (dim,), sizes)
        if self.mask is not None:
            name, dims = self.mask
            flags = tensors[name] != 0
            found += _along(~flags if _turned(self.config.mask) else flags, dims, sizes)
        if self.sure:
            found += _along(self.sure[number], (self.inputs,), sizes)
        return found


def selection(
    config: FilterConfig, lockstep: Lockstep, data: Sequence[Batch], wanted: Collection[str]
) -> Selection | None:
    """A filter made ready for models and data; None when all counts.

    ``wanted`` are the nodes whose values are to be filtered: what dims of theirs are fixed, and no inputs, are tokens.

    Raises
    ------
    ConfigError
        The filter names an input that there is none of, or says something of tokens where no value has any.
    DataError
        Inputs are to be judged by outputs that hold no class scores.
    """
    if config == FilterConfig.model_validate({}):
        return None
    graph = lockstep.correspondence.graph
    inputs, mask = _input_dim(graph), _mask(config, graph)
    tokens = _token_dims(config, graph, inputs, wanted)
    parts = [*((dim,) for dim in tokens), *([mask[1]] if mask else []), *([(inputs,)] if config.loss else [])]
    missed = _missed(graph, wanted, inputs, parts)
    if missed:
        lockstep.notes.append(
            f"the filter leaves {len(missed)} of {len(wanted)} nodes as they are, as their labels do not tell inputs "
            f"and tokens apart: {', '.join(missed[:3])}"
        )
    return Selection(config, inputs, tokens, mask, _sure(config.loss, lockstep, data) if config.loss else ())


def chosen(cell: Cell, keeps: Sequence[Keep], apart: Collection[int] = ()) -> Cell | None:
    """A cell's elements that count, their axes merged into the first; None when none does.

    ``apart`` are positions that must stay as they are (the axes that a map depends on).
    """
    relevant = [keep for keep in keeps if set(keep.axes) <= cell.present]
    places = sorted({cell.axes.index(axis) for keep in relevant for axis in keep.axes})
    if not relevant or set(places) & set(apart):
        return cell
    view = cell.views[0]
    flags = torch.ones([view.shape[p] for p in places], dtype=torch.bool, device=view.device)
    for keep in relevant:
        flags = flags & _spread(keep, [cell.axes[p] for p in places]).to(view.device)
    if bool(flags.all()):
        return cell
    if not bool(flags.any()):
        return None
    rest = [p for p in range(len(cell.axes)) if p not in places]
    axes = tuple(cell.axes[p] for p in [places[0], *rest])
    return Cell(
        tuple(view.permute([*places, *rest])[flags.to(view.device)] for view in cell.views),
        axes,
        tuple(cell.origin[p] for p in [places[0], *rest]),
        frozenset(axes),
        tuple(cell.duals[p] for p in [places[0], *rest]) if cell.duals else (),
    )


def _missed(graph: SymmetryGraph, wanted: Collection[str], inputs: Dim, parts: Sequence[Layout]) -> list[str]:
    """Wanted nodes with fixed dims, other than the inputs', in which no part of a filter finds its axes."""
    free, own = {axis.id for axis in graph.axes}, {leaf.id for leaf in walk_leaves(inputs)}
    asked = {frozenset(cell.axes) for dims in parts for cell in cells((), dims, ())}
    found = []
    for name, layouts in node_layouts(graph).items():
        leaves = {leaf.id for dims in layouts for dim in dims or () for leaf in walk_leaves(dim)} - free
        if name in wanted and leaves - own and not any(axes <= leaves for axes in asked):
            found.append(name)
    return found


# ---------------------------------------------------------------------- tokens


def _token_dims(config: FilterConfig, graph: SymmetryGraph, inputs: Dim, wanted: Collection[str]) -> dict[Dim, bool]:
    """Dims of fixed axes beside that of the inputs: alone in a value they are tokens, two of them sides of an image."""
    if config.tokens == "all":
        return {}
    free, skip = {axis.id for axis in graph.axes}, {leaf.id for leaf in walk_leaves(inputs)}
    found: dict[Dim, bool] = {}
    for name, layouts in node_layouts(graph).items():
        for dims in layouts if name in wanted else ():
            dims = [dim for dim in dims or () if dim_size(dim) > 1]
            fixed = [dim for dim in dims if not {leaf.id for leaf in walk_leaves(dim)} & (free | skip)]
            if len(fixed) == 1:
                found[fixed[0]] = False
            elif len(fixed) == 2 and isinstance(config.tokens, Window) and config.tokens.centre is not None:
                found = {**dict.fromkeys(fixed, True), **found}
    if not found:
        raise ConfigError(
            f"config: filter: tokens: {_shown(config.tokens)} needs activations that have tokens, and none of this "
            "model has a fixed dim beside that of its inputs.\n  what to do: leave filter.tokens out"
        )
    return found


def _places(tokens: str | Window, dim: Dim, side_of_image: bool, sizes: Sizes) -> Tensor:
    """Which places along a token dim count."""
    size = size_of(dim, sizes)
    places = torch.arange(size)
    if not isinstance(tokens, Window):
        return places == 0
    if tokens.centre is None:
        return (places >= tokens.start) & (places < (tokens.stop if tokens.stop is not None else size))
    if side_of_image:
        return _middle(size, tokens.centre)
    begin, length = _longest(dim, sizes)
    side = math.isqrt(length)
    if side * side != length:
        raise ConfigError(
            f"config: filter: tokens: centre needs a square of patches, but this model has {length} tokens in a row.\n"
            "  what to do: give start and stop"
        )
    middle = _middle(side, tokens.centre)
    keep = torch.zeros(size, dtype=torch.bool)
    keep[begin : begin + length] = (middle[:, None] & middle[None, :]).flatten()
    return keep


def _middle(size: int, wanted: int) -> Tensor:
    first = max(0, (size - wanted) // 2)
    places = torch.arange(size)
    return (places >= first) & (places < first + wanted)


def _longest(dim: Dim, sizes: Sizes) -> tuple[int, int]:
    """Where the longest block of a dim begins and how long it is: the patches, after a class token."""
    parts = dim[0].parts if len(dim) == 1 and isinstance(dim[0], Sum) else (dim,)
    lengths = [size_of(part, sizes) for part in parts]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    return sum(lengths[:longest]), lengths[longest]


# ----------------------------------------------------------------------- masks


def _mask(config: FilterConfig, graph: SymmetryGraph) -> tuple[str, Layout] | None:
    if config.mask is None:
        return None
    name = config.mask.removeprefix("~")
    nodes = {slot.name: slot.node for slot in graph.captured.inputs if slot.kind == "user"}
    layout = graph.nodes.get(nodes[name]) if name in nodes else None
    if layout is None:
        raise ConfigError(f"config: filter: mask: the model has no input {name!r}; {nearest(name, list(nodes))}")
    return name, layout  # pyright: ignore[reportReturnType]


def _turned(mask: str | None) -> bool:
    return mask is not None and mask.startswith("~")


# ------------------------------------------------------------------ sure inputs


def _input_dim(graph: SymmetryGraph) -> Dim:
    """The dim that counts the inputs: the first one of the first tensor."""
    for slot in graph.captured.inputs:
        layout: Any = graph.nodes.get(slot.node) if slot.kind == "user" else None
        if layout:
            return layout[0]
    return ()


def _sure(config: LossFilter, lockstep: Lockstep, data: Sequence[Batch]) -> tuple[Tensor, ...]:
    """For each batch, which of its inputs are among the given share of lowest score."""
    score = _entropy if config.score == "entropy" else config.score
    scores = []
    for batch in data:
        total = torch.zeros(batch.count, dtype=torch.float64)
        for outputs in _outputs(lockstep, batch):
            total = total + _scored(score, outputs, batch.count)
        scores.append(total)
    every = torch.cat(scores)
    limit = every.kthvalue(max(1, round(config.below * len(every)))).values
    return tuple(part <= limit for part in scores)


def _outputs(lockstep: Lockstep, batch: Batch) -> Iterator[Any]:
    """What each model gives back; nothing for a batch that the models cannot be traced on, which is left out later."""
    found = lockstep.graphs(batch)
    states = lockstep.states if lockstep.states is not None else [state_of(model) for model in lockstep.models]
    if found is not None:
        for graph, state in zip(found[0].graphs, states, strict=True):
            yield graph.captured.run(state, batch.args, batch.kwargs)


def _scored(score: Callable[[Any], Any], outputs: Any, count: int) -> Tensor:
    found = torch.as_tensor(score(outputs)).detach().double().cpu()
    if found.shape != (count,) or not bool(torch.isfinite(found).all()):
        raise DataError(
            f"filter.loss: the score of {count} inputs has shape {tuple(found.shape)}, or is not finite.\n"
            "  expected: one finite number for each input"
        )
    return found


def _entropy(outputs: Any) -> Tensor:
    """Entropy of the class probabilities of each input."""
    tensors = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors or tensors[0].dim() != 2 or tensors[0].shape[1] < 2:
        shown = tuple(tensors[0].shape) if tensors else "no tensor"
        raise DataError(
            f"filter.loss: score entropy needs outputs of shape (inputs, classes), got {shown}.\n"
            "  what to do: give a function of the outputs as filter.loss.score"
        )
    logs = tensors[0].double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


# ----------------------------------------------------------------------- cells


def _along(flags: Tensor, dims: Layout, sizes: Sizes) -> list[Keep]:
    """Flags over labelled dims, cell by cell."""
    return [Keep(cell.axes, cell.views[0]) for cell in cells((flags,), dims, (sizes,))]


def _spread(keep: Keep, axes: Sequence[int]) -> Tensor:
    """Flags permuted and unsqueezed so that they broadcast over the given axes."""
    flags = keep.flags.permute([keep.axes.index(axis) for axis in axes if axis in keep.axes])
    for d, axis in enumerate(axes):
        if axis not in keep.axes:
            flags = flags.unsqueeze(d)
    return flags


def _shown(tokens: str | Window) -> str:
    return tokens if isinstance(tokens, str) else str(tokens.model_dump(exclude_defaults=True))
