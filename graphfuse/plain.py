"""Layouts as plain values that JSON can hold, and back."""

from __future__ import annotations

from typing import Any

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum


def layout_out(dims: Layout) -> list[Any]:
    """One list a dim: a leaf is [id, size, dual], a sum {"sum": [dims]}, a case {"case": [[id, size, dim], ...]}."""
    return [_dim_out(dim) for dim in dims]


def layout_in(words: list[Any]) -> Layout:
    """What :func:`layout_out` was given.

    Examples
    --------
    >>> dims = ((Leaf(0, 2), Sum(((Leaf(1, 3),), (Leaf(2, 1),)))),)
    >>> layout_out(dims)
    [[[0, 2, False], {'sum': [[[1, 3, False]], [[2, 1, False]]]}]]
    >>> layout_in(layout_out(dims)) == dims
    True
    """
    return tuple(_dim_in(dim) for dim in words)


def _dim_out(dim: Dim) -> list[Any]:
    words: list[Any] = []
    for factor in dim:
        match factor:
            case Leaf():
                words.append([factor.id, factor.size, factor.dual])
            case Sum():
                words.append({"sum": [_dim_out(part) for part in factor.parts]})
            case Case():
                words.append({"case": [[key.id, key.size, _dim_out(branch)] for key, branch in factor.branches]})
    return words


def _dim_in(words: list[Any]) -> Dim:
    def factor(word: Any) -> Factor:
        if isinstance(word, list):
            return Leaf(*word)
        if "sum" in word:
            return Sum(tuple(_dim_in(part) for part in word["sum"]))
        return Case(tuple((Leaf(id, size), _dim_in(branch)) for id, size, branch in word["case"]))

    return tuple(factor(word) for word in words)
