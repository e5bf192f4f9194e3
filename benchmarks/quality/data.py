"""The data of each task, read from a folder or downloaded into it, and split once into train, validation and test.

A folder given by ``--data`` is searched for files by name, at any depth, so that an unpacked Debian package serves:
``dataset-fashion-mnist``, ``wordnet-base``, ``r-cran-mlbench`` (with PyPI's rdata), the output of ``bible`` in a file.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VALIDATION, TEST = 2000, 4000
CONTEXT, GLOSS = 64, 24
WORDS = 1800  # of the vocabulary; the characters are added to them
PAD, CLASS = 0, 1


@dataclass(frozen=True)
class Part:
    """Inputs, shape (n, ...), and what the model should say: classes, shape (n,), or the next tokens, shape (n, t)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor | slice) -> Part:
        """Some of it."""
        return Part(self.inputs[index], self.targets[index])


@dataclass(frozen=True)
class Data:
    """Three disjoint parts, how many values an output can take, and a token of the input where it is text.

    Hyper-parameters are chosen on ``val`` alone; fusing sees inputs of ``train`` without their targets.
    """

    train: Part
    val: Part
    test: Part
    classes: int
    vocabulary: int = 0


class Unavailable(Exception):
    """Data that is not there and cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """Where a file comes from: its names (the first is the one downloaded), and its address."""

    names: tuple[str, ...]
    url: str | None


def found(folder: Path, source: Source) -> Path:
    """The file of that name anywhere under the folder; downloaded into it when it is not there.

    Raises
    ------
    Unavailable
        It is not there and cannot be downloaded.
    """
    for name in source.names:
        there = sorted(folder.rglob(name)) if folder.is_dir() else []
        if there:
            return there[0]
    target, wanted = folder / source.names[0], " or ".join(source.names)
    if source.url is None:
        raise Unavailable(f"{folder}: no file {wanted}; put it there or give another folder by --data")
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(target.suffix + ".part")
    try:
        urllib.request.urlretrieve(source.url, partial)
    except OSError as error:
        raise Unavailable(
            f"{folder}: no file {wanted}, and {source.url} gives none ({error}); "
            "put it there or give another folder by --data"
        ) from error
    return partial.replace(target)


def shuffled(inputs: Tensor, targets: Tensor) -> Part:
    """In an order that is always the same."""
    return Part(inputs, targets).take(torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)))


def _split(part: Part, classes: int, vocabulary: int = 0, sizes: tuple[int, int] = (VALIDATION, TEST)) -> Data:
    """Validation first, then test, the rest to train with."""
    val, test = sizes
    cut = val + test
    train = part.take(slice(cut, None))
    return Data(train, part.take(slice(val)), part.take(slice(val, cut)), classes, vocabulary)


def _tested(part: Part, test: Part) -> Data:
    """Validation first, the rest to train with; the test set is one of its own."""
    return Data(part.take(slice(VALIDATION, None)), part.take(slice(VALIDATION)), test, 10)


FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"


def fashion(folder: Path) -> Data:
    """Fashion-MNIST: 58,000 images to train, 2,000 of the 60,000 to validate, 4,000 of the 10,000 to test."""
    train, test = (
        shuffled(_idx(folder, f"{name}-images-idx3-ubyte.gz"), _idx(folder, f"{name}-labels-idx1-ubyte.gz"))
        for name in ("train", "t10k")
    )
    images = [Part((part.inputs[:, None].float() / 255 - 0.286) / 0.353, part.targets.long()) for part in (train, test)]
    return _tested(images[0], images[1].take(slice(TEST)))


def _idx(folder: Path, name: str) -> Tensor:
    raw = gzip.decompress(found(folder, Source((name, name.removesuffix(".gz")), FASHION + name)).read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def cifar10(folder: Path) -> Data:
    """CIFAR-10: 20,000 images to train, 2,000 to validate, 4,000 of the test set to test."""
    path = found(folder, Source(("cifar-10-binary.tar.gz", "cifar10_jpeg.npz"), CIFAR))
    read = _cifar_jpegs if path.suffix == ".npz" else _cifar_binary
    return _tested(read(path, "train", 20_000 + VALIDATION), read(path, "test", TEST))


def _cifar_binary(path: Path, part: str, count: int) -> Part:
    with tarfile.open(path) as tar:
        members = [m for m in tar.getmembers() if f"{part}_batch" in m.name or (part == "train" and "data_b" in m.name)]
        raw = b"".join(file.read() for m in members if (file := tar.extractfile(m)) is not None)
    rows = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, 3073).copy())[:count]
    return Part(_colours(rows[:, 1:].view(-1, 3, 32, 32)), rows[:, 0].long())


def _cifar_jpegs(path: Path, part: str, count: int) -> Part:
    """JPEG files end to end, their offsets and labels, in one archive."""
    from PIL import Image

    with np.load(path) as archive:
        files, offsets, labels = (archive[f"{part}_{key}"] for key in ("jpeg", "offsets", "labels"))
    pixels = [
        np.asarray(Image.open(io.BytesIO(files[begin:end].tobytes())).convert("RGB"))
        for begin, end in itertools.pairwise(offsets[: count + 1])
    ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Part(_colours(images), torch.from_numpy(labels[:count]).long())


def _colours(images: Tensor) -> Tensor:
    return ((images.float() / 255 - 0.47) / 0.25).contiguous()


LETTERS = Source(
    ("letter-recognition.data", "LetterRecognition.rda"),
    "https://archive.ics.uci.edu/ml/machine-learning-databases/letter-recognition/letter-recognition.data",
)


def letters(folder: Path) -> Data:
    """UCI letters: 20,000 capitals, 16 features each, standardised."""
    path = found(folder, LETTERS)
    if path.suffix == ".rda":
        import rdata  # pyright: ignore[reportMissingImports]

        table = rdata.read_rda(path)["LetterRecognition"]
        names, rows = table["lettr"].astype(str).tolist(), table.drop(columns="lettr").to_numpy(np.float32)
    else:
        lines = [line.split(",") for line in path.read_text().split()]
        names, rows = [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    classes = torch.tensor([ord(name) - ord("A") for name in names])
    return _split(shuffled(torch.from_numpy(rows), classes), 26)


@dataclass(frozen=True)
class Vocabulary:
    """Padding, the class token, single characters, then words with the space before them.

    What is no word of it is spelt. Token ids are positions in ``tokens``.
    """

    ids: dict[str, int]

    @classmethod
    def of(cls, text: str, words: int) -> Vocabulary:
        """The characters of a text and its most frequent words."""
        counts = Counter(re.findall(r" ?[A-Za-z]+", text))
        common = [word for word, _ in counts.most_common(words) if len(word) > 1]
        return cls({token: i for i, token in enumerate(["", "", *sorted(set(text)), *common])})

    def __len__(self) -> int:
        return max(self.ids.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        out: list[int] = []
        for piece in re.findall(r" ?[A-Za-z]+|.", text, re.DOTALL):
            whole = self.ids.get(piece)
            out += [whole] if whole is not None else [self.ids[c] for c in piece if c in self.ids]
        return out


TEXT = Source(("pg10.txt", "bible.txt", "text.txt"), "https://www.gutenberg.org/cache/epub/10/pg10.txt")


def text(folder: Path) -> Data:
    """The King James Bible, in words and letters, cut into stretches of 64 tokens; targets are the next tokens."""
    raw = found(folder, TEXT).read_text(errors="ignore")
    raw = raw.split("*** START", 1)[-1].split("*** END", 1)[0]
    raw = re.sub(r"\s+", " ", re.sub(r"\d+(:\d+)?", " ", raw))
    vocabulary = Vocabulary.of(raw, WORDS)
    ids = torch.tensor(vocabulary.encode(raw))
    count = (len(ids) - 1) // CONTEXT
    rows = shuffled(ids[: count * CONTEXT].view(-1, CONTEXT), ids[1 : count * CONTEXT + 1].view(-1, CONTEXT))
    return _split(rows, len(vocabulary), len(vocabulary), sizes=(500, 1000))


NOUN, VERB = (Source((f"data.{kind}",), None) for kind in ("noun", "verb"))


def glosses(folder: Path) -> Data:
    """WordNet's glosses of nouns and verbs, a class token before 23 tokens, to be sorted into its 41 topics."""
    pairs: list[tuple[int, str]] = []
    for source in (NOUN, VERB):
        for line in found(folder, source).read_text().splitlines():
            if line[0] != " ":
                fields, gloss = line.split(" | ", 1)
                pairs.append((int(fields.split()[1]) - 3, gloss.split('; "')[0].strip()))
    vocabulary = Vocabulary.of("\n".join(gloss for _, gloss in pairs), 4000)
    rows = torch.full((len(pairs), GLOSS), PAD)
    for row, (_, gloss) in zip(rows, pairs, strict=True):
        ids = [CLASS, *vocabulary.encode(" " + gloss)][:GLOSS]
        row[: len(ids)] = torch.tensor(ids)
    return _split(shuffled(rows, torch.tensor([topic for topic, _ in pairs])), 41, len(vocabulary))


def skewed(part: Part, seed: int, share: float = 0.9) -> tuple[Part, Part]:
    """Two shards: one has that share of each class in one half of the classes, the other of those in the other half."""
    generator = torch.Generator().manual_seed(1000 + seed)
    classes = torch.randperm(10, generator=generator)
    likely = torch.full((10,), 1 - share)
    likely[classes[:5]] = share
    first = torch.rand(len(part), generator=generator) < likely[part.targets]
    return part.take(first), part.take(~first)


LOADERS: dict[str, Callable[[Path], Data]] = {
    "fashion": fashion, "cifar10": cifar10, "letters": letters, "text": text, "glosses": glosses,
}  # fmt: skip
