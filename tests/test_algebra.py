"""The axis algebra: what each relation refines, and that a context never outlives the axis it runs along."""

from __future__ import annotations

import pytest

from graphfuse.algebra import Algebra, Mismatch
from graphfuse.axes import Case, Dim, Leaf, Sum, dim_size


@pytest.fixture
def algebra() -> Algebra:
    return Algebra()


def leaf_of(dim: Dim) -> Leaf:
    (factor,) = dim
    assert isinstance(factor, Leaf)
    return factor


def test_unified_axes_share_reasons_and_contexts(algebra: Algebra) -> None:
    a, b = algebra.new(4), algebra.new(4, "input")
    algebra.unify(a, b)
    assert algebra.norm(a) == algebra.norm(b)
    assert algebra.is_fixed(a)


def test_sizes_that_differ_fix_both(algebra: Algebra) -> None:
    a, b = algebra.new(4), algebra.new(6)
    algebra.unify(a, b)
    assert [r.why for dim in (a, b) for r in algebra.reasons(leaf_of(dim))] == ["mismatch", "mismatch"]


def test_a_reshape_splits_an_axis_into_a_product(algebra: Algebra) -> None:
    (wide,) = algebra.fresh((12,))
    heads, inner = algebra.regroup((wide,), (3, 4))
    assert (dim_size(heads), dim_size(inner)) == (3, 4)
    assert algebra.norm(wide) == heads + inner


def test_a_reshape_that_fits_no_product_fixes(algebra: Algebra) -> None:
    a, b = algebra.fresh((4, 3))
    (merged,) = algebra.regroup((a, b), (12,))
    algebra.regroup((merged,), (3, 4))
    assert algebra.is_fixed(a)


def test_selecting_from_a_product_gives_each_block_its_own_axes(algebra: Algebra) -> None:
    """768 = 3 x heads x dim: after q is taken, heads of q and of k are different axes."""
    (fused,) = algebra.fresh((24,))
    three, heads, inner = algebra.regroup((fused,), (3, 4, 2))
    blocks = [algebra.select((three, heads, inner), 0, i) for i in range(3)]
    assert len({algebra.norm(block[0]) for block in blocks}) == 3
    (total,) = algebra.norm(fused)
    assert isinstance(total, Sum)
    assert len(total.parts) == 3


def test_one_position_cut_out_of_a_block_of_rows_has_size_one(algebra: Algebra) -> None:
    (wide,) = algebra.fresh((24,))
    algebra.regroup((wide,), (12, 2))
    algebra.slice(wide, 12, 14)
    assert [dim_size(algebra.slice(wide, at, at + 1)) for at in (1, 16, 13)] == [1, 1, 1]
    assert algebra.is_fixed(algebra.slice(wide, 0, 12))


def test_a_slice_cuts_an_axis_into_blocks(algebra: Algebra) -> None:
    (wide,) = algebra.fresh((10,))
    (head,) = algebra.narrow((wide,), 0, 0, 4)
    (total,) = algebra.norm(wide)
    assert isinstance(total, Sum)
    assert [dim_size(part) for part in total.parts] == [4, 6]
    assert total.parts[0] == algebra.norm(head)


def test_equal_halves_become_one_axis(algebra: Algebra) -> None:
    """A gated unit: both halves of the projection are multiplied, unit by unit."""
    (wide,) = algebra.fresh((10,))
    (low,), (high,) = algebra.narrow((wide,), 0, 0, 5), algebra.narrow((wide,), 0, 5, 10)
    algebra.unify(low, high)
    (total,) = algebra.norm(wide)
    assert isinstance(total, Sum)
    assert total.parts[0] == total.parts[1]


def test_joined_blocks_keep_the_labels_of_other_dims_apart(algebra: Algebra) -> None:
    a, b = algebra.fresh((3, 7)), algebra.fresh((2, 7))
    rows, columns = algebra.join([a, b], 0)
    assert dim_size(rows) == 5
    (case,) = columns
    assert isinstance(case, Case)
    assert algebra.narrow((rows, columns), 0, 3, 5) == algebra.norm_all(b)


def test_a_context_needs_its_axis_in_every_tensor(algebra: Algebra) -> None:
    heads, inner = algebra.fresh((3, 4))
    assert algebra.context(leaf_of(inner)) == {leaf_of(heads)}
    algebra.limit((inner,))
    assert algebra.context(leaf_of(inner)) == frozenset()


def test_mixing_along_an_axis_takes_it_out_of_contexts(algebra: Algebra) -> None:
    heads, inner = algebra.fresh((3, 4))
    algebra.separate((heads, inner), heads)
    assert algebra.context(leaf_of(inner)) == frozenset()
    assert algebra.context(leaf_of(heads)) == {leaf_of(inner)}


def test_contexts_of_unified_axes_are_met(algebra: Algebra) -> None:
    heads, inner = algebra.fresh((3, 4))
    gain = algebra.new(4)  # one gain for all heads
    algebra.unify(inner, gain)
    assert algebra.context(leaf_of(algebra.norm(inner))) == frozenset()
    assert not algebra.is_fixed(heads)


def test_mutual_contexts_leave_the_smaller_axis_outside(algebra: Algebra) -> None:
    inner, heads = algebra.fresh((4, 3))
    algebra.order_contexts(algebra.layout_leaves((inner, heads)))
    assert algebra.context(leaf_of(inner)) == {leaf_of(heads)}
    assert algebra.context(leaf_of(heads)) == frozenset()


def test_take_refuses_what_no_refinement_gives(algebra: Algebra) -> None:
    with pytest.raises(Mismatch):
        algebra.take(algebra.new(10), 4)


def test_blocks_of_size_one_stay_keys(algebra: Algebra) -> None:
    """Two layers' states stacked: unifying with a fresh tensor keeps one hidden axis for each layer."""
    h1, h2 = algebra.new(10), algebra.new(10)
    state = algebra.join([((), h1), ((), h2)], 0)
    zeros = algebra.fresh((2, 10))
    algebra.broadcast([state, zeros])
    assert algebra.norm(h1) != algebra.norm(h2)
    assert algebra.narrow(zeros, 0, 1, 2)[1] == algebra.norm(h2)


def test_normal_form_distributes_products_over_sums(algebra: Algebra) -> None:
    a, b, c = algebra.new(2), algebra.new(3), algebra.new(5)
    (total,) = algebra.norm((Sum((a, b)), leaf_of(c)))
    assert isinstance(total, Sum)
    assert total.parts == (a + c, b + c)
