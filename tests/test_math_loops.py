"""Code that torch keeps in sub-graphs: map, scan, cond, attention; and a while loop, of which nothing is claimed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mathematics import Net, check, weight
from torch import Tensor, nn
from torch._higher_order_ops.map import map as each
from torch._higher_order_ops.scan import scan
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import graphfuse
from graphfuse.capture import state_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own, where these ops run


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()  # these ops are compiled where they run, and what one test compiled is not the next one's


def mapped(s: Net, h: Tensor) -> Tensor:
    return each(lambda row: torch.tanh(row @ s.mix), h)  # pyright: ignore[reportArgumentType]


def scanned(s: Net, h: Tensor) -> Tensor:
    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(row + carry @ s.mix)
        return new, new * 2

    return scan(step, h.new_zeros(h.shape[1], 9), h)[1]


def branched(s: Net, h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda h: torch.tanh(h @ s.mix), lambda h: torch.tanh(s.side(h)), (h,))


def test_what_a_map_does_to_each_row_is_done_to_all() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(mapped(s, s.inp(x)))

    model = Net(forward, inp=nn.Linear(5, 9), mix=weight(9, 7), out=nn.Linear(7, 2))
    check(model, torch.randn(4, 3, 5), expect={(9, ()): 1, (7, ()): 1})


def test_the_state_that_a_scan_carries_is_one_axis() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(scanned(s, s.inp(x)))

    model = Net(forward, inp=nn.Linear(5, 9), mix=weight(9, 9), out=nn.Linear(9, 2))
    check(model, torch.randn(4, 3, 5), expect={(9, ()): 1})


def test_both_sides_of_a_branch_share_what_they_read_and_give() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(branched(s, s.inp(x)))

    model = Net(forward, inp=nn.Linear(5, 9), mix=weight(9, 7), side=nn.Linear(9, 7), out=nn.Linear(7, 2))
    check(model, torch.randn(4, 5), expect={(9, ()): 1, (7, ()): 1}, sensitivity=0.5)


def test_a_loop_of_unknown_length_fixes_all_that_it_touches_and_says_so() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        def more(h: Tensor) -> Tensor:
            return h.abs().max() > 0.5

        (h,) = torch.while_loop(more, lambda h: (torch.tanh(h @ s.mix) / 2,), (s.inp(x),))
        return s.out(torch.relu(s.up(h)))

    model = Net(forward, inp=nn.Linear(5, 9), mix=weight(9, 9), up=nn.Linear(9, 7), out=nn.Linear(7, 2))
    graph = check(model, torch.randn(4, 5), expect={(7, ()): 1}, notes=True)
    assert [note.message for note in graph.notes] == ["while_loop: not an ATen op; everything that it touches is fixed"]


@pytest.mark.parametrize("part", [mapped, scanned, branched])
def test_what_is_written_out_computes_the_same(part: Callable[[Net, Tensor], Tensor]) -> None:
    model = Net(lambda s, x: part(s, s.inp(x)), inp=nn.Linear(5, 9), mix=weight(9, 9), side=nn.Linear(9, 9))
    x = torch.randn(4, 3, 5)
    graph = graphfuse.trace(model, x)
    torch.testing.assert_close(graph.captured.run(state_of(model), (x,)), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_sequences_of_several_lengths_that_are_packed_keep_their_units(kind: str) -> None:
    """Packing lists the steps of all sequences; torch takes the layer apart into writes in place, which are undone."""

    def forward(s: Net, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(s.a(x), torch.tensor([4, 2]), batch_first=True)
        said, last = s.rnn(packed)
        every, _ = nn.utils.rnn.pad_packed_sequence(said, batch_first=True)
        return s.out(torch.cat([(last[0] if kind == "LSTM" else last)[-1], every.amax(1)], -1))

    model = Net(forward, a=nn.Linear(5, 6), rnn=getattr(nn, kind)(6, 7, batch_first=True), out=nn.Linear(14, 2))
    graph = check(model, torch.randn(2, 4, 5), expect={(6, ()): 1, (7, ()): 1}, notes=True)
    assert not any(
        node.target._schema.is_mutable for node in graph.captured.graph.nodes if hasattr(node.target, "_schema")
    )


def test_packing_fixes_the_order_of_sequences_and_steps() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(s.table, torch.tensor([4, 3, 1]))
        _, last = s.rnn(packed)
        return s.out(last[-1].sum(0)) + x

    model = Net(forward, table=weight(4, 3, 6), rnn=nn.GRU(6, 7), out=nn.Linear(7, 2))
    check(model, torch.randn(5, 2), expect={(6, ()): 1, (7, ()): 1}, notes=True)


@pytest.mark.parametrize("grouped", [False, True])
@torch.no_grad()
def test_attention_with_scores_of_ones_own_has_heads_that_share_them(grouped: bool) -> None:
    """A slope for each head on the distance, causal: heads move with their slopes, with two for each key as blocks."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.inp(x)
        q, k, v = (layer(h).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, 6, 6, device="cpu")
        y = flex_attention(q, k, v, lambda score, b, h, i, j: score + s.slopes[h] * (j - i), causal, enable_gqa=grouped)
        return s.out(y.transpose(1, 2).flatten(2))

    keys = 6 if grouped else 12
    model = Net(forward, inp=nn.Linear(5, 9), q=nn.Linear(9, 12), k=nn.Linear(9, keys), v=nn.Linear(9, keys),
                out=nn.Linear(12, 2), slopes=weight(4))  # fmt: skip
    heads = {(2, ()): 1, (2, (2,)): 1, (3, (2,)): 2} if grouped else {(4, ()): 1, (3, (4,)): 2}
    x = torch.randn(2, 6, 5)
    graph = check(model, x, expect={(9, ()): 1, **heads})
    torch.testing.assert_close(graph.captured.run(state_of(model), (x,)), model(x))
