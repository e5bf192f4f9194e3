"""The benchmark's networks, in the usual idioms, with the demo's blocks where they are the same."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphfuse.demo.models import BasicBlock, Encoder


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, features: int, classes: int, width: int, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([features, *[width] * depth]))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class ResNet20(nn.Module):
    """Nine basic blocks in three stages (He et al. 2016, section 4.2), ``widen`` times as wide."""

    def __init__(self, classes: int, widen: int = 2) -> None:
        super().__init__()
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(3):
                blocks.append(BasicBlock(before, width, 2 if stage and not index else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean(dim=(2, 3)))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention written out, shapes (batch, heads, tokens, head_dim); ``mask`` is True where one may look."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    return scores.softmax(dim=-1) @ value


def causal(tokens: int, device: torch.device) -> Tensor:
    """True where a row may look: at itself and before, shape (tokens, tokens)."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


class MaskedBlock(Encoder):
    """A pre-norm block whose attention is masked."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        (batch, tokens, width), heads = x.shape, self.attention.heads
        split = self.attention.qkv(self.norm1(x)).view(batch, tokens, 3, heads, width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, mask).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.attention.proj(mixed)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer: patches of 4 x 4, a class token, learnt positions, pre-norm blocks."""

    def __init__(self, size: int, channels: int, classes: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // 4) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Encoder(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class GPT2(nn.Module):
    """A GPT-2-like language model: learnt positions, pre-norm blocks, the head tied to the embedding."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(MaskedBlock(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        tokens = ids.shape[1]
        x = self.wte(ids) + self.wpe(torch.arange(tokens, device=ids.device))
        mask = causal(tokens, ids.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions on shape (batch, heads, tokens, head_dim): the halves are the two coordinates of each pair."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cosine, sine = torch.cat([angles, angles], dim=-1).cos(), torch.cat([angles, angles], dim=-1).sin()
    return x * cosine + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sine


class GroupedAttention(nn.Module):
    """Causal attention with rotary positions, several query heads for each key and value head."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, groups * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query = rotate(self.q_proj(x).view(batch, tokens, self.heads, self.size).transpose(1, 2))
        key = rotate(self.k_proj(x).view(batch, tokens, self.groups, self.size).transpose(1, 2))
        value = self.v_proj(x).view(batch, tokens, self.groups, self.size).transpose(1, 2)
        key, value = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (key, value))
        mixed = attend(query, key, value, causal(tokens, x.device))
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class GatedBlock(nn.Module):
    """Grouped attention and a gated MLP, each after a root-mean-square norm."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = GroupedAttention(width, heads, groups)
        self.post_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x))
        y = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """A Llama-like language model: rotary positions, grouped queries, gated MLPs, a head of its own."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(GatedBlock(width, heads, groups, width * 11 // 4) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class PostNormBlock(nn.Module):
    """A transformer block whose norms stand after the sums."""

    def __init__(self, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm1 = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = attend(query, key, value, mask).transpose(1, 2).reshape(batch, tokens, width)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """A BERT-like classifier: post-norm blocks, padding masked, the class token read by a pooler."""

    def __init__(self, vocabulary: int, context: int, classes: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(PostNormBlock(width, heads) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        mask = (ids != 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))
