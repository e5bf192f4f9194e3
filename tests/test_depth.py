"""Models of different depth: layers matched by what they compute, or by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphfuse
from graphfuse.depth import _monotone, match_depth
from graphfuse.errors import CorrespondenceError


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 14), nn.Linear(14, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self, depth: int, width: int = 10) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.inp(x)))


def strong(model: nn.Module) -> nn.Module:
    """Layers that change their stream a lot, so that each is like itself only."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "down" in name or "up" in name:
                p.mul_(5)
    return model.eval()


@pytest.mark.parametrize("kept", [(0, 1, 4), (1, 2, 3), (0, 2, 4)])
def test_layers_taken_out_of_a_model_are_found_again(kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    deep, data = strong(Deep(5)), [torch.randn(64, 5) for _ in range(3)]
    shallow = Deep(3).eval()
    state = {name: p for name, p in deep.state_dict().items() if "layers" not in name}
    for i, j in enumerate(kept):
        state |= {name.replace(f"layers.{j}", f"layers.{i}"): p for name, p in deep.state_dict().items()
                  if name.startswith(f"layers.{j}.")}  # fmt: skip
    shallow.load_state_dict(state)
    # later layers see another stream, so only what comes before the first gap is alike for sure
    found = match_depth(shallow, deep, data, layers=dict(enumerate(kept)))
    torch.testing.assert_close(found.model(data[0]), shallow(data[0]))
    assert found.dropped == tuple(j for j in range(5) if j not in kept)
    by_activations = match_depth(shallow, deep, data)
    assert by_activations.similarity is not None
    same = next((i for i, j in enumerate(kept) if i != j), len(kept))
    assert [by_activations.layers[i] for i in range(same)] == list(range(same))
    assert all(by_activations.similarity[i, i] > 0.999 for i in range(same))


def test_equal_models_are_matched_layer_by_layer() -> None:
    torch.manual_seed(0)
    model, data = strong(Deep(4)), [torch.randn(64, 5)]
    found = match_depth(model, model, data)
    assert found.layers == {0: 0, 1: 1, 2: 2, 3: 3}
    assert found.similarity is not None
    torch.testing.assert_close(found.similarity.diag(), torch.ones(4))
    assert (found.kept, found.dropped) == ((), ())


def test_what_has_no_partner_keeps_its_own_weights_and_the_rest_is_fused() -> None:
    torch.manual_seed(0)
    a, b, data = strong(Deep(4)), strong(Deep(2)), [torch.randn(64, 5)]
    found = match_depth(a, b, data)
    assert len(found.layers) == 2 and len(found.kept) == 2
    mine, theirs, written = (dict(m.named_parameters()) for m in (a, b, found.model))
    for i in range(4):
        source = theirs[f"layers.{found.layers[i]}.up.weight"] if i in found.layers else mine[f"layers.{i}.up.weight"]
        assert torch.equal(written[f"layers.{i}.up.weight"], source)
    assert torch.equal(written["out.weight"], theirs["out.weight"])
    fused = graphfuse.fuse([a, found.model], data=data, config={"calibrate": {"least_squares": False}})
    assert isinstance(fused.model, Deep) and len(fused.model.layers) == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_matching_is_the_best_of_all_increasing_ones(n: int, m: int, seed: int) -> None:
    similarity = torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = _monotone(similarity)
    pairs = list(found.items())
    assert len(pairs) == min(n, m)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))
    small, large = min(n, m), max(n, m)
    value = similarity if n <= m else similarity.T
    best = max(
        sum(float(value[i, j]) for i, j in enumerate(chosen)) for chosen in itertools.combinations(range(large), small)
    )
    assert sum(float(similarity[i, j]) for i, j in pairs) == pytest.approx(best)


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        (lambda: Deep(2, width=12), {"layers": {0: 0}}, ["differ in more than depth", "(10, 5)", "(12, 5)"]),
        (lambda: Deep(2), {}, ["give data", "layers="]),
        (lambda: Deep(2), {"layers": {0: 1, 1: 0}}, ["no monotone matching of 3 layers with 2"]),
        (lambda: Deep(2), {"layers": {0: 2}}, ["no monotone matching"]),
        (lambda: nn.Sequential(nn.Linear(5, 3)), {"layers": {0: 0}}, ["no list of alike layers"]),
    ],
)
def test_what_cannot_be_matched_says_why(other: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CorrespondenceError) as caught:
        match_depth(Deep(3), other(), **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
