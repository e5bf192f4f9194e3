"""Writing results: whole or not at all, and readable by whom the user's umask lets read."""

from __future__ import annotations

import contextlib
import secrets
import shutil
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
    work = _sibling(target)
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        mode = work.stat().st_mode
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        yield work
        try:
            for file in work.rglob("*"):  # libraries write through temporary files that no one else may read
                file.chmod(mode & (0o777 if file.is_dir() else 0o666))
            ensure_new(target)  # what came there meanwhile is not overwritten
            if target.is_dir():
                target.rmdir()
            work.rename(target)
        except OSError as error:
            raise unwritable(target, error) from error
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
    work = _sibling(target)
    try:
        work.touch(exist_ok=False)
        mode = work.stat().st_mode
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        yield work
        try:
            work.chmod(mode & 0o777)
            work.replace(target)
        except OSError as error:
            raise unwritable(target, error) from error
    finally:
        work.unlink(missing_ok=True)


def unwritable(target: str | Path, error: Exception) -> OutputError:
    """What to say when a file or directory cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"cannot write {target}: {reason}.\n  what to do: name a place you may write to")


def _sibling(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.{secrets.token_hex(4)}.partial"
