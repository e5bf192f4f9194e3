"""What a rule sees of one graph node, and what it answers.

A rule is a function from an :class:`Op` to the label of the op's output (a list of labels for an op with several
outputs). It relates dims by calling the algebra; it never looks at the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from graphfuse.algebra import Algebra, Held
from graphfuse.axes import Dim, Layout, Leaf, SymmetryClass, dim_size
from graphfuse.errors import RuleError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Label:
    """The label of one tensor.

    ``points`` is the dim that the tensor's integer values index into (None: they index nothing known). ``held`` names
    axes that are not dims of this tensor but whose rows it was gathered from, so that contexts along them survive.
    ``value`` is the tensor itself where it depends on constants alone; ``is_mask`` marks booleans. ``uniform`` names
    the axes along which all its elements are equal, as they are along a broadcast dim. ``squared`` marks squares of
    which only sums are taken, so that rotations of what is summed are kept.

    For rows that are dispatched to members of an axis (tokens to experts): ``token`` names one set of values that point
    into it, in whatever order; ``counts`` says that the tensor counts the values of that set, ``offsets`` that it holds
    their running total; ``bijection`` that every position it points to occurs once.
    """

    dims: Layout
    points: Dim | None = None
    held: Mapping[Leaf, Held] = field(default_factory=dict)
    value: torch.Tensor | None = None
    is_mask: bool = False
    uniform: frozenset[Leaf] = frozenset()
    squared: bool = False
    token: int | None = None
    counts: int | None = None
    offsets: int | None = None
    bijection: bool = False

    @property
    def shape(self) -> Shape:
        """Size of every dim."""
        return tuple(dim_size(dim) for dim in self.dims)

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.dims)


Rule = Callable[["Op"], "Label | list[Label]"]


@dataclass(frozen=True)
class Op:
    """One node, as its rule sees it.

    ``args`` binds the op's schema: every argument by name, defaults filled in, each tensor replaced by its label.
    ``shapes`` are the shapes of the outputs (one for each tensor that the op returns; None for a non-tensor).
    """

    name: str
    algebra: Algebra
    args: Mapping[str, Any]
    shapes: tuple[Shape | None, ...]
    several: bool = False
    consumed: set[tuple[str, int]] = field(default_factory=set)
    factors: set[tuple[str, int]] = field(default_factory=set)

    @property
    def shape(self) -> Shape:
        """Shape of the first (often the only) output."""
        shape = self.shapes[0]
        if shape is None:
            raise RuleError(f"{self.name}: its first output is no tensor, so no shape is known")
        return shape

    def label(self, name: str) -> Label:
        """The label of a tensor argument; RuleError when the argument is no tensor."""
        value = self.args.get(name)
        if not isinstance(value, Label):
            raise RuleError(f"{self.name}: argument {name!r} is {type(value).__name__}, not a tensor")
        return value

    def labels(self) -> Iterator[Label]:
        """Every tensor argument in schema order, those inside lists included."""
        for value in self.args.values():
            yield from _labels_in(value)

    def get(self, name: str, default: Any = None) -> Any:
        """A non-tensor argument by name, ``default`` when it is absent or None."""
        value = self.args.get(name)
        return default if value is None else value

    def axis_of(self, name: str, rank: int, default: int | None = None) -> int:
        """A dim number among the arguments, counted from the front."""
        value = self.args.get(name)
        value = default if value is None else value
        if not isinstance(value, int):
            raise RuleError(f"{self.name}: argument {name!r} is {value!r}, not a dim number known when tracing")
        return value + rank if value < 0 else value

    def ranked(self, x: Label, d: int) -> Dim:
        """A dim about to be ranked by value, for an index that points into it: where all values tie, order decides."""
        if self.algebra.leaves(x.dims[d]) & self.algebra.leaves(tuple(x.uniform)):
            self.algebra.fix(x.dims[d], "ties")
        return x.dims[d]

    def fix_values(self, *labels: Label) -> None:
        """Integer values are used as numbers, not as an index: the axis that they point into is fixed."""
        for label in labels:
            if label.points is not None:
                self.algebra.fix(label.points, "index arithmetic")

    def together(self, dims: Iterable[Dim]) -> None:
        """All these dims meet inside the op, before any is summed away.

        An axis may differ only along those that occur in one other dim (of rows and columns that are one axis it is
        open which is meant), or that rows were gathered from.
        """
        self.algebra.limit(dims, [axis for label in self.labels() for axis in label.held])

    def permutes(self, *labels: Label) -> None:
        """The op is not linear in these tensors: along all of their axes only permutations are kept."""
        for label in labels:
            self.algebra.meet(tuple(factor for dim in label.dims for factor in dim), SymmetryClass.PERMUTATION)

    def consume(self, name: str, dim: int) -> None:
        """Record that the op contracts dimension ``dim`` of argument ``name`` away."""
        self.consumed.add((name, dim))

    def factor(self, name: str, dim: int) -> None:
        """Record that argument ``name`` multiplies the other elementwise along its dimension ``dim``: it may be a gain,
        which stays as it is when the other is scaled."""
        self.factors.add((name, dim))


def _labels_in(value: Any) -> Iterator[Label]:
    if isinstance(value, Label):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _labels_in(item)
