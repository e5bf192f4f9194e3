"""Conformance with models of other libraries: what is called free is free, and nothing is lost.

A cross-section runs with every test run, all of them with ``make zoo``.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_same
from test_align import scaled
from torch import nn
from zoo.ledger import KNOWN
from zoo.libraries import missing
from zoo.models import Entry, entries

import graphfuse
from graphfuse.alignment import match, prepare
from graphfuse.average import average
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.permutations import permuted, sample

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


DRIVERS: dict[str, dict[str, Any]] = {
    "sweeps": {},
    "flow": {"driver": "flow"},
    "free heads": {"driver": "flow", "flow": {"heads": "free", "qk": "separate", "residual": "no_residual"}},
    "barycenter": {"scheme": "barycenter"},
    "cycle": {"scheme": "cycle"},
}
SMALL = ("transformers/gpt2", "transformers/llama", "transformers/t5", "einops/attention", "einops/mixer")
IMAGES = ("vit_tiny_patch16_224", "convnext_atto", "beit_base_patch16_224", "eva02_tiny_patch14_224", "convnextv2_atto",
          "vit_relpos_small_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224",
          "swin_tiny_patch4_window7_224", "pvt_v2_b0")  # fmt: skip
LEFT_OUT = {
    "transformers/longformer": "weights that nothing runs on these inputs, so that two orders are to be found at once",
    "transformers/sam": "half a minute",
    "transformers/rt_detr": "half a minute",
}


def driven(name: str) -> bool:
    """Whether every driver is tried on a model: on all of transformers and einops, and on some of timm."""
    library, _, model = name.partition("/")
    return name not in LEFT_OUT and (library in ("transformers", "einops") or model in IMAGES)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=() if entry.name in SMALL else pytest.mark.zoo)
        for entry in ENTRIES
        if driven(entry.name)
    ],
)
def test_every_driver_brings_permuted_copies_back(entry: Entry) -> None:
    """By weights, exactly; so their average is the model itself."""
    torch.manual_seed(0)
    model, args, kwargs = entry.build()
    graph = graphfuse.trace(scaled(model), args, kwargs, outputs=entry.outputs)
    models, wanted = [model], dict(state_of(model))
    for seed in (1, 2):
        other: nn.Module = copy.deepcopy(model)
        maps = sample(graph, torch.Generator().manual_seed(seed))
        other.load_state_dict(permuted(graph, state_of(model), maps), strict=False)
        models.append(other)
    assert any(not torch.equal(value, wanted[name]) for name, value in state_of(models[1]).items())
    config = {"method": "weights", "symmetry": "permutation", "outputs": entry.outputs}
    prepared = prepare(models, args, kwargs, config=config)
    for driver in DRIVERS.values():
        found = match(replace(prepared, config=FuseConfig.parse({**config, **driver})))
        for k in (1, 2):
            assert_same(found.apply(state_of(models[k]), k), wanted, 0)
        assert_same(dict(average(prepared, found, (1 / 3,) * 3)), wanted, 1e-5)


def test_the_ledger_names_models_of_the_zoo() -> None:
    names = {entry.name for entry in ENTRIES}
    assert names >= KNOWN.keys()
    assert len(names) == len(ENTRIES)
    assert len({entry.name.partition("/")[0] for entry in ENTRIES if entry.quick}) == 4
