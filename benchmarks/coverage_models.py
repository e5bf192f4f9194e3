"""The models of the coverage benchmark: rows of published comparisons, the project's zoo, torchvision's list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models as small
from zoo import models as zoo
from zoo.libraries import library

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model by name, and its number of attention heads, for tools that must be told."""

    name: str
    build: Callable[[], Built]
    heads: int | None = None


class Lambda(nn.Module):
    """A forward function over named parts."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def _images(size: int = 8) -> Tensor:
    return torch.randn(2, 3, size, size)


def _chain(*parts: nn.Module) -> Callable[[], Built]:
    return lambda: (nn.Sequential(*parts), (_images(),), {})


def _concat() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.out(torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], 1)).mean((2, 3))

    return Lambda(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 6, 3), out=nn.Conv2d(14, 4, 1)), (_images(),), {}


def _gated() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        a, b = s.both(F.relu(s.inp(x))).chunk(2, -1)
        return s.out(F.silu(a) * b)

    return Lambda(forward, inp=nn.Linear(6, 10), both=nn.Linear(10, 16), out=nn.Linear(8, 3)), (torch.randn(4, 6),), {}


def _lstm() -> Built:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.out(s.rnn(s.inp(x))[0])

    parts = dict(inp=nn.Linear(6, 8), rnn=nn.LSTM(8, 10, batch_first=True), out=nn.Linear(10, 3))
    return Lambda(forward, **parts), (torch.randn(2, 5, 6),), {}


def _from_zoo(name: str) -> Callable[[], Built]:
    return next(entry.build for entry in zoo.entries() if entry.name == name)


def _plain_llama() -> Built:
    config = {**zoo.GROUPED, "num_key_value_heads": 4}
    return zoo._auto("llama", "CausalLM", config, "ids")()


def field() -> list[Case]:
    """The rows of published comparisons."""
    norm = nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 3)
    )
    conv, relu = nn.Conv2d, nn.ReLU()
    mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    tail = [relu, nn.Flatten(), nn.Linear(7 * 36, 9), relu, nn.Linear(9, 3)]
    return [
        Case("MLP", lambda: (small.MLP((6, 12, 9, 3)), (torch.randn(4, 6),), {})),
        Case("MLP, LayerNorm", lambda: (norm, (torch.randn(4, 6),), {})),
        Case("ResNet-18", _from_zoo("torchvision/resnet18")),
        Case("ResNet-50", _from_zoo("torchvision/resnet50")),
        Case("UNet", lambda: (small.UNet(), (_images(),), {})),
        Case("ViT-B/16", _from_zoo("torchvision/vit_b_16"), 12),
        Case("transformers ViT", _from_zoo("transformers/vit"), 4),
        Case("BERT", lambda: zoo._auto("bert", "SequenceClassification", zoo.TEXT, "ids")(), 4),
        Case("BERT, tied output", _from_zoo("transformers/bert"), 4),
        Case("GPT-2", _from_zoo("transformers/gpt2"), 4),
        Case("Llama, grouped", _from_zoo("transformers/llama"), 4),
        Case("Llama, plain heads", _plain_llama, 4),
        Case("concat", _concat),
        Case("transposed conv", _chain(conv(3, 8, 3), relu, nn.ConvTranspose2d(8, 6, 2, 2), relu, conv(6, 3, 1))),
        Case("depthwise conv", _chain(conv(3, 8, 1), relu, conv(8, 8, 3, groups=8), relu, conv(8, 3, 1), *mean)),
        Case("grouped conv", _chain(conv(3, 8, 1), relu, conv(8, 12, 3, groups=4), relu, conv(12, 3, 1), *mean)),
        Case("GroupNorm", _chain(conv(3, 12, 3), nn.GroupNorm(3, 12), relu, conv(12, 3, 1), *mean)),
        Case("flatten to linear", _chain(conv(3, 7, 3), *tail)),
        Case("chunked GLU", _gated),
        Case("LSTM", _lstm),
    ]  # fmt: skip


def torchvision_list() -> list[Case]:
    """Torchvision's classification, segmentation and video models, as far as they run beside CPU torch."""
    models = library("torchvision").models
    folders = {"segmentation": models.segmentation, "video": models.video}
    cases = []
    for name in models.list_models():
        if name.startswith(("quantized", "raft")) or "rcnn" in name or name.startswith(("ssd", "retinanet", "fcos")):
            continue  # they need torchvision's compiled operators
        heads = {"vit_b": 12, "vit_l": 16, "vit_h": 16}.get(name[:5])
        folder = next((f for f in folders.values() if f.__name__ in models.get_model_builder(name).__module__), None)
        cases.append(Case(name, _torchvision(name, folder is models.video), heads))
    return cases


def _torchvision(name: str, video: bool) -> Callable[[], Built]:
    def build() -> Built:
        models = library("torchvision").models
        weights = {"weights_backbone": None} if "segmentation" in models.get_model_builder(name).__module__ else {}
        model = models.get_model(name, weights=None, **weights)
        size = 224 if name.startswith(("vit", "maxvit", "swin3d", "mvit")) else 299 if "inception" in name else 64
        return model, (torch.randn(1, 3, 16, size, size) if video else torch.randn(1, 3, size, size),), {}

    return build


def project_zoo() -> list[Case]:
    """The project's own zoo."""
    return [Case(entry.name, entry.build, 4 if "transformers" in entry.name else None) for entry in zoo.entries()]


LISTS: dict[str, Callable[[], list[Case]]] = {"field": field, "zoo": project_zoo, "torchvision": torchvision_list}
