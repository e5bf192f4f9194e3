"""The labelled graph of each kind of network in the demo, and the proof that its symmetries hold."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphfuse.demo.data import load
from graphfuse.report.graphdata import graph_json
from graphfuse.symmetry import trace
from graphfuse.verify import verify

TITLES = {"mlp": "MLP", "resnet": "ResNet", "vit": "ViT, wide", "vit_narrow": "ViT, narrow"}


def describe_kind(kind: str, model: nn.Module) -> dict[str, Any]:
    """The graph as data, and under ``verified`` whether random maps on every free axis left the outputs alone.

    Parameters
    ----------
    kind : str
        One of :data:`graphfuse.demo.recipes.KINDS`.
    model : nn.Module
        A network of that kind; its weights do not matter to the graph.
    """
    graph = trace(model, (load().unlabelled[:2],))
    found = verify(graph)
    return {**graph_json(graph, TITLES[kind]), "verified": {"ok": found.ok, "max_error": found.max_error}}
