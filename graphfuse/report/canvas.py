"""The only module that imports matplotlib, and only when something is drawn: a figure, and its file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphfuse.errors import ConfigError
from graphfuse.writing import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "svg.hashsalt": "graphfuse", "figure.dpi": 100, "savefig.dpi": 200,
}  # fmt: skip
METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What matplotlib would write into a file beside the picture, and must not, as it differs from day to day."""


@contextlib.contextmanager
def canvas(size: tuple[float, float], path: str | Path | None) -> Iterator[Figure]:
    """A figure to draw on, written when all is drawn; no setting of the caller's matplotlib counts, or is changed.

    Parameters
    ----------
    size : (width, height)
        In inches.
    path : path, optional
        Where to write it: a PNG, an SVG or a PDF, by its ending.

    Raises
    ------
    ConfigError
        matplotlib is not there, or the ending of the path is none of a picture.
    OutputError
        The file cannot be written.
    """
    kind = _kind(path)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plot: matplotlib is not installed.\n  what to do: pip install 'graphfuse[plots]'") from error

    class Picture(Figure):
        def _repr_png_(self) -> bytes:  # what notebooks show
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", metadata=METADATA["png"])
            return buffer.getvalue()

    settings: dict[Any, Any] = {key: matplotlib.rcParamsDefault[key] for key in matplotlib.rcParamsDefault}
    settings.pop("backend")
    with matplotlib.rc_context({**settings, **STYLE}):
        figure = Picture(figsize=size, layout="constrained")
        yield figure
        if path is not None:
            with new_file(path) as work:
                figure.savefig(work, format=kind, metadata=METADATA[kind])


def _kind(path: str | Path | None) -> str:
    kind = Path(path).suffix.lower().removeprefix(".") if path is not None else "png"
    if kind not in METADATA:
        raise ConfigError(f"plot: {path} has the ending of no picture.\n  expected: .png, .svg or .pdf")
    return kind
