"""Bad input to ``fuse``: a clear error before anything is computed, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import MLP, Decoder, ResNet, ids, images
from torch import Tensor, nn

from graphfuse.capture import state_of
from graphfuse.errors import (
    CaptureError,
    CheckpointError,
    ConfigError,
    CorrespondenceError,
    DataError,
    GraphFuseError,
)
from graphfuse.fuse import fuse
from graphfuse.symmetry import trace

X = torch.zeros(2, 5)


def poisoned(value: float) -> nn.Module:
    model = MLP()
    model.state_dict()["2.weight"][0, 0] = value
    return model


def without_bias() -> nn.Module:
    model = MLP()
    model[2] = nn.Linear(11, 7, bias=False)
    return model


def remembering() -> nn.Module:
    model = MLP()
    model.memory = (model[0].weight * 2,)  # type: ignore[assignment]
    return model


def other_op() -> nn.Module:
    model = MLP()
    model[1] = nn.Softmax(-1)
    return model


class Unlabelled(nn.Module):
    """A loader that gives pairs of images and labels, as most do, is a common mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


CASES: dict[str, tuple[Callable[[], list[Any]], dict[str, Any], type[GraphFuseError], str]] = {
    "no model": (lambda: [], {"args": X}, DataError, "two or more models, got 0"),
    "one model": (lambda: [MLP()], {"args": X}, DataError, "two or more models, got 1"),
    "a path": (lambda: [MLP(), "b.safetensors"], {"args": X}, DataError, "model 1 is no torch.nn.Module but a str"),
    "other architecture": (lambda: [MLP(), Decoder()], {"args": X}, GraphFuseError, "Decoder"),
    "a parameter is missing": (
        lambda: [MLP(), without_bias()], {"args": X}, CorrespondenceError, r"only model 0 has: 2\.bias \(7,\)",
    ),
    "an input width differs": (
        lambda: [MLP(), MLP((5, 11, 7, 4))], {"args": X}, CorrespondenceError, r"(?s)4\.weight.*\(3, 7\).*\(4, 7\)",
    ),
    "depth differs": (
        lambda: [MLP(), MLP((5, 11, 3))], {"args": X}, CorrespondenceError, "of different depth.*there is no data",
    ),
    "NaN": (
        lambda: [MLP(), poisoned(float("nan"))], {"args": X}, CheckpointError, r"model 1 .*not finite.*2\.weight",
    ),
    "infinite": (
        lambda: [poisoned(float("inf")), MLP()], {"args": X}, CheckpointError, r"model 0 .*not finite.*2\.weight",
    ),
    "meta": (
        lambda: [MLP(), MLP().to("meta")], {"args": X}, CheckpointError, r"model 1 has no values: '0\.weight'",
    ),
    "cannot be copied": (lambda: [remembering(), MLP()], {"args": X}, DataError, "MLP cannot be copied"),
    "no inputs": (lambda: [MLP(), MLP()], {}, DataError, "no example inputs"),
    "data yields nothing": (lambda: [MLP(), MLP()], {"data": iter([])}, DataError, "yields no batch"),
    "a batch of another kind": (lambda: [MLP(), MLP()], {"data": ["cat.png"]}, DataError, "a batch of type str"),
    "batches with labels": (
        lambda: [Unlabelled(), Unlabelled()], {"data": [(X, torch.zeros(2))]}, CaptureError, "does not run",
    ),
    "a batch of another width": (
        lambda: [MLP(), MLP()], {"args": X, "data": [torch.zeros(2, 6)]}, GraphFuseError, "does not run",
    ),
    "weights for other models": (
        lambda: [MLP(), MLP()], {"args": X, "config": {"weights": (1, 1, 1)}}, ConfigError,
        "one for each of 2 models, got 3",
    ),
    "weights of zero": (
        lambda: [MLP(), MLP()], {"args": X, "config": {"weights": (0, 0)}}, ConfigError, "must not all be zero",
    ),
    "a negative weight": (
        lambda: [MLP(), MLP()], {"args": X, "config": {"weights": (2, -1)}}, ConfigError, "greater than or equal to 0",
    ),
    "an unknown key": (
        lambda: [MLP(), MLP()], {"args": X, "config": {"calibrate": {"rigde": 1}}}, ConfigError, "did you mean 'ridge'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nothing_is_changed(name: str) -> None:
    build, given, error, words = CASES[name]
    models = build()
    modules = [model.train() for model in models if isinstance(model, nn.Module)]
    before = [{key: value.clone() for key, value in state_of(model).items()} for model in modules]
    with pytest.raises(error, match=words):
        fuse(models, given.get("args", ()), data=given.get("data"), config=given.get("config"))
    for model, state in zip(modules, before, strict=True):
        assert all(module.training for module in model.modules())
        for key, value in state_of(model).items():
            assert value.is_meta or torch.equal(value.nan_to_num(7), state[key].nan_to_num(7))


def test_models_on_several_devices_are_refused() -> None:
    class Elsewhere(MLP):
        """Claims to be on another device, as there may be no second one here."""

    class Far(Tensor):
        device = torch.device("cuda:1")  # type: ignore[assignment]

    model = Elsewhere()
    model.register_buffer("far", torch.zeros(1).as_subclass(Far))
    with pytest.raises(DataError, match=r"several devices.\n  '0.weight' of model 0: cpu\n  'far' of model 1: cuda:1"):
        fuse([MLP(), model], X)


def test_models_that_run_other_ops_are_not_compared_by_activations() -> None:
    with pytest.raises(CorrespondenceError):
        fuse([MLP(), other_op()], data=[torch.randn(8, 5)])


def test_an_error_in_the_data_stops_before_the_models_are_looked_at() -> None:
    class Broken:
        def __iter__(self) -> Any:
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        fuse([ResNet(), ResNet()], data=Broken())


def test_inputs_of_another_kind_are_named() -> None:
    with pytest.raises(CaptureError, match="Decoder does not run on the example inputs"):
        fuse([Decoder(), Decoder()], images())
    assert fuse([Decoder(depth=1), Decoder(depth=1)], ids(vocabulary=31)).report["models"][0]["class"] == "Decoder"


@pytest.mark.parametrize("how", ["scripted", "parallel"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_has_no_code_to_capture_is_told(how: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    wrapped = torch.jit.script(model) if how == "scripted" else torch.nn.DataParallel(model)
    with pytest.raises(CaptureError, match="pass the module"):
        trace(wrapped, (torch.randn(2, 3),))
