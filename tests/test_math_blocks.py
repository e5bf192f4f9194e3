"""Gates, concatenations, convolutions, shuffles, recurrence, experts: free axes counted by hand on minimal models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mathematics import Net, check, weight
from torch import Tensor, nn

import graphfuse
from graphfuse.capture import state_of


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows(width: int = 5, count: int = 4) -> Tensor:
    return torch.randn(count, width)


def images(channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size)


# -------------------------------------------------------------------- gates


@pytest.mark.parametrize("how", ["separate", "chunk", "glu", "interleaved"])
def test_a_gated_unit_is_one_axis(how: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        if how == "separate":
            h = F.silu(s.a(x)) * s.b(x)
        elif how == "chunk":
            a, b = s.both(x).chunk(2, -1)
            h = F.silu(a) * b
        elif how == "interleaved":
            y = s.both(x).unflatten(-1, (7, 2))
            h = F.silu(y[..., 0]) * y[..., 1]
        else:
            h = F.glu(s.both(x), -1)
        return s.out(h)

    model = Net(
        forward, inp=nn.Linear(5, 9), a=nn.Linear(9, 7), b=nn.Linear(9, 7), both=nn.Linear(9, 14), out=nn.Linear(7, 2)
    )
    if how == "separate":
        del model.both
    else:
        del model.a, model.b
    graph = check(model, rows(), expect={(9, ()): 1, (7, ()): 1})
    assert {axis.role for axis in graph.axes} == {"hidden", "gate"}


def test_squeeze_and_excite_moves_with_the_channels_that_it_weighs() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        weighed = x * torch.sigmoid(s.up(torch.relu(s.down(x.mean((2, 3))))))[:, :, None, None]
        return s.b(weighed).mean((2, 3))

    model = Net(forward, a=nn.Conv2d(3, 8, 3), down=nn.Linear(8, 4), up=nn.Linear(4, 8), b=nn.Conv2d(8, 2, 1))
    check(model, images(), expect={(8, ()): 1, (4, ()): 1})


# -------------------------------------------------------------------- sums and concatenations


def test_a_skip_makes_one_axis_of_its_ends() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        for layer in (s.a, s.b):
            x = x + torch.relu(layer(x))
        return s.out(x)

    model = Net(forward, inp=nn.Linear(5, 9), a=nn.Linear(9, 9), b=nn.Linear(9, 9), out=nn.Linear(9, 2))
    graph = check(model, rows(), expect={(9, ()): 1})
    assert graph.axes[0].role == "residual"


def test_blocks_of_a_concatenation_keep_their_axes() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        a, b = torch.relu(s.a(x)), torch.tanh(s.b(x))
        return s.out(torch.cat([a, b, a], -1))

    check(Net(forward, a=nn.Linear(5, 7), b=nn.Linear(5, 9), out=nn.Linear(23, 2)), rows(),
          expect={(7, ()): 1, (9, ()): 1})  # fmt: skip


def test_dense_connections_collect_blocks() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        features = [s.a(x)]
        for norm, layer in ((s.n1, s.b), (s.n2, s.c)):
            features.append(layer(torch.relu(norm(torch.cat(features, 1)))))
        return s.out(torch.cat(features, 1)).mean((2, 3))

    model = Net(
        forward, a=nn.Conv2d(3, 7, 3, padding=1), n1=nn.BatchNorm2d(7), b=nn.Conv2d(7, 5, 3, padding=1),
        n2=nn.BatchNorm2d(12), c=nn.Conv2d(12, 6, 3, padding=1), out=nn.Conv2d(18, 2, 1),
    )  # fmt: skip
    check(model, images(), expect={(7, ()): 1, (5, ()): 1, (6, ()): 1})


def test_groups_of_a_norm_over_a_concatenation() -> None:
    """6 groups of 4 over 8 + 16 channels: the first 2 groups lie in one block, the other 4 in the other."""

    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(F.silu(s.norm(torch.cat([s.a(x), s.b(x)], 1)))).mean((2, 3))

    model = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 16, 3), norm=nn.GroupNorm(6, 24), out=nn.Conv2d(24, 2, 1))
    check(model, images(), expect={(2, ()): 1, (4, (2,)): 1, (4, ()): 1, (4, (4,)): 1})


# -------------------------------------------------------------------- convolutions


def test_a_flattened_image_is_channels_by_positions() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.b(torch.relu(s.a(x)).flatten(1))

    check(Net(forward, a=nn.Conv2d(3, 7, 3), b=nn.Linear(7 * 16, 2)), images(), expect={(7, ()): 1})


def test_grouped_convolution_moves_groups_and_channels_inside_them() -> None:
    """Groups of a with 4 -> 3 channels: the groups, and in each of them its inputs and its outputs."""

    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.b(torch.relu(s.a(x))))).mean((2, 3))

    model = Net(forward, a=nn.Conv2d(3, 20, 1), b=nn.Conv2d(20, 15, 3, groups=5), out=nn.Conv2d(15, 2, 1))
    check(model, images(), expect={(5, ()): 1, (4, (5,)): 1, (3, (5,)): 1})


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolution_keeps_channels(multiplier: int) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.b(torch.relu(s.a(x))))).mean((2, 3))

    model = Net(
        forward, a=nn.Conv2d(3, 7, 1), b=nn.Conv2d(7, 7 * multiplier, 3, groups=7), out=nn.Conv2d(7 * multiplier, 2, 1)
    )
    check(model, images(), expect={(7, ()): 1, **({(2, (7,)): 1} if multiplier == 2 else {})})


def test_transposed_convolution_has_its_inputs_first() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.b(torch.relu(s.a(x))))).mean((2, 3))

    model = Net(forward, a=nn.Conv2d(3, 7, 3), b=nn.ConvTranspose2d(7, 9, 2, 2), out=nn.Conv2d(9, 2, 1))
    check(model, images(), expect={(7, ()): 1, (9, ()): 1})


@pytest.mark.parametrize("padding", [(0, 0), (2, 0), (0, 1)])
def test_a_kernel_as_long_as_a_dim_sums_over_its_units(padding: tuple[int, int]) -> None:
    """Sentences as images of 9 words x 8 features, under a kernel that is 8 wide; padding gives the units a place."""

    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.conv(s.words(x).unsqueeze(1))).amax((2, 3)))

    conv = nn.Conv2d(1, 6, (3, 8), padding=padding)
    model = Net(forward, words=nn.Embedding(20, 8), conv=conv, out=nn.Linear(6, 2))
    free = {(6, ()): 1} if padding[1] else {(6, ()): 1, (8, ()): 1}
    check(model, torch.randint(0, 20, (2, 9)), expect=free)


def test_channel_shuffle_hands_units_to_other_groups() -> None:
    """Two grouped layers around a shuffle of 2 groups x 3: each unit of a group goes to another group of the next."""

    def forward(s: Net, x: Tensor) -> Tensor:
        y = torch.relu(s.b(torch.relu(s.a(x))))
        return s.out(torch.relu(s.c(torch.channel_shuffle(y, 2)))).mean((2, 3))

    model = Net(
        forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 6, 1, groups=2), c=nn.Conv2d(6, 9, 1, groups=3),
        out=nn.Conv2d(9, 2, 1),
    )  # fmt: skip
    # 2 groups of b with 4 inputs in each; 3 groups of c with 3 outputs in each; between them lie 2 x 3 units
    check(model, images(), expect={(2, ()): 1, (4, (2,)): 1, (3, ()): 1, (3, (3,)): 1})


def test_pixel_shuffle_takes_channels_apart() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(torch.relu(s.a(x)), 2)
        return s.c(F.pixel_unshuffle(torch.relu(s.b(y)), 2)).mean((2, 3))

    model = Net(forward, a=nn.Conv2d(3, 20, 1), b=nn.Conv2d(5, 7, 3, padding=1), c=nn.Conv2d(28, 2, 1))
    check(model, images(), expect={(5, ()): 1, (7, ()): 1})


# -------------------------------------------------------------------- recurrence


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (1, True), (2, True)])
def test_each_layer_and_direction_has_one_axis(kind: str, layers: int, both: bool) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(s.rnn(s.inp(x))[0])

    rnn = getattr(nn, kind)(6, 7, num_layers=layers, bidirectional=both, batch_first=True)
    model = Net(forward, inp=nn.Linear(5, 6), rnn=rnn, out=nn.Linear(14 if both else 7, 2))
    check(model, torch.randn(2, 4, 5), expect={(6, ()): 1, (7, ()): layers * (2 if both else 1)})


def test_a_projected_layer_has_a_cell_axis_and_an_output_axis() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(s.rnn(s.inp(x))[0])

    model = Net(
        forward, inp=nn.Linear(5, 6), rnn=nn.LSTM(6, 7, proj_size=4, num_layers=2, batch_first=True),
        out=nn.Linear(4, 2),
    )  # fmt: skip
    check(model, torch.randn(2, 4, 5), expect={(6, ()): 1, (7, ()): 2, (4, ()): 2})


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_loop_over_a_cell_has_one_axis(kind: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 7)
        state = (h, h) if kind == "LSTMCell" else h
        for t in range(x.shape[1]):
            state = s.cell(x[:, t], state)
        return s.out(state[0] if kind == "LSTMCell" else state)

    graph = check(
        Net(forward, cell=getattr(nn, kind)(5, 7), out=nn.Linear(7, 2)), torch.randn(2, 3, 5), expect={(7, ()): 1}
    )
    assert graph.axes[0].role == "recurrent"


def test_a_loop_written_out_has_one_axis() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 7)
        for t in range(x.shape[1]):
            h = torch.tanh(s.w(h) + s.u(x[:, t]))
        return s.out(h)

    graph = check(
        Net(forward, w=nn.Linear(7, 7), u=nn.Linear(5, 7), out=nn.Linear(7, 2)),
        torch.randn(2, 3, 5),
        expect={(7, ()): 1},
    )
    assert (graph.axes[0].role, str(graph.axes[0].symmetry)) == ("recurrent", "signed")


def test_a_selective_scan_has_units_and_states() -> None:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t: states may differ along the units only if B, C do."""

    def forward(s: Net, x: Tensor) -> Tensor:
        u, dt = s.u(x), F.softplus(s.dt(x))
        b, c = s.b(x), s.c(x)
        h, y = u.new_zeros(u.shape[0], 7, 4), []
        for t in range(x.shape[1]):
            decay = torch.exp(-dt[:, t, :, None] * torch.exp(s.rate))
            h = decay * h + (dt[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
            y.append((h * c[:, t, None, :]).sum(-1))
        return s.out(torch.stack(y, 1) + u * s.skip)

    model = Net(
        forward, u=nn.Linear(5, 7), dt=nn.Linear(5, 7), b=nn.Linear(5, 4), c=nn.Linear(5, 4), rate=weight(7, 4),
        skip=weight(7), out=nn.Linear(7, 2),
    )  # fmt: skip
    check(model, torch.randn(2, 3, 5), expect={(7, ()): 1, (4, ()): 1})


def test_a_cumulative_sum_over_time_fixes_time_only() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.tanh(s.a(x)).cumsum(1))

    check(Net(forward, a=nn.Linear(5, 7), out=nn.Linear(7, 2)), torch.randn(2, 3, 5), expect={(7, ()): 1})


# -------------------------------------------------------------------- experts

EXPERTS = {(9, ()): 1, (4, ()): 1, (6, (4,)): 1, (10, ()): 1}
"""Before and after the experts, the experts, and the hidden units of each."""


@pytest.mark.parametrize("how", ["dense", "top", "top with biases"])
def test_stacked_experts_may_be_exchanged_and_differ_inside(how: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        gate = s.router(x).softmax(-1)
        if how == "dense":
            h = torch.relu(torch.einsum("bd,edf->bef", x, s.up) + s.shift)
            return s.out((gate[..., None] * torch.einsum("bef,efd->bed", h, s.down)).sum(1))
        gate, chosen = gate.topk(2, -1)
        h = torch.einsum("bd,bkdf->bkf", x, s.up[chosen])
        h = torch.relu(h + s.shift[chosen] if "biases" in how else h)
        return s.out((gate[..., None] * torch.einsum("bkf,bkfd->bkd", h, s.down[chosen])).sum(1))

    parts = {"shift": weight(4, 6)} if how != "top" else {}
    model = Net(
        forward, inp=nn.Linear(5, 9), router=nn.Linear(9, 4), up=weight(4, 9, 6), down=weight(4, 6, 10),
        out=nn.Linear(10, 2), **parts,
    )  # fmt: skip
    graph = check(model, rows(), expect=EXPERTS)
    assert next(axis for axis in graph.axes if axis.size == 4).role == "experts"


@pytest.mark.parametrize("how", ["one hot", "mask", "where", "weights"])
def test_listed_experts_keep_their_place_and_have_units_of_their_own(how: str) -> None:
    """Experts in a list are separate weights that no permutation of one tensor exchanges: each has its hidden axis."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        gate, chosen = s.router(x).softmax(-1).topk(2, -1)
        result = torch.zeros_like(x)
        for number in range(3):
            expert = s.experts[number]
            if how == "one hot":
                share = (F.one_hot(chosen, 3)[..., number] * gate).sum(-1, keepdim=True)
                result = result + share * expert(x)
            elif how == "mask":
                share = ((chosen == number) * gate).sum(-1, keepdim=True)
                result = result + share * expert(x)
            elif how == "weights":
                share = torch.zeros(x.shape[0], 3).scatter(1, chosen, gate)[:, number, None]
                result = result + share * expert(x)
            else:
                token, place = torch.where(chosen == number)
                result = result.index_add(0, token, expert(x[token]) * gate[token, place, None])
        return s.out(x + result)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 9)) for _ in range(3))
    model = Net(forward, inp=nn.Linear(5, 9), router=nn.Linear(9, 3), experts=experts, out=nn.Linear(9, 2))
    check(model, rows(), expect={(9, ()): 1, (7, ()): 3}, notes=how == "where")


def test_lists_of_experts_can_be_stacked_to_be_exchanged() -> None:
    """The same three experts stacked as one tensor of the model's own: then the expert axis is free."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        gate = s.router(x).softmax(-1)
        hidden = torch.relu(torch.einsum("bd,efd->bef", x, s.up))
        return s.out(torch.einsum("be,bef,edf->bd", gate, hidden, s.down))

    model = Net(
        forward, inp=nn.Linear(5, 9), router=nn.Linear(9, 3), up=weight(3, 7, 9), down=weight(3, 9, 7),
        out=nn.Linear(9, 2),
    )  # fmt: skip
    check(model, rows(), expect={(9, ()): 2, (3, ()): 1, (7, (3,)): 1})


def test_a_branch_on_data_is_captured_for_these_inputs_and_said_so() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(torch.relu(h) if h.sum() > 0 else torch.tanh(h))

    graph = graphfuse.trace(Net(forward, a=nn.Linear(5, 7), b=nn.Linear(7, 2)).eval(), (rows(),))
    assert [axis.size for axis in graph.axes] == [7]
    assert graph.captured.method == "make_fx"
    assert any("branch" in note.message for note in graph.notes), graph.notes
    assert graphfuse.verify(graph).ok


@pytest.mark.parametrize("inverse", ["written", "sorted"])
def test_experts_that_rows_are_sorted_to_may_be_exchanged(inverse: str) -> None:
    """Rows sorted by expert, multiplied in blocks that end where their counts add up to, and put back in order."""

    def grouped(rows: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
        return torch.ops.aten._grouped_mm(rows, stack, ends)

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        gate, chosen = s.router(x).softmax(-1).topk(2, -1)
        experts, order = chosen.flatten().sort()
        ends = torch.histc(experts.float(), bins=4, min=0, max=3).cumsum(0).to(torch.int32)
        hidden = torch.relu(grouped(x[order // 2], s.up, ends) + s.shift[experts])
        result = grouped(hidden, s.down, ends) * gate.flatten()[order, None]
        back = order.argsort()
        if inverse == "written":
            back = torch.empty_like(order)
            back[order] = torch.arange(len(order))
        return s.out(result[back].view(-1, 2, 16).sum(1))

    model = Net(
        forward, inp=nn.Linear(5, 8), router=nn.Linear(8, 4), up=weight(4, 8, 24), down=weight(4, 24, 16),
        shift=weight(4, 24), out=nn.Linear(16, 2),
    )  # fmt: skip
    narrow = torch.bfloat16  # the only type that torch traces the op with
    check(model.to(narrow), rows().to(narrow), expect={(8, ()): 1, (4, ()): 1, (24, (4,)): 1, (16, ()): 1})


def test_experts_stay_where_rows_in_their_order_meet_a_parameter() -> None:
    """Rows sorted by expert follow the experts in a way that depends on data; a bias for each row cannot."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.inp(x)
        chosen, order = s.router(x).argmax(-1).sort()
        ends = torch.histc(chosen.float(), bins=4, min=0, max=3).cumsum(0).to(torch.int32)
        h = torch.ops.aten._grouped_mm(x[order], s.up, ends) + s.place
        return s.out(h[order.argsort()])

    model = Net(
        forward, inp=nn.Linear(5, 8), router=nn.Linear(8, 4), up=weight(4, 8, 16), place=weight(6, 1),
        out=nn.Linear(16, 2),
    )  # fmt: skip
    narrow = torch.bfloat16
    graph = check(model.to(narrow), rows(count=6).to(narrow), expect={(8, ()): 1, (16, ()): 1})
    assert any("by position" in str(reason) for axis in graph.fixed for reason in axis.reasons)


# -------------------------------------------------------------------- writing through masks


@pytest.mark.parametrize("how", ["masked_scatter", "index_put", "value"])
def test_rows_written_through_a_mask_share_the_axis_of_the_rows_that_they_replace(how: str) -> None:
    def forward(s: Net, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        h, new = s.a(x), s.b(y)
        if how == "masked_scatter":
            h = h.masked_scatter(mask.unsqueeze(-1).expand_as(h), new)
        else:
            h = h.clone()
            h[mask] = new.mean(0) if how == "value" else new[:3]
        return s.out(torch.relu(h))

    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    model = Net(forward, a=nn.Linear(5, 9), b=nn.Linear(6, 9), out=nn.Linear(9, 2))
    check(model, torch.randn(2, 4, 5), torch.randn(3, 6), mask, expect={(9, ()): 1})


def test_elements_written_through_a_mask_one_by_one_are_fixed() -> None:
    def forward(s: Net, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return s.out(torch.relu(s.a(x).masked_scatter(mask, s.b(y))))

    mask = torch.rand(4, 9) > 0.5
    model = Net(forward, a=nn.Linear(5, 9), b=nn.Linear(6, 9), out=nn.Linear(9, 2))
    check(model, torch.randn(4, 5), torch.randn(4, 6), mask, expect={})


def test_every_other_unit_can_be_written_to() -> None:
    """12 = 6 x 2, and only the first of each two is written to: a unit and its neighbour move together."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.relu(s.a(x))
        h[:, ::2] += s.shift
        return s.b(h)

    check(Net(forward, a=nn.Linear(5, 12), shift=weight(6), b=nn.Linear(12, 2)), rows(), expect={(6, ()): 1})


@pytest.mark.parametrize("layout", ["rows", "transposed", "across"])
def test_windows_read_at_other_strides_keep_their_units(layout: str) -> None:
    """Overlapping windows of 4 tokens; only where the strides run across the units are these positions, too."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        if layout == "transposed":
            h = h.transpose(0, 1).contiguous().transpose(0, 1)
        batch, time, unit = h.stride()
        if layout == "across":
            windows = h.as_strided((2, 3, 4, 6), (batch, 2 * time, time, 1))
        else:
            windows = h.as_strided((2, 3, 4, 7), (batch, 2 * time, time, unit))
        return s.b(torch.relu(windows)).sum((1, 2))

    model = Net(forward, a=nn.Linear(5, 7), b=nn.Linear(6 if layout == "across" else 7, 2))
    x = torch.randn(2, 8, 5)
    graph = check(model, x, expect={} if layout == "across" else {(7, ()): 1})
    torch.testing.assert_close(graph.captured.run(state_of(model), (x,)), model(x))


# -------------------------------------------------------------------- constants that repeat themselves


@pytest.mark.parametrize("order", ["in runs", "as a whole", "not at all"])
def test_units_that_a_constant_mask_does_not_tell_apart_are_free(order: str) -> None:
    groups = {"in runs": torch.arange(4).repeat_interleave(3), "as a whole": torch.arange(4).repeat(3),
              "not at all": torch.tensor([0, 1, 2, 3, 0, 2, 1, 3, 3, 2, 0, 1])}[order]  # fmt: skip

    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, s.w1 * (groups[:, None] >= torch.arange(5)), s.b))
        return F.linear(h, s.w2 * (torch.arange(5)[:, None] > groups))

    model = Net(forward, w1=weight(12, 5), b=weight(12), w2=weight(5, 12))
    check(model, rows(), expect={} if order == "not at all" else {(3, ()): 1})


# -------------------------------------------------------------------- sizes that depend on data


def test_blocks_of_sizes_that_depend_on_data_are_joined_again() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.inp(x)
        chosen = s.router(h).argmax(-1)
        counts = F.one_hot(chosen, 3).sum(0).tolist()
        order = chosen.argsort()
        parts = h[order].split(counts)
        done = torch.cat([expert(part) for expert, part in zip(s.experts, parts, strict=True)])
        return s.out(torch.zeros_like(h).index_add(0, order, done))

    experts = nn.ModuleList(nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 9)) for _ in range(3))
    model = Net(forward, inp=nn.Linear(5, 9), router=nn.Linear(9, 3), experts=experts, out=nn.Linear(9, 2))
    check(model, rows(count=6), expect={(9, ()): 2, (7, ()): 3}, sensitivity=0.0)


@pytest.mark.parametrize("how", ["read", "written"])
def test_a_slice_up_to_a_place_that_depends_on_data_keeps_the_other_dims(how: str) -> None:
    def forward(s: Net, x: Tensor, count: Tensor) -> Tensor:
        n = count.item()
        torch._check(n >= 1)
        torch._check(n <= 4)
        h = s.inp(x)
        if how == "written":
            h[:n] = s.more(x)[:n]
        return s.out(torch.relu(torch.cat([h[:n], h[n:]]))).sum(0)

    model = Net(forward, inp=nn.Linear(5, 9), more=nn.Linear(5, 9), out=nn.Linear(9, 2))
    if how == "read":
        del model.more
    graph = check(model, rows(), torch.tensor(3), expect={(9, ()): 1})
    assert graph.captured.method == "export"


def test_zeros_of_a_size_that_depends_on_data_and_random_numbers_need_no_rule() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        rows = s.inp(x)[x[:, 0] > 0]
        summed = torch.zeros(rows.shape[0], 9).index_add(0, torch.arange(rows.shape[0]), rows)
        return s.out(torch.relu(summed)).sum(0) + 0 * torch.randn(2)

    graph = check(Net(forward, inp=nn.Linear(5, 9), out=nn.Linear(9, 2)), rows(), expect={(9, ()): 1})
    assert graph.captured.method == "export"
