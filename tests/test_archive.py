"""Files of tensors: the same content, the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from graphfuse import archive
from graphfuse.io.checkpoints import load_state, save_weights
from graphfuse.writing import new_directory, new_file


def test_metadata_is_written_in_one_order(tmp_path: Path) -> None:
    tensors = {"é": torch.randn(3, 2), "a": torch.arange(4)}
    for i in range(8):
        archive.write(tmp_path / f"{i}.safetensors", "test", {"naïve": ["\n", '"', 1.5]}, tensors)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    document, found = archive.read(tmp_path / "0.safetensors", "test")
    assert document == {"naïve": ["\n", '"', 1.5]} and torch.equal(found["é"], tensors["é"])


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        archive.write(tmp_path / "a", "test", {}, {})
        with new_file(tmp_path / "b") as work:
            work.unlink()
            os.close(os.open(work, os.O_CREAT, 0o600))  # as libraries do that write through a temporary file
        with new_directory(tmp_path / "c") as folder:
            (folder / "d").touch(0o600)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "c", "c/d")}
    assert modes == {"a": 0o640, "b": 0o640, "c": 0o750, "c/d": 0o640}


def test_tied_weights_are_written_in_one_order_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    for i in range(8):
        save_weights(tmp_path / f"{i}.safetensors", model)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    assert set(load_state(tmp_path / "0.safetensors").state) == {"0.weight", "1.weight", "1.bias"}
    with safe_open(tmp_path / "0.safetensors", "pt") as stored:  # pyright: ignore[reportPrivateImportUsage]
        assert len(stored.metadata()) > 1
