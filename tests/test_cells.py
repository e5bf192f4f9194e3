"""Cells cover every labelled tensor exactly once, and in lockstep for tensors of different sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from graphfuse.axes import Case, Dim, Layout, Leaf, Sum
from graphfuse.cells import cells, shape_of


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Mapping[int, int]]:
    """A random layout of products, sums and cases on earlier sums, and other sizes for all its axes."""
    numbers = itertools.count()

    def leaf() -> Leaf:
        return Leaf(next(numbers), draw(st.integers(1, 3)))

    def product() -> Dim:
        return tuple(leaf() for _ in range(draw(st.integers(1, 2))))

    dims: list[Dim] = []
    keys: list[Leaf] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["one", "product", "sum", "case"]))
        if kind == "one":
            dims.append(())
        elif kind == "sum":
            parts = tuple(product() for _ in range(draw(st.integers(2, 3))))
            keys = [part[0] for part in parts if isinstance(part[0], Leaf)]
            dims.append((leaf(), Sum(parts)) if draw(st.booleans()) else (Sum(parts),))
        elif kind == "case" and keys:
            size = draw(st.integers(1, 3))
            branches = tuple((key, (Leaf(next(numbers), size),)) for key in keys)
            dims.insert(draw(st.integers(0, len(dims))), (Case(branches),))
            keys = []
        else:
            dims.append(product())
    cased = {branch[0].id for dim in dims for f in dim if isinstance(f, Case) for _, branch in f.branches
             if isinstance(branch[0], Leaf)}  # fmt: skip
    same = draw(st.integers(1, 3))
    return tuple(dims), {id: same if id in cased else draw(st.integers(1, 3)) for id in range(next(numbers))}


@given(layouts())
def test_cells_cover_each_element_once_and_agree_across_sizes(case: tuple[Layout, Mapping[int, int]]) -> None:
    dims, sizes = case
    first, second = torch.zeros(shape_of(dims, {})), torch.zeros(shape_of(dims, sizes))
    for cell in cells((first, second), dims, ({}, sizes)):
        assert len(cell.axes) == len(cell.origin) == cell.views[0].dim() == cell.views[1].dim()
        assert cell.present == set(cell.axes)
        assert [cell.views[1].shape[d] for d in range(len(cell.axes))] == [sizes[axis] for axis in cell.axes]
        for view in cell.views:
            view += 1
    assert_close(first, torch.ones_like(first), rtol=0, atol=0)
    assert_close(second, torch.ones_like(second), rtol=0, atol=0)


def test_a_product_is_row_major_and_knows_the_dim_it_came_from() -> None:
    heads, units, row = Leaf(0, 2), Leaf(1, 3), Leaf(2, 5)
    tensor = torch.arange(30.0).view(6, 5)
    (cell,) = cells((tensor,), ((heads, units), (row,)))
    assert cell.axes == (0, 1, 2)
    assert cell.origin == (0, 0, 1)
    assert_close(cell.views[0], tensor.view(2, 3, 5), rtol=0, atol=0)


def test_a_case_takes_the_branch_of_the_block_chosen() -> None:
    skip, up = Leaf(0, 1), Leaf(1, 2)
    dims: Layout = ((Case(((skip, (Leaf(2, 4),)), (up, (Leaf(3, 4),)))),), (Sum(((skip,), (up,))),))
    found = [(cell.axes, tuple(cell.views[0].shape)) for cell in cells((torch.zeros(4, 3),), dims)]
    assert found == [((2, 0), (4, 1)), ((3, 1), (4, 2))]


def test_a_leaf_of_size_one_standing_alone_is_an_axis_that_others_can_depend_on() -> None:
    alone, rest = Leaf(0, 1), Leaf(1, 2)
    found = [cell.present for cell in cells((torch.zeros(3),), ((Sum(((alone,), (rest,))),),))]
    assert found == [{0}, {1}]


def test_a_number_has_one_cell_without_axes() -> None:
    (cell,) = cells((torch.tensor(3.0),), ())
    assert cell.axes == ()
    assert float(cell.views[0]) == 3


def test_a_tensor_of_another_shape_is_refused_with_its_label() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\) \[a0:4\]"):
        list(cells((torch.zeros(3),), ((Leaf(0, 4),),)))


def test_a_case_without_its_block_is_refused() -> None:
    dims: Layout = ((Case(((Leaf(7, 2), (Leaf(1, 3),)),)),),)
    with pytest.raises(ValueError, match="no case fits"):
        list(cells((torch.zeros(3),), dims))
