"""Labelling against brute force on random programs: what it calls free must be free."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import STEPS, Program

import graphfuse

step = st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 23))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(step, min_size=1, max_size=9))
def test_random_programs_keep_their_function(steps: list[tuple[str, int, int]]) -> None:
    torch.manual_seed(0)
    model = Program(steps)
    graph = graphfuse.trace(model, (torch.randn(2, 5),))
    result = graphfuse.verify(graph, trials=2, classes=True)
    assert not graph.notes, graph.notes
    assert result.ok, f"{result}\n{graph}"
