"""Rules as people write them: stubs, what is missing, tables in Python, packs of other packages, conflicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import importable
from torch import Tensor, nn

import graphfuse
from graphfuse.cli import main
from graphfuse.errors import RuleError
from graphfuse.missing import missing_rules
from graphfuse.rulebook import Label, Op, Table, load_rules
from graphfuse.rulebook.authoring import catalogue, describe, find, stub
from graphfuse.rulebook.check import check_pack
from graphfuse.rulebook.packs import parse_pack


@torch.library.custom_op("graphfuse_authoring::dense", mutates_args=())
def dense(x: Tensor, w: Tensor, times: int) -> Tensor:
    return (x @ w.t()) * times


@dense.register_fake
def _(x: Tensor, w: Tensor, times: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


NAME = "graphfuse_authoring.dense"
PACK = """
version: 1
rules:
  - op: graphfuse_authoring.dense
    signature: "x[... i], w[o i] -> [... o]"
    class: {i: linear, o: linear, "...": linear}
    example: {args: [{shape: [2, 3]}, {shape: [4, 3]}, 2]}
"""


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.graphfuse_authoring.dense(x, self.w, 2)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.b = nn.Linear(5, 9), Inner(), nn.Linear(7, 9)
        self.second, self.c = Inner(), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.second(torch.tanh(self.b(self.first(torch.relu(self.a(x)))))))


def traced(rules: list[Table | str]) -> graphfuse.SymmetryGraph:
    return graphfuse.trace(Outer(), (torch.randn(4, 5),), rules=rules)


def test_missing_names_the_modules_and_lines_and_offers_a_stub_of_what_was_seen() -> None:
    (one,) = missing_rules(traced([]))
    assert (one.op, one.why) == (f"{NAME}.default", "no rule")
    assert [place.module for place in one.places] == ["first", "second"]
    assert all("test_authoring.py" in place.source and "dense(x, self.w, 2)" in place.source for place in one.places)
    assert 'signature: "x[a b], w[c b] -> [a c]"' in one.stub
    (result,) = check_pack(parse_pack(one.stub, "stub"))
    assert result.ok, str(result)  # what was seen says it all here: the stub is the rule


def test_nothing_is_missing_once_there_is_a_rule(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(PACK)
    graph = traced([str(tmp_path / "mine.yaml")])
    assert missing_rules(graph) == ()
    assert sorted(axis.size for axis in graph.axes) == [7, 7, 9, 9]
    assert graphfuse.verify(graph, classes=True).ok


def test_a_rule_that_fails_is_missing_too_with_its_reason() -> None:
    table = Table("graphfuse_authoring")

    @table("dense")
    def fails(op: Op) -> Label:
        raise ValueError("not today")

    (one,) = missing_rules(traced([table]))
    assert one.why == "its rule failed: ValueError: not today"


def test_a_table_in_python_is_a_rule_like_any_other() -> None:
    table = Table("graphfuse_authoring")

    @table("dense")
    def product(op: Op) -> Label:
        x, w = op.label("x"), op.label("w")
        op.algebra.unify(x.dims[-1], w.dims[1])
        op.consume("w", 1)
        return Label((*x.dims[:-1], w.dims[0]))

    graph = traced([table])
    assert not graph.notes
    assert sorted(axis.size for axis in graph.axes) == [7, 7, 9, 9]
    assert graphfuse.verify(graph).ok


def test_two_rules_for_one_op_are_shown_both_unless_one_replaces(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(PACK)
    second.write_text(PACK)
    with pytest.raises(RuleError) as caught:
        load_rules([first, second])
    for word in (NAME, str(first), str(second), "replace: true"):
        assert word in str(caught.value)
    second.write_text(PACK + "    replace: true\n")
    assert load_rules([first, second]).entries[NAME].file == str(second)
    table = Table("graphfuse_authoring")
    table("dense")(lambda op: op.label("x"))
    with pytest.raises(RuleError, match="in Python"):
        load_rules([first, table])
    winner = Table("graphfuse_authoring", replace=True)
    winner("dense")(lambda op: op.label("x"))
    assert load_rules([first, winner]).structural[NAME] is winner[NAME]
    clash = Table()
    clash("view")(lambda op: op.label("self"))
    with pytest.raises(RuleError, match="graphfuse's own rule in Python"):
        load_rules(clash)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("no_such_module:table", "cannot be imported"),
        ("json:no_such_table", "cannot be imported"),
        ("json:dumps", "is function, not a graphfuse.rulebook.Table"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_rules_that_cannot_be_had_say_so(rules: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        load_rules([rules])


# -------------------------------------------------------------------- looking


def test_the_catalogue_lists_every_rule_and_where_it_stands() -> None:
    found = {known.op: known for known in catalogue(load_rules())}
    assert found["aten.linear"].text == "x[... i], w[o i], b[o]? -> [... o]"
    assert found["aten.linear"].file == "rules/linear.yaml"
    assert found["aten.view"].how == "Python"
    assert found["aten.matmul"].how == "Python"  # its entry only says what it contracts
    assert len(found) > 200
    assert all("norm" in known.op for known in catalogue(load_rules(), "norm"))


def test_every_op_is_described_as_its_rule_is_written() -> None:
    book = load_rules()
    assert describe(book, "aten.layer_norm").how == "signature"
    assert describe(book, "aten.relu").how == "pointwise"
    assert describe(book, "aten.gelu").how == "tag"
    assert "Merge and split" in describe(book, "aten.view").text
    unknown = describe(book, "aten.linalg_qr")
    assert unknown.how == "none" and "graphfuse rules new" in unknown.hint
    for name, word in (("aten.lineer", "aten.linear"), ("aten.add.Tensr", "Tensor"), ("nowhere.op", "import")):
        with pytest.raises(RuleError, match=word):
            describe(book, name)


def test_what_is_shown_of_an_entry_can_be_read_again() -> None:
    book = load_rules()
    for name in ("aten.linear", "aten.conv2d", "aten.rms_norm", "aten.mul", "aten.batch_norm"):
        shown = describe(book, name).text
        again = parse_pack("version: 1\nrules:\n" + "\n".join("  " + line for line in shown.splitlines()), name)
        assert again.entries[0] == book.entries[name].entry


@pytest.mark.parametrize("name", ["aten.linalg_qr", "aten.lstm", NAME])
def test_a_stub_is_a_pack(name: str) -> None:
    pack = parse_pack(stub(find(name)), "stub")
    assert pack.entries[0].signature is not None


# -------------------------------------------------------------------- commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "authored.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def plain():\n    return nn.Linear(3, 2)\n"
        "class Sorted(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(3, 4)\n"
        "    def forward(self, x):\n        return torch.linalg.qr(self.a(x))[0]\n"
        "def odd():\n    return Sorted()\n"
        "def example_inputs():\n    return torch.randn(5, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        yield tmp_path


def test_commands_speak_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, object]:
        code = main([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, found = run("rules", "list", "group_norm")
    assert code == 0 and isinstance(found, list) and {known["op"] for known in found} >= {"aten.group_norm"}
    code, shown = run("rules", "show", "aten.linear")
    assert code == 0 and isinstance(shown, dict) and shown["how"] == "signature"
    assert run("rules", "show", "aten.linalg_qr")[0] == 1
    code, found = run("rules", "missing", "authored:odd")
    assert code == 1 and isinstance(found, list) and found[0]["op"] == "aten.linalg_qr.default"
    assert run("rules", "missing", "authored:plain") == (0, [])


def test_new_writes_a_stub_and_never_over_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "new", "aten.linalg_qr", "-o", "stub.yaml"]) == 0
    written = Path("stub.yaml").read_text()
    assert main(["rules", "new", "aten.linalg_qr"]) == 0
    assert written in capsys.readouterr().out
    assert main(["rules", "new", "aten.linear", "-o", "stub.yaml"]) == 1
    assert "exists already" in " ".join(capsys.readouterr().err.split())
    assert Path("stub.yaml").read_text() == written
    assert main(["rules", "show", "aten.linear", "--import", "no_such_module"]) == 1


# -------------------------------------------------------------------- a second package

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.0"

[project.entry-points."graphfuse.rules"]
{name} = "{name}.rules"

[tool.setuptools]
packages = ["{name}", "{name}.rules"]
package-data = {{"{name}.rules" = ["*.yaml"]}}
"""
PROBE = """
import torch
from torch import nn
from torch.library import custom_op

@custom_op("graphfuse_authoring::dense", mutates_args=())
def dense(x: torch.Tensor, w: torch.Tensor, times: int) -> torch.Tensor:
    return (x @ w.t()) * times

@dense.register_fake
def _(x: torch.Tensor, w: torch.Tensor, times: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(3, 5), nn.Parameter(torch.randn(7, 5)), nn.Linear(7, 2)
    def forward(self, x):
        return self.b(torch.ops.graphfuse_authoring.dense(self.a(x), self.w, 2))

import graphfuse
graph = graphfuse.trace(Net(), (torch.randn(2, 3),))
print(sorted(axis.size for axis in graph.axes), graphfuse.verify(graph, classes=True).ok)
"""


def install(name: str, pack: str, folder: Path, site: Path) -> None:
    """Build and install a distribution that offers one pack."""
    (folder / name / "rules").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name))
    for package in (folder / name, folder / name / "rules"):
        (package / "__init__.py").write_text("")
    (folder / name / "rules" / "ops.yaml").write_text(pack)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run([*command, str(site), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def probe(site: Path) -> subprocess.CompletedProcess[str]:
    paths = f"{site}:{Path(graphfuse.__file__).parents[1]}"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)


def test_an_installed_package_offers_its_rules_and_two_that_disagree_are_an_error(tmp_path: Path) -> None:
    site = tmp_path / "site"
    alone = probe(site)
    assert alone.stdout.split() == ["[]", "True"], alone.stdout + alone.stderr
    install("first_rules", PACK, tmp_path / "one", site)
    with_rules = probe(site)
    assert with_rules.stdout.strip() == "[5, 7] True", with_rules.stdout + with_rules.stderr
    install("other_rules", PACK, tmp_path / "two", site)
    both = probe(site)
    assert both.returncode != 0 and f"two rules for {NAME}" in both.stderr
    assert "first_rules" in both.stderr and "other_rules" in both.stderr
    install("third_rules", PACK + "    replace: true\n", tmp_path / "three", tmp_path / "winner")
    install("first_rules", PACK, tmp_path / "four", tmp_path / "winner")
    settled = probe(tmp_path / "winner")
    assert settled.stdout.strip() == "[5, 7] True", settled.stdout + settled.stderr
