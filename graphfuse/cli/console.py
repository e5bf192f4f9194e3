"""Where the commands print: tables on standard output, progress, logs and errors on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler

out = Console()
err = Console(stderr=True)


@contextmanager
def logged(level: int) -> Iterator[None]:
    """What graphfuse logs at this level and above is shown on standard error meanwhile."""
    logger, handler = logging.getLogger("graphfuse"), RichHandler(console=err, show_path=False, markup=False)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
