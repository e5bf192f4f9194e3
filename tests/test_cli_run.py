"""A run of ``fuse`` from one file, its effective config, alignments that are saved and used again; ``config``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import Run, parents

from graphfuse.aligned import Alignment
from graphfuse.cli import main


@pytest.fixture
def specs(run: Run, tmp_path: Path) -> list[str]:
    return parents(tmp_path, "net", "net")


def write(name: str, **values: object) -> None:
    Path(name).write_text(yaml.safe_dump(values))


def test_a_config_alone_runs_and_its_effective_form_gives_the_same_bytes(run: Run, specs: list[str]) -> None:
    write("run.yaml", models=specs, data="cli_nets:loader", out="one", seed=3, solver="sinkhorn", samples=32)
    code, _, error = run("fuse", "--config", "run.yaml")
    assert code == 0, error
    effective = yaml.safe_load(Path("one/config.yaml").read_text())
    assert effective["models"] == specs and effective["seed"] == 3 and effective["solver"] == "sinkhorn"
    assert effective["calibrate"]["method"] == "least_squares"
    code, text, error = run("fuse", "--config", "one/config.yaml", "-o", "two")
    assert code == 0, error
    assert "out is two, by the command line; one/config.yaml says one" in text
    for name in ("model.safetensors", "alignment.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_the_command_line_comes_first_and_says_so(run: Run, specs: list[str]) -> None:
    write("run.yaml", models=["cli_nets:other"], samples=8, seed=3, out="one", method="weights")
    code, text, error = run("fuse", *specs, "--config", "run.yaml", "--seed", "4", "--json")
    assert code == 0, error
    report = json.loads(text)
    assert report["specs"] == specs and report["config"]["seed"] == 4
    assert report["notes"][:2] == [
        f"models is {', '.join(specs)}, by the command line; run.yaml says cli_nets:other",
        "seed is 4, by the command line; run.yaml says 3",
    ]


def test_an_alignment_is_saved_and_used_again(run: Run, specs: list[str], tmp_path: Path) -> None:
    code, text, error = run("align", *specs, "--data", "cli_nets:loader", "-o", "ab.safetensors")
    assert code == 0, error
    assert "alignment onto model 0, by both" in text and "written: ab.safetensors" in text
    assert Alignment.load("ab.safetensors").models[1].maps
    code, text, error = run("align", *specs, "--json")
    assert code == 0 and json.loads(text)["method"] == "weights", error
    for folder, more in (("one", ()), ("two", ("--alignment", "ab.safetensors"))):
        code, _, error = run("fuse", *specs, "--data", "cli_nets:loader", "-o", folder, *more)
        assert code == 0, error
    for name in ("model.safetensors", "alignment.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_an_alignment_of_others_is_refused(run: Run, specs: list[str], tmp_path: Path) -> None:
    run("align", *specs, "-o", "ab.safetensors")
    for words, reason in (
        (["cli_nets:net", "cli_nets:wide"], "has other sizes of model 1"),
        (["cli_nets:wide", "cli_nets:net"], "has other axes"),
        ([*specs, "cli_nets:net"], "has other models"),
        (["cli_nets:other", "cli_nets:other"], "has other axes"),
    ):
        code, _, error = run("fuse", *words, "--alignment", "ab.safetensors", "-o", "out")
        assert code == 1 and reason in " ".join(error.split()), error
    assert not Path("out").exists()


def test_config_init_schema_and_validate(run: Run) -> None:
    code, text, _ = run("config", "init")
    assert code == 0 and yaml.safe_load(text)["out"] == "fused"
    assert run("config", "init", "run.yaml", "--full", "--schema", "schema.json")[0] == 0
    assert Path("run.yaml").read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    code, text, _ = run("config", "validate", "run.yaml")
    assert code == 0 and text == "run.yaml: valid\n"
    assert "exists already" in run("config", "init", "run.yaml")[2]
    code, text, _ = run("config", "schema")
    assert code == 0 and json.loads(text)["properties"]["solver"]["enum"][0] == "assignment"
    Path("bad.yaml").write_text("solvr: emd\nseed: -1\n")
    code, _, error = run("config", "validate", "bad.yaml")
    assert code == 1
    assert "bad.yaml: line 1: unknown key 'solvr'; did you mean 'solver'?" in error
    assert "bad.yaml: line 2: seed: input should be greater than or equal to 0, got -1" in error
    code, text, _ = run("config", "validate", "bad.yaml", "--json")
    assert code == 1
    assert [(one["line"], one["key"]) for one in json.loads(text)["problems"]] == [(1, "solvr"), (2, "seed")]


def test_verbose_shows_what_is_done_and_leaves_logging_as_it_was(run: Run, specs: list[str]) -> None:
    code, _, error = run("align", *specs, "-v")
    assert code == 0 and "tracing 2 models" in error
    assert "tracing" not in run("align", *specs)[2]


def test_shells_can_complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_GRAPHFUSE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "graphfuse al")
    monkeypatch.setenv("COMP_CWORD", "1")
    main([])
    assert "align" in capsys.readouterr().out.split()
    torch.manual_seed(0)
