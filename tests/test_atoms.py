"""Modules that are taken whole: one entry of a pack is all that graphfuse is told of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.capture import state_of
from graphfuse.errors import RuleError
from graphfuse.rulebook.authoring import catalogue, describe
from graphfuse.rulebook.check import check_pack
from graphfuse.rulebook.packs import Pack, load_rules, parse_pack

HERE = __name__


class Filter(nn.Module):
    """A linear map with its bias, in NumPy; ``power`` is no tensor."""

    def __init__(self, came: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(came, width)

    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        weight, bias = self.inner.weight.detach().numpy(), self.inner.bias.detach().numpy()
        return torch.from_numpy((x.detach().numpy() @ weight.T + bias) ** power)


class Pair(nn.Module):
    """Two results, a buffer of statistics, an optional operand, a counter."""

    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("mean", torch.rand(width))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        y = torch.from_numpy((x - self.mean).detach().numpy() * self.gain.detach().numpy())
        return (y if shift is None else y + shift), {"sum": y.sum(-1)}


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.first, self.second = nn.Linear(5, width), Filter(width, 6), Filter(6, 7)
        self.pair, self.c = Pair(7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(torch.relu(self.a(x)))), power=3)
        h, more = self.pair(h)
        h, _ = self.pair(h, shift=more["sum"][:, None])
        return self.c(h)


FILTER = """
  - module: "{name}"
    kind: linear
    signature: "x[... i], inner_weight[o i], inner_bias[o] -> [... o]"
    contracts: {{input: x, weight: inner_weight, bias: inner_bias}}
    example:
      - {{of: {here}.Filter, build: {{came: 3, width: 4}}, args: [{{shape: [2, 5, 3]}}]}}
"""
PAIR = """
  - module: "*.Pair"
    kind: norm
    signature: "x[b c], shift[b 1]?, gain[c], mean[c] -> [b c]; [b]"
    statistics: {{mean: mean, var: mean}}
    example:
      - {{of: {here}.Pair, build: {{width: 3}}, args: [{{shape: [2, 3]}}]}}
      - {{of: {here}.Pair, build: {{width: 3}}, args: [{{shape: [2, 3]}}, {{shape: [2, 1]}}]}}
"""


def pack(*entries: str, name: str = f"{HERE}.Filter") -> Pack:
    return parse_pack("version: 1\nrules:" + "".join(entries).format(name=name, here=HERE), "mine.yaml")


def traced(*packs: Pack, model: nn.Module | None = None) -> graphfuse.SymmetryGraph:
    return graphfuse.trace(model or Net(), (torch.randn(4, 5),), rules=packs)


@pytest.mark.parametrize("name", [f"{HERE}.Filter", "*.Filter"])
def test_a_module_in_numpy_is_one_op_with_its_parameters_as_operands(name: str) -> None:
    graph = traced(pack(FILTER, PAIR, name=name))
    assert graph.captured.method == "export"
    assert [(axis.size, len(axis.touches)) for axis in graph.axes] == [(8, 3), (6, 3), (7, 5)]
    assert not graph.notes
    check = graphfuse.verify(graph)
    assert check.ok, str(check)
    assert check.sensitivity > 0.9


def test_the_graph_runs_the_module_itself_with_any_weights() -> None:
    model, x = Net().eval(), torch.randn(4, 5)
    graph = traced(pack(FILTER, PAIR), model=model)
    assert_close(graph.captured.run(state_of(model), (x,)), model(x), rtol=1e-6, atol=1e-6)
    other = Net().eval()
    assert_close(graph.captured.run(state_of(other), (x,)), other(x), rtol=1e-6, atol=1e-6)
    assert all("forward" not in vars(module) for module in model.modules())


def test_where_export_refuses_the_module_is_still_one_op() -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > 1e9 else x + 1)

    graph = traced(pack(FILTER, PAIR), model=Branching())
    assert graph.captured.method == "make_fx"
    assert len(graph.axes) == 3
    assert graphfuse.verify(graph).ok


def test_models_with_such_a_module_are_fused_across_widths_and_calibrated() -> None:
    torch.manual_seed(0)
    models = [Net(8), Net(8), Net(11)]
    data = [torch.randn(32, 5) for _ in range(4)]
    book = load_rules([pack(FILTER, PAIR)])
    result = graphfuse.fuse(models, data=data, rules=[book], config={"calibrate": {"method": "least_squares"}})
    assert result.model(data[0]).shape == (32, 3)
    assert {axis.size for axis in graphfuse.trace(result.model, (data[0],), rules=book).axes} == {6, 7, 8}
    twin = Net(8)
    twin.load_state_dict(models[0].state_dict())
    same = graphfuse.fuse([models[0], twin], (data[0],), rules=[book])
    assert_close(same.model(data[0]), models[0](data[0]), rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_a_module_that_has_them_and_stop_at_one_that_has_not() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * self.weight

    entry = "\n  - module: '*.Scale'\n    signature: 'x[... c], weight[c] -> [... c]'\n"
    first = nn.Linear(5, 3)
    model = nn.Sequential(first, Scale())
    graph, state, x = traced(pack(entry), model=model), state_of(model), torch.randn(4, 5)
    wanted = torch.autograd.grad(model(x).square().sum(), first.weight)[0]
    state["0.weight"].requires_grad_()
    *_, (_, outputs) = graph.captured.steps(graph.captured.bind(state, (x,)))
    assert_close(torch.autograd.grad(outputs[0].square().sum(), state["0.weight"])[0], wanted)

    model = nn.Sequential(nn.Linear(5, 3), Filter(3, 2))
    graph, state = traced(pack(FILTER), model=model), state_of(model)
    state["0.weight"].requires_grad_()
    *_, (_, outputs) = graph.captured.steps(graph.captured.bind(state, (x,)))
    with pytest.raises(RuntimeError, match="Filter: the module has no gradient"):
        outputs[0].sum().backward()


def test_such_rules_prove_themselves_and_wrong_ones_are_caught() -> None:
    results = check_pack(pack(FILTER, PAIR))
    assert [(one.ok, one.calls) for one in results] == [(True, 1), (True, 2)], "\n".join(map(str, results))
    (one,) = check_pack(pack(FILTER.replace("[o i]", "[i o]").replace("width: 4", "width: 3")))
    assert {problem.kind for problem in one.problems} == {"unsound"}
    (one,) = check_pack(pack(FILTER.replace("inner_weight[o i]", "inner_weight[o i!]")))
    assert {problem.kind for problem in one.problems} == {"incomplete"}
    assert str(one).startswith(f"FAIL module {HERE}.Filter (1 calls)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((", inner_bias[o]", ""), "not in the signature: inner.bias"),
        (("x[... i]", "y[... i]"), "not in the module: y"),
        (("-> [... o]", "-> [... o]; [... o]"), "returns 1 tensors, its signature has 2"),
    ],
)
def test_a_signature_that_does_not_fit_the_module_is_named(change: tuple[str, str], message: str) -> None:
    entry = FILTER.replace(*change).replace(", bias: inner_bias", "" if "bias" in change[0] else ", bias: inner_bias")
    with pytest.raises(RuleError, match=message) as caught:
        traced(pack(entry.replace("input: x", "input: y") if "y[" in change[1] else entry, PAIR))
    assert "mine.yaml: entry module" in str(caught.value)
    (one,) = check_pack(pack(entry))
    assert message in str(one)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("  - module: Filter\n    signature: 'x[i] -> [i]'", "'Filter' is no class; write package.Class"),
        ("  - module: a.Filter\n    op: aten.relu\n    signature: 'x[i] -> [i]'", "for ops or for a module, not both"),
        ("  - module: a.Filter\n    pointwise: {}", "a module needs a 'signature'"),
        ("  - module: a.Filter\n    signature: 'x[i], _ -> [i]'", "that names each operand"),
        ("  - module: a.Filter\n    signature: 'x[i], x[i] -> [i]'", "named twice"),
    ],
)
def test_a_mistake_in_an_entry_is_explained(entry: str, message: str) -> None:
    with pytest.raises(RuleError, match=r"mine.yaml: entry 1 \(") as caught:
        parse_pack(f"version: 1\nrules:\n{entry}\n", "mine.yaml")
    assert message in str(caught.value)


def test_an_example_that_cannot_be_built_is_a_problem() -> None:
    (one,) = check_pack(pack(FILTER.replace("of: {here}.Filter, ", ""), name="*.Filter"))
    assert "of which package? Say 'of: package.Filter'" in str(one)
    (one,) = check_pack(pack(FILTER.replace("{here}.Filter", "nowhere.Filter")))
    assert "nowhere.Filter: cannot be imported" in str(one)
    (one,) = check_pack(pack(FILTER[: FILTER.index("    example")]))
    assert "a module needs an example" in str(one)


def test_two_entries_for_one_class_are_an_error_unless_one_replaces() -> None:
    first, second = pack(FILTER), pack(FILTER.replace("module:", "replace: true\n    module:"))
    with pytest.raises(RuleError, match="two rules for"):
        load_rules([first, pack(FILTER)])
    assert load_rules([first, second]).atom(Filter(2, 3)) is not None
    assert load_rules([first]).atom(nn.Linear(2, 3)) is None


def test_such_rules_are_listed_and_shown() -> None:
    book = load_rules([pack(FILTER)])
    assert [known.op for known in catalogue(book, "Filter")] == [f"module {HERE}.Filter"]
    shown = describe(book, f"{HERE}.Filter")
    assert (shown.how, shown.file) == ("signature", "mine.yaml")
    assert f"module: {HERE}.Filter" in shown.text
