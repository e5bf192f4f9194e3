"""Axes and dims: the vocabulary in which graphfuse labels tensors.

An *axis* is an ordered index set. A *dim* (the label of one tensor dimension) is an expression over axes, written
as a tuple of factors, row-major, outermost first:

- a :class:`Leaf` is one axis;
- a tuple of several factors is their product (``768 = heads 12 x head_dim 64``);
- a :class:`Sum` is a concatenation of blocks (``skip + up``);
- a :class:`Case` is a dim whose label depends on the block of another dim of the same tensor.

Everything here is frozen; :mod:`graphfuse.algebra` holds what labelling learns about axes while it runs.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace


class SymmetryClass(enum.IntFlag):
    """The largest group of maps that an axis may admit; the meet of two classes is their bitwise ``&``."""

    PERMUTATION = 0
    SIGNED = 1  # permutations with signs: odd functions
    SCALING = 2  # permutations with positive scales: ReLU
    MONOMIAL = 3  # permutations with any non-zero scales
    CENTRED = 4  # rotations that keep the sum: layer norms without elementwise gain
    ORTHOGONAL = 5  # rotations: root-mean-square norms without elementwise gain
    LINEAR = 7  # any invertible map: pure contractions

    def __str__(self) -> str:
        return (self.name or "permutation").lower()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One axis where it occurs: its number within a labelling, how many elements it has, and its variance.

    A map g of the axis acts by g where the occurrence is not ``dual``, by the inverse transpose of g where it is: on
    the two sides of a contraction, so that x . w stays. For permutations both are the same, so equality ignores it.
    """

    id: int
    size: int
    dual: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Sum:
    """Blocks laid end to end, as ``torch.cat`` makes them."""

    parts: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A dim whose label depends on which block of another dim is looked at.

    ``branches`` pairs a key (a leaf of the other dim) with the dim that holds inside that block.
    """

    branches: tuple[tuple[Leaf, Dim], ...]


Factor = Leaf | Sum | Case
Dim = tuple[Factor, ...]
Layout = tuple[Dim, ...]
"""The label of a whole tensor: one dim for each of its dimensions."""


def factor_size(factor: Factor) -> int:
    """Number of elements along one factor."""
    match factor:
        case Leaf():
            return factor.size
        case Sum():
            return sum(dim_size(part) for part in factor.parts)
        case Case():
            return dim_size(factor.branches[0][1])


def dim_size(dim: Dim) -> int:
    """Number of elements along a dim: the product over its factors."""
    return math.prod(factor_size(factor) for factor in dim)


def walk_leaves(dim: Dim) -> Iterator[Leaf]:
    """Every leaf that a dim names, in row-major order, repeats included (case keys are not part of the dim)."""
    for factor in dim:
        match factor:
            case Leaf():
                yield factor
            case Sum():
                for part in factor.parts:
                    yield from walk_leaves(part)
            case Case():
                for _, branch in factor.branches:
                    yield from walk_leaves(branch)


def dualised(dim: Dim) -> Dim:
    """The same dim with the variance of every axis turned round: the other side of a contraction."""
    return tuple(_turned(factor) for factor in dim)


def _turned(factor: Factor) -> Factor:
    match factor:
        case Leaf():
            return replace(factor, dual=not factor.dual)
        case Sum():
            return Sum(tuple(dualised(part) for part in factor.parts))
        case Case():
            return Case(tuple((key, dualised(branch)) for key, branch in factor.branches))


def render(dim: Dim) -> str:
    """A dim in the notation of the documentation: ``a3:12 x a4:64``, ``(a1:8 + a2:16)``, ``{a1: a5:4 | a2: a6:4}``."""
    if not dim:
        return "1"
    words: list[str] = []
    for factor in dim:
        match factor:
            case Leaf():
                words.append(f"a{factor.id}{chr(39) * factor.dual}:{factor.size}")
            case Sum():
                words.append("(" + " + ".join(render(part) for part in factor.parts) + ")")
            case Case():
                words.append("{" + " | ".join(f"a{key.id}: {render(dim)}" for key, dim in factor.branches) + "}")
    return " x ".join(words)
