"""What reading and writing say when something is wrong, each message whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import importable, needs
from torch import nn

from graphfuse.errors import CheckpointError, DataError, GraphFuseError, ModelSpecError, OutputError
from graphfuse.io import pretrained, texts
from graphfuse.io.batches import FORMS as DATA_FORMS
from graphfuse.io.batches import load_data
from graphfuse.io.checkpoints import load_state
from graphfuse.io.models import FORMS as MODEL_FORMS
from graphfuse.io.models import LoadedModel, load_model, parse_spec
from graphfuse.writing import ensure_new

NETS = """
import torch
from torch import nn
def net():
    return nn.Linear(2, 2)
def example_inputs():
    return ()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "im_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        yield tmp_path


def said(error: type[GraphFuseError], call: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_names_of_models(here: Path) -> None:
    def refused(name: str) -> str:
        return said(ModelSpecError, lambda: load_model(name))

    assert refused("resnet18") == f"the model 'resnet18' has no form that graphfuse knows.\n{MODEL_FORMS}"
    assert refused("a/b") == (
        f"the model 'a/b' has no form that graphfuse knows; there is no such directory.\n{MODEL_FORMS}"
    )
    Path("empty").mkdir()
    assert refused("empty") == (
        f"the directory empty holds no config.json, so it is no transformers model.\n{MODEL_FORMS}"
    )
    assert refused("im_none:net") == (
        f"there is no module 'im_none'.\n  looked in: {here} and the installed packages\n"
        "  what to do: run from the directory that holds it, or install its package"
    )
    assert refused("im_nets:nett") == (
        f"im_nets has no 'nett'; did you mean net?\n  got: im_nets:nett\n  looked in: {here / 'im_nets.py'}"
    )
    assert refused("im_nets:number") == (
        "im_nets:number is an int.\n  expected: a function (or class) that returns a new model"
    )
    assert refused("im_nets:net") == "example_inputs() of im_nets:net returned nothing.\n  expected: (args, kwargs)"


def test_files_of_weights(here: Path) -> None:
    def refused(name: str) -> str:
        return said(CheckpointError, lambda: load_state(name))

    assert refused("none.pt") == "none.pt cannot be read: No such file or directory"
    torch.save(nn.Linear(2, 2), "module.pt")
    assert refused("module.pt") == (
        "module.pt holds Python objects, and loading those runs whatever code the file names; it was not loaded.\n"
        "  what to do: where you trust the file, load it in your own session and save the weights alone: "
        "safetensors.torch.save_model(model, 'model.safetensors')"
    )
    torch.save({"epoch": 3, "model": {"lr": 1}}, "state.pt")
    assert refused("state.pt") == (
        "state.pt is no checkpoint, or a damaged one: it holds a dict with the keys 'lr', not tensors by name\n"
        "  expected: a safetensors file, or a torch file of a state dict"
    )
    Path("cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{truncated")
    assert refused("cut.safetensors").startswith("cut.safetensors is no checkpoint, or a damaged one: ")
    Path("lost.safetensors.index.json").mkdir()
    assert refused("lost.safetensors.index.json") == (
        "lost.safetensors.index.json is a directory that holds no safetensors files.\n"
        "  expected: one model.safetensors, or shards with their model.safetensors.index.json"
    )


def test_names_and_files_of_data(here: Path) -> None:
    def refused(name: str) -> str:
        return said(DataError, lambda: load_data(name))

    assert refused("nowhere") == (
        "the data 'nowhere' is neither a file of arrays nor a function; there is no such file or directory.\n"
        f"{DATA_FORMS}"
    )
    Path("data.csv").write_text("1,2")
    assert refused("data.csv") == f"the data 'data.csv' is neither a file of arrays nor a function.\n{DATA_FORMS}"
    assert refused("none.npz") == "the data file none.npz cannot be read: No such file or directory"
    Path("bad.npz").write_bytes(b"no zip")
    assert refused("bad.npz").startswith("the data file bad.npz holds no plain arrays: ")
    np.savez("zero.npz", x=np.zeros((0, 3)))
    assert refused("zero.npz") == "zero.npz holds no inputs: x (0, 3)"
    np.savez("uneven.npz", a=np.zeros((2, 3)), b=np.zeros(3))
    assert refused("uneven.npz") == (
        "uneven.npz: the first dimension must run over the same inputs in every array.\n  got: a (2, 3), b (3,)"
    )
    np.savez("nan.npz", x=np.array([1.0, np.nan]))
    assert refused("nan.npz") == "nan.npz: the array 'x' holds NaN or infinity"
    assert refused("im_nets:number") == "the data 'im_nets:number' is an int, not a function that returns batches"
    assert refused("im_nets:net") == "im_nets:net() returned a Linear, not an iterable of batches"


def test_directories_to_write(here: Path) -> None:
    assert said(OutputError, lambda: ensure_new(here)) == (
        f"the output directory {here} exists and is not empty (it holds im_nets.py).\n"
        "  what to do: name a new directory, or empty this one"
    )
    assert said(OutputError, lambda: ensure_new("im_nets.py")) == (
        "the output im_nets.py exists and is no directory.\n  what to do: name a new directory"
    )


def test_directories_of_transformers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = needs("transformers").__version__
    folder = here / "model"
    folder.mkdir()

    def refused(error: type[GraphFuseError] = ModelSpecError, **config: Any) -> str:
        (folder / "config.json").write_text(json.dumps(config))
        return said(error, lambda: load_model(str(folder)))

    sizes: Any = {"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 5, "n_positions": 4}
    assert refused(model_type="gpt2", architectures=["NoSuchModel"], **sizes) == (
        f"{folder}: config.json names the architecture 'NoSuchModel', which transformers {version} has not.\n"
        "  what to do: install the version that wrote it, or give the model as package.module:factory"
    )
    assert refused(model_type="nothing").startswith(f"{folder}: transformers cannot read its config.json: ")
    torch.save({}, folder / "pytorch_model.bin")
    message = refused(CheckpointError, model_type="gpt2", architectures=["GPT2Model"], **sizes)
    assert message.startswith(f"{folder}: the weights cannot be loaded: ")
    assert message.endswith(
        "\n  expected: model.safetensors (or its shards); weights in pickles (*.bin) are not loaded, because loading "
        "those can run code"
    )
    (folder / "preprocessor_config.json").write_text("{")
    assert said(ModelSpecError, lambda: pretrained.images(folder)).startswith(
        f"{folder / 'preprocessor_config.json'} is no JSON: "
    )
    monkeypatch.setattr("graphfuse.io.importing.importlib.util.find_spec", lambda name: None)
    assert refused() == "transformers is not installed.\n  what to do: pip install transformers"


def test_images_without_pillow(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pictures").mkdir()
    Path("pictures/a.png").write_bytes(b"")
    model = LoadedModel(nn.Conv2d(3, 4, 3), parse_spec("a:b"), (), ((torch.zeros(1, 3, 4, 4),), {}))
    monkeypatch.setattr("graphfuse.io.images.importlib.util.find_spec", lambda name: None)
    assert said(DataError, lambda: load_data("pictures", model=model)) == (
        "images need Pillow, which is not installed.\n  what to do: pip install 'graphfuse[data]'"
    )


def test_a_tokenizer_that_cannot_cut() -> None:
    class Config:
        max_position_embeddings = 8

        def get_text_config(self) -> Config:
            return self

    class Slow:
        model_max_length = 10**30

        def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2, 3]}

    class Model(nn.Linear):
        config = Config()

    assert said(DataError, lambda: texts.windows("a b c", Slow(), Model(1, 1))) == (
        "the tokenizer Slow cannot cut text into windows.\n"
        "  what to do: give token ids: FILE.npz or FILE.safetensors with input_ids"
    )
