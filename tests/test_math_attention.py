"""Attention in all its shapes: which axes are free, inside what, counted by hand on minimal models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mathematics import Net, check, shapes, weight
from torch import Tensor, nn

import graphfuse

WIDTH, HEADS, DIM = 10, 3, 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tokens(length: int = 6, width: int = 5) -> Tensor:
    return torch.randn(2, length, width)


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    """[b, t, h d] -> [b, h, t, d]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


def attention(forward, qk: int = HEADS * DIM, v: int = HEADS * 7, **parts: nn.Module | nn.Parameter) -> Net:
    """inp -> q, k, v -> ``forward`` -> out -> end, with a key width of 4 and a value width of 7 for each of 3 heads."""
    return Net(
        forward, inp=nn.Linear(5, WIDTH), q=nn.Linear(WIDTH, qk), k=nn.Linear(WIDTH, qk), v=nn.Linear(WIDTH, v),
        out=nn.Linear(v, WIDTH), end=nn.Linear(WIDTH, 2), **parts,
    )  # fmt: skip


FULL = {(10, ()): 1, (3, ()): 1, (4, (3,)): 1, (7, (3,)): 1}
"""The residual axis, the heads, and in each head the key and the value units."""
ROTATED = {(10, ()): 1, (3, ()): 1, (7, (3,)): 1}
"""The same where positions are rotated into queries and keys, which fixes the key units."""


def test_each_head_may_have_its_own_inner_permutation() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = attend(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)))
        return s.end(x + s.out(merged(y)))

    check(attention(forward), tokens(), expect=FULL)


def test_fused_attention_is_the_same() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = F.scaled_dot_product_attention(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)))
        return s.end(x + s.out(merged(y)))

    check(attention(forward), tokens(), expect=FULL)


@pytest.mark.parametrize("how", ["repeat", "expand", "gqa", "einsum"])
def test_grouped_queries_move_inside_their_key_head(how: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        q, k, v = heads(s.q(x), 6), heads(s.k(x), 2), heads(s.v(x), 2)
        if how == "repeat":
            y = attend(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
        elif how == "expand":
            k, v = (z[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for z in (k, v))
            y = attend(q, k, v)
        elif how == "gqa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            q = q.unflatten(1, (2, 3))
            a = torch.einsum("bgqtd,bgsd->bgqts", q, k).softmax(-1)
            y = torch.einsum("bgqts,bgsv->bgqtv", a, v).flatten(1, 2)
        return s.end(x + s.out(merged(y)))

    model = Net(
        forward, inp=nn.Linear(5, WIDTH), q=nn.Linear(WIDTH, 24), k=nn.Linear(WIDTH, 8), v=nn.Linear(WIDTH, 14),
        out=nn.Linear(42, WIDTH), end=nn.Linear(WIDTH, 2),
    )  # fmt: skip
    # two key heads, three query heads in each (their order may differ), key and value units of each key head
    check(model, tokens(), expect={(10, ()): 1, (2, ()): 1, (3, (2,)): 1, (4, (2,)): 1, (7, (2,)): 1})


def test_multi_query_attention_has_one_set_of_units() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = attend(heads(s.q(x)), s.k(x)[:, None], s.v(x)[:, None])
        return s.end(x + s.out(merged(y)))

    model = Net(
        forward, inp=nn.Linear(5, WIDTH), q=nn.Linear(WIDTH, 12), k=nn.Linear(WIDTH, 4), v=nn.Linear(WIDTH, 7),
        out=nn.Linear(21, WIDTH), end=nn.Linear(WIDTH, 2),
    )  # fmt: skip
    check(model, tokens(), expect={(10, ()): 1, (3, ()): 1, (4, ()): 1, (7, ()): 1})


def rotary(x: Tensor, interleaved: bool) -> Tensor:
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] * 100.0 ** (-torch.arange(0, d, 2) / d)
    cos, sin = angle.cos(), angle.sin()
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def complex_rotary(x: Tensor) -> Tensor:
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] * 100.0 ** (-torch.arange(0, d, 2) / d)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize("layout", ["half", "interleaved", "complex"])
def test_rotary_positions_fix_the_key_units_and_free_the_value_units(layout: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        q, k = heads(s.q(x)), heads(s.k(x))
        q, k = (complex_rotary(z) if layout == "complex" else rotary(z, layout == "interleaved") for z in (q, k))
        return s.end(x + s.out(merged(attend(q, k, heads(s.v(x))))))

    check(attention(forward), tokens(), expect=ROTATED)


def test_a_norm_shared_by_all_heads_makes_their_units_move_together() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = attend(s.nq(heads(s.q(x))), s.nk(heads(s.k(x))), heads(s.v(x)))
        return s.end(x + s.out(merged(y)))

    model = attention(forward, nq=nn.RMSNorm(DIM), nk=nn.RMSNorm(DIM))
    check(model, tokens(), expect={(10, ()): 1, (3, ()): 1, (4, ()): 1, (7, (3,)): 1})


def test_a_norm_without_gain_leaves_each_head_its_own_units() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = attend(F.rms_norm(heads(s.q(x)), (DIM,)), F.rms_norm(heads(s.k(x)), (DIM,)), heads(s.v(x)))
        return s.end(x + s.out(merged(y)))

    graph = check(attention(forward), tokens(), expect=FULL)
    (units,) = (axis for axis in graph.axes if axis.size == DIM)
    assert str(units.symmetry) == "orthogonal"


def test_linear_biases_tell_the_heads_apart() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        distance = torch.arange(x.shape[1])[None, :] - torch.arange(x.shape[1])[:, None]
        slopes = 2.0 ** -torch.arange(1, HEADS + 1)
        y = attend(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), slopes[:, None, None] * distance)
        return s.end(x + s.out(merged(y)))

    check(attention(forward), tokens(), expect={(10, ()): 1, (4, (3,)): 1, (7, (3,)): 1})


@pytest.mark.parametrize("layout", ["positions first", "heads first", "buckets"])
def test_a_table_of_relative_positions_moves_with_the_heads(layout: str) -> None:
    length = 6

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        place = torch.arange(length)[None, :] - torch.arange(length)[:, None] + length - 1
        if layout == "buckets":
            bias = F.embedding(place // 2, s.table).permute(2, 0, 1)
        elif layout == "heads first":
            bias = s.table[:, place]
        else:
            bias = s.table[place.flatten()].view(length, length, HEADS).permute(2, 0, 1)
        y = attend(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), bias)
        return s.end(x + s.out(merged(y)))

    rows = length if layout == "buckets" else 2 * length - 1
    table = weight(HEADS, rows) if layout == "heads first" else weight(rows, HEADS)
    check(attention(forward, table=table), tokens(length), expect=FULL)


FUSED = {(10, ()): 1, (3, ()): 1, (4, (3,)): 2}
"""As FULL, but values have the width of keys."""


@pytest.mark.parametrize("layout", ["3 h d", "h 3 d", "chunk", "h d 3", "unbind"])
def test_a_fused_projection_holds_three_blocks(layout: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y, (b, t) = s.qkv(x), x.shape[:2]
        if layout == "3 h d":
            q, k, v = y.view(b, t, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        elif layout == "unbind":
            q, k, v = y.view(b, t, 3, HEADS, DIM).transpose(1, 3).unbind(2)
        elif layout == "h 3 d":
            q, k, v = y.view(b, t, HEADS, 3 * DIM).transpose(1, 2).chunk(3, -1)
        elif layout == "h d 3":
            q, k, v = y.view(b, t, HEADS, DIM, 3).permute(4, 0, 2, 1, 3)
        else:
            q, k, v = (heads(z) for z in y.chunk(3, -1))
        return s.end(x + s.out(merged(attend(q, k, v))))

    model = Net(
        forward, inp=nn.Linear(5, WIDTH), qkv=nn.Linear(WIDTH, 36), out=nn.Linear(12, WIDTH), end=nn.Linear(WIDTH, 2)
    )
    check(model, tokens(), expect=FUSED)


def test_cross_attention_reads_keys_of_another_width() -> None:
    def forward(s: Net, x: Tensor, z: Tensor) -> Tensor:
        x, z = s.inp(x), s.other(z)
        y = attend(heads(s.q(x)), heads(s.k(z)), heads(s.v(z)))
        return s.end(x + s.out(merged(y)))

    model = Net(
        forward, inp=nn.Linear(5, WIDTH), other=nn.Linear(6, 11), q=nn.Linear(WIDTH, 12), k=nn.Linear(11, 12),
        v=nn.Linear(11, 21), out=nn.Linear(21, WIDTH), end=nn.Linear(WIDTH, 2),
    )  # fmt: skip
    check(model, tokens(), tokens(4, 6), expect={**FULL, (11, ()): 1})


def test_torch_multi_head_attention_with_its_own_key_and_value_widths() -> None:
    def forward(s: Net, x: Tensor, z: Tensor) -> Tensor:
        x = s.inp(x)
        return s.end(x + s.att(x, z, z, need_weights=False)[0])

    model = Net(
        forward, inp=nn.Linear(5, 12), att=nn.MultiheadAttention(12, 3, kdim=7, vdim=7, batch_first=True),
        end=nn.Linear(12, 2),
    )  # fmt: skip
    check(model, tokens(), tokens(4, 7), expect={(12, ()): 1, (3, ()): 1, (4, (3,)): 2})


def test_windows_and_a_cyclic_shift_fix_positions_only() -> None:
    side, window = 4, 2

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        b, c = x.shape[0], x.shape[-1]
        y = x.view(b, side, side, c).roll((-1, -1), (1, 2))
        y = y.view(b, side // window, window, side // window, window, c).transpose(2, 3).reshape(-1, window**2, c)
        y = merged(attend(heads(s.q(y)), heads(s.k(y)), heads(s.v(y))))
        y = s.out(y).view(b, side // window, side // window, window, window, c).transpose(2, 3)
        return s.end(x + y.reshape(b, side, side, c).roll((1, 1), (1, 2)).reshape(b, -1, c))

    check(attention(forward), tokens(side * side), expect=FULL)


def test_a_causal_mask_fixes_positions_only() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        t = x.shape[1]
        mask = torch.full((t, t), -math.inf).triu(1)
        return s.end(x + s.out(merged(attend(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), mask))))

    check(attention(forward), tokens(), expect=FULL)


def test_one_head_alone_has_units_of_its_own() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        return s.end(x + s.out(attend(s.q(x), s.k(x), s.v(x))))

    graph = check(attention(forward), tokens(), expect={(10, ()): 1, (12, ()): 1, (21, ()): 1})
    assert {axis.size: str(axis.symmetry) for axis in graph.axes} == {10: "linear", 12: "linear", 21: "linear"}


def test_heads_that_are_mixed_share_their_inner_maps() -> None:
    """A product over the heads (talking heads, after values) leaves one inner map for all of them."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        y = attend(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)))
        y = torch.einsum("bhtd,hg->bgtd", y, s.mix)
        return s.end(x + s.out(merged(y)))

    graph = graphfuse.trace(attention(forward, mix=weight(3, 3)).eval(), (tokens(),))
    # heads before and after the mixing are two axes; the value units may not differ along the ones that are summed
    assert shapes(graph) == {(10, ()): 1, (3, ()): 2, (4, (3,)): 1, (7, ()): 1}
    assert graphfuse.verify(graph, classes=True).ok
