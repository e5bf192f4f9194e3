"""Directories as the library ``datasets`` saves them, which graphfuse does not require."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from graphfuse.errors import DataError
from graphfuse.io.arrays import as_input
from graphfuse.io.examples import Examples
from graphfuse.io.forward import POSITIONAL, Signature, arguments, label_among

MARKS = ("dataset_dict.json", "dataset_info.json")


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of datasets wrote this directory."""
    return any((folder / name).is_file() for name in MARKS)


def read(folder: Path, signature: Signature | None) -> Examples:
    """The columns that ``forward`` takes, as tensors; of the others only that of the labels is looked at.

    Where ``forward`` takes none by name, a column ``x``, ``inputs``, ``input`` or ``data`` is the positional argument.

    Raises
    ------
    DataError
        datasets is not installed, the directory holds several splits or cannot be read, no column fits, or the rows of
        one differ in length.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"the data {folder} needs datasets, which is not installed.\n  what to do: pip install 'graphfuse[data]'"
        )
    if (folder / MARKS[0]).is_file():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}.\n  what to do: name one of them: {folder / splits[0]}"
        )
    try:
        table: Any = importlib.import_module("datasets").load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"the data set {folder} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
    columns: list[str] = table.column_names
    label = label_among(columns, signature)
    taken = [name for name in columns if name != label and (signature is None or name in signature.names)]
    taken = taken or [name for name in columns if name in POSITIONAL][:1]
    if not taken:
        needs = f"{signature.model}.forward takes: {', '.join(signature.names)}" if signature else "expected: any"
        raise DataError(
            f"{folder} has no column for the model: {', '.join(columns)}.\n  {needs}\n"
            "  what to do: rename_column in datasets, or tokenise first: map(..., batched=True)"
        )
    chosen = table.with_format("torch", columns=[*taken, *([label] if label is not None else [])])

    def inputs(rows: list[int]) -> Any:
        found = chosen[rows]
        return arguments({name: _tensor(found[name], name, folder) for name in taken}, signature, str(folder))

    labels = _tensor(chosen[:][label], label, folder) if label is not None else None
    return Examples(str(folder), len(table), inputs, labels, label)


def _tensor(value: Any, name: str, folder: Path) -> Tensor:
    if isinstance(value, Tensor):
        return as_input(value)
    ragged = isinstance(value, list) and all(isinstance(one, Tensor) for one in value)
    raise DataError(
        f"{folder}: the rows of {name!r} "
        + (
            "differ in shape.\n  what to do: make them one length: padding='max_length', truncation=True"
            if ragged
            else "are no numbers.\n  what to do: leave the column out: remove_columns"
        )
    )
