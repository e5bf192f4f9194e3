from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import assert_same, importable, needs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphfuse.errors import CheckpointError, DataError, ModelSpecError, OutputError
from graphfuse.io.batches import Labelled, load_data, load_labelled
from graphfuse.io.checkpoints import Checkpoint, load_state, save_state, save_weights
from graphfuse.io.fitting import load_into, must_be_finite
from graphfuse.io.models import LoadedModel, as_call, load_model, parse_spec, save_model
from graphfuse.io.pretrained import _without_bars
from graphfuse.writing import ensure_new, new_directory, new_file


class Tied(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 7)
        self.head.weight = self.embedding.weight


def by_name(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(state.items()))


# ------------------------------------------------------------------ checkpoints


@given(
    st.dictionaries(
        st.text("abc._", min_size=1, max_size=6),
        st.tuples(
            st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=30)
def test_a_state_comes_back_as_it_was_saved(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any]) -> None:
    state = {name: torch.randn(shape).mul(9).to(dtype) for name, (dtype, shape) in shapes.items()}
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_state(path, state)
    back = load_state(path).state
    assert {name: value.dtype for name, value in back.items()} == {name: value.dtype for name, value in state.items()}
    assert_same(by_name(back), by_name(state), tolerance=0)


def test_tied_weights_are_written_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    model, path = randomise(Tied()), tmp_path / "tied.safetensors"
    save_weights(path, model)
    assert "head.weight" not in safetensors.torch.load_file(path)
    assert_same(dict(load_state(path).state)["head.weight"], model.state_dict()["embedding.weight"])
    other = randomise(Tied(), seed=1)
    load_into(other, load_state(path))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_tied_weight_may_be_stored_under_any_of_its_names(tmp_path: Path) -> None:
    model, other = randomise(Tied()), randomise(Tied(), seed=1)
    state = dict(model.state_dict())
    del state["embedding.weight"]
    load_into(other, Checkpoint(tmp_path, state))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    state["embedding.weight"] = state["head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"'embedding\.weight' and 'head\.weight' are one tensor in the model"):
        load_into(other, Checkpoint(tmp_path, state))


def test_torch_files_prefixes_and_training_checkpoints(tmp_path: Path) -> None:
    model, path = randomise(Tied()), tmp_path / "last.ckpt"
    state = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)
    checkpoint = load_state(path)
    assert_same(dict(checkpoint.state), dict(model.state_dict()))
    assert checkpoint.notes == (
        "last.ckpt: took the state dict under 'state_dict'",
        "last.ckpt: stripped the prefix 'module.' from every name",
        "last.ckpt: stripped the prefix '_orig_mod.' from every name",
    )


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(2), "bias": torch.ones(2)}, tmp_path / "a.pt")
    assert set(load_state(tmp_path / "a.pt").state) == {"module.weight", "bias"}


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["GRAPHFUSE_TEST_TRAP"],)


@pytest.mark.parametrize("how", ["torch", "pickle", "module"])
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, how: str, monkeypatch: Any) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    monkeypatch.setenv("GRAPHFUSE_TEST_TRAP", str(trap))
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": Payload()}))
    else:
        torch.save({"weight": Payload()} if how == "torch" else nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    message = str(caught.value)
    assert message.startswith(f"{path} holds Python objects") and "it was not loaded" in message
    assert "safetensors.torch.save_model" in message
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "damaged"), (b"hello", "damaged"), (b"\x10\x00\x00\x00\x00\x00\x00\x00{truncated", "damaged")],
)
def test_damaged_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.safetensors is no checkpoint, or a {reason} one"):
        load_state(path)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt cannot be read: No such file"):
        load_state(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a directory that holds no safetensors files"):
        load_state(tmp_path)
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it holds a dict with the keys 'epoch', 'lr', not tensors by name"):
        load_state(tmp_path / "a.pt")
    torch.save(torch.ones(2), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="it holds a Tensor, not tensors by name"):
        load_state(tmp_path / "b.pt")


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = randomise(Tied())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state: dict[str, Tensor] = {name: value + 1 for name, value in model.state_dict().items()}
    state["head.bias"] = torch.zeros(9)
    del state["norm.weight"], state["norm.running_var"]
    state["extra"] = torch.zeros(2, 3)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, Checkpoint(Path("w.safetensors"), state))
    assert str(caught.value) == (
        "w.safetensors does not fit Tied:\n"
        "  missing from the file (2): norm.weight (5,); norm.running_var (5,)\n"
        "  unknown to the model (1): extra (2, 3)\n"
        "  of another shape (1): head.bias: got (9,), expected (7,)\n"
        "  what to do: build the model with the settings that it was trained with"
    )
    assert_same(dict(model.state_dict()), before)


def test_long_lists_are_cut() -> None:
    state = {f"more.{i}": torch.zeros(1) for i in range(9)} | dict(Tied().state_dict())
    with pytest.raises(CheckpointError, match=r"unknown to the model \(9\): more\.0 \(1,\);.* and 5 more"):
        load_into(Tied(), Checkpoint(Path("w"), state))


def test_weights_that_are_not_finite() -> None:
    model, state = randomise(Tied()), dict(randomise(Tied(), seed=1).state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state["head.bias"] = torch.tensor([1.0, float("nan"), 2, 3, float("inf"), 4, 5])
    with pytest.raises(
        CheckpointError, match=r"w: weights that are NaN or infinite:\n.*head\.bias \(7,\): 2 of 7 values"
    ):
        load_into(model, Checkpoint(Path("w"), state))
    assert_same(dict(model.state_dict()), before)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    must_be_finite(model, "here")
    model.register_buffer("mask", torch.tensor([0.0, float("nan")]))
    with pytest.raises(CheckpointError, match=r"mask \(2,\): 1 of 2 values"):
        must_be_finite(model, "here")


# ------------------------------------------------------------------ outputs


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_directory(target) as work:
        (work / "a.txt").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out") as work:
        (work / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as work:
        (work / "b.txt").write_text("b")
    assert (tmp_path / "empty" / "b.txt").read_text() == "b"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out") as work:
        (work / "a.txt").write_text("a")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text(name)
    with pytest.raises(OutputError) as caught, new_directory(tmp_path):
        pytest.fail("must not get here")
    assert f"{tmp_path} exists and is not empty (it holds a, b, c, ...)" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]
    with pytest.raises(OutputError, match="exists and is no directory"):
        ensure_new(tmp_path / "a")


def test_what_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError, match="exists and is not empty"), new_directory(target):
        target.mkdir()
        (target / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["theirs"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot write .*file/out: (File exists|Not a directory)"),
        new_directory(tmp_path / "file/out"),
    ):
        pytest.fail("must not get here")
    with pytest.raises(OutputError, match=r"cannot write .*none/a: No such file"), new_file(tmp_path / "none/a"):
        pytest.fail("must not get here")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), new_file(path) as work:
        work.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    with new_file(path) as work:
        work.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a"]


# ------------------------------------------------------------------ models by name

FACTORIES = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def example_inputs():
    return torch.ones(2, 3)

class Own(nn.Module):
    @staticmethod
    def example_inputs():
        return (torch.ones(5),), {"flag": True}

instance = nn.Linear(2, 2)
nothing = lambda: 3

def broken():
    raise ValueError("no such width")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "gf_nets.py").write_text(FACTORIES)
    (tmp_path / "gf_bad.py").write_text("import gf_not_there\n")
    (tmp_path / "gf_raises.py").write_text("x = [][1]\n")
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        yield tmp_path


def refused(spec: str) -> str:
    with pytest.raises(ModelSpecError) as caught:
        load_model(spec)
    return str(caught.value)


def test_a_factory_with_a_checkpoint(folder: Path) -> None:
    made = load_model("gf_nets:tiny")
    assert made.example is not None and not made.model.training
    assert_same(made.example, ((torch.ones(2, 3),), {}))
    save_weights(folder / "w.safetensors", made.model)
    again = load_model("gf_nets:tiny@w.safetensors")
    assert_same(dict(again.model.state_dict()), dict(made.model.state_dict()))
    with new_directory("out") as work:
        save_model(again, again.model, work)
    assert_same(by_name(load_state(folder / "out/model.safetensors").state), by_name(made.model.state_dict()))


def test_example_inputs_of_the_factory_come_first(folder: Path) -> None:
    made = load_model("gf_nets:Own")
    assert_same(made.example, ((torch.ones(5),), {"flag": True}))


def test_names_that_lead_to_no_model(folder: Path) -> None:
    assert "'resnet50' has no form that graphfuse knows" in refused("resnet50")
    assert "there is no such directory" in refused("models/bert") and "package.module:factory@" in refused(
        "models/bert"
    )
    assert f"there is no module 'gf_none'.\n  looked in: {folder}" in refused("gf_none:a")
    assert "gf_nets has no 'tinny'; did you mean tiny?" in refused("gf_nets:tinny")
    assert "importing gf_bad failed: No module named 'gf_not_there'" in refused("gf_bad:a")
    message = refused("gf_raises:a")
    assert "IndexError: list index out of range" in message and "gf_raises.py:1: x = [][1]" in message
    assert "gf_nets:instance is a Linear" in refused("gf_nets:instance")
    assert "gf_nets:nothing() returned an int" in refused("gf_nets:nothing")
    message = refused("gf_nets:broken")
    assert "calling gf_nets:broken() failed: ValueError: no such width" in message
    assert 'raise ValueError("no such width")' in message
    (folder / "empty").mkdir()
    assert "holds no config.json" in refused("empty")


def test_models_that_are_not_finite_are_refused(folder: Path) -> None:
    state = load_model("gf_nets:tiny").model.state_dict()
    state["0.bias"][1] = float("nan")
    save_state("w.safetensors", state)
    with pytest.raises(CheckpointError, match=r"0\.bias \(4,\): 1 of 4 values"):
        load_model("gf_nets:tiny@w.safetensors")


def test_checkpoint_names_may_hold_anything() -> None:
    spec = parse_spec("a.b:c@/some where/x@y:z.pt")
    assert (spec.target, spec.checkpoint) == ("a.b:c", "/some where/x@y:z.pt")


def test_as_call() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert as_call(x) == ((x,), {})
    assert as_call((x, y)) == ((x, y), {})
    assert as_call({"a": x}) == ((), {"a": x})
    assert as_call(((x,), {"a": y})) == ((x,), {"a": y})
    assert as_call([x, {"a": y}]) == ((x, {"a": y}), {})


def test_a_transformers_directory_goes_in_and_out(tmp_path: Path) -> None:
    transformers = needs("transformers")
    sizes = {"n_embd": 12, "n_layer": 1, "n_head": 3, "vocab_size": 50, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    source = tmp_path / "source"
    with _without_bars(transformers):
        transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("old weights")
    loaded = load_model(str(source))
    assert loaded.example is not None
    ids = loaded.example[1]["input_ids"]
    assert ids.shape == (2, 8) and ids.max() < 50
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert loaded.notes == (
        f"{source}: 'lm_head.weight' is not in the file; the model ties it to 'transformer.wte.weight'",
        f"{source}: computed in float32; saved again in bfloat16",
    )
    with torch.no_grad():
        assert loaded.model(ids).past_key_values is None
    with new_directory(tmp_path / "out") as work:
        save_model(loaded, loaded.model, work)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "out"))
    assert before == after
    weights = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("source", "out")]
    assert_same(by_name(weights[1]), by_name(weights[0]), tolerance=0)


# ------------------------------------------------------------------ data by name


def bad_data(spec: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    return str(caught.value)


def test_arrays_in_batches_of_one_size(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(20, dtype=np.float64).reshape(10, 2))
    data = load_data(str(path), batch_size=4)
    batches = list(data)
    assert_same(batches, [torch.arange(8.0).reshape(4, 2), torch.arange(8.0, 16.0).reshape(4, 2)])
    assert len(list(data)) == 2  # a second time
    assert len(list(load_data(str(path), batch_size=64))) == 1


def test_named_arrays_are_keyword_arguments(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    ids, mask = torch.arange(6, dtype=torch.int32).reshape(3, 2), torch.ones(3, 2, dtype=torch.bool)
    save_state(path, {"input_ids": ids, "attention_mask": mask})
    (batch,) = load_data(path, batch_size=3)
    assert isinstance(batch, dict)
    assert_same(by_name(batch), {"attention_mask": mask, "input_ids": ids.long()})
    assert batch["input_ids"].dtype == torch.int64


def test_data_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "none.npz cannot be read: No such file" in bad_data("none.npz")
    assert "neither a file of arrays nor a function" in bad_data("data.csv")
    Path("a.npz").write_bytes(b"not a zip")
    assert "holds no plain arrays" in bad_data("a.npz")
    np.savez("b.npz", x=np.array([{"a": 1}], dtype=object))
    assert "holds no plain arrays" in bad_data("b.npz")
    np.savez("c.npz", x=np.zeros((0, 3)))
    assert "c.npz holds no inputs: x (0, 3)" in bad_data("c.npz")
    np.savez("d.npz", a=np.zeros((2, 3)), b=np.zeros((3, 3)))
    assert "the same inputs in every array.\n  got: a (2, 3), b (3, 3)" in bad_data("d.npz")
    np.savez("e.npz", x=np.array([1.0, np.nan]))
    assert "the array 'x' holds NaN" in bad_data("e.npz")
    np.savez("f.npz", x=np.ones(3))
    assert "a batch of 0 inputs is none" in bad_data("f.npz", batch_size=0)


class Wants(nn.Module):
    """``forward(x, y)`` needs both; ``y`` is no label here."""

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + y


def loaded(model: nn.Module) -> LoadedModel:
    return LoadedModel(model, parse_spec("gf_nets:tiny"))


@pytest.mark.parametrize("label", ["labels", "label", "targets", "target", "y"])
def test_labels_in_a_file_are_told_from_inputs(tmp_path: Path, label: str) -> None:
    path = str(tmp_path / "x.npz")
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10)
    np.savez(path, **{"x": x, label: y})
    for model in (None, loaded(nn.Linear(2, 2))):
        data = load_data(path, 4, model=model)
        assert_same(list(data), [torch.arange(8.0).reshape(4, 2), torch.arange(8.0, 16.0).reshape(4, 2)])
        assert data.notes == (f"{path}: {label!r} holds labels; it is not given to the model",)
        found = list(load_labelled(path, 4, model=model))
        assert_same(torch.cat([one.labels for one in found]), torch.arange(10))  # the last batch is smaller, not lost
        assert_same([one.inputs for one in found], list(torch.arange(20.0).reshape(10, 2).split(4)))


def test_what_forward_cannot_do_without_is_no_label(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    np.savez(path, x=np.ones((3, 2), np.float32), y=np.zeros((3, 2), np.float32))
    (batch,) = load_data(path, model=loaded(Wants()))
    assert isinstance(batch, dict) and set(batch) == {"x", "y"}
    with pytest.raises(DataError) as caught:
        load_labelled(path, model=loaded(Wants()))
    assert str(caught.value) == (
        f"{path} has no labels.\n  what to do: store them as an array named labels (or label, targets, target, y), put "
        "images into a folder for each class, or give a function that yields (inputs, labels)"
    )


def test_arrays_that_forward_does_not_take_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    np.savez(path, x=np.ones((3, 2)), maks=np.ones(3))
    with pytest.raises(DataError) as caught:
        load_data(path, model=loaded(Wants()))
    assert str(caught.value) == (
        f"{path}: Wants.forward takes no argument 'maks'.\n  it takes: x, y, mask\n"
        "  what to do: name the arrays as forward names its arguments"
    )
    np.savez(path, pixels=np.ones((3, 2)))  # one alone has only one place to go to
    (batch,) = load_data(path, model=loaded(nn.Linear(2, 2)))
    assert_same(batch, torch.ones(3, 2))


def test_samples_are_spread_over_the_data(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    np.savez(path, x=np.arange(10.0), y=np.arange(10))
    assert_same(list(load_data(path, 2, samples=4)), [torch.tensor([0.0, 2.0]), torch.tensor([5.0, 7.0])])
    (found,) = load_labelled(path, samples=4)
    assert_same(found.labels, torch.tensor([0, 2, 5, 7]))
    assert bad_data(path, samples=0) == "0 samples are none.\n  expected: at least 1"


LOADERS = """
import torch
def pairs():
    return [(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(3)]
def dicts():
    return [{"input": inputs, "labels": labels} for inputs, labels in pairs()]
def generator():
    yield from [torch.ones(2), torch.zeros(2)]
def nothing():
    return []
def texts():
    return ["a", "b"]
def tensor():
    return torch.ones(3)
value = 3
"""


def test_functions_that_make_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gf_data.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        data = load_data("gf_data:generator")
        assert_same([list(data), list(data)], [[torch.ones(2), torch.zeros(2)]] * 2)
        assert "gf_data:nothing() yields nothing" in bad_data("gf_data:nothing")
        assert "gf_data:texts() yields a str" in bad_data("gf_data:texts")
        assert "gf_data:tensor() returned a Tensor, not an iterable" in bad_data("gf_data:tensor")
        assert "'gf_data:value' is an int, not a function" in bad_data("gf_data:value")
        assert "gf_data has no 'generatr'; did you mean generator?" in bad_data("gf_data:generatr")


def test_functions_that_make_labelled_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gf_data.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    wanted = [torch.full((2, 3), float(i)) for i in range(3)]
    with importable(tmp_path):
        model = loaded(nn.Linear(3, 3))
        assert_same(list(load_data("gf_data:pairs", model=model)), wanted)
        assert load_data("gf_data:pairs", model=model).notes == (
            "gf_data:pairs: the second of each pair holds labels; it is not given to the model",
        )
        assert_same(list(load_data("gf_data:dicts", model=model)), [{"input": value} for value in wanted])
        assert [type(batch) for batch in load_data("gf_data:pairs")] == [tuple] * 3  # nobody said what forward takes
        assert len(next(iter(load_data("gf_data:pairs", model=loaded(Wants()))))) == 2
        for name in ("pairs", "dicts"):
            found = list(load_labelled(f"gf_data:{name}", samples=3))
            assert all(isinstance(one, Labelled) for one in found)
            assert_same([one.labels for one in found], [torch.tensor([0, 0]), torch.tensor([1, 1])])
        with pytest.raises(DataError) as caught:
            load_labelled("gf_data:generator")
    assert str(caught.value) == (
        "gf_data:generator() yields a Tensor without labels.\n  expected: pairs (inputs, labels), or dicts with a key "
        "labels (or label, targets, target, y)"
    )
