"""Tables that nobody works with at the moment: in memory while there is room, else in one temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from graphfuse.errors import OutputError

ROOM = 4 << 20  # bytes of such tables that are held in memory in any case


class Scratch:
    """Room for tables that are written now and read later.

    The file has no name, so it is gone when it is closed or the process ends, however it ends. It lies where
    :func:`tempfile.gettempdir` says (``TMPDIR``), and is read and written, not mapped: its pages are not the process'
    memory, and a full disk is an error, not a signal.

    Parameters
    ----------
    room : int, optional
        Bytes that are held in memory; by default all.
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = math.inf if room is None else room
        self._file: IO[bytes] | None = None
        self._end = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def place(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Place:
        """Room for one table, of zeros until it is written. What is not on the CPU stays where it is."""
        size = math.prod(shape) * dtype.itemsize
        if torch.device(device).type == "cpu" and size > self._room:
            self._end += size
            return Place(self, tuple(shape), dtype, self._end - size)
        self._room -= size
        return Place(self, tuple(shape), dtype, torch.zeros(*shape, dtype=dtype, device=device))

    def transfer(self, data: memoryview, offset: int, write: bool) -> None:
        """Bytes of the file from here on, written or read; what was never written reads as zeros.

        Raises
        ------
        OutputError
            There is no room, or no directory that can be written.
        """
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="graphfuse-", buffering=0)  # noqa: SIM115
            self._file.seek(offset)
            while data:
                done = (self._file.write(data) if write else self._file.readinto(data)) or 0  # type: ignore[attr-defined]
                if not done:
                    data[:] = bytes(len(data))
                    break
                data = data[done:]
        except OSError as error:
            raise OutputError(
                f"tables that matching needs later do not fit into {self._where()}: {error.strerror or error}.\n"
                f"  needed: {self._end / (1 << 20):,.1f} MiB so far\n"
                "  what to do: make room there, or let TMPDIR name a directory that has it"
            ) from error

    @staticmethod
    def _where() -> str:
        try:
            return tempfile.gettempdir()
        except OSError:  # none can be written
            return os.environ.get("TMPDIR", "any temporary directory")


class Place:
    """Where one table lies: a tensor, or an offset in the file of a :class:`Scratch`."""

    def __init__(self, scratch: Scratch, shape: tuple[int, ...], dtype: torch.dtype, where: Tensor | int) -> None:
        self.shape, self.dtype = shape, dtype
        self._scratch, self._where = scratch, where

    @property
    def in_memory(self) -> bool:
        """Whether what is read is the table itself, which can be written over."""
        return isinstance(self._where, Tensor)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The table, or its entries from ``start`` to ``stop`` along the first dim."""
        if isinstance(self._where, Tensor):
            return self._where[start:stop]
        stop = self.shape[0] if stop is None else stop
        found = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        self._scratch.transfer(_bytes(found), self._where + start * self._row, write=False)
        return found

    def write(self, values: Tensor, start: int = 0) -> None:
        """Put values where :meth:`read` finds them."""
        if not isinstance(self._where, Tensor):
            self._scratch.transfer(_bytes(values), self._where + start * self._row, write=True)
        elif values.shape == self.shape:
            self._where = values
        else:
            self._where[start : start + len(values)] = values

    @property
    def _row(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def _bytes(values: Tensor) -> memoryview:
    return values.detach().contiguous().view(-1).view(torch.uint8).numpy().data
