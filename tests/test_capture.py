from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import graphfuse
from graphfuse.capture import Captured, canonical_names, capture, signature_of, state_of
from graphfuse.errors import CaptureError, DataError

aten = torch.ops.aten


class Kitchen(nn.Module):
    """Tied weights, all kinds of constants and buffers, in-place ops, nested inputs, several outputs."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.randn(8), persistent=False)
        self.plain = torch.arange(8.0)

    def forward(self, ids: Tensor, twice: bool = True, extra: dict[str, list[Any]] | None = None) -> dict[str, Any]:
        h = self.embedding(ids) + self.table * self.plain + torch.tensor([2.0] * 8)
        h = self.linear(h).relu_()
        h[..., 3] += 1.0
        h = self.norm(h.flatten(0, 1)).view(h.shape)
        if twice:
            h = h * 2
        if extra is not None:
            h = h + extra["e"][0]
        return {"logits": self.head(h), "hidden": h, "count": 3, "ids": ids}


class Branches(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        h = self.linear(x)
        if h.sum() > 0:
            return h.clone().mul_(2)
        return h.tanh_()


def targets(captured: Captured) -> set[Any]:
    return {node.target for node in captured.graph.nodes if node.op == "call_function"}


def kitchen() -> tuple[Kitchen, tuple[Tensor], dict[str, Any]]:
    model = randomise(Kitchen())
    assert isinstance(model, Kitchen)
    return model, (torch.randint(0, 11, (3, 4)),), {"extra": {"e": [torch.randn(8), 7]}, "twice": False}


# ------------------------------------------------------------------ what is captured


def test_runs_as_the_model_does() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    assert captured.method == "export"
    assert_same(captured.run(state_of(model), args, kwargs), model(*args, **kwargs))


def test_runs_with_another_state_and_precision() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    other = randomise(Kitchen(), seed=1)
    assert_same(captured.run(state_of(other), args, kwargs), other(*args, **kwargs))
    double = copy.deepcopy(other).double()
    kwargs["extra"]["e"][0] = kwargs["extra"]["e"][0].double()
    out = captured.run(state_of(double), args, kwargs)
    assert out["logits"].dtype == torch.float64
    assert_same(out, double(*args, **kwargs))


def test_every_tensor_is_an_input_under_its_canonical_name() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    kinds = {kind: {slot.name for slot in captured.inputs if slot.kind == kind} for kind in ("parameter", "buffer")}
    assert kinds["parameter"] == {name for name, _ in model.named_parameters()}
    assert kinds["buffer"] == {name for name, _ in model.named_buffers()}
    assert [slot.name for slot in captured.inputs if slot.kind == "user"] == ["ids", "extra.e[0]"]
    values = sorted(captured.constants.values(), key=lambda value: value.sum().item())
    assert_same(values, [torch.tensor([2.0] * 8), model.plain])
    placeholders = [node.name for node in captured.graph.find_nodes(op="placeholder")]
    assert placeholders == [slot.node for slot in captured.inputs]
    assert not captured.graph.find_nodes(op="get_attr")


def test_tied_weights_are_one_input() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    assert captured.aliases == {"head.weight": "embedding.weight"}
    assert "head.weight" not in state_of(model)
    node = next(node for node in captured.graph.nodes if node.name == captured.inputs[0].node)
    assert captured.inputs[0].name == "embedding.weight"
    assert {user.target for user in node.users} == {aten.embedding.default, aten.linear.default}


def test_two_parameters_over_one_storage_are_tied() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = nn.Parameter(first.weight.data)
    model = nn.Sequential(first, second)
    assert canonical_names(model) == {"0.weight": "0.weight", "1.weight": "0.weight"}
    assert capture(model, (torch.randn(2, 4),)).aliases == {"1.weight": "0.weight"}


def test_the_graph_is_functional() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    assert not [op for op in targets(captured) if isinstance(op, OpOverload) and op._schema.is_mutable]


def test_composites_stay_whole() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Softmax(1))
    ops = targets(capture(net, (torch.randn(1, 3, 6, 6),))) | targets(capture(layer, (torch.randn(2, 5, 12),)))
    assert ops >= {
        aten.conv2d.default, aten.group_norm.default, aten.softmax.int, aten.linear.default, aten.layer_norm.default,
        aten.scaled_dot_product_attention.default,
    }  # fmt: skip


def test_only_what_is_asked_for_is_decomposed() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 2))
    asked: list[OpOverload] = []

    def decompose(op: OpOverload) -> bool:
        asked.append(op)
        return op in (aten.layer_norm.default, aten.native_layer_norm.default)

    x = torch.randn(3, 4)
    captured = capture(net, (x,), decompose=decompose)
    ops = targets(captured)
    assert aten.linear.default in asked and aten.linear.default in ops and aten.silu.default in ops
    assert not ops & {aten.layer_norm.default, aten.native_layer_norm.default}
    assert aten.rsqrt.default in ops  # a second round took native_layer_norm apart
    assert_same(captured.run(state_of(net), (x,)), net(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_only_what_is_not_functional_is_traced_again(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, real = list[int](), ExportedProgram.run_decompositions

    def counted(self: ExportedProgram, *args: Any) -> ExportedProgram:
        rounds.append(1)
        return real(self, *args)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Dropout()).eval()
    x = torch.randn(2, 3, 6, 6)
    captured = capture(net, (x,))
    assert len(rounds) == inplace
    assert_same(captured.run(state_of(net), (x,)), net(x))


def test_blocks_under_autocast_or_enable_grad_are_inlined_with_their_source() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x * 3
            with torch.autocast("cpu", enabled=False):
                return self.inner(x)

    model, x = Wrapped(), torch.randn(2, 4)
    captured = capture(model, (x,))
    sites = {site.op: site for site in map(captured.site, captured.graph.nodes)}
    assert sites["aten.linear.default"].module == "inner"
    assert sites["aten.linear.default"].source.endswith("return self.inner(x)")
    assert sites["aten.mul.Tensor"].source.endswith("x = x * 3")
    assert_same(captured.run(state_of(model), (x,)), model(x))


def test_the_model_stays_as_it_was() -> None:
    model = Kitchen().train()
    model.linear.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        capture(model, (torch.randint(0, 11, (3, 4)),))
    assert model.training and model.norm.training and not model.linear.training
    assert_same(dict(model.state_dict()), before)
    assert not caught


def test_what_forward_keeps_on_the_module_is_taken_back() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.last = 0, None
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.steps += 1
            return x * 2

    model = Caching()
    captured = capture(model, (torch.ones(2),))
    assert captured.method == "export"
    assert (model.calls, model.last, model.steps.item()) == (0, None, 0.0)  # pyright: ignore
    assert captured.notes == ("the model writes to its buffers while it runs; the new values are ignored: steps",)
    assert captured.outputs == ("mul",)


def test_runs_in_eval_mode_whatever_the_flag() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.9)).train()
    x = torch.randn(2, 4)
    assert_same(capture(net, (x,)).run(state_of(net), (x,)), net.eval()(x))


def test_meta_and_fake_models() -> None:
    with torch.device("meta"):
        model, ids = Kitchen(), torch.zeros(3, 4, dtype=torch.long)
    captured = capture(model, (ids,))
    assert captured.run(state_of(model), (ids,))["logits"].shape == (3, 4, 11)
    with FakeTensorMode():
        fake, ids = Kitchen(), torch.zeros(3, 4, dtype=torch.long)
    assert [slot.name for slot in capture(fake, (ids,)).inputs] == [slot.name for slot in captured.inputs]


# ------------------------------------------------------------------ where export refuses


def test_data_dependent_branches_are_captured_for_these_inputs() -> None:
    model, x = Branches(), torch.randn(3, 5)
    with torch.no_grad():
        model.linear.bias.fill_(9.0)
    expected = model(x)
    model.seen.zero_()
    captured = capture(model, (x,))
    assert captured.method == "make_fx"
    assert "for these inputs only" in captured.notes[0] and "if h.sum() > 0:" in captured.notes[0]
    assert "read out of tensors" in captured.notes[1] and "if h.sum() > 0:" in captured.notes[1]
    assert aten.mul.Tensor in targets(captured) and aten.tanh.default not in targets(captured)
    assert_same(captured.run(state_of(model), (x,)), expected)
    assert (model.calls, model.seen.item()) == (1, 0.0)  # tracing on real values left nothing behind
    linear = next(node for node in captured.graph.nodes if node.target is aten.linear.default)
    assert captured.site(linear).module == "linear"
    assert {slot.name for slot in captured.inputs} == {"linear.weight", "linear.bias", "seen", "x"}


def test_values_that_go_through_numpy_are_told() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_numpy(np.sin(x.numpy()))

    captured = capture(Numpy(), (torch.randn(3),))
    assert any("became constants" in note and "np.sin(x.numpy())" in note for note in captured.notes)


def test_sizes_that_depend_on_the_data() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.nonzero(x[:, 0] > 0)[:, 0].tolist()
            return self.linear(torch.stack([x[i] * len(rows) for i in rows]))

    model, x = Ragged(), torch.tensor([[1.0, 2, 3, 4], [-1, 2, 3, 4], [3, 2, 1, 0]])
    captured = capture(model, (x,))
    assert captured.method == "make_fx"
    assert_same(captured.run(state_of(model), (x,)), model(x))


def test_an_output_that_is_no_pytree_is_left_out() -> None:
    @dataclass
    class Result:
        value: Tensor

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x + 1, Result(x)

    captured = capture(Odd(), (torch.ones(2),))
    assert any("an output of type Result is left out" in note for note in captured.notes)
    assert_same(captured.run({}, (torch.ones(2),)), (torch.tensor([2.0, 2.0]), None))


# ------------------------------------------------------------------ errors


def test_inputs_on_which_the_model_does_not_run() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branches(), (torch.randn(3, 6),))
    message = str(caught.value)
    assert message.startswith("Branches does not run on the example inputs ((3, 6) torch.float32): RuntimeError: mat1")
    assert "test_capture.py" in message and "h = self.linear(x)" in message and "what to do" in message


def test_missing_inputs() -> None:
    with pytest.raises(CaptureError, match=r"no tensors\): TypeError: .*missing 1 required positional argument: 'x'"):
        capture(Branches())


def test_a_model_that_nothing_captures() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is not Tensor or torch._C._is_torch_function_mode_enabled():
                raise ValueError("no tracing here")
            return x

    with pytest.raises(CaptureError) as caught:
        capture(Stubborn(), (torch.ones(2),))
    message = str(caught.value)
    assert "torch.export: no tracing here" in message and "make_fx: no tracing here" in message
    assert 'raise ValueError("no tracing here")' in message and "'module:' in a rule pack" in message


def bind(captured: Captured, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        captured.bind(state, args, kwargs)
    return str(caught.value)


def test_bind_explains_what_does_not_fit() -> None:
    model, (ids,), kwargs = kitchen()
    captured, state = capture(model, (ids,), kwargs), state_of(model)
    extra = kwargs["extra"]
    message = bind(captured, state, ids[:, :2], twice=False, extra=extra)
    assert "input 'ids' does not fit" in message
    assert "got: (3, 2) torch.int64" in message and "expected: (3, 4) torch.int64" in message
    assert "got: (3, 4) torch.float32" in bind(captured, state, ids.float(), twice=False, extra=extra)
    message = bind(captured, state, ids, twice=True, extra=extra)
    assert "input 'twice' is True, but the graph was captured with False" in message
    message = bind(captured, state, ids, twice=False)
    assert "got: (*, twice=*)" in message and "expected: (*, twice=*, extra={'e': [*, *]})" in message
    assert "input 'extra.e[0]' is no tensor" in bind(captured, state, ids, twice=False, extra={"e": [1.0, 7]})
    assert "no parameter 'embedding.weight'" in bind(captured, {}, ids, **kwargs)
    message = bind(captured, state | {"linear.bias": torch.zeros(9)}, ids, **kwargs)
    assert "parameter 'linear.bias' has another shape" in message
    assert "got: (9,)" in message and "expected: (8,)" in message


def test_keyword_arguments_in_any_order() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    turned = dict(reversed(kwargs.items()))
    assert list(turned) != list(kwargs)
    assert_same(captured.run(state_of(model), args, turned), model(*args, **kwargs))


# ------------------------------------------------------------------ running


def test_steps_yield_every_node_and_let_values_be_replaced() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    captured = capture(net, (x,))
    steps = captured.steps(captured.bind(state_of(net), (x,)))
    seen, out = [], None
    with torch.no_grad():
        for node, value in steps:
            seen.append(node.name)
            if node.target is aten.relu.default:
                again, new = steps.send(value * 10)
                assert again is node
                assert_same(new, value * 10)
            out = value
        assert out is not None
        assert_same(out[0], net[2](net[1](net[0](x)) * 10))
    assert seen == [node.name for node in captured.graph.nodes]
    assert captured.outputs == (seen[-2],)


def test_steps_free_what_nobody_reads_any_more() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = torch.sin(x)
            return x

    captured = capture(Deep(), (torch.ones(3),))
    alive: set[int] = set()
    most = 0

    class Counted(Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    values = {captured.inputs[0].node: torch.ones(3).as_subclass(Counted)}
    steps = captured.steps(values)
    for _, value in steps:
        if isinstance(value, Counted):
            alive.add(id(value))
            most = max(most, len(alive))
        del value
    assert 1 < most <= 4


def test_signature_tells_whether_inputs_fit() -> None:
    model, args, kwargs = kitchen()
    captured = capture(model, args, kwargs)
    assert captured.signature == signature_of(args, kwargs) == (((3, 4), torch.int64), ((8,), torch.float32))
    assert captured.signature != signature_of((args[0][:2],), kwargs)


TENSORS = st.sampled_from([(2, 3), (4,), (1, 2, 2)]).map(torch.ones)
LEAVES = st.one_of(TENSORS, st.booleans(), st.none(), st.integers(-3, 3))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=6,
)


class Add(nn.Module):
    """Adds up whatever tensors it is given, and gives its inputs back with the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, tree: Any, other: Any = None) -> Any:
        total = self.scale * 1
        for leaf in pytree.tree_leaves((tree, other)):
            if isinstance(leaf, Tensor):
                total = total + F.relu(leaf).sum() * self.scale
        return {"total": total, "tree": tree}


@settings(max_examples=15)
@given(TREES, TREES)
def test_any_pytree_goes_in_and_comes_out(tree: Any, other: Any) -> None:
    model = Add()
    captured = capture(model, (tree,), {"other": other})
    assert_same(captured.run(state_of(model), (tree,), {"other": other}), model(tree, other=other))
    assert captured.signature == signature_of((tree,), {"other": other})


def test_a_cache_kept_in_a_dict_holds_no_traced_tensors() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.cache = nn.Linear(3, 4), {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.a.bias * 2
            return self.a(x) + self.cache["bias"]

    model = Cached()
    capture(model, (torch.randn(2, 3),))
    assert model.cache == {}
    copy.deepcopy(model)


def test_hooks_that_a_first_forward_installs_are_not_installed_twice() -> None:
    def shift(module: nn.Module, args: Any, output: Any) -> Any:
        return output + 1

    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.ready = nn.Linear(3, 4), False

        def forward(self, x: Tensor) -> Tensor:
            if not self.ready:
                self.a.register_forward_hook(shift)
                self.ready = True
            return self.a(x)

    model, x = Hooked(), torch.randn(2, 3)
    captured = capture(model, (x,))
    assert not model.a._forward_hooks
    assert_same(captured.run(state_of(model), (x,)), model(x))


class Filtered(nn.Module):
    """Leaves torch for numpy, elementwise, so that nothing in the graph says what became of the values."""

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().numpy() * np.arange(1, x.shape[-1] + 1)
        return torch.from_numpy(values).to(x)


def test_what_python_code_reads_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), Filtered(), nn.Linear(7, 3)).eval()
    x = torch.randn(4, 5)
    graph = graphfuse.trace(model, (x,))
    assert graph.captured.method == "make_fx" and graph.captured.reads
    assert [axis.size for axis in graph.axes] == [9]
    result = graphfuse.verify(graph)
    assert result.ok, result
    assert_same(graph.captured.run(state_of(model), (x,)), model(x).detach())
