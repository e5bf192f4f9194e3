"""Plots for papers, and the plane that a landscape is drawn over."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from helpers import importable
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from torch import Tensor, nn

import graphfuse
from graphfuse.capture import state_of
from graphfuse.cli import main
from graphfuse.errors import ConfigError, DataError, OutputError
from graphfuse.evaluation.states import restated
from graphfuse.fuse import FuseResult
from graphfuse.io.models import load_model
from graphfuse.io.specs import find
from graphfuse.landscape import Landscape, landscape
from graphfuse.lockstep import as_batch
from graphfuse.report.bipartite import bipartite
from graphfuse.report.plots import COLOURS, plot_couplings, plot_curve, plot_landscape, plot_symmetry

X = torch.linspace(-1, 1, 120).view(30, 4).sin()


def net(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture(scope="module")
def parents() -> list[nn.Module]:
    torch.manual_seed(0)
    return [net(), net()]


@pytest.fixture(scope="module")
def result(parents: list[nn.Module]) -> FuseResult:
    return graphfuse.fuse(parents, data=[X])


def loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X) - X[:, :2]).square().mean())


# -------------------------------------------------------------------- landscape


def test_the_landscape_is_that_of_the_three_models(parents: list[nn.Module], result: FuseResult) -> None:
    before = [{name: value.clone() for name, value in state_of(model).items()} for model in parents]
    steps: list[tuple[str, int, int]] = []
    found = landscape(
        parents, result.alignment, loss, third=result.model, points=5, progress=lambda *step: steps.append(step)
    )
    assert [name for name, *_ in found.marks] == ["model 0", "model 1, aligned", "fused"]
    assert [value for *_, value in found.marks] == pytest.approx([*map(loss, parents), loss(result.model)], rel=1e-4)
    states = [result.alignment.apply(state_of(parents[k]), k) for k in (0, 1)] + [state_of(result.model)]
    points = [torch.cat([value.flatten().double() for value in state.values()]) for state in states]
    for i in range(3):  # distances in the plane are those between weights
        for k in range(3):
            (_, x, y, _), (_, u, v, _) = found.marks[i], found.marks[k]
            assert ((x - u) ** 2 + (y - v) ** 2) ** 0.5 == pytest.approx(
                float((points[i] - points[k]).norm()), abs=1e-5
            )
    assert (
        found.across[0] < 0 < found.marks[1][1] < found.across[-1]
        and found.up[0] < 0 < found.marks[2][2] < found.up[-1]
    )
    assert steps == [("landscape", k, 5) for k in range(1, 6)]
    assert all(
        torch.equal(state_of(m)[name], v) for m, old in zip(parents, before, strict=True) for name, v in old.items()
    )


def test_every_value_belongs_to_its_place(parents: list[nn.Module], result: FuseResult) -> None:
    """With a loss that tells the distance from the target, values are known everywhere."""
    origin = result.alignment.apply(state_of(parents[0]), 0)

    def away(model: nn.Module) -> float:
        return sum(float((value - origin[name]).square().sum()) for name, value in state_of(model).items())

    found = landscape(parents, result.alignment, away, points=4)
    for y, row in zip(found.up, found.values, strict=True):
        assert row == pytest.approx([x * x + y * y for x in found.across], rel=1e-3)
    assert found.marks[2][0] == "model 1, as it is"
    assert Landscape.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_planes_that_do_not_exist_are_refused(parents: list[nn.Module], result: FuseResult) -> None:
    middle = net()
    aligned = [result.alignment.apply(state_of(parents[k]), k) for k in (0, 1)]
    middle.load_state_dict({name: (value + aligned[1][name]) / 2 for name, value in aligned[0].items()})
    with pytest.raises(DataError, match=r"lies on the line through the other two(?s:.*)calibrated"):
        landscape(parents, result.alignment, loss, third=middle)
    with pytest.raises(DataError, match=r"the third model is not of the target's form: '0.weight' has another shape"):
        landscape(parents, result.alignment, loss, third=net(9))
    wide = [net(8), net(10)]
    apart = graphfuse.align(wide, X)
    with pytest.raises(DataError, match=r"the other model as it is is not.*\n.*pass third="):
        landscape(wide, apart, loss)
    assert len(landscape(wide, apart, loss, third=wide[0].train() and net(8), points=2).values) == 2
    with pytest.raises(DataError, match="expected the 2 models of the alignment, got 1"):
        landscape(parents[:1], result.alignment, loss)
    with pytest.raises(DataError, match="no model 5; the 2 models"):
        landscape(parents, result.alignment, loss, model=5)
    with pytest.raises(DataError, match="a grid of 1 points"):
        landscape(parents, result.alignment, loss, points=1)
    twins = [parents[0], parents[0]]
    with pytest.raises(DataError, match="the same weights"):
        landscape(twins, graphfuse.align(twins, X), loss)


# ------------------------------------------------------------------------- plots


EVALUATION = {
    "metrics": ["accuracy", "loss"], "inputs": 9, "parents": [{"accuracy": 0.9}, {"accuracy": 0.8}],
    "ensemble": None, "plain": None, "fused": {"accuracy": 0.82},
    "before": {"metric": "accuracy", "values": [0.9, 0.4, 0.8], "barrier": 0.45},
    "after": {"metric": "accuracy", "values": [0.9, 0.8, 0.8], "barrier": 0.05},
}  # fmt: skip
FOUND = Landscape((0.0, 1.0, 2.0), (0.0, 1.0), ((1.0, 2.0, 3.0), (2.0, float("nan"), 4.0)),
                  (("a", 0.0, 0.0, 1.0), ("b", 2.0, 0.0, 3.0), ("c", 1.0, 1.0, 2.5)))  # fmt: skip


def drawings(result: FuseResult) -> Iterable[tuple[str, Any]]:
    graph = graphfuse.trace(result.model, (X[:2],))
    yield "curve", lambda path: plot_curve(EVALUATION, path)
    yield "landscape", lambda path: plot_landscape(FOUND, path)
    yield "couplings", lambda path: plot_couplings(result.alignment, path)
    yield "symmetry", lambda path: plot_symmetry(graph, path)


def test_the_same_values_give_the_same_bytes_and_no_date(result: FuseResult, tmp_path: Path) -> None:
    for name, draw in drawings(result):
        for kind in ("png", "svg"):
            path = tmp_path / f"{name}.{kind}"
            draw(path)
            first = path.read_bytes()
            with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
                draw(path)
            assert path.read_bytes() == first, path
            assert not re.search(rb"<dc:date>|20\d\d-\d\d-\d\d", first), path
        assert len({tuple(pixel) for row in imread(tmp_path / f"{name}.png")[::9, ::9] for pixel in row}) > 2
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name, _ in drawings(result) for kind in ("png", "svg")
    }


def test_the_curve_shows_values_and_barriers() -> None:
    (axes,) = plot_curve(EVALUATION).axes
    before, after, fused = axes.lines
    assert np.asarray(before.get_xydata()).tolist() == [[0.0, 0.9], [0.5, 0.4], [1.0, 0.8]]
    assert "0.45" in str(before.get_label()) and "0.05" in str(after.get_label())
    assert before.get_linestyle() != after.get_linestyle() and before.get_marker() != after.get_marker()
    assert np.asarray(fused.get_xydata()).tolist() == [[0.5, 0.82]] and axes.get_ylabel() == "accuracy"
    with pytest.raises(DataError, match="no curve"):
        plot_curve({**EVALUATION, "before": None, "after": None})


def test_the_landscape_marks_the_models() -> None:
    axes = plot_landscape(FOUND, metric="accuracy", higher_is_better=True).axes
    assert [text.get_text() for text in axes[0].texts] == ["a\n1", "b\n3", "c\n2.5"]
    assert len({str(line.get_marker()) for line in axes[0].lines}) == 3
    assert axes[1].get_ylabel() == "accuracy"


def test_couplings_are_drawn_as_they_are(result: FuseResult) -> None:
    figure = plot_couplings(result.alignment, axes=["hidden.1"], matched=False)
    (axes,) = figure.axes
    found = result.alignment.models[1].maps[result.alignment.axes[1].id]
    assert found.index is not None
    assert torch.equal(torch.tensor(axes.images[0].get_array()).argmax(-1), found.index)
    assert axes.get_title() == "hidden.1" and axes.get_xlabel() == "permutation, 8 x 8, up to 1"
    assert len([axes for axes in plot_couplings(result.alignment).axes if axes.images]) == 2
    with pytest.raises(ConfigError, match=r"no axis 'hidden.9'.\n  expected: hidden.0, hidden.1"):
        plot_couplings(result.alignment, axes=["hidden.9"])
    with pytest.raises(DataError, match="model 0 has no maps"):
        plot_couplings(result.alignment, model=0)
    with pytest.raises(DataError, match="there is no model 7"):
        plot_couplings(result.alignment, model=7)


def test_the_symmetry_graph_takes_alike_layers_together() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.up = nn.ModuleList(nn.Linear(6, 9) for _ in range(3))
            self.down = nn.ModuleList(nn.Linear(9, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x)
            for up, down in zip(self.up, self.down, strict=True):
                x = x + down(up(x).relu())
            return self.head(x)

    graph = graphfuse.trace(Net(), (X[:2],))
    drawn = bipartite(graph)
    assert [(side.name, side.size) for side in drawn.axes] == [("residual.0", 6), ("hidden.0-2", 9)]
    assert sorted(drawn.tensors) == sorted(
        ["inp.weight", "inp.bias", "up.*.weight", "up.*.bias", "down.*.weight", "down.*.bias", "head.weight"]
    )
    assert set(drawn.axes[1].touches) == {("up.*.weight", 0), ("up.*.bias", 0), ("down.*.weight", 1)}
    assert ("up.*.weight", 1) in drawn.axes[0].touches
    plain = bipartite(graphfuse.trace(net(), (X[:2],)))
    assert plain.tensors == ("0.weight", "*.bias", "2.weight", "4.weight")  # the weights differ in their lines
    with pytest.raises(DataError, match="no axis of this model is free"):
        plot_symmetry(graphfuse.trace(nn.Linear(4, 2), (X[:2],)))


def test_colours_can_be_told_apart_in_grey() -> None:
    """Those of the first few roles; later ones differ in hue alone, and lines in their ends."""
    grey = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, COLOURS[:2])]
    assert abs(grey[0] - grey[1]) > 0.04


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ending of no picture.\n  expected: .png, .svg or .pdf"):
        plot_curve(EVALUATION, tmp_path / "curve.jpeg")
    with pytest.raises(OutputError, match="cannot write"):
        plot_curve(EVALUATION, tmp_path / "nowhere" / "curve.png")
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'graphfuse\[plots\]'"):
        plot_curve(EVALUATION, tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ command line


NETS = """
import torch
from torch import nn

def net(seed=0):
    torch.manual_seed(int(seed))
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()

def example_inputs():
    return torch.randn(6, 4)

def data():
    for k in range(2):
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(k))
        yield x, x[:, :3].argmax(1)
"""


def test_every_plot_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plotted.py").write_text(NETS)

    def run(words: str, code: int = 0) -> str:
        found = main(words.split())
        printed = capsys.readouterr()
        assert found == code, printed.out + printed.err
        return printed.out + printed.err

    with importable(tmp_path):
        run("fuse plotted:net,seed=1 plotted:net,seed=2 --data plotted:data -o fused")
        (tmp_path / "found.json").write_text(run("evaluate --run fused --data plotted:data --json"))
        assert "Outcome" in (tmp_path / "fused/report.html").read_text() and "barriers" in run("plot curve --help")
        assert "has no evaluation" in " ".join(run("plot curve fused/report.json -o a.svg", 1).split())
        run("plot page fused found.json")
        assert "on 40 inputs" in (tmp_path / "fused/report.html").read_text()
        assert json.loads((tmp_path / "fused/report.json").read_text())["evaluation"]["inputs"] == 40
        assert json.loads(run("plot curve fused/report.json -o curve.svg --json")) == {"written": ["curve.svg"]}
        assert "curve.png" in run("plot curve found.json -o curve.png")
        run("plot couplings fused/alignment.safetensors -o couplings.png --axis hidden.0 --own-order")
        run("plot symmetry plotted:net -o symmetry.svg")
        found = json.loads(run("plot landscape fused --data plotted:data --third-fused --points 3 -o land.png --json"))
        run("plot landscape fused --data plotted:data --metric accuracy --points 2 -o land.pdf")
        fused, pairs = load_model("plotted:net@fused/model.safetensors").model, [*find("plotted:data", ConfigError)()]
        renewed = restated(fused, [as_batch(x) for x, _ in pairs])  # its batch norms, as everywhere in the plane
        expected = graphfuse.evaluate([renewed], None, pairs, "loss").parents[0]["loss"]
        assert "cannot be read" in run("plot curve none.json -o a.svg", 1)
    assert found["metric"] == "loss" and len(found["landscape"]["values"]) == 3
    assert [mark[0] for mark in found["landscape"]["marks"]] == ["model 0", "model 1, aligned", "fused"]
    assert found["landscape"]["marks"][2][3] == pytest.approx(expected, rel=1e-4)
    names = {path.name for path in tmp_path.iterdir() if path.suffix in (".svg", ".png", ".pdf")}
    assert names == {"curve.svg", "curve.png", "couplings.png", "symmetry.svg", "land.png", "land.pdf"}
