"""The commands that measure and apply: evaluate, compare, apply."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Run, assert_same, parents
from torch import Tensor

import graphfuse
from graphfuse.aligned import Alignment
from graphfuse.io.checkpoints import load_state, save_state
from graphfuse.io.models import load_model

METRIC = """
import torch

def error(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()

nothing = 3
"""


@pytest.fixture
def specs(run: Run, tmp_path: Path) -> list[str]:
    """Two models and data that the first one labels."""
    found = parents(tmp_path, "net", "net")
    x = torch.randn(70, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.savez("test.npz", x=x.numpy(), labels=load_model(found[0]).model(x).argmax(1).numpy())
    np.savez("inputs.npz", x=x.numpy())
    Path("cli_metric.py").write_text(METRIC)
    return found


def test_evaluate_what_a_run_left(run: Run, specs: list[str]) -> None:
    assert run("fuse", *specs, "--data", "inputs.npz", "-o", "out")[0] == 0
    code, text, error = run("evaluate", "--run", "out", "--data", "test.npz", "--json")
    assert code == 0, error
    found = json.loads(text)
    assert found["specs"] == specs and found["fused_spec"] == "cli_nets:net@out/model.safetensors"
    assert found["metrics"] == ["accuracy", "loss"] and found["inputs"] == 70
    assert found["parents"][0]["accuracy"] == 1 and found["fused"]["accuracy"] > 0.5
    assert len(found["before"]["values"]) == len(found["after"]["values"]) == 11
    nets = [load_model(spec).model for spec in specs]
    fused = load_model(found["fused_spec"]).model
    data = np.load("test.npz")
    pairs = [(torch.from_numpy(data["x"]), torch.from_numpy(data["labels"]))]
    api = graphfuse.evaluate(nets, fused, pairs, alignment=Alignment.load("out/alignment.safetensors"))
    assert found["fused"]["loss"] == pytest.approx(api.fused["loss"] if api.fused else None, rel=1e-5)
    assert found["after"]["barrier"] == pytest.approx(api.after.barrier if api.after else None, abs=1e-6)
    code, text, _ = run("evaluate", "--run", "out", "--data", "test.npz")
    assert code == 0
    for word in ("parent 0", "ensemble", "plain average", "fused", "barrier", "before", "after", "on 70 inputs"):
        assert word in text


def test_evaluate_models_alone_by_a_metric_of_ones_own(run: Run, specs: list[str]) -> None:
    words = ("evaluate", *specs, "--data", "test.npz", "--metric", "cli_metric:error", "--lower-is-better")
    code, text, error = run(*words, "--json", "--samples", "20", "--batch-size", "8")
    assert code == 0, error
    found = json.loads(text)
    assert found["metrics"] == ["error"] and found["parents"][0]["error"] == 0 and found["inputs"] == 20
    assert found["fused"] is None and found["after"] is None and found["before"]["barrier"] >= 0


def test_compare(run: Run, specs: list[str]) -> None:
    code, text, error = run("compare", *specs, "--data", "inputs.npz", "--json")
    assert code == 0, error
    found = json.loads(text)
    assert [one["layer"] for one in found["layers"]] == ["up", "layers.0", "layers.1", "layers.2", "down"]
    assert all(0 <= one["cka"] <= 1 for one in found["layers"]) and found["axes"][0]["sizes"] == [12, 12]
    code, text, _ = run("compare", specs[0], specs[0], "--data", "inputs.npz")
    assert code == 0 and "layers.1" in text and "1.000" in text and "moved" in text


def outputs(spec: str) -> Tensor:
    with torch.no_grad():
        return load_model(spec).model(torch.linspace(-1, 1, 35).view(7, 5))


def test_apply_moves_a_later_checkpoint(run: Run, specs: list[str]) -> None:
    assert run("align", *specs, "--data", "inputs.npz", "-o", "ab.safetensors")[0] == 0
    state = load_state("1.safetensors").state
    save_state("later.safetensors", {name: value * 1.1 for name, value in state.items()})
    code, text, error = run("apply", "ab.safetensors", "later.safetensors", "-o", "moved.safetensors")
    assert code == 0 and "written: moved.safetensors" in text, error
    assert_same(outputs("cli_nets:net@moved.safetensors"), outputs("cli_nets:net@later.safetensors"), 1e-4)
    code, text, error = run("apply", "ab.safetensors", specs[1], "-o", "like", "--like", specs[0], "--json")
    assert code == 0 and json.loads(text)["what"] == "checkpoint", error
    assert_same(outputs("cli_nets:net@like/model.safetensors"), outputs(specs[1]), 1e-4)


def test_apply_carries_a_task_vector(run: Run, specs: list[str]) -> None:
    assert run("align", *specs, "--data", "inputs.npz", "-o", "ab.safetensors")[0] == 0
    words = ("apply", "ab.safetensors", "1.safetensors", "--base", "1.safetensors")
    code, text, error = run(*words, "-o", "vector.safetensors")
    assert code == 0, error
    assert all(not bool(value.any()) for value in load_state("vector.safetensors").state.values())
    code, text, error = run(*words, "--add-to", "0.safetensors", "--scale", "0.5", "-o", "sum.safetensors", "--json")
    assert code == 0 and json.loads(text)["what"] == "model with the task vector", error
    assert_same(outputs("cli_nets:net@sum.safetensors"), outputs(specs[0]), 1e-4)
