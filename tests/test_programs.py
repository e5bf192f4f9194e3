"""Programs (``.pt2``) as models: traced, fused, written again; what could run code is refused before torch sees it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Run, assert_same
from torch import nn

import graphfuse
from graphfuse.errors import CheckpointError, ModelSpecError
from graphfuse.io.models import load_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.shift = torch.tensor([1.0, 2.0])

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.norm(self.up(x)))
        return {"out": self.down(hidden) * scale + self.shift}


X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def export(path: Path, model: nn.Module, dynamic: bool = False) -> nn.Module:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (X,), dynamic_shapes=shapes), path)
    return model


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "a.pt2", Net())
    return tmp_path / "a.pt2"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_is_traced_and_verified(tmp_path: Path, dynamic: bool) -> None:
    model = export(tmp_path / "a.pt2", Net(), dynamic)
    loaded = load_model(str(tmp_path / "a.pt2"))
    assert loaded.example is not None
    assert_same(loaded.model(X), model(X))
    assert_same(loaded.example, ((X,), {}))
    graph = graphfuse.trace(loaded.model, *loaded.example)
    assert [axis.size for axis in graph.axes] == [6]
    assert graphfuse.verify(graph).ok


def test_programs_are_fused_and_written_as_one(run: Run) -> None:
    permuted, model = Net(), Net()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in state:
        if name.startswith(("up.", "norm.")) and state[name].dim():
            state[name] = state[name][order]
    state["down.weight"] = state["down.weight"][:, order]
    permuted.load_state_dict(state)
    export(Path("a.pt2"), model, dynamic=True)
    export(Path("b.pt2"), permuted, dynamic=True)
    code, _, error = run("fuse", "a.pt2", "b.pt2", "-o", "out")
    assert code == 0, error
    fused = torch.export.load("out/model.pt2").module()
    assert_same(fused(X[:5]), model(X[:5]), tolerance=1e-5)  # another batch than that of the export
    assert_same(load_model("out/model.pt2").model(X), model(X), tolerance=1e-5)
    assert 'torch.export.load(f"{FOLDER}/model.pt2")' in Path("out/README.md").read_text()
    code, text, _ = run("verify", "out/model.pt2")
    assert code == 0 and "verified: 1 free axes" in text


# ------------------------------------------------------------------ what is refused

Change = Callable[[str, bytes], bytes | None]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["GRAPHFUSE_TEST_TRAP"],)


def rewritten(path: Path, change: Change, **more: bytes) -> None:
    """The same file with its parts changed, or taken away, and others added."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            new = change(name.partition("/")[2], data)
            if new is not None:
                file.writestr(name, new)
        for name, data in more.items():
            file.writestr(f"{next(iter(parts)).partition('/')[0]}/{name}", data)


def graph(edit: Callable[[dict[str, Any]], None]) -> Change:
    def change(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        found = json.loads(data)
        edit(found)
        return json.dumps(found).encode()

    return change


def pickled(kind: str) -> Change:
    def change(name: str, data: bytes) -> bytes:
        if name == f"data/{kind}/model_{kind}_config.json":
            found = json.loads(data)
            next(iter(found["config"].values()))["use_pickle"] = True
            return json.dumps(found).encode()
        return pickle.dumps(Payload()) if name in ("data/weights/weight_0", "data/constants/tensor_0") else data

    return change


def opaque(name: str, data: bytes) -> bytes:
    if name == "data/constants/model_constants_config.json":
        return data.replace(b'"tensor_0"', b'"opaque_obj_0"')
    return data


def sampled(name: str, data: bytes) -> bytes:
    if name != "data/sample_inputs/model.pt":
        return data
    buffer = io.BytesIO()
    torch.save(((Payload(),), {}), buffer)
    return buffer.getvalue()


def first_call(found: dict[str, Any]) -> dict[str, Any]:
    return next(node for node in found["graph_module"]["graph"]["nodes"] if node["target"].startswith("torch.ops"))


def target(text: str) -> Change:
    return graph(lambda found: first_call(found).update(target=text))


def tree(text: str, context: str = "null", inside: bool = False) -> Change:
    node: dict[str, Any] = {"type": text, "context": context, "children_spec": []}
    if inside:
        node = {"type": "builtins.tuple", "context": "null", "children_spec": [node]}
    spec = json.dumps([1, node])
    return graph(lambda found: found["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=spec))


SYSTEM = "__import__('os').mkdir('trap')"
REFUSED: dict[str, tuple[Change, str]] = {
    "a weight that is a pickle": (pickled("weights"), "the weight 'up.weight' is a pickle"),
    "a constant that is a pickle": (pickled("constants"), "the constant 'shift' is a pickle"),
    "an opaque constant": (opaque, "the constant 'shift' is a pickle"),
    "example inputs that are objects": (sampled, "its example inputs are Python objects"),
    "a call of Python": (target("torch.os.mkdir"), "it has 'torch.os.mkdir' as target"),
    "a call of a method of the registry": (target("torch.ops.load_library"), "'torch.ops.load_library' as target"),
    "an operator of somebody": (target("torch.ops.mine.run.default"), "it has 'torch.ops.mine.run.default' as target"),
    "an expression": (
        graph(lambda found: found["range_constraints"].update(s0={"expr_str": f"eval({SYSTEM!r})"})),
        f"it has {f'eval({SYSTEM!r})'!r} as expr_str",
    ),
    "an expression as a key": (
        graph(lambda found: found["range_constraints"].update({SYSTEM: {}})), f"it names something {SYSTEM!r}",
    ),
    "a name that is code": (
        graph(lambda found: first_call(found)["inputs"][0].update(name=f"x=({SYSTEM})")), " as name",
    ),
    "a container that is imported": (tree("collections.defaultdict", '{"default_factory_module": "os"}'), "out_spec"),
    "a container inside another": (
        tree("collections.defaultdict", '{"default_factory_module": "os"}', inside=True), "out_spec",
    ),
    "an enum that is imported": (tree("builtins.dict", '[{"__enum__": true, "fqn": "os:path"}]'), "out_spec"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_run_code_is_refused(program: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, reason = REFUSED[name]
    monkeypatch.setenv("GRAPHFUSE_TEST_TRAP", str(program.parent / "trap"))
    rewritten(program, change)
    with pytest.raises(CheckpointError) as caught:
        load_model("a.pt2")
    message = str(caught.value)
    assert message.startswith("a.pt2 was not loaded, because that could run code that the file brings: ")
    assert reason in message
    assert message.endswith(
        ".\n  what to do: where you trust the file, give the module that it was made of as package.module:factory"
    )
    assert sorted(os.listdir(program.parent)) == ["a.pt2"]


def test_what_is_no_operator_is_refused_by_torch(program: Path) -> None:
    rewritten(program, target("torch.ops.aten.__class__"))
    with pytest.raises(ModelSpecError) as caught:
        load_model("a.pt2")
    message = str(caught.value)
    assert message.startswith(f"torch {torch.__version__} cannot load a.pt2: ") and "not an allowed operator" in message
    assert message.endswith("\n  what to do: export it again with this version of torch")


def test_guards_are_not_run(program: Path) -> None:
    rewritten(program, graph(lambda found: found.update(guards_code=[SYSTEM])))
    load_model("a.pt2").model(X)
    assert sorted(os.listdir(program.parent)) == ["a.pt2"]


def test_other_parts_are_refused(program: Path) -> None:
    rewritten(program, lambda name, data: data, **{"data/aotinductor/model/run.so": b"\x7fELF"})
    with pytest.raises(CheckpointError, match=r"file brings: it holds data/aotinductor/model/run\.so"):
        load_model("a.pt2")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_part_that_stands_twice_is_refused(program: Path) -> None:
    """Readers differ in which of two they take, so what was looked through need not be what is loaded."""
    with zipfile.ZipFile(program) as file:
        name = next(name for name in file.namelist() if name.endswith("models/model.json"))
        data = file.read(name)
    with zipfile.ZipFile(program, "a") as file:
        file.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"the file brings: it holds models/model\.json twice"):
        load_model("a.pt2")


def test_programs_that_cannot_be_read(program: Path) -> None:
    def refused(error: type[Exception] = CheckpointError, **how: Any) -> str:
        with pytest.raises(error) as caught:
            load_model("a.pt2", **how)
        return str(caught.value)

    assert refused(ModelSpecError, dtype=torch.float64) == (
        "a.pt2 is a program, which has one precision.\n  what to do: leave out --dtype"
    )
    rewritten(program, lambda name, data: None if name == "models/model.json" else data)
    message = refused()
    assert message.startswith("a.pt2 is no program, or a damaged one: ")
    assert message.endswith("\n  expected: a file that torch.export.save wrote")
    program.write_bytes(b"no zip")
    assert refused() == (
        "a.pt2 is no program, or a damaged one: File is not a zip file\n  expected: a file that torch.export.save wrote"
    )
    program.unlink()
    assert refused() == "a.pt2 cannot be read: No such file or directory"
