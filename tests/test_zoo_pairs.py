"""Models of different libraries that compute the same: one is written in the other's names, both ways.

The first three run with every test run, all of them with ``make zoo``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from zoo import models as zoo
from zoo.libraries import library, missing

from graphfuse.matching import call_of, translate

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
    pytest.mark.skipif(bool(missing()), reason=f"needs graphfuse[zoo]: {', '.join(missing())}"),
]


def timm(name: str, **options: Any) -> nn.Module:
    return library("timm").create_model(name, num_classes=5, **options)


def hugging(auto: str, kind: str, **options: Any) -> nn.Module:
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model(kind, **options)
    return getattr(transformers, f"AutoModelFor{auto}").from_config(config)


def masked(kind: str, **options: Any) -> nn.Module:
    return hugging("MaskedLM", kind, **{**zoo.TEXT, **options})


def causal(kind: str) -> nn.Module:
    return hugging("CausalLM", kind, **{**zoo.TEXT, "num_key_value_heads": 2, "use_cache": False})


def vits() -> tuple[nn.Module, nn.Module]:
    small = {**zoo.SMALL, "embed_dim": 32, "mlp_ratio": 1.5}
    return timm("vit_tiny_patch16_224", **small), hugging(
        "ImageClassification", "vit", **{**zoo.PICTURE, "layer_norm_eps": 1e-6}
    )


PAIRS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], str]] = {
    "vit of timm and of transformers": (vits, "pixels"),
    "bert and roberta": (lambda: (masked("bert"), masked("roberta")), "ids"),
    "resnet-50 of torchvision and of timm": (
        lambda: (library("torchvision").models.resnet50(num_classes=5), timm("resnet50")), "pixels",
    ),
    "bert and roberta with more rows": (lambda: (masked("bert"), masked("roberta", max_position_embeddings=70)), "ids"),
    "bert and electra": (lambda: (masked("bert"), masked("electra", embedding_size=32)), "ids"),
    "llama and phi3": (lambda: (causal("llama"), causal("phi3")), "ids"),
    "resnet-50 of torchvision and of transformers": (
        lambda: (library("torchvision").models.resnet50(num_classes=5),
                 hugging("ImageClassification", "resnet", num_labels=5)), "pixels",
    ),
    "resnet-50 of timm and of transformers": (
        lambda: (timm("resnet50"), hugging("ImageClassification", "resnet", num_labels=5)), "pixels",
    ),
}  # fmt: skip


QUICK = list(PAIRS)[:3]
MARKED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.zoo) for name in PAIRS]


def logits(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result.logits


@pytest.mark.parametrize("name", MARKED)
def test_either_is_written_in_the_names_of_the_other(name: str) -> None:
    build, kind = PAIRS[name]
    torch.manual_seed(0)
    a, b = (model.eval() for model in build())
    with torch.no_grad():
        for parameter in (*a.parameters(), *b.parameters()):
            if "resnet" not in name:
                parameter.normal_().mul_(0.3)
    x = torch.randn(2, 3, 32, 32) if kind == "pixels" else torch.randint(3, 90, (2, 7))
    for target, other in ((a, b), (b, a)):
        found = translate(target, other, (x,))
        assert type(found.model) is type(target)
        args, kwargs = call_of(target, other, (x,), {})
        got, wanted = logits(found.model(x)), logits(other(*args, **kwargs))
        assert_close(got, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))
        assert not torch.allclose(logits(target(x)), wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))
