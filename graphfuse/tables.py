"""Small tables of text, for the terminal and for notebooks."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under columns, with a title above and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.title] if self.title else []
        if self.columns:
            grid = (self.columns, *self.rows)
            widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
            cells = ([x.ljust(w) for x, w in zip(row, widths, strict=True)] for row in grid)
            lines += ["  ".join(row).rstrip() for row in cells]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def html(self) -> str:
        """The same as one HTML table, as notebooks show it; all text is escaped."""

        def cells(kind: str, row: tuple[str, ...]) -> str:
            inner = (f'<{kind} style="text-align:left">{html.escape(cell)}</{kind}>' for cell in row)
            return f"<tr>{''.join(inner)}</tr>"

        head = f"<thead>{cells('th', self.columns)}</thead>" if self.columns else ""
        body = f"<tbody>{''.join(cells('td', row) for row in self.rows)}</tbody>"
        notes = "".join(f"<p>note: {html.escape(note)}</p>" for note in self.notes)
        return f"<div><p>{html.escape(self.title)}</p><table>{head}{body}</table>{notes}</div>"
