"""Models of different depth: layers matched by what they compute, or by hand; the rest stays the target's own."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Block, Decoder, GroupedDecoder, ResNet, ids, images
from test_align import planted, scaled
from test_matching import Fused, Separate, example, small
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse import Alignment, align, fuse, match_depth
from graphfuse.capture import state_of
from graphfuse.errors import CorrespondenceError
from graphfuse.matching.similarity import monotone

AVERAGE = {"symmetry": "permutation", "calibrate": {"method": "batch_norm", "batch_norm": False}}


def without(model: nn.Module, *gone: int) -> nn.Module:
    """A copy of a model that lacks some of its blocks."""
    shallow = copy.deepcopy(model)
    blocks = shallow.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    for i in sorted(gone, reverse=True):
        del blocks[i]
    return shallow


def quiet(model: nn.Module, block: int) -> nn.Module:
    """The model, one of whose blocks hands on what it gets."""
    with torch.no_grad():
        for name, parameter in model.get_submodule(f"blocks.{block}").named_parameters():
            if name.startswith(("out.", "o.", "down.", "norm2.")):
                parameter.zero_()
    return model


def net(kind: int, depth: int = 3) -> tuple[nn.Module, Tensor]:
    """A decoder with plain, or with grouped heads, and inputs."""
    build = (Decoder, GroupedDecoder)[kind]
    return scaled(build(depth=depth)), ids(16, 9, 31)


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


# -------------------------------------------------------------------- exact functions


@pytest.mark.parametrize(("kind", "gone"), [(0, 1), (1, 2)])  # in between, and the last
def test_a_model_and_itself_less_a_layer_that_does_nothing_are_one_function(kind: int, gone: int) -> None:
    deep, x = net(kind)
    deep, data = quiet(deep, gone), [x, ids(16, 9, 31)]
    shallow = planted(without(deep, gone), x)
    wanted = run(deep, x)
    assert_close(run(shallow, x), wanted, rtol=1e-4, atol=1e-4)
    for models, method in (([deep, shallow], "weights"), ([shallow, deep], "activations")):
        result = fuse(models, data=data, config={"method": method})
        assert_close(run(result.model, x), wanted, rtol=1e-3, atol=1e-3)
        assert result.report["calibration"]["inputs"] == 32
        assert state_of(result.model).keys() == state_of(models[0]).keys()
    found = align([deep, shallow], data=data, config={"symmetry": "permutation"})
    rest = {name: value for name, value in state_of(deep).items() if not name.startswith(f"blocks.{gone}.")}
    assert_same(found.apply(state_of(shallow), 1), rest, 0)  # the planted permutations come back, under other numbers


def test_batch_norms_of_a_layer_without_partner_stay_what_they_are() -> None:
    deep, data = scaled(ResNet((6, 7))), [images(16), images(16)]
    assert isinstance(deep, ResNet)
    deep.blocks.append(copy.deepcopy(deep.blocks[3]))
    quiet(deep, 4)
    shallow = planted(without(deep, 4), data[0])
    for models in ([deep, shallow], [shallow, deep]):
        result = fuse(models, data=data)
        for x in data:
            wanted = run(deep, x)
            assert_close(run(result.model, x), wanted, rtol=0, atol=1e-3 * float(wanted.std()))
    result = fuse([deep, shallow], data=data)
    assert_same(state_of(result.model.get_submodule("blocks.4")), state_of(deep.get_submodule("blocks.4")), 1e-4)
    assert "blocks.4.norm1.running_mean" in result.report["calibration"]["statistics"]


# -------------------------------------------------------------------- independent models


@pytest.mark.parametrize("order", [(6, 4), (4, 6)])
def test_independent_models_of_six_and_four_layers(order: tuple[int, int]) -> None:
    models: list[nn.Module] = [scaled(GroupedDecoder(depth=n), seed) for seed, n in enumerate(order)]
    data = [ids(16, 9, 31), ids(16, 9, 31)]
    told: list[tuple[str, int, int]] = []
    depth = match_depth(models[0], models[1], data, progress=lambda *step: told.append(step))
    assert told == [("match depth", done, 2 * len(data)) for done in range(1, 2 * len(data) + 1)]
    assert (len(depth.layers), len(depth.alone), len(depth.dropped)) == (4, order[0] - 4, order[1] - 4)
    plain = fuse(models, data=data, config=AVERAGE)
    moved, fused = plain.alignment.apply(state_of(models[1]), 1), state_of(plain.model)
    for name, own in state_of(models[0]).items():
        alone = any(name.startswith(f"{layer}.") for layer in depth.alone)
        assert (name not in moved) == alone
        if alone:
            assert torch.equal(fused[name], own)
        else:
            assert_close(fused[name], (own + moved[name]) / 2)
    result = fuse(models, data=data, config={"symmetry": "permutation"})
    for name, own in state_of(models[0]).items():  # calibration does not pull them either
        if name not in moved:
            assert torch.equal(state_of(result.model)[name], own)
    left = {entry["tensor"]: entry["reason"] for entry in result.report["calibration"]["left"]}
    reasons = {left.get(f"{layer}.{part}.weight") for layer in depth.alone for part in "qkvo"}
    assert reasons <= {"only one model has this layer"}
    assert run(result.model, data[0]).isfinite().all()
    wanted = sum(run(model, data[0]) for model in models) / 2
    better, worse = (float((run(r.model, data[0]) - wanted).square().mean()) for r in (result, plain))
    assert better < worse


def test_shares_are_those_of_the_models_that_have_a_layer() -> None:
    deep, x = net(0)
    models = [deep, scaled(Decoder(depth=2), 1), scaled(Decoder(depth=3), 2)]
    config = {**AVERAGE, "weights": (1, 2, 3), "layers": {0: 0, 2: 1}, "method": "weights"}
    result = fuse(models, x, config=config)
    state, found = state_of(result.model), result.alignment
    a, b, c = (found.apply(state_of(model), k) for k, model in enumerate(models))
    assert found.models[1].absent == {name for name in a if name.startswith("blocks.1.")} and not found.models[2].absent
    name = "blocks.1.up.weight"
    assert_close(state[name], (a[name] + 3 * c[name]) / 4)
    name = "blocks.2.up.weight"
    assert_close(state[name], (a[name] + 2 * b[name] + 3 * c[name]) / 6)
    calibrated = fuse(models, data=[x, ids(16, 9, 31)], config={"layers": {0: 0, 2: 1}}).report["calibration"]
    assert "blocks.1.up.weight" in {entry["weight"] for entry in calibrated["solved"]}  # two models have it
    alone = fuse(models[:2], x, config={**AVERAGE, "weights": (0, 1), "layers": {0: 0, 2: 1}})
    assert torch.equal(state_of(alone.model)["blocks.1.up.weight"], state_of(deep)["blocks.1.up.weight"])


def test_widths_may_differ_too() -> None:
    models: list[nn.Module] = [scaled(Decoder(depth=3, hidden=40), 0), scaled(Decoder(width=20, depth=2, hidden=44), 1)]
    for pair in (models, models[::-1]):
        result = fuse(pair, data=[ids(16, 9, 31)])
        shapes = [{name: value.shape for name, value in state_of(model).items()} for model in (result.model, pair[0])]
        assert shapes[0] == shapes[1]


def test_other_names_and_another_depth_at_once() -> None:
    data = [torch.randn(16, 6, 7), torch.randn(16, 6, 7)]
    a = small(Fused(3), 0)
    for depth in (2, 4):
        b = small(Separate(depth), 1)
        result = fuse([a, b], data=data)
        assert type(result.model) is Fused
        text = "\n".join(result.report["notes"])
        assert "Separate was written in the names of Fused" in text
        assert f"{depth} layers in 'blocks' were matched with 3 layers in 'blocks'" in text
        assert run(result.model, example()).isfinite().all()


# -------------------------------------------------------------------- the matching


@pytest.mark.parametrize("kept", [(0, 1, 4), (1, 2, 3), (0, 2, 4)])
def test_layers_taken_out_of_a_model_are_found_again(kept: tuple[int, ...]) -> None:
    deep, x = net(0, depth=5)
    found = match_depth(without(deep, *(i for i in range(5) if i not in kept)), deep, [x])
    same = next((i for i, j in enumerate(kept) if i != j), len(kept))  # later ones see another stream
    assert [found.layers[f"blocks.{i}"] for i in range(same)] == [f"blocks.{i}" for i in range(same)]
    assert all(found.similarity["blocks"][i, i] > 0.999 for i in range(same))
    assert len(found.layers) == 3 and len(found.dropped) == 2 and not found.alone


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_matching_is_the_best_of_all_increasing_ones(n: int, m: int, seed: int) -> None:
    similarity = torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = monotone(similarity)
    assert found is not None
    pairs = list(found.items())
    assert len(pairs) == min(n, m)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))
    short, long = min(n, m), max(n, m)
    value = similarity if n <= m else similarity.T
    best = max(
        sum(float(value[i, j]) for i, j in enumerate(chosen)) for chosen in itertools.combinations(range(long), short)
    )
    assert sum(float(similarity[i, j]) for i, j in pairs) == pytest.approx(best)


class Staged(nn.Sequential):
    """A stem, blocks and a head in one list; numbers shift when a block is added."""

    def __init__(self, depth: int) -> None:
        super().__init__(
            nn.Embedding(31, 24), *(Block(24, 4, 40, causal=True) for _ in range(depth)), nn.LayerNorm(24),
            nn.Linear(24, 5),
        )  # fmt: skip


def test_stem_and_head_may_be_members_of_the_list() -> None:
    models = [scaled(Staged(n), seed) for seed, n in enumerate((4, 2))]
    found = match_depth(models[0], models[1], [ids(16, 9, 31)])
    assert found.layers["0"] == "0" and found.layers["5"] == "3" and found.layers["6"] == "4"
    fuse(models, data=[ids(16, 9, 31)])


def test_layers_by_hand() -> None:
    deep, x = net(0)
    other = scaled(Decoder(depth=2), 1)
    for layers in ({0: 1}, {0: 0, 2: 1}, {"blocks.0": "blocks.0", "blocks.1": "blocks.1"}):
        found = align([deep, other], x, config={"layers": layers})
        names = {f"blocks.{str(i)[-1]}" for i in layers}
        assert {name for name in found.models[1].layers.values() if name} == names
        assert {name.rpartition(".")[0][:8] for name in found.models[1].absent} == {
            f"blocks.{i}" for i in range(3)
        } - names
    assert fuse([deep, other], x, config={"layers": {0: 0, 2: 1}}).report["config"]["layers"] == {"0": 0, "2": 1}


def test_a_saved_alignment_knows_the_layers(tmp_path: Path) -> None:
    deep, x = net(0)
    other = scaled(Decoder(depth=2), 1)
    found = align([deep, other], data=[x])
    found.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    assert loaded.models[1].absent == found.models[1].absent != frozenset()
    assert loaded.models[1].layers == found.models[1].layers
    assert_same(loaded.apply(other.state_dict(), 1), found.apply(other.state_dict(), 1), 0)
    assert str(loaded) == str(found) and loaded.to_json() == found.to_json()


def test_batches_of_several_shapes_are_matched_and_calibrated() -> None:
    deep, _ = net(0)
    result = fuse([deep, scaled(Decoder(depth=2), 1)], data=[ids(16, 9, 31), ids(8, 9, 31)])
    assert result.report["calibration"]["inputs"] == 24
    assert not any("left out, as it cannot be traced" in note for note in result.report["notes"])


# -------------------------------------------------------------------- errors


def twins() -> list[nn.Module]:
    """Two layers of three do nothing, so that nothing tells which of them the other model's two are."""
    deep = quiet(quiet(scaled(Decoder(depth=3)), 1), 2)
    return [deep, without(deep, 2)]


X = ids(8, 9, 31)


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (lambda: [Decoder(depth=3), Decoder(depth=2)], {}, ["there is no data", "3 layers in 'blocks' ('blocks.2')",
         "2 layers in 'blocks' ('blocks.1')", "layers={"]),
        (lambda: [Decoder(depth=3), Decoder(depth=2)], {"config": {"layers": {0: 1, 1: 0}}},
         ["not monotone", "'blocks.0' (target) is 'blocks.1'", "'blocks.1' is 'blocks.0'"]),
        (lambda: [Decoder(depth=3), Decoder(depth=2)], {"config": {"layers": {0: 2}}},
         ["no layer 'blocks.2' in the other model", "2 layers in 'blocks'", "from 'blocks.0' to 'blocks.1'"]),
        (lambda: [Decoder(depth=3), Decoder(depth=2)], {"config": {"layers": {"block.0": 0}}},
         ["no layer 'block.0' in the target"]),
        (lambda: [scaled(Staged(3)), Staged(2)], {"config": {"layers": {0: 1}}},
         ["'0' (target) and '1' (other) are no layers of one kind"]),
        (lambda: [Decoder(depth=3), GroupedDecoder(depth=2)], {},
         ["model 1 has another depth and other names than model 0", "target: 'positions.weight' (16, 24)",
          "other: 'blocks.0.norm1.weight' (24,)"]),
        (twins, {"data": [X]}, ["two matchings are equally good", "either: 'blocks.", "or: 'blocks.", "layers={"]),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_shows_the_nearest(models: Any, options: dict[str, Any], words: list[str]) -> None:
    given: dict[str, Any] = {"args": X, **options}
    with pytest.raises(CorrespondenceError) as caught:
        fuse(models(), **given)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_match_depth_says_when_depth_is_not_the_difference() -> None:
    with pytest.raises(CorrespondenceError) as caught:
        match_depth(Decoder(depth=3), GroupedDecoder(depth=2), layers={0: 0})
    for word in ("something else than the length", "only it has 'positions.weight' (16, 24)", "2 layers in 'blocks'"):
        assert word in str(caught.value), str(caught.value)
    with pytest.raises(CorrespondenceError, match="axes of models 0 and 1 do not correspond"):
        plain = [nn.Sequential(*(nn.Linear(5, 5) for _ in range(n))) for n in (3, 2)]
        align(plain, torch.randn(2, 5), config={"layers": {0: 0, 2: 1}})
