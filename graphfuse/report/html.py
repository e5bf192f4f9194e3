"""One self-contained HTML page: makes no request, works offline, in light and dark, on a phone and without a script.

A page is a title, a lead and sections; what stands in a section is HTML that the small functions here make (every text
they are given is escaped) or that :mod:`graphfuse.report.charts` and :mod:`graphfuse.report.explorer` make.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

Cell = str | float | int | None


@dataclass(frozen=True)
class Section:
    """A heading and the HTML below it; ``lead`` is a sentence or two between them, as plain text."""

    title: str
    body: str
    lead: str = ""


def page(title: str, sections: Sequence[Section], *, lead: str = "", facts: Mapping[str, str] | None = None) -> str:
    """A whole page.

    Parameters
    ----------
    title : str
    sections : sequence of Section
        In the order in which they are read.
    lead : str
        The outcome in a sentence or two, shown first.
    facts : mapping, optional
        Words and numbers for the strip below the lead, by name.

    Returns
    -------
    str
        An HTML document with its styles, pictures and script inside.
    """
    used: dict[str, int] = {}
    parts = {
        "title": escape(title),
        "lead": f'<p class="lead">{escape(lead)}</p>' if lead else "",
        "facts": _facts(facts or {}),
        "sections": "\n".join(_section(section, used) for section in sections),
        "style": _asset("page.css"),
        "script": _asset("page.js") + _asset("heat.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def heading(words: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(words)}</h3>"


def bullets(items: Sequence[str]) -> str:
    """A list of sentences."""
    return f'<ul class="remarks">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>' if items else ""


def folded(summary: str, body: str) -> str:
    """HTML that is seen when its summary is opened."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, strong: Sequence[int] = (), digits: int = 1) -> str:
    """A table whose first column names the row; numbers stand right-aligned, None is a dash.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequences
        Text, numbers (shown with ``digits`` decimals) or None.
    strong : sequence of int
        Columns that matter most.
    digits : int
    """
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    classes = [" ".join(["number"] * numeric[i] + ["strong"] * (i in strong)) for i in range(len(head))]
    top = "".join(f"<th scope=col class='{classes[i]}'>{escape(word)}</th>" for i, word in enumerate(head))
    kinds = ["th scope=row", *["td"] * (len(head) - 1)]
    body = "".join(
        "<tr>"
        + "".join(
            f"<{kind} class='{names}'>{_cell(cell, digits)}</{kind[:2]}>"
            for kind, names, cell in zip(kinds, classes, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tabs(panels: Mapping[str, str], key: str) -> str:
    """Several panels of which one is seen at a time; without a script all are."""
    key = escape(key)
    names = list(panels)
    buttons = "".join(
        f'<button type="button" role="tab" id="{key}-tab-{i}" aria-controls="{key}-{i}">{escape(name)}</button>'
        for i, name in enumerate(names)
    )
    bodies = "".join(
        f'<div role="tabpanel" id="{key}-{i}" aria-labelledby="{key}-tab-{i}">'
        f'<h3 class="panel-title">{escape(name)}</h3>{panels[name]}</div>'
        for i, name in enumerate(names)
    )
    return f'<div class="tabs"><div role="tablist">{buttons}</div>{bodies}</div>'


def figures(items: Sequence[tuple[str, str, str]]) -> str:
    """Pictures side by side: (heading, HTML, caption) of each."""
    cells = "".join(
        f"<figure><figcaption><h3>{escape(heading)}</h3></figcaption>{body}"
        + (f'<p class="caption">{escape(caption)}</p>' if caption else "")
        + "</figure>"
        for heading, body, caption in items
    )
    return f'<div class="figures">{cells}</div>'


def _section(section: Section, used: dict[str, int]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
    used[name] = used.get(name, 0) + 1
    name += f"-{used[name]}" if used[name] > 1 else ""
    lead = f'<p class="section-lead">{escape(section.lead)}</p>' if section.lead else ""
    return f'<section id="{name}"><h2>{escape(section.title)}</h2>{lead}{section.body}</section>'


def _facts(facts: Mapping[str, str]) -> str:
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def _cell(cell: Cell, digits: int) -> str:
    if cell is None:
        return '<span class="none" aria-label="none">–</span>'
    return f"{cell:.{digits}f}" if isinstance(cell, int | float) else escape(cell)


def _asset(name: str) -> str:
    return files("graphfuse.report").joinpath(name).read_text(encoding="utf-8")
