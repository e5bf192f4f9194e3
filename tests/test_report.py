"""Pages, pictures, charts and heat maps: right, escaped, self-contained. A real browser opens them in test_browser."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ResNet, UNet
from samples import axis, deep, node
from torch import Tensor, nn

import graphfuse
from graphfuse.aligned import Aligned, Alignment
from graphfuse.axes import SymmetryClass
from graphfuse.maps import AxisMap
from graphfuse.report import charts, html
from graphfuse.report.cards import cards_of
from graphfuse.report.columns import LARGEST, columns_of
from graphfuse.report.couplings import binned, count, couplings
from graphfuse.report.explorer import explorer
from graphfuse.report.graphdata import describe, graph_json, leaves
from graphfuse.report.heatmaps import heatmaps
from graphfuse.report.layering import Box, draw
from graphfuse.report.layers import by_depth
from graphfuse.report.outcome import outcome, outcome_words
from graphfuse.report.pages import fuse_page, graph_page
from graphfuse.report.picture import picture
from graphfuse.report.words import structure
from graphfuse.symmetry import Axis


@pytest.fixture
def graph() -> dict:
    """A residual block whose one projection makes a stack of two blocks: a sum, a product, a fork and a fixed axis."""
    stack = [[{"sum": [[2, 3], [2, 4]]}], [1]]
    return {
        "name": "Net <1>",
        "parameters": 100,
        "free_fraction": 0.75,
        "method": "export",
        "notes": [],
        "axes": [
            axis(1, "residual", 6, (("inner.both.weight", 1), ("out.weight", 0))),
            axis(2, "heads", 2, (("inner.both.weight", 0), ("out.weight", 1))),
            axis(3, "head_dim_qk", 5, (("inner.both.weight", 0),)),
            axis(4, "head_dim_vo", 3, (("inner.both.weight", 0), ("out.weight", 1)), context=[2]),
            axis(9, "fixed", 3, (("out.bias", 0),), free=False, reasons=["output"]),
        ],
        "tensors": [
            {"name": "inner.both.weight", "shape": [16, 6], "dims": stack},
            {"name": "out.weight", "shape": [6, 6], "dims": [[1], [2, 4]]},
            {"name": "out.bias", "shape": [3], "dims": [[9]]},
        ],
        "nodes": [
            node("x", "x", kind="input", dims=[[], [1]], shape=[1, 6]),
            node("both", "linear", ("x",), [[], stack[0]], [1, 16], module="inner.both", tensors=["inner.both.weight"]),
            node("view", "view", ("both",), [[], stack[0]], [1, 16], module="inner"),
            node("chunk", "chunk", ("view",), module="inner"),
            node("first", "getitem", ("chunk",), [[], [2, 3]], [1, 10]),
            node("second", "getitem", ("chunk",), [[], [2, 4]], [1, 6]),
            node("turned", "transpose", ("first",), [[2, 3], []], [10, 1]),
            node("mixed", "matmul", ("turned", "second"), [[], [2, 4]], [1, 6]),
            node("relu", "relu", ("mixed",), [[], [2, 4]], [1, 6]),
            node("made", "arange", (), [[]], [4]),
            node("out", "linear", ("relu", "made"), [[], [1]], [1, 6], tensors=["out.weight", "out.bias"]),
            node("add", "add", ("x", "out"), [[], [1]], [1, 6]),
            node("output.0", "output", ("add",), kind="output"),
        ],
    }


# ------------------------------------------------------------------ graph data


def test_graph_json_is_data_and_its_names_agree() -> None:
    graph = graphfuse.trace(ResNet().eval(), (torch.zeros(2, 3, 16, 16),))
    data = json.loads(json.dumps(graph_json(graph)))
    assert data["name"] == "ResNet"
    assert data["parameters"] == sum(p.numel() for p in graph.model.parameters())
    assert [a["id"] for a in data["axes"] if a["free"]] == [a.id for a in graph.axes]
    tensors, nodes = {t["name"] for t in data["tensors"]}, {n["id"] for n in data["nodes"]}
    assert {touch["tensor"] for a in data["axes"] for touch in a["touches"]} == tensors
    assert {name for n in data["nodes"] for name in n["tensors"]} == tensors
    assert {name for n in data["nodes"] for name in n["inputs"]} <= nodes
    known = {a["id"] for a in data["axes"]}
    free = {a for t in data["tensors"] for dim in t["dims"] for a in leaves(dim)}
    assert {a["id"] for a in data["axes"] if a["free"]} <= free & known


def test_describe_names_free_dims_and_counts_the_others() -> None:
    names = {1: "residual.0", 2: "heads.0", 3: "head_dim.0"}
    assert describe([[], [1], [2, 3]], [4, 6, 8], names) == "[4, residual.0, heads.0 x head_dim.0]"
    assert describe([[{"sum": [[1], [7]]}]], [9], names) == "[(residual.0 + fixed)]"
    assert describe([[{"case": [[5, [1]], [6, [2]]]}]], [9], names) == "[{residual.0 | heads.0}]"
    assert describe(None, None, names) == ""


def test_leaves_are_listed_once_in_order() -> None:
    assert leaves([[2, {"sum": [[1], [2, 5]]}], [{"case": [[8, [3]]]}]]) == [2, 1, 5, 3]


# ----------------------------------------------------------------------- cards


def test_cards_join_chains_shaping_and_constants(graph: dict) -> None:
    cards = {card.id: card for card in cards_of(graph["nodes"])}
    assert list(cards) == ["x", "both", "mixed", "out", "add", "output.0"]
    assert cards["both"].ops == ["linear", "view", "chunk"]
    assert cards["mixed"].ops == ["matmul", "relu"]
    assert cards["mixed"].inputs == [("both", [[2, 3], []]), ("both", [[], [2, 4]])]
    assert [source for source, _ in cards["out"].inputs] == ["mixed"]
    assert [source for source, _ in cards["add"].inputs] == ["x", "out"]


def test_cards_keep_parameters_that_ops_prepare() -> None:
    nodes = [
        node("x", "x", kind="input"),
        node("wide", "expand", tensors=["token"]),
        node("cat", "cat", ("wide", "x")),
        node("output.0", "output", ("cat",), kind="output"),
    ]
    cards = {card.id: card for card in cards_of(nodes)}
    assert "wide" not in cards
    assert cards["cat"].tensors == ["token"]


def test_every_node_with_parameters_is_on_some_card() -> None:
    data = graph_json(graphfuse.trace(UNet().eval(), (torch.zeros(2, 3, 16, 16),)))
    shown = [name for card in cards_of(data["nodes"]) for name in card.tensors]
    assert sorted(shown) == sorted(tensor["name"] for tensor in data["tensors"])


def test_columns_keep_the_order_and_stay_small() -> None:
    nodes = [node("x", "x", kind="input")]
    for block in range(4):
        for i in range(12):
            nodes.append(node(f"n{block}.{i}", f"op{i}", (nodes[-1]["id"],), module=f"blocks.{block}", tensors=["w"]))
    cards = cards_of(nodes)
    columns = columns_of(cards)
    assert [card.id for column in columns for card in column.cards] == [card.id for card in cards]
    assert all(len(column.cards) <= LARGEST for column in columns)
    assert [column.title for column in columns[1:]] == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]


# -------------------------------------------------------------------- layering


@st.composite
def dags(draw: st.DrawFn) -> tuple[dict[str, Box], list[tuple[str, str]]]:
    count = draw(st.integers(1, 12))
    sizes = st.tuples(st.integers(10, 90), st.integers(5, 30))
    boxes = {f"n{i}": Box(*map(float, draw(sizes))) for i in range(count)}
    pairs = [(a, b) for a, b in itertools.combinations(boxes, 2)]
    return boxes, draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []


@given(dags())
def test_layers_run_down_and_do_not_overlap(case: tuple[dict[str, Box], list[tuple[str, str]]]) -> None:
    boxes, edges = case
    drawing = draw(boxes, edges)
    for (a, p), (b, q) in itertools.combinations(drawing.places.items(), 2):
        apart_across = abs(p[0] - q[0]) >= (boxes[a].width + boxes[b].width) / 2 - 1e-6
        apart_down = abs(p[1] - q[1]) >= (boxes[a].height + boxes[b].height) / 2 - 1e-6
        assert apart_across or apart_down
    for source, target in edges:
        assert drawing.places[source][1] < drawing.places[target][1]
        heights = [y for _, y in drawing.ways[source, target]]
        assert heights == sorted(heights)
    for name, (x, y) in drawing.places.items():
        assert boxes[name].width / 2 - 1e-6 <= x <= drawing.width - boxes[name].width / 2 + 1e-6
        assert 0 <= y <= drawing.height


def test_a_chain_is_straight_and_a_skip_runs_straight_beside_it() -> None:
    boxes = {name: Box(60.0, 20.0) for name in "abcde"}
    drawing = draw(boxes, [*itertools.pairwise("abcde"), ("a", "e")])
    assert len({round(x, 6) for x, _ in drawing.places.values()}) == 1
    assert len({round(x, 6) for x, _ in drawing.ways["a", "e"][1:-1]}) == 1


# --------------------------------------------------------------------- picture


def test_the_picture_shows_every_axis_where_it_is(graph: dict) -> None:
    drawn = picture(graph)
    shown = [set(words.split()) for words in re.findall(r'data-axes="([^"]*)"', drawn)]
    assert set().union(*shown) >= {"1", "2", "3", "4", "9"}
    card = re.search(r'<g class="card op" data-axes="([^"]*)" data-find="[^"]*inner\.both\.weight', drawn)
    assert card is not None and set(card[1].split()) == {"1", "2", "3", "4"}
    assert drawn.count("var(--role-head-dim-qk)") > 0
    assert "Net &lt;1&gt;" in drawn and "Net <1>" not in drawn


def test_strands_carry_the_axes_of_their_value(graph: dict) -> None:
    wires = re.findall(r'<path class="wire" data-axes="(\d+)"', picture(graph))
    assert set(wires) == {"1", "2", "3", "4"}


def test_an_empty_graph_has_no_picture(graph: dict) -> None:
    assert picture({**graph, "nodes": []}) == ""


def test_the_explorer_lists_axes_with_what_they_touch(graph: dict) -> None:
    shown = explorer(graph, "a")
    assert len(re.findall(r'<li data-axis="\d+">', shown)) == 4
    assert "its own map for each of heads.2" in shown
    assert "<b>16</b> × 6" in shown
    assert "1 fixed axis of parameters" in shown and "<td>output</td>" in shown
    assert "100 parameters, 4 free axes; 75.0% of the parameters move" in shown


def test_the_explorer_of_a_huge_graph_has_no_picture(graph: dict) -> None:
    huge = {**graph, "nodes": graph["nodes"] * 800}
    assert "<svg" not in explorer(huge, "a")


# ---------------------------------------------------------------- charts, page


def test_a_graph_of_two_thousand_nodes_is_drawn_on_a_page_of_modest_size() -> None:
    graph = deep(300)
    assert len(graph["nodes"]) == 2101
    shown = html.page("Deep", [html.Section("Graph", explorer(graph, "deep"))])
    assert "<svg" in shown and 'data-find="layer.299.up' in shown
    assert len(shown) < 3_000_000


def test_structure_is_said_in_words() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.RMSNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
            self.both, self.down = nn.Linear(12, 20), nn.Linear(10, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            a, b = self.both(x).chunk(2, -1)
            return x + self.down(a * b)

    model = nn.Sequential(nn.Linear(5, 12), Block(), Block(), nn.Linear(12, 2))
    lines = structure(graphfuse.trace(model, (torch.randn(2, 7, 5),)))
    said = "\n".join(lines)
    assert "residual.0: values that are added up share one order of 12 units, in 17 tensors" in lines
    parts = "heads 3 x head_dim_qk 4 + heads 3 x head_dim_qk 4 + heads 3 x head_dim_vo 4"
    assert f"*.qkv.weight[0]: 36 = ({parts}) (2 times)" in lines
    assert "*.out.weight[1]: 12 = heads 3 x head_dim_vo 4 (2 times)" in lines
    assert "*.both.weight[0]: 20 = (gate 10 + gate 10) (2 times)" in lines
    assert "gate 10: two values are multiplied unit by unit, so both come in one order (2 times)" in lines
    assert "*.norm.weight: a gain, scales residual 12 unit by unit" in said
    (first, last) = structure(graphfuse.trace(model, (torch.randn(2, 7, 5),)), most=2)
    assert first == lines[0] and last == f"... and {len(lines) - 1} more of this kind"


def test_chart_places_points_and_says_values() -> None:
    line = charts.Line("one <way>", "a", ((0.0, 0.0), (0.5, 50.0), (1.0, 250.0)))
    drawn = charts.chart("A & B", [line], [charts.Mark("best", "c", (0.5, 97.25))], across=("share", 0.0, 1.0))
    assert 'aria-label="A &amp; B"' in drawn
    path = re.search(r'<path class="line a" d="M([^"]*)"', drawn)
    assert path is not None
    points = [tuple(map(float, point.split())) for point in path[1].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] > points[1][1] > points[2][1] >= 0  # 250 is drawn at the border
    assert "one &lt;way&gt;\n50.0% at share 0.5" in drawn
    assert "best\n97.2%" in drawn


def test_table_aligns_numbers_and_shows_what_is_missing() -> None:
    shown = html.table(["", "a", "b"], [["x", 1.234, "text"], ["y", None, "<b>"]], strong=[1])
    assert "<td class='number strong'>1.2</td>" in shown
    assert 'aria-label="none"' in shown
    assert "&lt;b&gt;" in shown


def test_page_is_escaped_and_complete_in_itself(graph: dict) -> None:
    sections = [
        html.Section("What & why", html.text("1 < 2"), "Lead <i>"),
        html.Section("What & why", html.tabs({"One": explorer(graph, "a"), "Two": "<p>2</p>"}, "t")),
    ]
    shown = html.page("A <title>", sections, lead="Five {{sections}} & six", facts={"a": "<b>"})
    assert "<title>A &lt;title&gt;</title>" in shown
    assert "Five {{sections}} &amp; six" in shown
    assert 'id="what-why"' in shown and 'id="what-why-2"' in shown
    assert "Lead &lt;i&gt;" in shown and "1 &lt; 2" in shown
    for reference in ("http:", "https:", "//cdn", "src=", "@import", "url("):
        assert reference not in shown
    assert re.findall(r'href="([^"]*)"', shown) == ["data:,"]
    assert shown.count("<main>") == 1


# ------------------------------------------------------------------ heat maps


def alignment(*found: AxisMap, sizes: dict[int, tuple[int, int]]) -> Alignment:
    """Of two models, the second with these maps; ``sizes`` are those of each axis in both."""
    axes = tuple(
        Axis(id, f"hidden.{id}", "hidden", own, SymmetryClass.PERMUTATION, (), ()) for id, (own, _) in sizes.items()
    )
    part = Aligned({id: other for id, (_, other) in sizes.items()}, {one.axis: one for one in found})
    own = Aligned({id: size for id, (size, _) in sizes.items()})
    return Alignment(0, "weights", axes, {}, {}, (own, part))


def test_couplings_show_which_units_are_used_where() -> None:
    order = torch.tensor([2, 0, 1])
    plan = torch.tensor([[0.0, 0.0, 0.3, 0.2], [0.3, 0.2, 0.0, 0.0]])
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    maps = (
        AxisMap(1, index=order), AxisMap(2, plan=plan), AxisMap(3, matrix=torch.stack([turn, turn])),
    )  # fmt: skip
    one, two, three = couplings(alignment(*maps, sizes={1: (3, 3), 2: (2, 4), 3: (5, 5)}), 1)
    assert (one.kind, two.kind, three.kind) == ("permutation", "coupling", "rotation")
    assert one.shares.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]] and torch.equal(one.matched, torch.eye(3))
    torch.testing.assert_close(two.shares, plan * 2)
    torch.testing.assert_close(two.matched, plan[:, [2, 3, 0, 1]] * 2)
    torch.testing.assert_close(three.shares, turn.square())
    assert one.peak == 1 and two.peak == pytest.approx(0.6) and two.sizes == (2, 4)


def test_members_of_a_family_are_those_of_matched_contexts() -> None:
    heads = AxisMap(1, index=torch.tensor([1, 0]))
    inner = torch.stack([torch.stack([torch.randperm(3) for _ in range(2)]) for _ in range(2)])
    found = alignment(heads, AxisMap(2, context=(1,), index=inner), sizes={1: (2, 2), 2: (3, 3)})
    first, second = (one for one in couplings(found, 1) if one.axis.id == 2)
    assert (first.label, second.label) == ("hidden.1 0 from 1", "hidden.1 1 from 0")
    assert first.shares.argmax(-1).tolist() == inner[0, 1].tolist()
    assert second.shares.argmax(-1).tolist() == inner[1, 0].tolist()
    assert count(found, 1, found.axes[1]) == 2 and len(list(couplings(found, 1, most=1))) == 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_binned_matrices_keep_their_row_sums(rows: int, columns: int, cells: int) -> None:
    shares = torch.rand(rows, columns).softmax(-1)
    small = binned(shares, cells)
    assert small.shape == (min(rows, cells), min(columns, cells))
    torch.testing.assert_close(small.sum(-1), torch.ones(len(small)))
    if rows <= cells and columns <= cells:
        torch.testing.assert_close(small, shares)
    order = torch.randperm(rows)
    (one,) = couplings(alignment(AxisMap(1, index=order), sizes={1: (rows, rows)}), 1, cells=cells)
    torch.testing.assert_close(one.shares, binned(torch.eye(rows)[order], cells))


def test_nothing_mapped_is_no_heat_map_and_names_are_escaped() -> None:
    assert heatmaps(alignment(sizes={}), "a") == ""
    found = alignment(AxisMap(1, index=torch.arange(3)), sizes={1: (3, 3)})
    odd = Axis(1, "</script><b>", "hidden", 3, SymmetryClass.PERMUTATION, (), ())
    shown = heatmaps(Alignment(0, "weights", (odd,), {}, {}, found.models), "a")
    assert shown.count("</script>") == 1 and "<b>" not in shown


# -------------------------------------------------------------------- outcome


def test_the_outcome_is_said_with_and_without_labels() -> None:
    found = {
        "metrics": ["R2"], "inputs": 70, "parents": [{"R2": 0.91}, {"R2": 0.9}], "ensemble": {"R2": 0.93},
        "plain": {"R2": float("nan")}, "fused": {"R2": 0.9},
        "before": {"metric": "R2", "values": [0.91, float("nan"), 0.9], "barrier": 0.0}, "after": None,
    }  # fmt: skip
    report = {"models": [{}, {}], "evaluation": found}
    assert (
        outcome_words(report)
        == "R2: the fused model reaches 0.900, the models 0.910 and 0.900, their plain average nan."
    )
    shown = outcome(report)
    assert "on 70 inputs" in shown and ">0.930</td>" in shown and ">nan</td>" in shown
    assert shown.count('class="line a" d="M') == 2  # in the legend and in the chart
    assert 'class="chart"' not in outcome({**report, "evaluation": {**found, "before": None}})
    apart = {"inputs": 12, "models": [0.2, 0.3], "average": 0.4, "fused": 0.05}
    words = outcome_words({"models": [{}, {}], "outputs": apart})
    assert "On 12 unlabelled inputs" in words and "are 0.050 from" in words and "average's 0.400" in words
    assert "<td class='number strong'>0.4000</td>" in outcome({"models": [{}, {}], "outputs": apart})
    assert outcome({"models": [{}], "outputs": None}) == "" == outcome_words({"models": [{}]})


def test_axes_are_listed_in_order_of_depth(graph: dict) -> None:
    names = ["fixed.9", "head_dim_vo.4", "heads.2", "residual.1", "strange.0"]
    report = {"alignment": {"axes": [{"name": name} for name in reversed(names)]}}
    listed = [axis["name"] for axis in by_depth(report, graph)]
    assert listed[-2:] == ["fixed.9", "strange.0"] and set(listed[:3]) == set(names[1:4])


def test_pages_of_a_model_and_of_a_fusion() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    result = graphfuse.fuse([Net(), Net()], data=[torch.randn(32, 4)])
    graph = graphfuse.trace(result.model, (torch.randn(2, 4),))
    titles = re.findall("<h2>(.*?)</h2>", fuse_page(graph, result.report, result.alignment))
    assert titles == ["Outcome", "Models", "Labelled graph", "Couplings", "Matching by layer", "Calibration by layer",
                      "What is fixed, and why", "Time and memory"]  # fmt: skip
    bare = fuse_page(graph, {**result.report, "outputs": None, "specs": ["a<b>", "c"]})
    assert "Outcome" not in bare and "Couplings" not in bare and "0: a&lt;b&gt;" in bare
    assert "What is fixed, and why" in graph_page(graph)


def test_the_page_of_a_model_in_another_width() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    x = torch.randn(40, 4)
    for parents, lead in (([net(9), net(9)], "2 models of"), ([net(9)], "One model written into another width")):
        result = graphfuse.fuse(parents, data=[x], into=net(5))
        shown = fuse_page(graphfuse.trace(result.model, (x,)), result.report, result.alignment)
        assert f'<p class="lead">{lead}' in shown
        assert ("<h2>Into another width</h2>" in shown) is (len(parents) == 2)
    kept = graphfuse.fuse([net(9), net(9)], data=[x], config={"keep": 0.25})
    assert len(kept.report["outputs"]["models"]) == 2 and None not in kept.report["outputs"]["models"]


def test_the_report_says_how_near_the_outputs_are_and_what_it_took() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    a, b, x = net(), net(), torch.randn(200, 4)
    result = graphfuse.fuse([a, b], data=x.split(100))
    found = result.report["outputs"]
    with torch.no_grad():
        outputs = [model(x) for model in (a, b, result.model)]
    mean = (outputs[0] + outputs[1]) / 2
    distances = [float((output - mean).square().mean() / mean.var(correction=0)) for output in outputs]
    assert found["inputs"] == 200  # two whole batches
    assert [*found["models"], found["fused"]] == pytest.approx(distances, rel=1e-4)
    assert found["fused"] < found["average"]
    memory = result.report["memory"]
    assert memory["models"] == 2 * 4 * (4 * 8 + 8 + 8 * 2 + 2) and memory["process"] > 50 * 2**20
    assert memory["device"] is None
    assert graphfuse.fuse([a, b], x[:2]).report["outputs"] is None
