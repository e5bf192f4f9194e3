"""Couplings on a page: one heat map at a time, drawn by the page's script from data that the page carries.

The data are a list of maps, each with its matrix twice (the model's units in their own order, and as they match), as
bytes from 0 to 255 for shares from 0 to ``top``, deflated and in base64.
"""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from typing import Any

from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.report.couplings import Coupling, count, couplings

MOST = 480
"""Maps on a page at most, about; of large families only the first members are shown then."""


def heatmaps(alignment: Alignment, key: str) -> str:
    """A heat map with a selector of axes, one of the members of a family, and one of the order of the units.

    Parameters
    ----------
    alignment : Alignment
    key : str
        A word that no other heat map on the page has.

    Returns
    -------
    str
        HTML, empty when nothing was mapped; works with the page's script.
    """
    models = [k for k, part in enumerate(alignment.models) if part.maps]
    mapped = [(k, axis) for k in models for axis in alignment.axes if axis.id in alignment.models[k].maps]
    if not mapped:
        return ""
    most = max(1, MOST // len(mapped))
    shown = [(k, one) for k in models for one in couplings(alignment, k, most)]
    totals = {(k, axis.name): count(alignment, k, axis) for k, axis in mapped}
    data = {
        "target": f"model {alignment.target}",
        "maps": [_entry(k, one, totals[k, one.axis.name]) for k, one in shown],
    }
    names = list(dict.fromkeys((k, one.axis.name) for k, one in shown))
    options = "".join(
        f'<option value="{i}">{escape(f"model {k}: " * (len(models) > 1) + name)}</option>'
        for i, (k, name) in enumerate(names)
    )
    return (
        f'<div class="heat" id="heat-{escape(key)}"><div class="tools pick">'
        f'<label>Axis <select class="heat-axis">{options}</select></label>'
        '<label class="heat-family">Of which <select class="heat-member"></select></label>'
        '<label>Columns <select class="heat-order"><option value="matched">as they match</option>'
        '<option value="own">in their own order</option></select></label></div>'
        '<p class="heat-about"></p><div class="heat-frame"><span class="heat-down" aria-hidden="true"></span>'
        '<canvas tabindex="0" role="img"></canvas><span class="heat-across" aria-hidden="true"></span></div>'
        '<div class="heat-scale" aria-hidden="true"><span>0</span><i></i><span class="heat-top"></span></div>'
        '<p class="heat-read" role="status"></p>'
        '<noscript><p class="hint">The maps are drawn by a script, which is off here.</p></noscript>'
        f'<script type="application/json" class="heat-data">{_embedded(data)}</script></div>'
    )


def _entry(k: int, one: Coupling, total: int) -> dict[str, Any]:
    top = max(float(one.shares.max()), float(one.matched.max()))
    return {
        "model": k, "axis": one.axis.name, "kind": one.kind, "member": one.label, "total": total,
        "sizes": list(one.sizes), "cells": list(one.shares.shape), "peak": round(one.peak, 4), "top": top,
        "own": _packed(one.shares, top), "matched": _packed(one.matched, top),
    }  # fmt: skip


def _packed(shares: Tensor, top: float) -> str:
    levels = (shares / (top or 1.0) * 255).round().clamp(0, 255).byte()
    return base64.b64encode(zlib.compress(levels.numpy().tobytes(), 9)).decode("ascii")


def _embedded(data: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
