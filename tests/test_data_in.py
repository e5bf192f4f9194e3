"""Data by name: images, text, saved data sets; each error whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, needs
from PIL import Image
from torch import Tensor, nn

from graphfuse.errors import DataError
from graphfuse.io.batches import FORMS, load_data, load_labelled
from graphfuse.io.images import Preprocess
from graphfuse.io.models import LoadedModel, load_model, parse_spec


def loaded(model: nn.Module, example: Any = None, preprocess: Preprocess | None = None) -> LoadedModel:
    return LoadedModel(model, parse_spec("gf_nets:tiny"), (), example, {}, preprocess)


CONV = loaded(nn.Conv2d(3, 4, 3), ((torch.zeros(2, 3, 6, 8),), {}))


def refused(spec: str | Path, model: LoadedModel | None = None, **how: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(load_data(str(spec), model=model, **how))
    return str(caught.value)


def picture(path: Path, value: int | tuple[int, ...], size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


# ------------------------------------------------------------------ images


def test_images_in_folders_are_labelled_by_them(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog", "eel"]):
        for k in range(3):
            picture(tmp_path / name / f"{k}.png", (100 * number,) * 3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load_labelled(str(tmp_path), 4, model=CONV)
    assert data.classes == ("cat", "dog", "eel")
    found = list(data)
    labels = torch.cat([one.labels for one in found])
    assert len(labels) == 9 and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(labels[:4].tolist())) > 1  # shuffled: a part of them holds several classes
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for one in found:
        assert isinstance(one.inputs, Tensor) and one.inputs.shape[1:] == (3, 6, 8)
        for image, label in zip(one.inputs, one.labels, strict=True):
            assert_same(image[:, 2, 3], (100 * label / 255 - mean) / std, tolerance=1e-5)
    unlabelled = load_data(str(tmp_path), 4, model=CONV)
    assert_same(list(unlabelled), [one.inputs for one in found[:2]])
    assert unlabelled.notes == (
        f"{tmp_path}: 9 images as the example input (2, 3, 6, 8), with the usual normalisation says: 6 x 8 (shorter "
        "side 6, centre cut out, bilinear), mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225",
    )


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", (1, 2, 3), (30, 20))
    picture(tmp_path / "b.png", 7, (5, 9), "L")  # grey, and smaller than what the model wants
    (batch,) = load_data(str(tmp_path), model=CONV)
    assert isinstance(batch, Tensor) and batch.shape == (2, 3, 6, 8)
    with pytest.raises(DataError, match="has no labels"):
        load_labelled(str(tmp_path), model=CONV)


def test_images_are_scaled_and_cut_as_the_library_says(tmp_path: Path) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255  # right half white
    image[:10] = 128  # a stripe that the cut takes away
    Image.fromarray(image).save(tmp_path / "a.png")
    how = Preprocess((8, 8), "a test", (0.0,) * 3, (1.0,) * 3, crop=0.5, filter="nearest")
    (batch,) = load_data(str(tmp_path), model=loaded(nn.Conv2d(3, 4, 3), None, how))
    assert isinstance(batch, Tensor)
    assert_same(batch[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4).expand(8, 8))  # 16 x 32, rows 4-12, columns 12-20
    squashed = Preprocess((8, 8), "a test", (0.0,) * 3, (1.0,) * 3, filter="nearest", squash=True)
    (batch,) = load_data(str(tmp_path), model=loaded(nn.Conv2d(3, 4, 3), None, squashed))
    assert isinstance(batch, Tensor)
    assert_same(batch[0, 1, :2], torch.full((2, 8), 128 / 255))
    assert_same(batch[0, 1, 2:], torch.tensor([0.0] * 4 + [1.0] * 4).expand(6, 8))


def test_grey_images_for_a_model_of_one_channel(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (255, 255, 255))
    model = loaded(nn.Conv2d(1, 4, 3), ((torch.zeros(2, 1, 6, 8),), {}))
    (batch,) = load_data(str(tmp_path), model=model)
    assert_same(batch, torch.ones(1, 1, 6, 8))


def test_what_transformers_and_timm_say_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("timm")
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "images/a.png", (255, 255, 255))
    vit = load_model("timm:vit_tiny_patch16_224,img_size=32,patch_size=8,embed_dim=24,depth=1,num_heads=3")
    (batch,) = load_data("images", model=vit)
    assert_same(batch, torch.ones(1, 3, 32, 32))  # (1 - 0.5) / 0.5
    half = load_model(vit.spec, dtype=torch.float64)
    assert next(iter(load_data("images", model=half))).dtype == torch.float64  # type: ignore[union-attr]


def test_the_image_processor_of_a_directory(tmp_path: Path) -> None:
    from graphfuse.io.pretrained import images

    def said(**config: Any) -> Preprocess:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        found = images(tmp_path)
        assert found is not None
        return found

    usual = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 3}
    cut = said(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True, **usual)
    assert cut == Preprocess((224, 224), "preprocessor_config.json", (0.1,) * 3, (0.2,) * 3, 224 / 256, "bicubic")
    whole = said(size={"height": 30, "width": 20}, **usual)
    assert (whole.size, whole.squash, whole.crop) == ((30, 20), True, 1.0)
    assert said(size=30, do_normalize=False).mean == (0.0,) * 3


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", CONV) == (
        f"the directory {tmp_path / 'empty'} holds neither images nor a data set that datasets saved.\n{FORMS}"
    )
    picture(tmp_path / "mixed/a.png", 0)
    picture(tmp_path / "mixed/cat/a.png", 0)
    assert refused(tmp_path / "mixed", CONV) == (
        f"{tmp_path / 'mixed'} holds images, and folders of images: a.png and cat/.\n"
        "  what to do: put all images into one folder, or each into the folder of its class"
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"not an image")
    assert refused(tmp_path / "bad", CONV) == (
        f"the image {tmp_path / 'bad/a.png'} cannot be read: cannot identify image file '{tmp_path / 'bad/a.png'}'"
    )
    for model in (None, loaded(nn.Linear(2, 2)), loaded(nn.Linear(2, 2), ((torch.zeros(2, 3),), {}))):
        assert refused(tmp_path / "bad", model) == (
            f"nothing says what the model wants of the images in {tmp_path / 'bad'}.\n"
            "  what to do: define example_inputs() beside the factory: a tensor (batch, channels, height, width)"
        )


# ------------------------------------------------------------------ text


def language_model(folder: Path, words: int = 40, special: bool = False, kind: str = "gpt2") -> LoadedModel:
    transformers = needs("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "[S]": 1, **{f"w{k}": k + 2 for k in range(words)}}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if special:
        tokens.post_processor = processors.TemplateProcessing("[S] $A", None, [("[S]", 1)])  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]")
    config: Any
    if kind == "t5":
        config = transformers.T5Config(vocab_size=words + 2, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        model = transformers.T5Model(config)
    else:
        config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=words + 2, n_positions=16)
        model = transformers.GPT2LMHeadModel(config)
    transformers.logging.disable_progress_bar()
    made.save_pretrained(folder)
    model.save_pretrained(folder)
    return load_model(str(folder))


def test_text_in_windows(tmp_path: Path) -> None:
    model = language_model(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"w{k % 40}" for k in range(50)))
    (batch,) = load_data(str(text), model=model)  # 16 positions: three windows, two words are left out
    assert isinstance(batch, dict) and list(batch) == ["input_ids"]
    assert_same(batch["input_ids"], (torch.arange(48) % 40 + 2).reshape(3, 16))
    data = load_data(str(text), 2, model=model, length=5, samples=4)
    assert [tuple(one["input_ids"].shape) for one in data if isinstance(one, dict)] == [(2, 5), (2, 5)]
    assert data.notes == (f"{text}: 10 windows of 5 tokens",)


def test_windows_get_special_tokens_and_both_sides_of_an_encoder_decoder(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{k}" for k in range(8)))
    (batch,) = load_data(str(text), model=language_model(tmp_path / "a", special=True), length=5)
    assert isinstance(batch, dict)
    assert_same(batch["input_ids"], torch.tensor([[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]]))
    (batch,) = load_data(str(text), model=language_model(tmp_path / "b", kind="t5"), length=8)
    assert isinstance(batch, dict)
    assert_same(batch["decoder_input_ids"], batch["input_ids"])


def test_text_that_cannot_be_used(tmp_path: Path) -> None:
    model = language_model(tmp_path / "model")
    text = tmp_path / "text.txt"
    assert refused(text, model) == f"the text {text} cannot be read: No such file or directory"
    text.write_text("w1 w2 w3")
    assert refused(text, model) == (
        f"{text} has 3 tokens, and a window 16.\n  what to do: give more text, or shorter windows: --length"
    )
    assert refused(text, model, length=17) == "windows of 17 tokens cannot be given to the model.\n  expected: 1 to 16"
    for other in (None, loaded(nn.Linear(2, 2))):
        assert refused(text, other) == (
            f"the text {text} needs a tokenizer, and only a transformers directory has one.\n"
            "  what to do: give token ids: FILE.npz or FILE.safetensors with an array for each argument of forward"
        )
    text.write_bytes(b"\xff\xfe\x00")
    assert refused(text, model).startswith(f"the text {text} is not in UTF-8: 'utf-8' codec can't decode byte 0xff")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    folder = tmp_path / "model"
    assert refused(text, model) == (
        f"{folder} has no tokenizer that can be loaded: it holds no tokenizer files\n"
        f"  what to do: save it beside the model: tokenizer.save_pretrained('{folder}')"
    )


# ------------------------------------------------------------------ saved data sets


class Takes(nn.Module):
    def forward(self, input_ids: Tensor, scores: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return input_ids


@pytest.fixture
def table(tmp_path: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def save(name: str = "saved", **columns: Any) -> Path:
        datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / name)
        return tmp_path / name

    return save


def test_columns_of_a_saved_data_set(table: Any) -> None:
    folder = table(input_ids=[[1, 2], [3, 4], [5, 6]], scores=[0.5, 1.5, 2.5], label=[0, 1, 0], text=["a", "b", "c"])
    model = loaded(Takes())
    data = load_data(str(folder), 2, model=model)
    assert_same(list(data), [{"input_ids": torch.tensor([[1, 2], [3, 4]]), "scores": torch.tensor([0.5, 1.5])}])
    assert data.notes == (f"{folder}: 'label' holds labels; it is not given to the model",)
    found = list(load_labelled(str(folder), 2, model=model))
    assert_same(torch.cat([one.labels for one in found]), torch.tensor([0, 1, 0]))
    plain = table("plain", x=[[1.0, 2.0]], idx=[3])  # no column of forward's, but one that can only be the input
    assert_same(list(load_data(str(plain), model=loaded(nn.Linear(2, 2)))), [torch.tensor([[1.0, 2.0]])])


def test_saved_data_sets_that_cannot_be_used(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    model = loaded(Takes())
    whole = datasets.Dataset.from_dict({"input_ids": [[1]]})
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "splits")
    splits = tmp_path / "splits"
    assert refused(splits, model) == (
        f"{splits} holds the splits test, train.\n  what to do: name one of them: {splits / 'test'}"
    )
    assert len(list(load_data(str(tmp_path / "splits/test"), model=model))) == 1
    texts = table("texts", text=["a"], idx=[1])
    assert refused(texts, model) == (
        f"{texts} has no column for the model: text, idx.\n  Takes.forward takes: input_ids, scores, labels\n"
        "  what to do: rename_column in datasets, or tokenise first: map(..., batched=True)"
    )
    ragged = table("ragged", input_ids=[[1, 2], [3]])
    assert refused(ragged, model) == (
        f"{ragged}: the rows of 'input_ids' differ in shape.\n"
        "  what to do: make them one length: padding='max_length', truncation=True"
    )
    words = table("words", input_ids=["a", "b"])
    assert refused(words, model) == (
        f"{words}: the rows of 'input_ids' are no numbers.\n  what to do: leave the column out: remove_columns"
    )
    empty = table("empty", input_ids=[])
    assert refused(empty, model).startswith(f"the data set {empty} cannot be read: ")
    (words / "state.json").unlink()
    assert refused(words, model).startswith(f"the data set {words} cannot be read: ")
    monkeypatch.setattr("graphfuse.io.saved.importlib.util.find_spec", lambda name: None)
    assert refused(ragged, model) == (
        f"the data {ragged} needs datasets, which is not installed.\n  what to do: pip install 'graphfuse[data]'"
    )
