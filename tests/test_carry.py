"""Maps applied to labelled tensors: against dense operators written out by hand, and what they must preserve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from graphfuse.axes import Case, Layout, Leaf, Sum
from graphfuse.carry import movable, transform
from graphfuse.maps import AxisMap, identity, proportional

HEADS, UNITS, ROWS, LAYER = Leaf(0, 3), Leaf(1, 4), Leaf(2, 5), Leaf(3, 2)
SIZES = {0: 3, 1: 4, 2: 5}


def plan(*shape: int) -> Tensor:
    """Positive couplings of mass 1 with uneven marginals."""
    value = torch.rand(shape, dtype=torch.float64) + 0.05
    return value / value.sum((-2, -1), keepdim=True)


def hard(*shape: int) -> Tensor:
    return torch.rand(shape).argsort(-1)


def operator(outer: AxisMap, inner: AxisMap, side: str) -> Tensor:
    """Rows (columns) of heads x units as one dense matrix, family members picked by pairs of heads."""
    o, i = (getattr(m, side)(torch.float64) for m in (outer, inner))
    blocks = o[:, :, None, None] * i
    return blocks.permute(0, 2, 1, 3).reshape(o.shape[0] * i.shape[2], o.shape[1] * i.shape[3])


def maps_of(kind: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[AxisMap, AxisMap]:
    (ha, ua), (hb, ub) = a, b
    outer = AxisMap(0, index=hard(ha)) if kind[0] == "h" else AxisMap(0, plan=plan(ha, hb))
    family = (ha, hb)
    inner = (
        AxisMap(1, (0,), index=hard(*family, ua)) if kind[1] == "h" else AxisMap(1, (0,), plan=plan(*family, ua, ub))
    )
    return outer, inner


@pytest.mark.parametrize("kind", ["hh", "hs", "sh", "ss"])
@pytest.mark.parametrize("consumed", [False, True])
def test_nested_maps_are_the_dense_operator(kind: str, consumed: bool) -> None:
    outer, inner = maps_of(kind, (3, 4), (3, 4))
    matrix = operator(outer, inner, "columns" if consumed else "rows")
    other = AxisMap(2, plan=plan(5, 5))
    source = torch.randn(12, 5, dtype=torch.float64)
    found = transform(source, ((HEADS, UNITS), (ROWS,)), (consumed, not consumed), {0: outer, 1: inner, 2: other})
    side = other.rows if consumed else other.columns
    assert_close(found, matrix @ source @ side(torch.float64).T, rtol=1e-10, atol=1e-10)


def test_nested_maps_between_widths_are_the_dense_operator() -> None:
    sizes = {0: 2, 1: 6}
    outer, inner = maps_of("ss", (3, 4), (2, 6))
    source = torch.randn(5, 12, dtype=torch.float64)
    found = transform(source, ((ROWS,), (HEADS, UNITS)), (False, True), {0: outer, 1: inner}, sizes)
    assert_close(found, source @ operator(outer, inner, "columns").T, rtol=1e-10, atol=1e-10)


def test_two_axes_that_depend_on_one_go_together() -> None:
    other = Leaf(4, 2)
    outer, inner = maps_of("ss", (3, 4), (3, 4))
    third = AxisMap(4, (0,), plan=plan(3, 3, 2, 2))
    source = torch.randn(3, 4, 2, dtype=torch.float64)
    found = transform(source, ((HEADS,), (UNITS,), (other,)), (False, False, True), {0: outer, 1: inner, 4: third})
    expected = torch.einsum(
        "xy,xyab,xycd,ybd->xac",
        outer.rows(torch.float64),
        inner.rows(torch.float64),
        third.columns(torch.float64),
        source,
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["h", "s"])
def test_chains_of_contexts(kind: str) -> None:
    layer = AxisMap(3, index=hard(2)) if kind == "h" else AxisMap(3, plan=plan(2, 2))
    heads = AxisMap(0, (3,), index=hard(2, 2, 3)) if kind == "h" else AxisMap(0, (3,), plan=plan(2, 2, 3, 3))
    units = AxisMap(1, (3, 0), plan=plan(2, 3, 2, 3, 4, 4))
    source = torch.randn(2, 12, dtype=torch.float64)
    found = transform(source, ((LAYER,), (HEADS, UNITS)), (False, False), {0: heads, 1: units, 3: layer})
    expected = torch.einsum(
        "lm,lmhk,lhmkab,mkb->lha", layer.rows(torch.float64), heads.rows(torch.float64), units.rows(torch.float64),
        source.view(2, 3, 4),
    )  # fmt: skip
    assert_close(found, expected.reshape(2, 12), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["h", "s"])
def test_a_map_may_differ_along_a_fixed_axis(kind: str) -> None:
    units = AxisMap(1, along=(3,), index=hard(2, 4)) if kind == "h" else AxisMap(1, along=(3,), plan=plan(2, 4, 4))
    source = torch.randn(4, 2, dtype=torch.float64)
    found = transform(source, ((UNITS,), (LAYER,)), (False, False), {1: units})
    assert_close(found, torch.einsum("lab,bl->al", units.rows(torch.float64), source), rtol=1e-10, atol=1e-10)


def test_an_axis_on_both_sides_of_a_matrix_has_rows_on_one_and_columns_on_the_other() -> None:
    outer, inner = maps_of("ss", (3, 4), (3, 4))
    source = torch.randn(12, 12, dtype=torch.float64)
    found = transform(source, ((HEADS, UNITS), (HEADS, UNITS)), (False, True), {0: outer, 1: inner})
    expected = operator(outer, inner, "rows") @ source @ operator(outer, inner, "columns").T
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_blocks_and_cases_are_moved_one_by_one() -> None:
    skip, up = Leaf(0, 2), Leaf(1, 3)
    dims: Layout = ((Sum(((skip,), (up,))),), (Case(((skip, (Leaf(2, 4),)), (up, (Leaf(3, 4),)))),))
    maps = {0: AxisMap(0, index=hard(2)), 3: AxisMap(3, index=hard(4))}
    source = torch.randn(5, 4)
    expected = torch.cat([source[:2][maps[0].values], source[2:][:, maps[3].values]])
    assert_close(transform(source, dims, (False, True), maps), expected, rtol=0, atol=0)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_rows_are_convex_combinations_and_columns_share_out_in_full(n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    for found in (proportional(0, n, m), AxisMap(0, plan=plan(n, m))):
        assert_close(found.rows(torch.float64).sum(-1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-6)
        assert_close(found.columns(torch.float64).sum(-2), torch.ones(m, dtype=torch.float64), rtol=0, atol=1e-6)
        assert float(found.coupling().sum()) == pytest.approx(1, abs=1e-6)


def test_the_proportional_coupling_keeps_the_order_with_uniform_marginals() -> None:
    found = proportional(0, 2, 3).coupling()
    assert_close(found, torch.tensor([[4, 2, 0], [0, 2, 4]]) / 12, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["h", "s"])
def test_the_dtype_is_kept(dtype: torch.dtype, kind: str) -> None:
    found = AxisMap(1, index=hard(4)) if kind == "h" else AxisMap(1, plan=plan(4, 4))
    assert transform(torch.randn(4, 5).to(dtype), ((UNITS,), (ROWS,)), (False, False), {1: found}).dtype == dtype


def test_what_has_no_map_is_returned_as_it_is() -> None:
    source = torch.randn(4, 5)
    assert transform(source, ((UNITS,), (ROWS,)), (False, False), {}) is source


def test_a_map_without_its_context_is_refused_unless_that_has_one_element() -> None:
    _, inner = maps_of("ss", (3, 4), (3, 4))
    assert not movable(((UNITS,),), {1: inner})
    with pytest.raises(ValueError, match=r"the map of axis 1 depends on axes \(0, 0\)"):
        transform(torch.randn(4), ((UNITS,),), (False,), {1: inner})
    single = AxisMap(1, (0,), index=hard(1, 1, 4))
    source = torch.randn(4)
    assert movable(((UNITS,),), {1: single})
    assert_close(transform(source, ((UNITS,),), (False,), {1: single}), source[single.values[0, 0]], rtol=0, atol=0)


def test_a_map_is_either_hard_or_a_plan_of_the_right_rank() -> None:
    with pytest.raises(ValueError, match="one of a plan, an index and a matrix"):
        AxisMap(0)
    with pytest.raises(ValueError, match="a map of 2 dims, expected 4"):
        AxisMap(0, (1,), plan=torch.rand(3, 3))
    assert identity(0, 3).hard
