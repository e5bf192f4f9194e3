"""Conformance with models of other libraries: what is called free is free, and nothing is lost.

A cross-section runs with every test run, all of them with ``make zoo``.
"""

from __future__ import annotations

import pytest
import torch
from zoo.ledger import KNOWN
from zoo.libraries import missing
from zoo.models import Entry, entries

import graphfuse

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"needs graphfuse[zoo]: {', '.join(missing())}"),
    pytest.mark.filterwarnings("ignore"),  # those libraries' own
]
ENTRIES = list(entries())


def _marked(entry: Entry) -> object:
    marks = [] if entry.quick else [pytest.mark.zoo]
    if entry.name in KNOWN:
        marks.append(pytest.mark.xfail(strict=True, reason=KNOWN[entry.name]))
    return pytest.param(entry, id=entry.name, marks=marks)


@pytest.mark.parametrize("entry", [_marked(entry) for entry in ENTRIES])
def test_what_is_called_free_is_free_and_nothing_is_lost(entry: Entry) -> None:
    torch.manual_seed(0)
    model, args, kwargs = entry.build()
    graph = graphfuse.trace(model.eval(), args, kwargs, outputs=entry.outputs)
    assert graph.free_fraction >= entry.share, f"\n{graph}"
    if entry.axes is not None:
        assert len(graph.axes) == entry.axes, f"\n{graph}"
    result = graphfuse.verify(graph, trials=1, classes=True)
    assert result.ok, result
    assert result.sensitivity > 0.3, result


def test_the_ledger_names_models_of_the_zoo() -> None:
    names = {entry.name for entry in ENTRIES}
    assert names >= KNOWN.keys()
    assert len(names) == len(ENTRIES)
    assert len({entry.name.partition("/")[0] for entry in ENTRIES if entry.quick}) == 4
