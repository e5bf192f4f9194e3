"""The same computation under other names: found in the graph, written over, and proved by running both."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from mathematics import Net, weight
from torch import Tensor, nn
from zoo import models as zoo
from zoo.libraries import library, missing

import graphfuse
from graphfuse.errors import CorrespondenceError
from graphfuse.translate import Translation, translate

WIDTH, HEADS, LAYERS = 12, 3, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Fused(nn.Module):
    """Blocks with one projection for q, k and v, and torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.LayerNorm(WIDTH), "qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH),
                "norm2": nn.LayerNorm(WIDTH), "up": nn.Linear(WIDTH, 20), "down": nn.Linear(20, WIDTH),
            })
            for _ in range(LAYERS)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            q, k, v = map(heads, block["qkv"](block["norm"](x)).chunk(3, -1))  # pyright: ignore
            y = F.scaled_dot_product_attention(q, k, v)
            x = x + block["proj"](y.transpose(1, 2).flatten(2))  # pyright: ignore
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))  # pyright: ignore
        return self.head(x.mean(1))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.key, self.query = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.out, self.wide = nn.Linear(WIDTH, WIDTH), nn.Conv1d(WIDTH, 20, 1)
        self.narrow = weight(20, WIDTH)  # inputs first
        self.shift = weight(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        k, v, q = heads(self.key(h)), heads(self.value(h)), heads(self.query(h))
        y = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = F.gelu(self.wide(self.second(x).transpose(1, 2)).transpose(1, 2))
        return x + torch.addmm(self.shift, h.flatten(0, 1), self.narrow).view_as(x)


class Separate(nn.Module):
    """The same with other names, nesting, layouts and order of execution; attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(WIDTH, 2)
        self.encoder = nn.Sequential(*(Part() for _ in range(LAYERS)))
        self.stem = nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.stem(x)).mean(1))


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor) / 3)
    return model.eval()


def prove(a: nn.Module, b: nn.Module, x: Tensor, names: dict[str, str] | None = None) -> Translation:
    """The translation computes what b does, and not what a did; a is left as it was."""
    a, b = randomised(a), randomised(b)
    before = a(x)
    found = translate(graphfuse.trace(a, (x,)), graphfuse.trace(b, (x,)), names=names)
    assert type(found.model) is type(a)
    torch.testing.assert_close(found.model(x), b(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.model(x), before, atol=1e-2)
    assert torch.equal(a(x), before)
    return found


@pytest.mark.parametrize("swap", [False, True], ids=["separate into fused", "fused into separate"])
def test_fused_and_separate_projections_are_one_computation(swap: bool) -> None:
    models = (Separate(), Fused()) if swap else (Fused(), Separate())
    found = prove(*models, torch.randn(2, 7, 5))
    taken = {(pair.target, pair.source) for pair in found.pairs}
    if not swap:
        assert {source for name, source in taken if name == "blocks.1.qkv.weight"} == {
            f"encoder.1.{part}.weight" for part in ("query", "key", "value")
        }
        assert ("blocks.2.down.weight", "encoder.2.narrow") in taken  # stored the other way round
    assert found.kept == ()


def test_what_was_translated_can_be_fused_name_for_name() -> None:
    a, b, x = randomised(Fused()), randomised(Separate()), torch.randn(8, 7, 5)
    found = translate(graphfuse.trace(a, (x,)), graphfuse.trace(b, (x,)))
    result = graphfuse.fuse([a, found.model], data=[x])
    assert isinstance(result.model, Fused)


def test_batch_norms_bring_their_statistics() -> None:
    def first(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.norm(s.conv(x))).mean((2, 3)))

    def second(s: Net, x: Tensor) -> Tensor:
        return s.z(torch.relu(s.b(s.a(x))).mean((2, 3)))

    a = Net(first, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), out=nn.Linear(8, 2))
    b = Net(second, z=nn.Linear(8, 2), b=nn.BatchNorm2d(8), a=nn.Conv2d(3, 8, 3))
    found = prove(a, b, torch.randn(2, 3, 8, 8))
    assert {pair.target for pair in found.pairs} >= {"norm.running_mean", "norm.running_var"}


def test_parameters_that_nothing_depends_on_are_kept() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pooler, self.b = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            self.pooler(h)
            return self.b(h)

    found = prove(Pooled(), nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), torch.randn(4, 5))
    assert set(found.kept) <= {"pooler.weight", "pooler.bias"}
    assert not any("pooler" in pair.target for pair in found.pairs)


def test_a_pairing_by_hand_is_taken() -> None:
    """Two branches that nothing but their order tells apart, run in the other order: the user says which is which."""

    def first(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.a(x)) - torch.relu(s.b(x)))

    def second(s: Net, x: Tensor) -> Tensor:
        late = -torch.relu(s.q(x))
        return s.z(late + torch.relu(s.p(x)))

    def build() -> tuple[Net, Net]:
        return (
            Net(first, a=nn.Linear(5, 7), b=nn.Linear(5, 7), out=nn.Linear(7, 2)),
            Net(second, p=nn.Linear(5, 7), q=nn.Linear(5, 7), z=nn.Linear(7, 2)),
        )

    x = torch.randn(4, 5)
    with pytest.raises(CorrespondenceError, match="matched tensor by tensor, but with equal weights"):
        prove(*build(), x)
    prove(*build(), x, {"a.weight": "p.weight", "a.bias": "p.bias", "b.weight": "q.weight", "b.bias": "q.bias"})


def test_an_impossible_match_shows_the_two_nearest() -> None:
    def mlp(*widths: int) -> graphfuse.SymmetryGraph:
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
        return graphfuse.trace(nn.Sequential(*layers[:-1]), (torch.randn(4, widths[0]),))

    with pytest.raises(CorrespondenceError) as caught:
        translate(mlp(5, 7, 2), mlp(5, 8, 2))
    for word in ("0.weight (7, 5)", "nearest in Sequential: 0.weight (8, 5)", "aten.linear.default in 0", "names="):
        assert word in str(caught.value), str(caught.value)
    with pytest.raises(CorrespondenceError, match="of equal widths and depth"):
        translate(mlp(5, 5, 5, 5, 5), mlp(5, 5, 5, 5))
    with pytest.raises(CorrespondenceError, match=r"'0\.weight' cannot take 'nowhere'"):
        translate(mlp(5, 7, 2), mlp(5, 7, 2), names={"0.weight": "nowhere"})


def test_equal_structure_with_another_function_is_found_out() -> None:
    x = torch.randn(4, 5)
    a, b = (nn.Sequential(nn.Linear(5, 7), act, nn.Linear(7, 2)) for act in (nn.Tanh(), nn.Sigmoid()))
    with pytest.raises(CorrespondenceError, match="activation function"):
        translate(graphfuse.trace(a, (x,)), graphfuse.trace(b, (x,)))


# -------------------------------------------------------------------- other libraries

needs_libraries = pytest.mark.skipif(bool(missing()), reason=f"needs graphfuse[zoo]: {', '.join(missing())}")


@needs_libraries
@pytest.mark.filterwarnings("ignore")
def test_a_vision_transformer_of_timm_and_one_of_transformers() -> None:
    x = torch.randn(2, 3, 32, 32)
    small = {**zoo.SMALL, "embed_dim": 32, "mlp_ratio": 1.5}
    a = library("timm").create_model("vit_tiny_patch16_224", num_classes=5, **small)
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model("vit", **dict(zoo.PICTURE, layer_norm_eps=1e-6))
    b = transformers.AutoModelForImageClassification.from_config(config)
    a, b = randomised(a), randomised(b)
    graphs = graphfuse.trace(a, (x,)), graphfuse.trace(b, (), {"pixel_values": x})
    torch.testing.assert_close(translate(*graphs).model(x), b(x).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(translate(*graphs[::-1]).model(x).logits, a(x), rtol=1e-4, atol=1e-5)


@needs_libraries
@pytest.mark.filterwarnings("ignore")
def test_a_residual_network_of_torchvision_and_one_of_timm() -> None:
    a = library("torchvision").models.resnet50(num_classes=5)
    b = library("timm").create_model("resnet50", num_classes=5)
    x = torch.randn(1, 3, 64, 64)
    a, b = a.double().eval(), b.double().eval()
    found = translate(graphfuse.trace(a, (x.double(),)), graphfuse.trace(b, (x.double(),)))
    torch.testing.assert_close(found.model(x.double()), b(x.double()))


@needs_libraries
@pytest.mark.filterwarnings("ignore")
def test_two_encoders_whose_positions_count_from_elsewhere() -> None:
    """BERT counts positions from 0, RoBERTa from 2: with one row for all positions they are one computation."""
    transformers = library("transformers")
    a, b = (
        transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.for_model(kind, **zoo.TEXT))
        for kind in ("bert", "roberta")
    )
    ids = torch.randint(3, 90, (2, 7))
    a, b = randomised(a), randomised(b)
    with torch.no_grad():
        table = dict(b.named_parameters())["roberta.embeddings.position_embeddings.weight"]
        table.copy_(table[5].expand_as(table))
    found = translate(graphfuse.trace(a, (), {"input_ids": ids}), graphfuse.trace(b, (), {"input_ids": ids}))
    torch.testing.assert_close(found.model(input_ids=ids).logits, b(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
