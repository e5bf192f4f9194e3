"""The demo's networks, written in the usual idioms; nothing in here knows that it will be fused.

The factories without arguments (:func:`mlp`, :func:`resnet`, :func:`vit`, :func:`vit_narrow`) are what the command line
takes as ``graphfuse.demo.models:vit@weights.safetensors``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphfuse.demo.data import CLASSES


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int = 256, hidden: int = 4) -> None:
        super().__init__()
        widths = [28 * 28, *[width] * hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to a skip connection."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False),
                nn.BatchNorm2d(after),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A residual network with batch norm: a stem and three stages, each half as large and twice as wide as the last."""

    def __init__(self, width: int = 24, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        widths = [width, width, 2 * width, 4 * width]
        self.stages = nn.Sequential(
            *(self._stage(before, after, blocks) for before, after in pairwise(widths)),
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    @staticmethod
    def _stage(before: int, after: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(before, after, stride=1 if before == after else 2)
        return nn.Sequential(first, *(BasicBlock(after, after, stride=1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        mixed = scores.softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer: patches of 7 x 7, a class token, learnt positions, pre-norm blocks."""

    def __init__(self, width: int = 128, depth: int = 3, heads: int = 4, ratio: int = 2, patch: int = 7) -> None:
        super().__init__()
        tokens = (28 // patch) ** 2 + 1
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Encoder(width, heads, ratio * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def mlp() -> nn.Module:
    """The demo's multilayer perceptron: four hidden layers of 256."""
    return MLP()


def resnet() -> nn.Module:
    """The demo's residual network with batch norm."""
    return ResNet()


def vit() -> nn.Module:
    """The demo's vision transformer, width 128."""
    return ViT()


def vit_narrow() -> nn.Module:
    """The demo's narrow vision transformer, width 64."""
    return ViT(width=64)
