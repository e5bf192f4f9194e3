from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Run, assert_same, parents
from rich.console import Console

from graphfuse import __version__
from graphfuse.aligned import Alignment
from graphfuse.io.checkpoints import save_state
from graphfuse.io.models import load_model
from graphfuse.report import terminal
from graphfuse.symmetry import trace

PACK = """\
version: 1
rules:
  - op: aten.linear.default
    signature: "x[... i], w[o i], b[o]? -> [... o]"
    source: a test
"""


def test_help_teaches(run: Run) -> None:
    code, text, _ = run("--help")
    assert code == 0
    for command in ("demo", "inspect", "verify", "align", "fuse", "config", "rules"):
        assert command in text
    assert "Exit codes: 0 all is well; 1 an error" in text
    for command in ("inspect", "verify", "align", "fuse"):
        code, text, _ = run(command, "--help")
        assert code == 0
        assert f"Example: graphfuse {command} " in text
        assert "package.module:factory@weights.safetensors" in text and "example_inputs()" in text
    assert run("demo", "--help")[0] == 0
    assert run("--version")[:2] == (0, f"{__version__}\n")


def test_wrong_usage_is_code_2(run: Run) -> None:
    code, _, error = run("fuse", "cli_nets:net")
    assert code == 2 and "Invalid value for '--out' / '-o': name a new directory" in error
    assert run("fuse", "--config", "c.yaml", "--json")[0] == 1
    code, text, _ = run("fuse", "--json")
    assert code == 2 and json.loads(text)["error"]["type"] == "UsageError"
    assert run("inspct", "cli_nets:net")[0] == 2
    assert run("verify", "cli_nets:net", "--trials", "0")[0] == 2


def test_inspect_shows_axes_and_why_others_are_fixed(run: Run) -> None:
    code, text, _ = run("inspect", "cli_nets:net")
    assert code == 0
    assert "Net: 4 free axes" in text
    assert "hidden.1-2" in text and "layers.*.weight[0]" in text
    assert "input" in text and "up.weight[1]" in text and "down.weight[0]" in text
    code, text, _ = run("inspect", "cli_nets:net", "--all")
    assert code == 0 and "layers.1.weight[0]" in text and "layers.*" not in text


def test_inspect_for_programs_and_as_a_page(run: Run) -> None:
    code, text, error = run("inspect", "cli_nets:net", "--json", "--html", "net.html")
    found = json.loads(text)
    assert code == 0 and not error.strip()
    assert [axis["size"] for axis in found["axes"] if axis["free"]] == [12, 12, 12, 12]
    page = Path("net.html").read_text()
    assert page.startswith("<!") and "Net: symmetries" in page


def test_verify(run: Run) -> None:
    code, text, _ = run("verify", "cli_nets:net", "--trials", "2", "--seed", "3")
    assert code == 0 and "verified: 4 free axes, 2 trials" in text
    code, text, _ = run("verify", "cli_nets:net", "--json")
    found = json.loads(text)
    assert code == 0 and found["ok"] is True and found["max_error"] < 1e-9
    assert run("verify", "cli_nets:net", "--output", "output")[0] == 0
    code, _, errors = run("verify", "cli_nets:net", "--output", "outputs")
    assert code == 1 and "Net returns no 'outputs'; did you mean 'output'?" in errors


def test_verify_fails_for_a_model_that_keeps_state(run: Run) -> None:
    code, text, _ = run("verify", "cli_nets:Counter")
    assert code == 1 and "not verified: the model is random or keeps state" in text


def test_fuse_writes_a_model_that_loads_again(run: Run, tmp_path: Path) -> None:
    specs = parents(tmp_path, "net", "wide", "net")
    code, text, error = run("fuse", *specs, "--data", "cli_nets:loader", "-o", "deep/out")
    assert code == 0, error
    assert "by both" in text and "the result has its shape" in text and "calibrated on 64 inputs" in text
    assert {path.name for path in Path("deep/out").iterdir()} == {
        "model.safetensors", "alignment.safetensors", "report.json", "report.html", "config.yaml",
        "README.md",
    }  # fmt: skip
    fused = load_model("cli_nets:net@deep/out/model.safetensors").model
    assert fused(torch.ones(2, 5)).shape == (2, 3)
    report = json.loads(Path("deep/out/report.json").read_text())
    assert report["specs"] == specs and len(report["models"]) == 3
    alignment = Alignment.load("deep/out/alignment.safetensors")
    moved = alignment.apply(load_model(specs[1]).model.state_dict(), 1)
    assert moved["up.weight"].shape == (12, 5)


def test_long_names_of_models_are_shown_whole(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents(tmp_path, "net", "net")
    long = "a_name_that_differs_from_others_only_at_its_end" * 2
    for name in "01":
        Path(f"{name}.safetensors").rename(f"{long}_{name}.st")
    monkeypatch.setattr("graphfuse.cli.console.out", Console(width=80))
    code, text, error = run("fuse", *(f"cli_nets:net@{long}_{name}.st" for name in "01"), "-o", "out")
    assert code == 0, error
    assert "_0.st" in text and "_1.st" in text and "parameters" in text and "50%" in text


def test_same_seed_same_result_and_weights_alone(run: Run, tmp_path: Path) -> None:
    specs = parents(tmp_path, "net", "net")
    for folder in ("a", "b"):
        code, text, error = run("fuse", *specs, "-o", folder, "--seed", "1", "--json")
        assert code == 0, error
        assert json.loads(text)["alignment"]["method"] == "weights"
    a, b = (dict(load_model(f"cli_nets:net@{x}/model.safetensors").model.state_dict()) for x in "ab")
    assert_same(a, b, tolerance=0)


def test_fuse_writes_into_another_width(run: Run) -> None:
    for models, files in ((["cli_nets:net"], 6), (["cli_nets:net", "cli_nets:wide"], 7)):
        folder = f"into{len(models)}"
        code, text, error = run("fuse", *models, "--into", "cli_nets:narrow", "--data", "cli_nets:loader", "-o", folder)
        assert code == 0, error
        assert len(list(Path(folder).iterdir())) == files
        fused = load_model(f"cli_nets:narrow@{folder}/model.safetensors").model
        assert fused(torch.ones(2, 5)).shape == (2, 3)
        assert "cli_nets:narrow" in text or len(models) == 2


def refused(run: Run, *words: str, name: str) -> str:
    before = sorted(Path().rglob("*"))
    code, out, error = run(*words)
    assert code == 1 and not out.strip()
    assert name in error and "Traceback" not in error
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == [
        path for path in before if "__pycache__" not in str(path)
    ]
    return " ".join(error.replace("│", " ").split())


def test_bad_input_is_one_panel_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    a, b, other = parents(tmp_path, "net", "net", "other")
    np.savez("data.npz", x=np.ones((4, 7)))
    state = dict(load_model(a).model.state_dict())
    save_state("short.safetensors", {name: value for name, value in state.items() if name != "up.bias"})
    save_state("nan.safetensors", state | {"up.bias": torch.full((12,), float("nan"))})
    torch.save(load_model(a).model, "pickle.pt")
    Path("c.yaml").write_text("solvr: emd\n")
    Path("full").mkdir()
    Path("full/theirs").write_text("")
    cases: list[tuple[str, str, tuple[str, ...]]] = [
        ("CorrespondenceError", "Sequential does not do the same as Net with its parameters", (a, other)),
        ("CheckpointError", "missing from the file (1): up.bias (12,)", (a, "cli_nets:net@short.safetensors")),
        ("CheckpointError", "missing from the file", (a, "cli_nets:wide@2.safetensors")),
        ("CheckpointError", "up.bias (12,): 12 of 12 values", (a, "cli_nets:net@nan.safetensors")),
        ("CheckpointError", "pickle.pt holds Python objects", (a, "cli_nets:net@pickle.pt")),
        ("DataError", "cli_nets:empty() yields nothing", (a, b, "--data", "cli_nets:empty")),
        ("CaptureError", "does not run on the example inputs ((4, 7) torch.float32)", (a, b, "--data", "data.npz")),
        ("ConfigError", "solver", (a, b, "--config", "c.yaml")),
        ("ConfigError", "the device 'gpu' cannot be used", (a, b, "--device", "gpu")),
        ("DataError", "two", (a,)),
        ("RuleError", "none.yaml", (a, b, "--rules", "none.yaml")),
    ]
    for name, message, words in cases:
        assert message in refused(run, "fuse", *words, "-o", "out", name=name)
    text = refused(run, "fuse", a, b, "-o", "full", name="OutputError")
    assert "full exists and is not empty (it holds theirs)" in text
    assert "no example inputs for cli_bare:net" in refused(run, "inspect", "cli_bare:net", name="DataError")


def test_errors_for_programs_and_with_a_traceback(run: Run) -> None:
    code, text, _ = run("inspect", "cli_nets:nat", "--json")
    assert code == 1
    assert json.loads(text)["error"]["type"] == "ModelSpecError"
    assert "did you mean net?" in json.loads(text)["error"]["message"]
    code, _, error = run("inspect", "cli_nets:nat", "--debug")
    assert code == 1 and "Traceback (most recent call last)" in error


def test_a_defect_is_no_traceback_either(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("graphfuse.cli.steps.trace", defect)
    code, _, error = run("inspect", "cli_nets:net")
    assert code == 1 and "unexpected ZeroDivisionError" in error and "--debug shows where" in error


def test_rules_check(run: Run) -> None:
    Path("mine.yaml").write_text(PACK)
    code, text, error = run("rules", "check", "mine.yaml")
    assert code == 0, text + error
    assert "1 of 1 entries hold" in text
    Path("bad.yaml").write_text(PACK.replace("[... o]", "[... i]"))
    code, text, error = run("rules", "check", "bad.yaml")
    assert code == 1
    code, _, error = run("rules", "check", "none.yaml")
    assert code == 1 and "RuleError" in error


def test_alike_axes_are_shown_together(run: Run) -> None:
    graph = trace(load_model("cli_nets:net").model, torch.ones(2, 5))
    together = terminal.grouped(graph)
    assert [len(group.axes) for group in together] == [1, 2, 1]
    assert together[1].pattern == ("layers.*.weight[0]", "layers.*.bias[0]", "layers.*.weight[1]")
    assert [group.name for group in terminal.grouped(graph, every=True)] == [axis.name for axis in graph.axes]


def test_precision_samples_and_names_that_may_be_missing(run: Run) -> None:
    state = dict(load_model("cli_nets:net").model.state_dict())
    half = {name: value.half() for name, value in state.items() if not name.startswith("down")}
    save_state("half.safetensors", half)
    models = ["cli_nets:net@half.safetensors", "cli_nets:net"]
    code, _, error = run("fuse", *models, "--data", "cli_nets:loader", "-o", "out")
    assert code == 1 and "--allow down." in error and not Path("out").exists()
    words = ["--data", "cli_nets:loader", "--allow", "down.", "--samples", "20"]
    code, text, _ = run("fuse", *models, *words, "-o", "out")
    assert code == 0 and "not loaded, so with the values that the model was built with: down.weight" in text
    assert json.loads(Path("out/report.json").read_text())["inputs"] == 32  # whole batches of 16
    back = load_model("cli_nets:net@out/model.safetensors").stored
    assert {name for name, dtype in back.items() if dtype == torch.float16} == set(half)
    assert run("fuse", *models, *words, "--dtype", "float64", "-o", "double")[0] == 0
    assert set(load_model("cli_nets:net@double/model.safetensors").stored.values()) == {torch.float64}
    code, _, error = run("inspect", "cli_nets:net", "--dtype", "int8")
    assert code == 1 and "there is no floating dtype 'int8'" in error
