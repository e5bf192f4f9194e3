"""Maps of axes acting on the tensors of one op call, for the self-check of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphfuse.algebra import Algebra
from graphfuse.axes import Layout, Leaf, SymmetryClass
from graphfuse.errors import RuleError
from graphfuse.maps import keeping_sum
from graphfuse.rulebook.examples import Call
from graphfuse.rulebook.match import labels_of
from graphfuse.rulebook.op import Label, Op, Rule


@dataclass(frozen=True)
class Place:
    """One occurrence of an axis: a tensor of the call, and the position among the leaves of its label."""

    tensor: str
    position: int
    leaf: Leaf
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True)
class LabelledCall:
    """A call, its tensors (outputs are called ``output 0``, ...), and their labels, all products of leaves."""

    call: Call
    algebra: Algebra
    tensors: Mapping[str, Tensor]
    leaves: Mapping[str, tuple[Leaf, ...]]
    places: tuple[Place, ...]
    factors: frozenset[tuple[str, int]] = frozenset()

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [name for name in self.tensors if is_output(name)]

    def free(self) -> list[Leaf]:
        """The axes that the rule leaves free."""
        return [leaf for leaf in self.axes() if not self.algebra.reasons(leaf)]

    def axes(self) -> list[Leaf]:
        """Every axis of the call."""
        return list(dict.fromkeys(place.leaf for place in self.places))

    def at(self, leaf: Leaf) -> frozenset[Place]:
        """Where an axis occurs."""
        return frozenset(place for place in self.places if place.leaf == leaf)

    def commutes(self, act: Callable[[str, Tensor], Tensor], equal_nan: bool = True) -> bool:
        """Whether acting on the inputs gives the outputs acted on."""
        moved = {name: act(name, tensor) for name, tensor in self.tensors.items()}
        try:
            got = self.call.run({name: tensor for name, tensor in moved.items() if not is_output(name)})
        except RuntimeError:
            return False
        return all(
            _close(answer, moved[name], equal_nan)
            for name, answer in zip(self.outputs, (t for t in got if isinstance(t, Tensor)), strict=True)
        )


def is_output(name: str) -> bool:
    """Whether a tensor of a labelled call is one of the op's outputs."""
    return name.startswith("output ")


def labelled(call: Call, rule: Rule) -> LabelledCall:
    """Run a call, and label it from fresh inputs as the labeller would.

    Raises
    ------
    RuleError
        When the rule gives labels that do not fit the outputs.
    """
    algebra = Algebra()
    inputs = call.tensors

    def fresh(value: Any) -> Any:
        if isinstance(value, list):
            return [fresh(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        return Label(algebra.fresh(value.shape), is_mask=value.dtype == torch.bool)

    args = {name: fresh(value) for name, value in call.arguments.items()}
    results = call.run()
    shapes = tuple(tuple(value.shape) if isinstance(value, Tensor) else None for value in results)
    several = len(call.op._schema.returns) != 1 or "[]" in str(call.op._schema.returns[0].type)
    op = Op(str(call.op), algebra, args, shapes, several)
    answer = rule(op)
    labels = answer if isinstance(answer, list) else [answer]
    named = (pair for name, value in args.items() for pair in labels_of(name, value))
    layouts: dict[str, Layout] = {name: label.dims for name, label in named}
    tensors = dict(inputs)
    for k, (label, value) in enumerate(zip(labels, results, strict=True)):
        if isinstance(value, Tensor):
            if label.shape != tuple(value.shape):
                raise RuleError(f"output {k} has shape {tuple(value.shape)}, its label says {label.shape}")
            tensors[f"output {k}"], layouts[f"output {k}"] = value, label.dims
    for _ in range(3):
        layouts = {name: algebra.limit(layout) for name, layout in layouts.items()}
    places = tuple(_places(layouts))
    leaves = {name: tuple(place.leaf for place in places if place.tensor == name) for name in tensors}
    return LabelledCall(call, algebra, tensors, leaves, places, frozenset(op.factors))


def _places(layouts: Mapping[str, Layout]) -> Iterable[Place]:
    for name, layout in layouts.items():
        position = 0
        for d, dim in enumerate(layout):
            for factor in dim:
                if not isinstance(factor, Leaf):
                    raise RuleError(f"{name}: dim {d} is labelled as blocks, which the self-check cannot permute")
                yield Place(name, position, factor, d)
                position += 1


# -------------------------------------------------------------------- permutations


@dataclass(frozen=True)
class Nested:
    """A permutation of one axis for each index of the axes in ``context``; ``table`` has shape (\\*context, size)."""

    context: tuple[Leaf, ...]
    table: Tensor


def sample(call: LabelledCall, leaves: Sequence[Leaf], generator: torch.Generator) -> list[dict[Leaf, Nested]]:
    """Random permutations of these axes, differing along their contexts.

    Of two axes that may each differ along the other, the one is the outer in the first sample, the other in the second.
    """
    order = [leaves[i] for i in torch.randperm(len(leaves), generator=generator).tolist()]
    samples: list[dict[Leaf, Nested]] = []
    for outer_first in (order, order[::-1]):
        maps: dict[Leaf, Nested] = {}
        for leaf in outer_first:
            context = (key for key in call.algebra.context(leaf) if key in maps or key not in leaves)
            maps[leaf] = nested(leaf, (key for key in context if key.size > 1), generator)
        samples.append(maps)
    return samples


def nested(leaf: Leaf, context: Iterable[Leaf], generator: torch.Generator) -> Nested:
    """A random permutation of an axis for each index of its context."""
    keys = tuple(sorted(context, key=lambda key: key.id))
    noise = torch.rand(*(key.size for key in keys), leaf.size, generator=generator)
    return Nested(keys, noise.argsort(dim=-1))


def permute(call: LabelledCall, maps: Mapping[Leaf, Nested]) -> Callable[[str, Tensor], Tensor]:
    """The action of permutations on every tensor of a call."""

    def act(name: str, tensor: Tensor) -> Tensor:
        leaves = call.leaves[name]
        if not any(leaf in maps for leaf in leaves):
            return tensor
        view = tensor.reshape([leaf.size for leaf in leaves])
        here = torch.meshgrid(*(torch.arange(leaf.size) for leaf in leaves), indexing="ij")
        coordinate = dict(zip(leaves, here, strict=True))
        there = []
        for leaf, old in zip(leaves, here, strict=True):
            if leaf in maps:
                there.append(maps[leaf].table[(*(coordinate[key] for key in maps[leaf].context), old)])
            else:
                there.append(old)
        moved = torch.empty_like(view)
        moved[tuple(there)] = view
        return moved.reshape(tensor.shape)

    return act


def shuffle(call: LabelledCall, places: Iterable[Place], order: Tensor) -> Callable[[str, Tensor], Tensor]:
    """The same permutation at some places, whatever their labels say."""
    chosen: dict[str, list[int]] = {}
    for place in places:
        chosen.setdefault(place.tensor, []).append(place.position)

    def act(name: str, tensor: Tensor) -> Tensor:
        view = tensor.reshape([leaf.size for leaf in call.leaves[name]])
        for position in chosen.get(name, ()):
            view = view.index_select(position, order)
        return view.reshape(tensor.shape)

    return act


# -------------------------------------------------------------------- larger classes


def matrix(symmetry: SymmetryClass, size: int, generator: torch.Generator) -> Tensor:
    """A random element of a symmetry class, its permutation left out."""
    normal = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    signs, scales = normal[0].diag().sign(), normal[1].diag().exp()
    match symmetry:
        case SymmetryClass.SIGNED:
            signs[0] = -1
            return torch.diag(signs)
        case SymmetryClass.SCALING:
            return torch.diag(scales)
        case SymmetryClass.MONOMIAL:
            return torch.diag(signs * scales)
        case SymmetryClass.CENTRED:
            return keeping_sum(torch.linalg.qr(normal[0][1:, 1:]).Q)
        case SymmetryClass.ORTHOGONAL:
            return torch.linalg.qr(normal[0]).Q
        case SymmetryClass.LINEAR:
            return torch.linalg.qr(normal[0]).Q @ torch.diag(scales) @ torch.linalg.qr(normal[1]).Q
    return torch.eye(size, dtype=torch.float64)


def transform(call: LabelledCall, leaf: Leaf, g: Tensor) -> Callable[[str, Tensor], Tensor]:
    """A linear map on every tensor that holds an axis, its inverse transpose on the second one of a contraction.

    Integers and truth values can only be permuted, so they stay as they are; so does the gain of a product.
    """
    gains = [place.tensor for place in call.places if place.leaf == leaf and (place.tensor, place.dim) in call.factors]
    holders = list(dict.fromkeys(place.tensor for place in call.places if place.leaf == leaf))
    dual = None if any(map(is_output, holders)) else holders[-1]

    def act(name: str, tensor: Tensor) -> Tensor:
        if name not in holders or name in gains[-1:] or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        own = torch.linalg.inv(g).T if name == dual and len(holders) > 1 else g
        view = tensor.reshape([leaf.size for leaf in call.leaves[name]])
        for position, other in enumerate(call.leaves[name]):
            if other == leaf:
                view = (view.movedim(position, -1) @ own.to(view.dtype).T).movedim(-1, position)
        return view.reshape(tensor.shape)

    return act


def _close(got: Tensor, wanted: Tensor, equal_nan: bool) -> bool:
    if got.shape != wanted.shape or not (got.is_floating_point() or got.is_complex()):
        return torch.equal(got, wanted)
    tight = got.dtype in (torch.float64, torch.complex128)
    scale = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 1.0
    return torch.allclose(got, wanted, rtol=1e-8 if tight else 1e-4, atol=scale * (1e-10 if tight else 1e-5),
                          equal_nan=equal_nan)  # fmt: skip
