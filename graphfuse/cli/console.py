"""Where the commands print: tables on standard output, progress and errors on standard error."""

from __future__ import annotations

from rich.console import Console

out = Console()
err = Console(stderr=True)
