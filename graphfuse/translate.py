"""The weights of one model in the names and layouts of another that computes the same thing.

Two implementations of one architecture name their parameters, cut them into blocks and lay them out each in its own
way (one fused q, k, v or three, rows or columns first). Their labelled graphs agree: every parameter is made of
*cells*, blocks with one axis along each dim, and cells and axes that play the same part have the same neighbours.
Colour refinement (Weisfeiler, Lehman 1968) finds them; layers that look alike are told apart by the order in which
they run, queries from keys by their variance. What was found is then proved: both models must give the same outputs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from graphfuse.capture import state_of
from graphfuse.cells import Cell, cells
from graphfuse.errors import CorrespondenceError
from graphfuse.rulebook import RuleBook, Rules, load_rules
from graphfuse.symmetry import SymmetryGraph

ROUNDS = 6
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """A block of a tensor of the target, and the block of the other model that it takes: names and shapes."""

    target: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Translation:
    """``model`` is of the target's class and computes what the other model does; ``error`` is the relative difference.

    ``kept`` names parameters that no output depends on, which stay the target's own.
    """

    model: nn.Module
    pairs: tuple[Pair, ...]
    kept: tuple[str, ...]
    error: float


@dataclass(frozen=True, eq=False)
class _Block:
    """A cell of one tensor: rows first, then what is contracted; ``rank`` is its place in the order of execution."""

    tensor: str
    view: Tensor
    axes: tuple[int, ...]
    sides: tuple[tuple[bool, bool], ...]
    use: str
    rank: tuple[int, int]


def translate(
    target: SymmetryGraph,
    other: SymmetryGraph,
    *,
    names: Mapping[str, str] | None = None,
    rules: Iterable[Rules] | RuleBook = (),
) -> Translation:
    """Write the weights of ``other`` into a copy of the target's model.

    Parameters
    ----------
    target, other : SymmetryGraph
        Traced on inputs of the same shapes, in the same order; widths and depth must agree.
    names : mapping, optional
        Target's tensor -> the other's, for tensors that are to be paired by hand.
    rules :
        The rules that the graphs were traced with.

    Returns
    -------
    Translation
        ``.model`` can be fused with the target's model name for name.

    Raises
    ------
    CorrespondenceError
        No one-to-one match exists, or the matched models do not compute the same; shows the two nearest tensors.

    Examples
    --------
    >>> from graphfuse.symmetry import trace
    >>> a, b = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), nn.ModuleDict(
    ...     {"up": nn.Linear(3, 8), "down": nn.Linear(8, 2)})
    >>> b.forward = lambda x: b["down"](torch.tanh(b["up"](x)))
    >>> x = torch.randn(4, 3)
    >>> found = translate(trace(a, (x,)), trace(b, (x,)))
    >>> bool(torch.allclose(found.model(x), b(x), atol=1e-6))
    True
    """
    book = rules if isinstance(rules, RuleBook) else load_rules(rules)
    model = copy.deepcopy(target.model).eval()
    mine = _blocks(target, state_of(model), book)
    theirs = _blocks(other, state_of(other.model), book)
    pairs = list(_by_hand(mine, theirs, names or {}))
    used = ({one.tensor for one, _ in pairs}, {two.tensor for _, two in pairs})
    pairs += _by_colour(target, other, [b for b in mine if b.tensor not in used[0]],
                        [b for b in theirs if b.tensor not in used[1]])  # fmt: skip
    with torch.no_grad():
        for one, two in pairs:
            one.view.copy_(two.view.reshape(one.view.shape))
    error = _difference(model, target, other)
    if not error <= TOLERANCE:
        raise CorrespondenceError(
            f"{_class(target)} and {_class(other)} were matched tensor by tensor, but with equal weights their outputs "
            f"differ by {error:.1e} of their size.\n"
            f"  matched: {'; '.join(f'{a.tensor} <- {b.tensor}' for a, b in pairs[:4])}; ...\n"
            "  what to do: they may differ in an activation function, an epsilon or a layer without weights; if only "
            "the pairing is wrong, give names={target's tensor: other's tensor}"
        )
    touched = {one.tensor for one, _ in pairs}
    kept = tuple(name for name in target.tensors if name not in touched)
    found = tuple(Pair(one.tensor, two.tensor, tuple(one.view.shape)) for one, two in pairs)
    return Translation(model, found, kept, error)


# -------------------------------------------------------------------- blocks


def _blocks(graph: SymmetryGraph, state: Mapping[str, Tensor], book: RuleBook) -> list[_Block]:
    """Every block of every tensor that is used, in the order in which they are."""
    nodes = list(graph.captured.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    inputs = {slot.name: node for slot in graph.captured.inputs for node in nodes if node.name == slot.node}
    found: list[_Block] = []
    for name, label in graph.tensors.items():
        reader = _reader(inputs[name])
        if reader is None:
            continue
        use = _use(inputs[name], reader, book)
        for number, cell in enumerate(cells((state[name],), label.dims)):
            found.append(_block(name, cell, label.consumed, use, (place[reader], number)))
    return sorted(found, key=lambda block: block.rank)


def _reader(node: fx.Node) -> fx.Node | None:
    """The first op that reads a tensor together with another, seen through views of it."""
    for user in node.users:
        if user.op == "output" or len(user.all_input_nodes) > 1:
            return user
        found = _reader(user)
        if found is not None:
            return found
    return None


def _use(node: fx.Node, reader: fx.Node, book: RuleBook) -> str:
    """What a tensor is to the op that reads it: the same for all ops that multiply data by a weight."""
    spec = book.contraction(reader.target)
    target: Any = reader.target
    arguments = [argument.name for argument in target._schema.arguments] if hasattr(target, "_schema") else []
    given = {**dict(zip(arguments, reader.args, strict=False)), **reader.kwargs}
    behind = _through(node)
    name = next((key for key, value in given.items() if isinstance(value, fx.Node) and value in behind), "")
    if spec is not None:
        return "bias" if name == spec.bias else "weight"
    kind = book.kind(reader.target)
    return f"{kind}.{name}" if kind in ("norm", "embedding") else "other"


def _through(node: fx.Node) -> set[fx.Node]:
    found = {node}
    for user in node.users:
        if len(user.all_input_nodes) == 1:
            found |= _through(user)
    return found


def _block(name: str, cell: Cell, consumed: Sequence[bool], use: str, rank: tuple[int, int]) -> _Block:
    (view,) = cell.views
    kept = [d for d in range(view.dim()) if view.shape[d] != 1]
    order = sorted(kept, key=lambda d: consumed[cell.origin[d]])
    lone = [d for d in range(view.dim()) if view.shape[d] == 1]
    laid = view.permute([*order, *lone]).flatten(len(order)) if lone and order else view.permute([*order, *lone])
    sides = tuple((consumed[cell.origin[d]], cell.duals[d]) for d in order)
    laid = laid.squeeze(-1) if lone and order else laid
    return _Block(name, laid, tuple(cell.axes[d] for d in order), sides, use, rank)


# -------------------------------------------------------------------- matching


def _by_hand(mine: list[_Block], theirs: list[_Block], names: Mapping[str, str]) -> Iterable[tuple[_Block, _Block]]:
    for wanted, given in names.items():
        ours, others = ([b for b in side if b.tensor == name] for side, name in ((mine, wanted), (theirs, given)))
        if not ours or [b.view.shape for b in ours] != [b.view.shape for b in others]:
            shapes = [[tuple(b.view.shape) for b in side] for side in (ours, others)]
            raise CorrespondenceError(
                f"names: {wanted!r} cannot take {given!r}.\n"
                f"  blocks of the target: {shapes[0] or 'no such tensor is used'}\n"
                f"  blocks of the other: {shapes[1] or 'no such tensor is used'}\n"
                "  what to do: pair tensors whose blocks have equal sizes"
            )
        yield from zip(ours, others, strict=True)


def _by_colour(
    target: SymmetryGraph, other: SymmetryGraph, mine: list[_Block], theirs: list[_Block]
) -> list[tuple[_Block, _Block]]:
    """Pair blocks of one colour in the order in which they are used."""
    left, right = _coloured(target, mine), _coloured(other, theirs)
    pairs: list[tuple[_Block, _Block]] = []
    for colour, ours in left.items():
        others = right.get(colour, [])
        if len(ours) != len(others):
            raise _unmatched(target, other, ours, others, mine, theirs)
        pairs += zip(ours, others, strict=True)
    for colour, others in right.items():
        if colour not in left:
            raise _unmatched(other, target, others, [], theirs, mine)
    return sorted(pairs, key=lambda pair: pair[0].rank)


def _coloured(graph: SymmetryGraph, blocks: list[_Block]) -> dict[Hashable, list[_Block]]:
    """Blocks by colour: what they are to their op, their sizes, and, again and again, the same of their neighbours."""
    axes: dict[int, Hashable] = {}
    for block in blocks:
        for axis, size in zip(block.axes, block.view.shape, strict=False):
            axes[axis] = (size, graph.axis(axis).free if axis in graph._by_id else False)
    colours: list[Hashable] = [(block.use, block.sides, tuple(axes[axis] for axis in block.axes)) for block in blocks]
    for _ in range(ROUNDS):
        near: dict[int, list[int]] = defaultdict(list)
        for block, colour in zip(blocks, colours, strict=True):
            for slot, axis in enumerate(block.axes):
                near[axis].append(hash((colour, slot)))
        axes = {axis: hash((colour, tuple(sorted(near[axis])))) for axis, colour in axes.items()}
        colours = [hash((c, tuple(axes[a] for a in b.axes))) for b, c in zip(blocks, colours, strict=True)]
    found: dict[Hashable, list[_Block]] = defaultdict(list)
    for block, colour in zip(blocks, colours, strict=True):
        found[colour].append(block)
    return found


def _unmatched(
    graph: SymmetryGraph, other: SymmetryGraph, ours: list[_Block], theirs: list[_Block],
    all_ours: list[_Block], all_theirs: list[_Block],
) -> CorrespondenceError:  # fmt: skip
    """The first block without a partner, and what comes nearest to it in the other model."""
    first = ours[min(len(theirs), len(ours) - 1)]
    share = all_ours.index(first) / max(len(all_ours), 1)

    def distance(block: _Block) -> tuple[int, int, float]:
        place = all_theirs.index(block) / max(len(all_theirs), 1)
        return (block.use != first.use, tuple(block.view.shape) != tuple(first.view.shape), abs(place - share))

    nearest = min(all_theirs, key=distance, default=None)
    beside = f"{nearest.tensor} {tuple(nearest.view.shape)}, {_where(other, nearest)}" if nearest else "nothing"
    return CorrespondenceError(
        f"{_class(graph)} and {_class(other)} are not the same computation under other names.\n"
        f"  {_class(graph)} has: {first.tensor} {tuple(first.view.shape)}, {_where(graph, first)} ({len(ours)} alike)\n"
        f"  nearest in {_class(other)}: {beside} ({len(theirs)} alike)\n"
        "  what to do: use models of equal widths and depth, or pair tensors by hand with names={target's: other's}"
    )


def _where(graph: SymmetryGraph, block: _Block) -> str:
    node = list(graph.captured.graph.nodes)[block.rank[0]]
    return str(graph.captured.site(node))


def _class(graph: SymmetryGraph) -> str:
    return type(graph.model).__name__


# -------------------------------------------------------------------- proof


def _difference(model: nn.Module, target: SymmetryGraph, other: SymmetryGraph) -> float:
    """Largest difference of the outputs on the target's example inputs, relative to their size."""
    tensors = [leaf for leaf in pytree.tree_leaves((target.args, dict(target.kwargs))) if isinstance(leaf, Tensor)]
    flat, spec = pytree.tree_flatten((other.args, dict(other.kwargs)))
    rest = iter(tensors)
    filled = [next(rest, leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat]
    args, kwargs = pytree.tree_unflatten(filled, spec)
    twin = copy.deepcopy(other.model).eval()
    with torch.no_grad():
        ours, theirs = _outputs(model(*target.args, **target.kwargs)), _outputs(twin(*args, **kwargs))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a.shape == b.shape]
    if not pairs:
        return float("inf")
    scale = max(float(b.abs().max()) for _, b in pairs) or 1.0
    return max(float((a - b).abs().max()) for a, b in pairs) / scale


def _outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
