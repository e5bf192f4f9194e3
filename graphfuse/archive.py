"""One file of tensors and a JSON document, without pickle: a safetensors file with the document in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphfuse.errors import CheckpointError
from graphfuse.writing import new_file, unwritable

VERSION = 3


def save(tensors: dict[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; the same content gives the same bytes.

    Raises
    ------
    OutputError
        The file cannot be written there; nothing is left behind.
    """
    target = Path(path)
    with new_file(target) as work:
        try:
            save_file(tensors, work, metadata)
            _in_order(work)
        except (OSError, SafetensorError) as error:
            raise unwritable(target, error) from error


def _in_order(path: Path) -> None:
    """Sort a safetensors file's metadata, which is written in a random order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if len(header.get("__metadata__", ())) > 1:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(text) <= size:
                file.seek(8)
                file.write(text.ljust(size))


def write(path: str | os.PathLike[str], kind: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a document and its tensors, all or nothing.

    Raises
    ------
    OutputError
        The file cannot be written there; nothing is left behind.
    """
    metadata = {"format": f"graphfuse.{kind}", "version": str(VERSION), "document": json.dumps(document)}
    save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a file of this kind.

    Raises
    ------
    CheckpointError
        There is no such file, or it is of another kind or version.
    """
    wanted = f"a graphfuse {kind} (written by its save method)"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removesuffix(f": {path}")
        raise CheckpointError(f"{path}: cannot be read: {reason}\n  expected: {wanted}") from error
    if metadata.get("format") != f"graphfuse.{kind}":
        raise CheckpointError(
            f"{path}: is not {wanted}.\n  got: a safetensors file of format {metadata.get('format', 'unknown')!r}"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path}: has version {metadata.get('version')}, this graphfuse reads version {VERSION}.\n"
            "  what to do: make the file again with this version"
        )
    try:
        return json.loads(metadata["document"]), tensors
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its document is damaged: {error}\n  expected: {wanted}") from error
