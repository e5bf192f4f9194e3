"""Models by name: arguments, libraries, shards, wrappers, heads, precision; each said, and each error whole."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import assert_same, importable, needs, randomise
from torch import nn

from graphfuse.errors import CaptureError, CheckpointError, ConfigError, GraphFuseError, ModelSpecError, OutputError
from graphfuse.io.checkpoints import Checkpoint, load_state, save_state, save_weights
from graphfuse.io.fitting import load_into
from graphfuse.io.importing import _declared, declarations, import_library
from graphfuse.io.models import FORMS, load_model, parse_spec, save_model
from graphfuse.io.precision import dtype_of
from graphfuse.symmetry import trace

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, classes=3, scale=1.0, name="net"):
        super().__init__()
        self.name = name
        self.body, self.head = nn.Linear(2, width), nn.Linear(width, classes)
    def forward(self, x):
        return self.head(torch.relu(self.body(x)))

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net()

def half():
    return Net().to(torch.bfloat16)

def example_inputs():
    return torch.ones(2, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mi_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        yield tmp_path


def refused(spec: str, error: type[GraphFuseError] = ModelSpecError, **how: Any) -> str:
    with pytest.raises(error) as caught:
        load_model(spec, **how)
    return str(caught.value)


def weights(path: str | Path, spec: str = "mi_nets:Net", seed: int = 1) -> dict[str, torch.Tensor]:
    model = randomise(load_model(spec).model, seed)
    save_weights(path, model)
    return dict(model.state_dict())


# ------------------------------------------------------------------ arguments


def test_arguments_for_the_factory(folder: Path) -> None:
    model: Any = load_model("mi_nets:Net,width=7,classes=5,name=big").model
    assert (model.head.weight.shape, model.name) == ((5, 7), "big")
    save_weights("w.safetensors", model)
    again = load_model("mi_nets:Net,width=7,classes=5@w.safetensors")
    assert_same(dict(again.model.state_dict()), dict(model.state_dict()))
    assert parse_spec("a:b,c=1e-3,d=true,e=null,f=x@y@z.pt").options == (
        ("c", "1e-3"), ("d", True), ("e", None), ("f", "x"),
    )  # fmt: skip


def test_arguments_that_cannot_be_given(folder: Path) -> None:
    assert refused("mi_nets:Net,wdth=7").startswith(
        "calling mi_nets:Net(wdth=7) failed: TypeError: Net.__init__() got an unexpected keyword argument 'wdth'"
    )
    assert refused("mi_nets:Net,width=[7") == (
        "the argument width=[7 is neither a number, true, false, null, nor a word.\n"
        "  what to do: write a factory of your own for it: package.module:factory"
    )
    assert refused("mi_nets:Net,7") == f"the model 'mi_nets:Net,7' has no form that graphfuse knows.\n{FORMS}"


# ------------------------------------------------------------------ timm and torchvision

VIT = "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,embed_dim=24,depth=1,num_heads=3"


def test_a_timm_model_with_the_classes_of_its_checkpoint(folder: Path) -> None:
    needs("timm")
    own = load_model(f"{VIT},num_classes=10")
    save_weights("w.safetensors", own.model)
    loaded = load_model(f"{VIT}@w.safetensors")
    assert_same(dict(loaded.model.state_dict()), dict(own.model.state_dict()))
    assert loaded.notes == (
        *declarations(),
        "timm:vit_tiny_patch16_224: built with num_classes=10, because w.safetensors has head.weight (10, 24)",
    )
    assert loaded.example is not None and loaded.example[0][0].shape == (2, 3, 32, 32)
    how = loaded.preprocess
    assert how is not None and (how.size, how.mean, how.crop, how.filter) == ((32, 32), (0.5,) * 3, 0.9, "bicubic")


def test_a_torchvision_model(folder: Path) -> None:
    needs("torchvision")
    own = load_model("torchvision:squeezenet1_1,num_classes=4")
    torch.save({"model": own.model.state_dict()}, "w.pt")
    loaded = load_model("torchvision:squeezenet1_1@w.pt")
    assert_same(dict(loaded.model.state_dict()), dict(own.model.state_dict()))
    assert loaded.notes == (
        *declarations(),
        "torchvision:squeezenet1_1: built with num_classes=4, because w.pt has classifier.1.weight (4, 512, 1, 1)",
        "w.pt: took the state dict under 'model'",
    )
    assert loaded.preprocess is not None and loaded.preprocess.size == (224, 224)
    assert loaded.preprocess.crop == 224 / 256


def test_libraries_that_have_no_such_model(folder: Path) -> None:
    needs("timm")
    message = refused("timm:vit_tiny_patch16_244")
    assert message.startswith("timm has no model 'vit_tiny_patch16_244'; did you mean vit_tiny_patch16_224 or ")
    assert refused("timm:zzzzzz") == "timm has no model 'zzzzzz'.\n  what to do: see timm's list_models()"
    message = refused("torchvision:squeezenet,num_classes=4")
    assert message.startswith("torchvision has no model 'squeezenet'; did you mean squeezenet1_")
    message = refused("torchvision:squeezenet1_1,clases=4")
    assert message.startswith(
        "torchvision cannot build squeezenet1_1(clases=4): TypeError: SqueezeNet.__init__() got an unexpected keyword "
        "argument 'clases'"
    )


def test_a_library_that_is_not_there_or_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphfuse.io.importing.importlib.util.find_spec", lambda name: None)
    assert refused("timm:resnet18") == "timm is not installed.\n  what to do: pip install timm"
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nat a line")

    monkeypatch.setattr("graphfuse.io.importing.importlib.import_module", broken)
    assert refused("torchvision:resnet18") == (
        "torchvision cannot be imported: operator torchvision::nms does not exist\n"
        f"  what to do: install the torchvision that was built for torch {torch.__version__}"
    )


def test_an_operator_that_is_missing_is_declared_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torchvision")
    before, really = declarations(), importlib.import_module

    def beside_another_torch(name: str) -> Any:
        if name == "torchvision" and not hasattr(torch.ops.torchvision, "made_up"):
            raise RuntimeError("operator torchvision::made_up does not exist")
        return really(name)

    monkeypatch.setattr("graphfuse.io.importing.importlib.import_module", beside_another_torch)
    known = dict(_declared())
    assert import_library("torchvision").models is not None
    (note,) = declarations()
    assert note != "".join(before) and "made_up" in note
    with pytest.raises(RuntimeError, match="operator made_up is not there: install the torchvision"):
        torch.ops.torchvision.made_up(torch.ones(1, 4), torch.ones(1), 0.5)
    _declared().clear()
    _declared().update(known)


def test_a_detector_beside_another_torch_says_what_to_install(folder: Path) -> None:
    needs("torchvision")
    if not declarations():
        pytest.skip("torchvision fits this torch")
    loaded = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert loaded.example is not None
    with pytest.raises(CaptureError, match="reinstall torchvision so that it matches"):
        trace(loaded.model, *loaded.example)


# ------------------------------------------------------------------ shards


def shards(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    names, files = list(state), ["a.safetensors", "b.safetensors"]
    where = {name: files[number % 2] for number, name in enumerate(names)}
    for file in files:
        save_state(folder / file, {name: state[name] for name in names if where[name] == file})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_by_their_index_or_their_directory(folder: Path) -> None:
    state = weights("w.safetensors")
    (folder / "parts").mkdir()
    index = shards(folder / "parts", state)
    for name in ("parts", str(index)):
        loaded = load_model(f"mi_nets:Net@{name}")
        assert_same(dict(loaded.model.state_dict()), state)
        assert loaded.notes == ("model.safetensors.index.json: 4 tensors from 2 shards",)


def test_shards_that_are_not_whole(folder: Path) -> None:
    index = shards(folder, weights("w.safetensors"))
    (folder / "b.safetensors").unlink()
    assert refused(f"mi_nets:Net@{index}", CheckpointError) == (
        f"{folder / 'b.safetensors'} cannot be read: No such file or directory"
    )
    save_state(folder / "b.safetensors", {"body.bias": torch.ones(4)})
    assert refused(f"mi_nets:Net@{index}", CheckpointError) == (
        f"{index}: 1 tensors are not in the shards that it names: head.bias\n"
        "  what to do: fetch the shards again; they and the index must be of one checkpoint"
    )
    index.write_text("[]")
    message = f"{index} is no index of shards.\n  expected: a JSON object with 'weight_map'"
    assert refused(f"mi_nets:Net@{index}", CheckpointError) == message
    index.unlink()
    (folder / "none").mkdir()
    expected = "expected: one model.safetensors, or shards with their model.safetensors.index.json"
    assert refused("mi_nets:Net@none", CheckpointError) == (
        f"none is a directory that holds no safetensors files.\n  {expected}"
    )
    assert refused(f"mi_nets:Net@{folder}", CheckpointError) == (
        f"{folder} is a directory that holds 3 safetensors files and no index.\n  {expected}"
    )


def test_a_shard_cannot_be_named_outside_its_directory(folder: Path) -> None:
    save_state(folder / "secret.safetensors", {"a": torch.ones(1)})
    (folder / "parts").mkdir()
    index = folder / "parts/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"parts/secret\.safetensors cannot be read"):
        load_state(index)


# ------------------------------------------------------------------ wrappers


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "model._orig_mod.", "module.model."])
def test_prefixes_of_wrappers_come_off(folder: Path, prefix: str) -> None:
    state = weights("w.safetensors")
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 3}, "last.ckpt")
    loaded = load_model("mi_nets:Net@last.ckpt")
    assert_same(dict(loaded.model.state_dict()), state)
    assert loaded.notes[0] == "last.ckpt: took the state dict under 'state_dict'"
    said = {
        "module.": "stripped the prefix 'module.' from every name",
        "_orig_mod.": "stripped the prefix '_orig_mod.' from every name",
        "module.model.": "took 'model.' off the names, as the model has them",
    }
    assert loaded.notes[-1] == f"last.ckpt: {said.get(prefix, f'took {prefix!r} off the names, as the model has them')}"


def test_a_prefix_goes_on_where_the_model_has_it(folder: Path) -> None:
    state = weights("w.safetensors")
    loaded = load_model("mi_nets:Outer@w.safetensors")
    assert_same(dict(loaded.model.state_dict()), {f"model.{name}": value for name, value in state.items()})
    assert loaded.notes == ("w.safetensors: put 'model.' in front of the names, as the model has them",)
    save_weights("outer.safetensors", loaded.model)
    assert load_model("mi_nets:Outer@outer.safetensors").notes == ()


def test_state_dicts_nested_twice(folder: Path) -> None:
    state = weights("w.safetensors")
    torch.save({"model": {"state_dict": state, "step": 1}, "optimizer": {}}, "w.pt")
    loaded = load_model("mi_nets:Net@w.pt")
    assert_same(dict(loaded.model.state_dict()), state)
    assert loaded.notes == ("w.pt: took the state dict under 'model'", "w.pt: took the state dict under 'state_dict'")


# ------------------------------------------------------------------ heads


def test_a_head_that_is_missing_is_an_error_that_names_it(folder: Path) -> None:
    state = weights("w.safetensors")
    del state["head.weight"], state["head.bias"]
    save_state("body.safetensors", state)
    assert refused("mi_nets:Net@body.safetensors", CheckpointError) == (
        "body.safetensors does not fit Net:\n  missing from the file (2): head.weight (3, 4); head.bias (3,)\n"
        "  what to do: build the model with the settings that it was trained with,\n"
        "  or, if head is to keep the values that it was built with, allow it: --allow head."
    )
    torch.manual_seed(0)
    fresh = {name: value.clone() for name, value in load_model("mi_nets:Net").model.state_dict().items()}
    torch.manual_seed(0)
    loaded = load_model("mi_nets:Net@body.safetensors", allow=["head."])
    assert_same(dict(loaded.model.state_dict()), {**fresh, **state})
    assert loaded.notes == (
        "body.safetensors: not loaded, so with the values that the model was built with: head.weight; head.bias",
    )


def test_a_head_of_another_shape_or_left_over(folder: Path) -> None:
    state = weights("w.safetensors", "mi_nets:Net,classes=9")
    save_state("more.safetensors", {**state, "aux.weight": torch.ones(2)})
    assert refused("mi_nets:Net@w.safetensors", CheckpointError) == (
        "w.safetensors does not fit Net:\n"
        "  of another shape (2): head.weight: got (9, 4), expected (3, 4); head.bias: got (9,), expected (3,)\n"
        "  what to do: build the model with the settings that it was trained with,\n"
        "  or, if head is to keep the values that it was built with, allow it: --allow head."
    )
    loaded = load_model("mi_nets:Net@more.safetensors", allow=["head.", "aux."])
    assert_same(loaded.model.state_dict()["body.weight"], state["body.weight"])
    assert loaded.notes == (
        "more.safetensors: not loaded, so with the values that the model was built with: head.weight; head.bias",
        "more.safetensors: left out, because the model has no such tensor: aux.weight",
    )
    assert "unknown to the model (1): aux.weight (2,)" in refused(
        "mi_nets:Net@more.safetensors", CheckpointError, allow=["head."]
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_weight_that_the_file_lacks_is_said(tmp_path: Path) -> None:
    value = torch.randn(7, 5)
    model = Tied()
    notes = load_into(model, Checkpoint(tmp_path / "w.pt", {"embedding.weight": value}))
    assert notes == ("w.pt: 'head.weight' is not in the file; the model ties it to 'embedding.weight'",)
    assert_same(model.head.weight.detach(), value)


# ------------------------------------------------------------------ precision


def mixed(path: str) -> dict[str, torch.Tensor]:
    state = weights("w.safetensors")
    state["body.weight"], state["head.weight"] = state["body.weight"].half(), state["head.weight"].bfloat16()
    save_state(path, state)
    return state


def test_mixed_precision_is_computed_in_float32_and_written_as_it_was(folder: Path) -> None:
    state = mixed("mixed.safetensors")
    loaded = load_model("mi_nets:Net@mixed.safetensors")
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    assert loaded.notes == (
        "mi_nets:Net@mixed.safetensors: computed in float32; saved again in float32 and float16 and bfloat16",
    )
    (folder / "out").mkdir()
    save_model(loaded, loaded.model, folder / "out")
    back = safetensors.torch.load_file(folder / "out/model.safetensors")
    assert {name: value.dtype for name, value in back.items()} == {name: value.dtype for name, value in state.items()}
    assert_same(dict(sorted(back.items())), dict(sorted(state.items())), tolerance=0)


def test_a_chosen_precision_is_kept_on_the_way_out(folder: Path) -> None:
    mixed("mixed.safetensors")
    loaded = load_model("mi_nets:Net@mixed.safetensors", dtype=torch.float64)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float64}
    assert loaded.example is not None and loaded.example[0][0].dtype == torch.float64 and loaded.notes == ()
    (folder / "out").mkdir()
    save_model(loaded, loaded.model, folder / "out")
    back = safetensors.torch.load_file(folder / "out/model.safetensors")
    assert {value.dtype for value in back.values()} == {torch.float64}


def test_a_factory_that_builds_in_half_precision(folder: Path) -> None:
    state = weights("w.safetensors")
    loaded = load_model("mi_nets:half@w.safetensors")
    assert_same(dict(loaded.model.state_dict()), state, tolerance=0)  # not rounded on the way
    assert load_model("mi_nets:half").stored == dict.fromkeys(state, torch.bfloat16)


def test_tied_weights_stay_tied_when_they_are_widened() -> None:
    from graphfuse.io.precision import computed_in

    model: Any = computed_in(Tied().half(), None)
    assert model.head.weight is model.embedding.weight and model.head.weight.dtype == torch.float32


def test_values_that_their_precision_cannot_hold(folder: Path) -> None:
    mixed("mixed.safetensors")
    loaded = load_model("mi_nets:Net@mixed.safetensors")
    with torch.no_grad():
        loaded.model.state_dict()["body.weight"][0, 0] = 1e6
    (folder / "out").mkdir()
    with pytest.raises(OutputError) as caught:
        save_model(loaded, loaded.model, folder / "out")
    assert str(caught.value) == (
        "1 of 8 values of body.weight are too large for float16, in which it was stored.\n"
        "  what to do: choose another precision: --dtype float32"
    )
    assert not list((folder / "out").iterdir())


def test_names_of_precisions() -> None:
    assert dtype_of("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError) as caught:
        dtype_of("int8")
    message = "there is no floating dtype 'int8'.\n  expected: float16, bfloat16, float32, float64"
    assert str(caught.value) == message
