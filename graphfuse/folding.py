"""Fold the gain of a norm into the layers that read it: a rewrite that keeps the function and widens the symmetry.

An elementwise gain admits no rotation of what it multiplies. Where all readers of gain * x contract it with a weight of
their own, W (g * x) = (W diag(g)) x: the weight takes the gain, the gain becomes one and leaves the graph. An offset
that the norm adds after its gain goes into the readers' biases. The residual stream between norms can then be rotated
as a whole (between layer norms: by all rotations that keep the sum). Source: Ashkboos et al., SliceGPT (arXiv
2401.15024), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from graphfuse.axes import Dim, SymmetryClass, dim_size
from graphfuse.capture import Captured, duplicate, state_of
from graphfuse.labeling import label
from graphfuse.rulebook import RuleBook, Rules, load_rules
from graphfuse.symmetry import Contraction, SymmetryGraph, TensorLabel, assemble


@dataclass(frozen=True)
class Fold:
    """One gain, by name, and the dims of the weights that took it: (tensor, dim).

    ``offsets`` are what was added after the gain; they went into ``biases``, one for each of ``into``, and are zero.
    """

    gain: str
    into: tuple[tuple[str, int], ...]
    offsets: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Folded:
    """A rewritten model: ``graph.model`` computes what the original does, with the folded gains equal to one.

    ``kept`` says why a gain was left as it is, by name.
    """

    graph: SymmetryGraph
    folds: tuple[Fold, ...]
    kept: Mapping[str, str]


def fold_gains(graph: SymmetryGraph, *, rules: Iterable[Rules] | RuleBook = ()) -> Folded:
    """Fold every gain that multiplies an activation into the weights of the layers that read the product.

    Parameters
    ----------
    graph : SymmetryGraph
        Its model stays as it is; the result holds a rewritten copy.
    rules :
        The rules that the graph was traced with.

    Returns
    -------
    Folded
        ``.graph`` (a symmetry graph of the rewritten model), ``.folds``, ``.kept`` with reasons.

    Examples
    --------
    >>> from torch import nn
    >>> from graphfuse.symmetry import trace
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.RMSNorm(8), nn.Linear(8, 2))
    >>> graph = trace(model, (torch.zeros(1, 3),))
    >>> folded = fold_gains(graph)
    >>> [str(axis.symmetry) for axis in (*graph.axes, *folded.graph.axes)]
    ['signed', 'orthogonal']
    """
    book = rules if isinstance(rules, RuleBook) else load_rules(rules)
    folds, kept, products = _plan(graph, book)
    if not folds:
        return Folded(graph, (), kept)
    captured = _without(graph.captured, products, {fold.gain for fold in folds})
    model = duplicate(graph.model)
    fold_state(folds, state_of(model))
    labelling = label(captured, book, state_of(model), graph.tensors.keys())
    folded = assemble(model, graph.args, graph.kwargs, captured, labelling, book)
    return Folded(replace(folded, seconds=graph.seconds), folds, kept)


def foldable(graph: SymmetryGraph, *, rules: Iterable[Rules] | RuleBook = ()) -> tuple[Fold, ...]:
    """What :func:`fold_gains` would fold."""
    return _plan(graph, rules if isinstance(rules, RuleBook) else load_rules(rules))[0]


def _plan(graph: SymmetryGraph, book: RuleBook) -> tuple[tuple[Fold, ...], dict[str, str], dict[str, str]]:
    """Folds; gains that are kept, with the reason; and for each product that goes, the gain in it."""
    nodes = {node.name: node for node in graph.captured.graph.nodes}
    readers = {contraction.node: contraction for contraction in graph.contractions}
    folds, kept, products = [], {}, {}
    for slot in graph.captured.inputs:
        tensor = graph.tensors.get(slot.name)
        if slot.kind == "parameter" and tensor is not None and any(tensor.gains):
            found = _products(nodes[slot.node], book)
            fold = _fold(graph, tensor, found, readers, book) if found else "it is not the factor of a plain product"
            if isinstance(fold, str):
                kept[slot.name] = fold
            else:
                folds.append(fold)
                products |= {product.name: slot.node for product in found or ()}
    return tuple(folds), kept, products


@torch.no_grad()
def fold_state(folds: Iterable[Fold], state: Mapping[str, Tensor]) -> None:
    """Fold a state in place: canonical name -> tensor, of any model with the graph that the folds were found in.

    Gains that the state lacks (those of absent layers) are passed over.
    """
    folds = tuple(fold for fold in folds if fold.gain in state)
    for fold in folds:
        offset = sum((state[name] for name in fold.offsets), torch.zeros(()))
        for (name, dim), bias in zip(fold.into, fold.biases, strict=False):
            state[bias].add_((state[name] * _along(offset, state[name].dim(), dim)).sum(dim))
        for name in fold.offsets:
            state[name].zero_()
    for fold in folds:
        for name, dim in fold.into:
            state[name].mul_(_along(state[fold.gain], state[name].dim(), dim))
        state[fold.gain].fill_(1)


def _products(gain: fx.Node, book: RuleBook) -> list[fx.Node] | None:
    """The nodes that multiply an activation by the gain; None where something else is done with it."""
    found = []
    for user in gain.users:
        plain = user.target is torch.ops.aten.mul.Tensor and len(user.all_input_nodes) == 2
        if not plain and not any(_argument(user, name) is gain for name in book.gains(user.target)):
            return None
        found.append(user)
    return found


def _argument(node: fx.Node, name: str) -> object:
    names = [argument.name for argument in node.target._schema.arguments]  # pyright: ignore
    place = names.index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _fold(
    graph: SymmetryGraph,
    gain: TensorLabel,
    products: list[fx.Node],
    readers: Mapping[str, Contraction],
    book: RuleBook,
) -> Fold | str:
    """The weight dims that contract the product along the gain's dim, or why there is none."""
    dims = [dim for dim in gain.dims if dim_size(dim) > 1]
    if len(dims) != 1:
        return "it runs along several dims"
    names = {slot.node: slot.name for slot in graph.captured.inputs}
    found = [_argument(product, name) for product in products for name in book.offsets(product.target)]
    offsets = [node for node in found if isinstance(node, fx.Node)]
    into: dict[tuple[str, int], str | None] = {}
    for operand, user in (pair for product in products for pair in _uses(product, graph, dims[0], book)):
        reader = readers.get(user.name)
        if reader is None or reader.operand != operand.name:
            return f"its product is read by {user.name}, which has no weight of its own to take it"
        weight = graph.tensors[reader.weight]
        places = [d for d, dim in enumerate(weight.dims) if weight.consumed[d] and dim == dims[0]]
        if len(places) != 1:
            return f"{reader.weight} does not contract it along one dim"
        if offsets and (reader.bias is None or reader.kind == "convolution" or len(weight.shape) != 2):
            return f"what is added after it cannot go into a bias of {reader.node}"
        into[reader.weight, places[0]] = reader.bias
    if any(node.name not in names or len(node.users) > 1 for node in offsets):
        return "what is added after it is used elsewhere, too"
    biases = tuple(bias for bias in into.values() if bias is not None) if offsets else ()
    if len(set(biases)) != len(biases):
        return "its readers share a bias"
    return Fold(gain.name, tuple(into), tuple(dict.fromkeys(names[node.name] for node in offsets)), biases)


def _uses(node: fx.Node, graph: SymmetryGraph, dim: Dim, book: RuleBook) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What reads a value, seen through ops that treat each unit along a dim alike: copies, signs, views, means."""
    for user in node.users:
        if len(user.all_input_nodes) == 1 and _keeps_units(user, graph, dim, book):
            yield from _uses(user, graph, dim, book)
        else:
            yield node, user


def _keeps_units(node: fx.Node, graph: SymmetryGraph, dim: Dim, book: RuleBook) -> bool:
    """Whether an op is linear, maps a constant onto itself, and leaves a dim as it is."""
    located = book.entry(node.target)
    if located is not None and located.entry.pointwise is not None:
        return located.entry.pointwise.shared is SymmetryClass.LINEAR
    target, layout = node.target, graph.nodes.get(node.name)
    if not isinstance(target, OpOverload) or not isinstance(layout, tuple) or dim not in layout:
        return False
    views = any(result.alias_info is not None for result in target._schema.returns) and not target._schema.is_mutable
    return views or target is torch.ops.aten.mean.dim


def _along(gain: Tensor, rank: int, dim: int) -> Tensor:
    shape = [1] * rank
    shape[dim] = -1
    return gain.reshape(shape)


def _without(captured: Captured, products: Mapping[str, str], gains: set[str]) -> Captured:
    """The graph without the gains: plain products are their other operand, norms lose the argument."""
    graph, env = fx.Graph(), {}
    for node in captured.graph.nodes:
        gain = products.get(node.name)
        if gain is not None and node.target is torch.ops.aten.mul.Tensor:
            (other,) = (operand for operand in node.all_input_nodes if operand.name != gain)
            env[node] = env[other]
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
            env[node].name = node.name  # copying makes up another where Python has a word of that name
            if gain is not None:
                copied = env[node]
                copied.args = tuple(None if a is not None and a in _copies(env, gain) else a for a in copied.args)
                copied.kwargs = {k: None if a in _copies(env, gain) else a for k, a in copied.kwargs.items()}
    slots = tuple(slot for slot in captured.inputs if slot.name not in gains)
    for node in graph.find_nodes(op="placeholder"):
        if node.name not in {slot.node for slot in slots}:
            graph.erase_node(node)
    outputs = tuple(env[node].name for name in captured.outputs for node in captured.graph.nodes if node.name == name)
    return replace(captured, graph_module=fx.GraphModule(captured.graph_module, graph), inputs=slots, outputs=outputs)


def _copies(env: Mapping[fx.Node, fx.Node], name: str) -> list[fx.Node]:
    return [copied for node, copied in env.items() if node.name == name]
