"""Pages, pictures and charts: right, escaped, self-contained, and alive in a real browser."""

from __future__ import annotations

import html as escaping
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ResNet, UNet
from torch import Tensor, nn

import graphfuse
from graphfuse.report import charts, html
from graphfuse.report.cards import cards_of
from graphfuse.report.columns import LARGEST, columns_of
from graphfuse.report.explorer import explorer
from graphfuse.report.graphdata import describe, graph_json, leaves
from graphfuse.report.layering import Box, draw
from graphfuse.report.picture import picture
from graphfuse.report.words import structure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def node(id: str, op: str, inputs: tuple[str, ...] = (), dims: Any = None, shape: Any = None, **more: Any) -> dict:
    common = {"kind": "op", "module": "", "source": "", "tensors": []}
    return {**common, "id": id, "op": op, "inputs": list(inputs), "dims": dims, "shape": shape, **more}


def axis(id: int, role: str, size: int, touches: tuple[tuple[str, int], ...], **more: Any) -> dict:
    common = {"class": "permutation", "context": [], "free": True, "reasons": []}
    return {
        **common, "id": id, "name": f"{role}.{id}", "role": role, "size": size,
        "touches": [{"tensor": tensor, "dim": dim} for tensor, dim in touches], **more,
    }  # fmt: skip


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


def deep(layers: int) -> dict:
    """A chain of residual blocks of seven ops each, two of them with parameters."""
    axes, tensors, nodes = [], [], [node("x", "x", kind="input", dims=[[], [0]], shape=[1, 6])]
    stream = "x"
    for i in range(layers):
        h, names = i + 1, (f"layer.{i}.up.weight", f"layer.{i}.down.weight")
        axes.append(axis(h, "hidden", 9, ((names[0], 0), (names[1], 1))))
        tensors += [
            {"name": names[0], "shape": [9, 6], "dims": [[h], [0]]},
            {"name": names[1], "shape": [6, 9], "dims": [[0], [h]]},
        ]
        before = stream
        for op in ("norm", "up", "relu", "mul", "view", "down", "add"):
            inside = op in ("up", "relu", "mul", "view")
            inputs = (before, stream) if op == "add" else (before,)
            read = (names[op == "down"],) if op in ("up", "down") else ()
            module = f"layer.{i}" + (f".{op}" if read else "")
            dims, shape = [[], [h if inside else 0]], [1, 9 if inside else 6]
            nodes.append(node(f"{op}{i}", op, inputs, dims, shape, module=module, tensors=list(read)))
            before = f"{op}{i}"
        stream = before
    touches = tuple((name, d) for name, d in zip((t["name"] for t in tensors), (1, 0) * layers, strict=True))
    return {
        "name": "Deep", "parameters": 108 * layers, "free_fraction": 1.0, "method": "export", "notes": [],
        "axes": [axis(0, "residual", 6, touches), *axes], "tensors": tensors, "nodes": nodes,
    }  # fmt: skip


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


PROBE = """
<script>
window.found = { errors: window.found.errors };
setTimeout(() => {
  const found = window.found, one = document.querySelector("#explorer-one");
  const lit = () => one.querySelectorAll(".graph .on").length;
  const button = one.querySelector('.axis-list > li[data-axis="4"] button');
  found.before = lit();
  button.click();
  found.lit = lit();
  found.pressed = button.getAttribute("aria-pressed");
  found.touches = one.querySelector('.axis-list > li[data-axis="4"] .touches').hidden;
  found.cards = [...one.querySelectorAll(".card.on")].map((card) => card.dataset.find);
  one.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  found.after = lit();
  const input = one.querySelector("input");
  input.value = "INNER.both";
  input.dispatchEvent(new Event("input"));
  found.matches = one.querySelectorAll(".card.found").length;
  found.told = one.querySelector(".matches").textContent;
  found.here = one.querySelectorAll(".card.here").length;
  found.listed = [...one.querySelectorAll(".axis-list > li")].filter((row) => !row.hidden).length;
  const view = one.querySelector(".graph").getAttribute("viewBox");
  one.querySelector('[data-zoom="in"]').click();
  found.zoomed = view !== one.querySelector(".graph").getAttribute("viewBox");
  const panels = [...document.querySelectorAll("[role=tabpanel]")];
  found.shown = panels.map((panel) => !panel.hidden);
  document.querySelectorAll("[role=tab]")[1].click();
  found.switched = panels.map((panel) => !panel.hidden);
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = document.createElement("script");
  out.type = "application/json";
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 300);
</script>
"""
WATCH = """<script>
window.found = { errors: [] };
addEventListener("error", (event) => window.found.errors.push(String(event.message)));
console.error = (...words) => window.found.errors.push(words.join(" "));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page in")
@pytest.mark.parametrize("size", ["1280,900", "390,800"])
def test_the_page_works_in_a_browser(graph: dict, tmp_path: Path, size: str) -> None:
    sections = [html.Section("Graphs", html.tabs({"One": explorer(graph, "one"), "Two": explorer(graph, "two")}, "t"))]
    content = html.page("Page", sections).replace("<style>", WATCH + "<style>").replace("</body>", PROBE + "</body>")
    path = tmp_path / "page.html"
    path.write_text(content, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}", "--virtual-time-budget=3000", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    answer = re.search(r'<script type="application/json" id="found">(.*?)</script>', done.stdout, re.DOTALL)
    assert answer is not None, done.stderr[-2000:]
    found = json.loads(escaping.unescape(answer[1]))
    assert found["errors"] == []
    assert found["before"] == 0 and found["lit"] > 0 and found["after"] == 0
    assert found["pressed"] == "true" and found["touches"] is False
    assert any("inner.both" in words for words in found["cards"]) and any("out.weight" in w for w in found["cards"])
    assert found["matches"] == 1 and found["listed"] == 4
    assert found["told"] == "1 of 1" and found["here"] == 1
    assert found["zoomed"]
    assert found["shown"] == [True, False] and found["switched"] == [False, True]
    assert found["wide"] == 0  # nothing sticks out sideways
