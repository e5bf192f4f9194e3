"""Writing results: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from graphfuse.errors import OutputError


def ensure_new(path: str | Path) -> Path:
    """The path of a directory that does not exist yet, or is empty.

    Raises
    ------
    OutputError
        Something is in the way; nothing was changed.
    """
    target = Path(path)
    if target.is_dir():
        found = sorted(entry.name for entry in target.iterdir())
        if found:
            raise OutputError(
                f"the output directory {target} exists and is not empty (it holds {', '.join(found[:3])}"
                f"{', ...' if len(found) > 3 else ''}).\n  what to do: name a new directory, or empty this one"
            )
    elif target.exists() or target.is_symlink():
        raise OutputError(f"the output {target} exists and is no directory.\n  what to do: name a new directory")
    return target


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory that appears under its name when the block has succeeded; a failure leaves nothing.

    Yields a temporary sibling to write into.

    Raises
    ------
    OutputError
        The directory exists and is not empty, or cannot be written.
    """
    target = ensure_new(path)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.absolute().parent))
        work.chmod(0o755)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield work
        try:
            ensure_new(target)  # what came there meanwhile is not overwritten
            if target.is_dir():
                target.rmdir()
            work.rename(target)
        except OSError as error:
            raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A file that takes its name when the block has succeeded, replacing what was there; a failure changes nothing.

    Yields the path of a temporary sibling to write to.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.absolute().parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(target, error) from error
    work = Path(name)
    try:
        yield work
        try:
            work.chmod(0o644)
            work.replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error
    finally:
        work.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error.strerror or error}.\n  what to do: name a place you may write to"
    )
