"""Files of tensors: the same content, the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from graphfuse import archive
from graphfuse.io.checkpoints import load_state, save_weights


def test_metadata_is_written_in_one_order(tmp_path: Path) -> None:
    tensors = {"é": torch.randn(3, 2), "a": torch.arange(4)}
    for i in range(8):
        archive.write(tmp_path / f"{i}.safetensors", "test", {"naïve": ["\n", '"', 1.5]}, tensors)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    document, found = archive.read(tmp_path / "0.safetensors", "test")
    assert document == {"naïve": ["\n", '"', 1.5]} and torch.equal(found["é"], tensors["é"])


def test_tied_weights_are_written_in_one_order_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    for i in range(8):
        save_weights(tmp_path / f"{i}.safetensors", model)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    assert set(load_state(tmp_path / "0.safetensors").state) == {"0.weight", "1.weight", "1.bias"}
    with safe_open(tmp_path / "0.safetensors", "pt") as stored:  # pyright: ignore[reportPrivateImportUsage]
        assert len(stored.metadata()) > 1
