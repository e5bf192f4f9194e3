"""Small models with known symmetries; every width is distinct so that equal sizes hide nothing."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Sequential):
    def __init__(self, widths: tuple[int, ...] = (5, 11, 7, 3)) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])


class BasicBlock(nn.Module):
    def __init__(self, came: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(came, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        plain = came == out and stride == 1
        self.skip = nn.Identity() if plain else nn.Sequential(nn.Conv2d(came, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """Four stages of two basic blocks: 4 residual axes and 8 inner ones."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16, 20), classes: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        blocks, came = [], widths[0]
        for stage, width in enumerate(widths):
            blocks += [BasicBlock(came, width + 1, width, 2 if stage else 1), BasicBlock(width, width + 3, width, 1)]
            came = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(came, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Block(nn.Module):
    """Pre-norm (or post-norm) transformer block with one fused qkv projection; attention fused or written out."""

    def __init__(
        self, width: int, heads: int, hidden: int, causal: bool, pre: bool = True, explicit: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.pre, self.explicit = heads, causal, pre, explicit
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).split(c, dim=2)
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
        if self.explicit:
            y = (q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, c))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Decoder(nn.Module):
    """GPT-2's shape: learned positions, pre-norm, tied output embedding."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 2, hidden: int = 40, vocabulary: int = 31) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class Encoder(nn.Module):
    """BERT's shape: post-norm, a classifier on the first token; attention written out."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 2, hidden: int = 40) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(31, width), nn.LayerNorm(width)
        blocks = (Block(width, heads, hidden, causal=False, pre=False, explicit=True) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.tokens(ids)))[:, 0])


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout."""
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x) + torch.cat([-high, low], -1) * sin.to(x)


class GroupedBlock(nn.Module):
    """Llama's block: RMSNorm, rotary grouped-query attention, gated MLP."""

    def __init__(self, width: int, heads: int, groups: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = heads, groups, dim
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, n * dim, bias=False) for n in (heads, groups, groups))
        self.o = nn.Linear(heads * dim, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k = rotate(self.split(self.q(h), self.heads)), rotate(self.split(self.k(h), self.groups))
        v = self.split(self.v(h), self.groups)
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class GroupedDecoder(nn.Module):
    def __init__(self, width: int = 24, heads: int = 6, groups: int = 2, dim: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(31, width)
        self.blocks = nn.Sequential(*(GroupedBlock(width, heads, groups, dim, 40) for _ in range(depth)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 31, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(ids))))


class DenseExperts(nn.Module):
    """Every expert on every input, mixed by a softmax router."""

    def __init__(self, experts: int = 4, hidden: int = 12) -> None:
        super().__init__()
        self.inp, self.router = nn.Linear(5, 9), nn.Linear(9, experts)
        self.up = nn.Parameter(torch.randn(experts, 9, hidden) / 3)
        self.down = nn.Parameter(torch.randn(experts, hidden, 10) / 3)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        gate = self.router(x).softmax(-1)
        h = torch.relu(torch.einsum("bd,edf->bef", x, self.up))
        return self.out((gate.unsqueeze(-1) * torch.einsum("bef,efd->bed", h, self.down)).sum(1))


class TopExperts(DenseExperts):
    """Two experts for each input, their weights gathered by the router's choice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        gate, chosen = self.router(x).softmax(-1).topk(2, -1)
        h = torch.relu(torch.einsum("bd,bkdf->bkf", x, self.up[chosen]))
        return self.out((gate.unsqueeze(-1) * torch.einsum("bkf,bkfd->bkd", h, self.down[chosen])).sum(1))


class Recurrent(nn.Module):
    def __init__(self, kind: str = "LSTM", layers: int = 2, both: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(19, 6)
        self.rnn = getattr(nn, kind)(6, 10, num_layers=layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(20 if both else 10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.tokens(ids))[0])


class UNet(nn.Module):
    """One level down and up; the skip and the upsampled channels keep their own axes through the concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.up = nn.Conv2d(8, 14, 3, padding=1), nn.ConvTranspose2d(14, 10, 2, 2)
        self.merge, self.out = nn.Conv2d(18, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.norm(self.down(x)))
        deep = self.up(torch.relu(self.mid(F.max_pool2d(skip, 2))))
        return self.out(torch.relu(self.merge(torch.cat([skip, deep], 1))))


def images(batch: int = 2, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def ids(batch: int = 2, length: int = 7, vocabulary: int = 19) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))
