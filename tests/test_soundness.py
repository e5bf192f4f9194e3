"""Labelling against brute force on random programs: what it calls free must be free, in the class that it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import STEPS, Program
from torch import Tensor, nn

import graphfuse

step = st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 23))
PROGRAMS = int(os.environ.get("GRAPHFUSE_PROGRAMS", "100"))  # `make nightly` tries more, and new ones every night


@settings(max_examples=PROGRAMS, deadline=None, derandomize=PROGRAMS == 100)
@given(st.lists(step, min_size=1, max_size=9))
def test_random_programs_keep_their_function(steps: list[tuple[str, int, int]]) -> None:
    torch.manual_seed(0)
    model = Program(steps)
    graph = graphfuse.trace(model, (torch.randn(2, 5),))
    result = graphfuse.verify(graph, trials=2, classes=True)
    assert not graph.notes, graph.notes
    assert result.ok, f"{result}\n{graph}"


@pytest.mark.parametrize(
    "rule",
    [
        "{op: aten.cumsum, pointwise: {}, replace: true}",  # the order of what is summed up matters
        '{op: aten.linear, signature: "x[... i], w[o _], b[o]? -> [... o]", replace: true}',  # inputs meet columns
    ],
)
def test_a_rule_broken_on_purpose_is_caught(rule: str, tmp_path: Path) -> None:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).cumsum(1))

    pack = tmp_path / "broken.yaml"
    pack.write_text(f"version: 1\nrules:\n  - {rule}\n")
    torch.manual_seed(0)
    assert graphfuse.verify(graphfuse.trace(Ordered(), (torch.randn(4, 5),))).ok
    assert not graphfuse.verify(graphfuse.trace(Ordered(), (torch.randn(4, 5),), rules=[str(pack)])).ok
