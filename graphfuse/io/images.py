"""Folders of images: what a model wants them to be, and how they are made so."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphfuse.errors import DataError
from graphfuse.io.examples import Examples

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SEED = 0


@dataclass(frozen=True)
class Preprocess:
    """What a model wants of images: the shorter side is scaled to ``size / crop``, the centre is cut out, the values
    in 0..1 are normalised. ``squash`` scales both sides instead, and nothing is cut.

    ``size`` is (height, width), in pixels; ``source`` says where these settings come from.
    """

    size: tuple[int, int]
    source: str
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    crop: float = 1.0
    filter: str = "bilinear"
    squash: bool = False

    @property
    def channels(self) -> int:
        """As many as there are means."""
        return len(self.mean)

    @classmethod
    def for_shape(cls, shape: Sequence[int]) -> Preprocess:
        """From the shape of an example input, (..., channels, height, width).

        Three channels are normalised as is usual for ImageNet, others to -1..1.
        """
        channels, height, width = shape[-3:]
        mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        return cls((height, width), f"the example input {tuple(shape)}, with the usual normalisation", mean, std)

    def __str__(self) -> str:
        how = "squashed" if self.squash else f"shorter side {round(min(self.size) / self.crop)}, centre cut out"
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"{self.size[0]} x {self.size[1]} ({how}, {self.filter}), mean {mean}, std {std}"


def read(folder: Path, how: Preprocess | None, argument: str | None = None) -> Examples:
    """The images of a folder; those of subfolders are labelled by them, in the order of the subfolders' names.

    The order is shuffled, the same each time, so that a part of them holds all classes.

    Parameters
    ----------
    folder, how :
        Where they are, and what the model wants.
    argument :
        The keyword argument that takes them; by default the positional one.

    Raises
    ------
    DataError
        There are no images, one cannot be read, or nothing says what the model wants.
    """
    flat = _images(folder)
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and _images(path)]
    files = [(path, number) for number, kind in enumerate(classes) for path in _images(kind)]
    if flat and files:
        raise DataError(
            f"{folder} holds images, and folders of images: {flat[0].name} and {classes[0].name}/.\n"
            "  what to do: put all images into one folder, or each into the folder of its class"
        )
    if not flat and not files:
        raise DataError(
            f"{folder} holds no images.\n  expected: *{', *'.join(SUFFIXES[:3])}, ..., or a folder of them for each "
            "class"
        )
    if how is None:
        raise DataError(
            f"nothing says what the model wants of the images in {folder}.\n"
            "  what to do: define example_inputs() beside the factory: a tensor (batch, channels, height, width)"
        )
    if importlib.util.find_spec("PIL") is None:
        raise DataError("images need Pillow, which is not installed.\n  what to do: pip install 'graphfuse[data]'")
    files = files or [(path, 0) for path in flat]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(SEED)).tolist()
    files = [files[row] for row in order]

    def inputs(rows: list[int]) -> Any:
        batch = torch.stack([_image(files[row][0], how) for row in rows])
        return batch if argument is None else {argument: batch}

    labels = torch.tensor([number for _, number in files]) if classes else None
    notes = (f"{folder}: {len(files)} images as {how.source} says: {how}",)
    return Examples(str(folder), len(files), inputs, labels, None, tuple(path.name for path in classes), notes)


def holds_images(folder: Path) -> bool:
    """Whether a folder, or one directly inside it, holds images."""
    return bool(_images(folder)) or any(_images(path) for path in folder.iterdir() if path.is_dir())


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _image(path: Path, how: Preprocess) -> Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert(MODES.get(how.channels, "RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError(f"the image {path} cannot be read: {str(error).splitlines()[0]}") from error
    height, width = how.size
    resample = getattr(Image.Resampling, how.filter.upper(), Image.Resampling.BILINEAR)
    if how.squash:
        image = image.resize((width, height), resample)
    else:
        scale = max(round(height / how.crop) / image.height, round(width / how.crop) / image.width)
        image = image.resize(
            (max(width, round(image.width * scale)), max(height, round(image.height * scale))), resample
        )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    values = torch.from_numpy(np.array(image, dtype=np.float32) / 255).reshape(height, width, -1).permute(2, 0, 1)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (how.mean, how.std))
    return (values - mean) / std
