"""Tables of results in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from graphfuse.report import terminal
from graphfuse.tables import Table


def tables_view(*tables: Table | None) -> RenderableType:
    """Tables one below the other, then their notes; what is None is left out."""
    given = [table for table in tables if table is not None]
    notes = dict.fromkeys(note for table in given for note in table.notes)
    return Group(*(_grid(table) for table in given), *map(terminal.note_view, notes))


def _grid(table: Table) -> Grid:
    """The first column is words, the others are numbers, to the right."""
    grid = Grid(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(table.columns):
        grid.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        grid.add_row(*(Text(text, overflow="ellipsis") for text in row))
    return grid
