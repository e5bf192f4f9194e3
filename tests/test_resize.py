"""Another width: the same width changes nothing, equal units may be merged or doubled, and merging beats cutting."""

from __future__ import annotations

import pytest
import torch
from models import MLP, Decoder, Encoder, ids
from test_align import planted, scaled, widened
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.capture import state_of
from graphfuse.errors import CorrespondenceError, DataError
from graphfuse.fuse import fuse
from graphfuse.transport.selection import merging, representatives

DATA = [torch.randn(64, 5, generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def test_representatives_cover_every_cluster() -> None:
    points = torch.tensor([0.0, 10.0, 10.1, 0.1, 20.0, 0.05])
    chosen = representatives(-(points[:, None] - points).square(), 3)
    assert sorted(int(points[i].round() / 10) for i in chosen) == [0, 1, 2]
    plan = merging(-(points[:, None] - points).square(), chosen)
    assert_close(plan.sum(0), torch.full((6,), 1 / 6))
    assert sorted(round(6 * float(mass)) for mass in plan.sum(1)) == [1, 2, 3]
    assert representatives(torch.zeros(3, 3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_same_width_is_ordinary_fusion() -> None:
    models: list[nn.Module] = [scaled(MLP(), seed) for seed in (1, 2)]
    plain, other = fuse(models, data=DATA), fuse(models, data=DATA, into=MLP())
    for name, value in state_of(plain.model).items():
        assert torch.equal(state_of(other.model)[name], value)
    assert other.report["alignment"] == plain.report["alignment"]
    assert other.report["into"]["calibration"] is None


@pytest.mark.parametrize("data", [None, DATA])
def test_equal_units_are_merged_and_units_doubled_without_changing_the_function(data: list[Tensor] | None) -> None:
    narrow = scaled(MLP())
    assert isinstance(narrow, MLP)
    wide = planted(widened(narrow), DATA[0])
    for model, widths in (
        (wide, (5, 11, 7, 3)),
        (narrow, (5, 22, 14, 3)),
        (narrow, (5, 13, 16, 3)),
        (wide, (5, 17, 7, 3)),
    ):
        result = fuse([model], DATA[0], data=data, into=MLP(widths))
        assert [m.out_features for m in result.model if isinstance(m, nn.Linear)] == list(widths[1:])  # pyright: ignore
        assert_close(run(result.model, DATA[0]), run(narrow, DATA[0]), rtol=1e-3, atol=1e-3)
        assert result.resized is result.alignment


def test_an_encoder_is_widened_without_changing_its_function() -> None:
    """A norm sees doubled units as it saw the single ones; heads of another size would rescale their scores."""
    model, x = scaled(Encoder(24, 4, 1, 40)), ids(8, vocabulary=31)
    for width, heads, hidden in ((24, 4, 60), (48, 8, 40)):
        result = fuse([model], x, into=Encoder(width, heads, 1, hidden))
        assert_close(run(result.model, x), run(model, x), rtol=1e-3, atol=1e-3)


def trained(widths: tuple[int, ...], seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that has learned to imitate another one, with the inputs and outputs of a test."""
    torch.manual_seed(seed)
    teacher, model = scaled(MLP((5, 12, 12, 3)), 7), MLP(widths)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        x = torch.randn(256, 5)
        loss = (model(x) - run(teacher, x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(2000, 5)
    return model, x, run(teacher, x)


def test_merging_beats_cutting_the_model_off() -> None:
    model, x, wanted = trained((5, 48, 40, 3), 1)
    widths = (5, 24, 20, 3)
    cut = MLP(widths)
    cut.load_state_dict(
        {k: model.state_dict()[k][tuple(slice(n) for n in v.shape)] for k, v in cut.state_dict().items()}
    )
    data = [torch.randn(400, 5)]
    error = {
        "cut": float((run(cut, x) - wanted).square().mean()),
        "merged by weights": float((run(fuse([model], data[0], into=cut).model, x) - wanted).square().mean()),
        "with data": float((run(fuse([model], data=data, into=cut).model, x) - wanted).square().mean()),
        "whole": float((run(model, x) - wanted).square().mean()),
    }
    assert error["with data"] < 0.25 * error["cut"]
    assert error["merged by weights"] < error["cut"]


def test_models_of_two_widths_are_fused_into_a_third() -> None:
    models = [scaled(MLP((5, 11, 7, 3)), 1), scaled(MLP((5, 14, 9, 3)), 2)]
    result = fuse(models, data=DATA, into=MLP((5, 8, 10, 3)), config={"target": 1})
    assert {k: v.shape for k, v in state_of(result.model).items()} == {
        k: v.shape for k, v in MLP((5, 8, 10, 3)).state_dict().items()
    }
    assert result.resized is not None
    moved = result.resized.apply(fuse(models, data=DATA, config={"target": 1}).model.state_dict(), 1)
    assert moved["0.weight"].shape == (8, 5)
    assert result.report["into"]["calibration"]["inputs"] == 64


def test_the_heads_and_width_of_a_decoder_can_shrink() -> None:
    model, x = scaled(Decoder(24, 4, 1, 40)), ids(8, vocabulary=31)
    into = Decoder(12, 2, 1, 30)
    before = {name: value.clone() for name, value in state_of(into).items()}
    result = fuse([model], data=[x], into=into)
    assert {k: v.shape for k, v in state_of(result.model).items()} == {k: v.shape for k, v in before.items()}
    for name, value in state_of(into).items():
        assert torch.equal(value, before[name])
    assert bool(torch.isfinite(run(result.model, x)).all())


def test_what_cannot_be_filled_is_refused() -> None:
    with pytest.raises(DataError, match=r"into is no torch\.nn\.Module but an int"):
        fuse([MLP()], DATA[0], into=64)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorrespondenceError, match="differs along an axis that cannot be matched"):
        fuse([MLP()], DATA[0], into=MLP((5, 11, 7, 4)))
    with pytest.raises(CorrespondenceError, match="into has another depth than the models to be fused"):
        fuse([MLP()], DATA[0], into=MLP((5, 11, 3)))
