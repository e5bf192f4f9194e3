"""The models of the coverage benchmark: rows of published comparisons, the project's zoo, torchvision's list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

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
    """A model by name."""

    name: str
    build: Callable[[], Built]


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
        Case("ViT-B/16", _from_zoo("torchvision/vit_b_16")),
        Case("transformers ViT", _from_zoo("transformers/vit")),
        Case("BERT", lambda: zoo._auto("bert", "SequenceClassification", zoo.TEXT, "ids")()),
        Case("BERT, tied output", _from_zoo("transformers/bert")),
        Case("GPT-2", _from_zoo("transformers/gpt2")),
        Case("Llama, grouped", _from_zoo("transformers/llama")),
        Case("Llama, plain heads", _plain_llama),
        Case("concat", _concat),
        Case("transposed conv", _chain(conv(3, 8, 3), relu, nn.ConvTranspose2d(8, 6, 2, 2), relu, conv(6, 3, 1))),
        Case("depthwise conv", _chain(conv(3, 8, 1), relu, conv(8, 8, 3, groups=8), relu, conv(8, 3, 1), *mean)),
        Case("grouped conv", _chain(conv(3, 8, 1), relu, conv(8, 12, 3, groups=4), relu, conv(12, 3, 1), *mean)),
        Case("GroupNorm", _chain(conv(3, 12, 3), nn.GroupNorm(3, 12), relu, conv(12, 3, 1), *mean)),
        Case("flatten to linear", _chain(conv(3, 7, 3), *tail)),
        Case("chunked GLU", _gated),
        Case("LSTM", _lstm),
    ]  # fmt: skip


PRUNED = """
alexnet vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14 convnext_tiny convnext_small convnext_base convnext_large
densenet121 densenet169 densenet201 densenet161 efficientnet_b0 efficientnet_b1 efficientnet_b2
efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s
efficientnet_v2_m efficientnet_v2_l googlenet inception_v3 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf
regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf resnet18 resnet34 resnet50 resnet101 resnet152
resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2 fcn_resnet50 fcn_resnet101
deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large squeezenet1_0
squeezenet1_1 vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn ssdlite320_mobilenet_v3_large
ssd300_vgg16 fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_320_fpn
fasterrcnn_mobilenet_v3_large_fpn fcos_resnet50_fpn raft_large shufflenet_v2_x0_5 shufflenet_v2_x1_0
shufflenet_v2_x1_5 shufflenet_v2_x2_0 swin_t swin_s swin_b keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn_v2
""".split()  # noqa: SIM905 - a list of 85 quoted names is no easier to read


def torchvision_list() -> list[Case]:
    """The models of Torch-Pruning's own benchmark (benchmarks/prunability); the last 12 stand there as failures."""
    return [Case(name, _torchvision(name)) for name in PRUNED]


def torchvision_rest() -> list[Case]:
    """Torchvision's other models, video among them, without the quantized ones."""
    names = [name for name in library("torchvision").models.list_models() if not name.startswith("quantized")]
    return [Case(name, _torchvision(name)) for name in names if name not in PRUNED]


def _torchvision(name: str) -> Callable[[], Built]:
    def build() -> Built:
        models = library("torchvision").models
        module = models.get_model_builder(name).__module__
        bare = {"weights_backbone": None} if "detection" in module or "segmentation" in module else {}
        if name in ("googlenet", "inception_v3"):
            bare = {"aux_logits": False, "init_weights": False}  # the auxiliary heads do not run in eval mode
        model = models.get_model(name, weights=None, **bare)
        if "detection" in module:
            return Lambda(_detect, net=model), (torch.randn(1, 3, *_detector_size(name)),), {}
        if "optical_flow" in module:
            return Lambda(_flow, net=model), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), {}
        size = (
            224 if name.startswith(("vit", "maxvit", "swin3d", "mvit", "s3d")) else 299 if "inception" in name else 64
        )
        shape = (1, 3, 16, size, size) if "video" in module else (1, 3, size, size)
        return model, (torch.randn(shape),), {}

    return build


def _detector_size(name: str) -> tuple[int, int]:
    return (300, 300) if name.startswith("ssd") else (96, 128)


def _detect(s: Any, x: Tensor) -> list[Tensor]:
    """A detector's layers; boxes are not chosen, as that needs compiled operators: its one region is the image."""
    net = s.net
    features = list(net.backbone(x).values())
    if not hasattr(net, "rpn"):
        return list(net.head(features).values())
    scores, boxes = net.rpn.head(features)
    heads, region = net.roi_heads, F.adaptive_avg_pool2d(features[0], 7)
    found = [*scores, *boxes, *heads.box_predictor(heads.box_head(region))]
    for part in ("mask", "keypoint"):
        if getattr(heads, f"{part}_head", None) is not None:
            wider = F.adaptive_avg_pool2d(features[0], 14)
            found.append(getattr(heads, f"{part}_predictor")(getattr(heads, f"{part}_head")(wider)))
    return found


def _flow(s: Any, a: Tensor, b: Tensor) -> list[Tensor]:
    """Two updates; its grid of coordinates is made in float32 whatever the model is in."""
    module = sys.modules[type(s.net).__module__]
    grid = module.make_coords_grid
    with mock.patch.object(module, "make_coords_grid", lambda *args: grid(*args).to(a.dtype)):
        return s.net(a, b, num_flow_updates=2)


def project_zoo() -> list[Case]:
    """The project's own zoo."""
    return [Case(entry.name, entry.build) for entry in zoo.entries()]


LISTS: dict[str, Callable[[], list[Case]]] = {
    "field": field, "zoo": project_zoo, "torchvision": torchvision_list, "torchvision-rest": torchvision_rest
}  # fmt: skip
