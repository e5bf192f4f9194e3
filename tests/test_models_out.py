"""Models out: directories that load where the parents came from, in shards, with a card; fuse_pretrained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from helpers import Run, assert_same, needs, parents, randomise
from torch import nn

from graphfuse.errors import CheckpointError, ConfigError, DataError, ModelSpecError, OutputError
from graphfuse.hf import fuse_pretrained
from graphfuse.io.cards import model_card
from graphfuse.io.checkpoints import load_state
from graphfuse.io.fitting import load_into
from graphfuse.io.importing import import_library
from graphfuse.io.models import LoadedModel, ModelSpec, load_model, save_model
from graphfuse.io.sharding import bytes_of, save_sharded


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(7, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embedding.weight


# ------------------------------------------------------------------ shards


def test_weights_beyond_a_size_are_written_in_shards_and_come_back(tmp_path: Path) -> None:
    model = randomise(Tied())
    save_sharded(tmp_path, model, {}, "130B")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (35 + 25 + 5 + 7) and len(index["weight_map"]) == 4
    checkpoint = load_state(tmp_path)
    assert_same(dict(sorted(checkpoint.state.items())), dict(sorted(model.state_dict().items())), tolerance=0)
    other = randomise(Tied(), seed=1)
    load_into(other, checkpoint)
    assert_same(dict(other.state_dict()), dict(model.state_dict()), tolerance=0)


def test_sizes() -> None:
    assert [bytes_of(size) for size in ("5GB", "1.5 mb", "200")] == [5_000_000_000, 1_500_000, 200]
    for size in ("0GB", "five", "5GiB"):
        with pytest.raises(ConfigError) as caught:
            bytes_of(size)
        assert str(caught.value) == f"{size!r} is no size of a file.\n  expected: 500MB, 5GB"


# ------------------------------------------------------------------ the command


def test_fuse_writes_a_card_and_shards(run: Run, tmp_path: Path) -> None:
    specs = parents(tmp_path, "net", "net")
    code, _, error = run("fuse", *specs, "--data", "cli_nets:loader", "-o", "out", "--max-shard-size", "1KB")
    assert code == 0, error
    assert len(list(Path("out").glob("model-*-of-*.safetensors"))) > 1
    assert run("verify", "cli_nets:net@out")[0] == 0
    card = Path("out/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "pytorch", "tags": ["graphfuse", "merge"]}
    assert card.count("| Net |") == 2 and f"| `{specs[0]}` | Net |" in card and "calibration least_squares" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert settings == {"seed": 0}  # what is not set has its default
    code, _, error = run("fuse", *specs, "-o", "two", "--max-shard-size", "big")
    assert code == 1 and "'big' is no size of a file" in error and not Path("two").exists()


def test_the_code_of_a_card_loads_the_model(run: Run, tmp_path: Path) -> None:
    specs = parents(tmp_path, "net", "net")
    assert run("fuse", *specs, "-o", "out")[0] == 0
    code = Path("out/README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"FOLDER": "out"}
    exec(code, names)
    got, expected = names["model"].state_dict(), load_state("out").state
    assert_same(dict(sorted(got.items())), dict(sorted(expected.items())), tolerance=0)


# ------------------------------------------------------------------ transformers

WORDS = " ".join(f"w{k % 37}" for k in range(0, 5000, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small language models in bfloat16, with a tokenizer and a card of their own."""
    transformers = needs("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.logging.disable_progress_bar()
    tokens = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{k}": k + 1 for k in range(37)}}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]")
    root, found = tmp_path_factory.mktemp("pretrained"), []
    for seed in range(2):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=38, n_positions=16)
        folder = root / f"model{seed}"
        transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
        made.save_pretrained(folder)
        (folder / "README.md").write_text("a parent's card")
        found.append(folder)
    return found[0], found[1]


def test_directories_are_fused_into_one_that_loads(folders: tuple[Path, Path], tmp_path: Path) -> None:
    transformers = import_library("transformers")
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    result = fuse_pretrained(folders, [WORDS] * 2, tmp_path / "out", {"samples": 32}, length=8, batch_size=8)
    assert result.report["inputs"] == 32 and result.report["calibration"] is not None
    assert {path: path.read_bytes() for path in before} == before
    fused: Any = result.model
    assert type(fused) is transformers.GPT2LMHeadModel and fused.config.use_cache and fused.dtype == torch.bfloat16
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "alignment.safetensors", "config.json", "generation_config.json", "model.safetensors",
        "report.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    ids = torch.arange(8).reshape(1, 8)
    expected = fused(ids).logits
    for name in ("AutoModelForCausalLM", "GPT2LMHeadModel"):
        assert_same(getattr(transformers, name).from_pretrained(tmp_path / "out").eval()(ids).logits, expected, 0)
    body = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert_same(body(ids).last_hidden_state, fused.transformer(ids).last_hidden_state, 0)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w36")["input_ids"] == [2, 37]
    card = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers" in card and "GPT2LMHeadModel.from_pretrained" in card
    assert str(folders[1]) in card and "a parent's card" not in card
    parent = json.loads((folders[0] / "config.json").read_text())
    assert json.loads((tmp_path / "out/config.json").read_text()) == parent


def test_models_in_memory_are_left_as_they_are(folders: tuple[Path, Path], tmp_path: Path) -> None:
    transformers = import_library("transformers")
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    batches = [tokenizer([WORDS[:40]] * 2, return_tensors="pt")]
    out = tmp_path / "out"
    result = fuse_pretrained(models, batches, out, {"target": 1}, tokenizer=tokenizer, max_shard_size="3KB")
    for model, state in zip(models, before, strict=True):
        assert_same(dict(model.state_dict()), state, tolerance=0)
        assert model.config.use_cache and model.dtype == torch.bfloat16
    assert (out / "model.safetensors.index.json").is_file() and len(list(out.glob("model-*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert again.config.use_cache and again.dtype == torch.bfloat16
    assert_same(again(**batches[0]).logits, result.model(**batches[0]).logits, 0)
    assert_same(transformers.AutoTokenizer.from_pretrained(out)("w1")["input_ids"], [2])
    shards = load_model(str(out))
    assert_same(dict(shards.model.to(torch.bfloat16).state_dict()), dict(again.state_dict()), tolerance=0)
    mixed = fuse_pretrained([models[0], folders[1]])  # without data, by weights alone
    assert mixed.report["inputs"] == 0 and mixed.report["calibration"] is None


def test_what_cannot_be_fused_is_said_and_nothing_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    transformers = import_library("transformers")
    out = tmp_path / "out"

    def refused(error: type[Exception], *given: Any, **how: Any) -> str:
        with pytest.raises(error) as caught:
            fuse_pretrained(*given, **{"out": out, **how})
        assert not out.exists()
        return str(caught.value)

    assert refused(ModelSpecError, [folders[0], nn.Linear(2, 2)]) == (
        "a Linear is no model of transformers.\n"
        "  expected: directories, or models of transformers; for others: graphfuse.fuse"
    )
    assert refused(ModelSpecError, ["nets:net", folders[0]]) == (
        "nets:net is no directory of transformers.\n  what to do: fuse it with graphfuse.fuse"
    )
    assert refused(DataError, []) == "there are no models to fuse.\n  expected: directories or models of transformers"
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[0])
    assert refused(DataError, [model, model], [WORDS]) == (
        "texts need a tokenizer, and models in memory have none.\n  what to do: pass tokenizer="
    )
    assert refused(DataError, folders, ["w1 w2"]) == (
        "the text has 2 tokens, and a window 16.\n  what to do: give more text, or shorter windows: --length"
    )
    assert refused(OutputError, folders, out=folders[0]).startswith(f"the output directory {folders[0]} exists")
    message = refused(ModelSpecError, [tmp_path, folders[0]])
    assert message.startswith(f"the directory {tmp_path} holds no config.json, so it is no transformers model.")


def test_a_missing_head_is_named_or_allowed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    transformers = import_library("transformers")
    body = transformers.AutoModel.from_pretrained(folders[0])
    body.config.architectures = ["GPT2ForSequenceClassification"]
    body.config.pad_token_id = 0
    body.save_pretrained(tmp_path / "body")
    config = json.loads((tmp_path / "body/config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (tmp_path / "body/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_model(str(tmp_path / "body"))
    assert str(caught.value) == (
        f"{tmp_path / 'body'}: the weights do not fit GPT2ForSequenceClassification:\n  missing (1): score.weight\n"
        "  what to do: where these are meant to have fresh values, or to be left out, allow them: --allow NAME"
    )
    loaded = load_model(str(tmp_path / "body"), allow=["score."])
    assert f"{tmp_path / 'body'}: missing, as allowed: score.weight" in loaded.notes


def test_code_in_a_directory_is_not_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    trap = tmp_path / "trap"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    config = {"model_type": "own_kind", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSpecError) as caught:
        load_model(str(folder))
    assert str(caught.value).startswith(f"{folder}: transformers cannot read its config.json: ")
    assert not trap.exists() and os.listdir(tmp_path) == ["remote"]


def test_a_directory_keeps_mixed_precision(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    import_library("transformers").AutoModelForCausalLM.from_pretrained(folders[0]).save_pretrained(source)
    state = safetensors.torch.load_file(source / "model.safetensors")
    state["transformer.ln_f.weight"] = state["transformer.ln_f.weight"].float()
    safetensors.torch.save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(str(source))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    (tmp_path / "out").mkdir()
    save_model(loaded, loaded.model, tmp_path / "out")
    back = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert_same(dict(sorted(back.items())), dict(sorted(state.items())), tolerance=0)
    assert {name for name, value in back.items() if value.dtype == torch.float32} == {"transformer.ln_f.weight"}


def test_a_card_says_what_was_measured() -> None:
    report = {
        "models": [{"class": "Net", "parameters": 1234, "share": 0.5, "target": True}] * 2,
        "config": {"solver": "emd", "calibrate": {"method": "none"}},
        "free_fraction": 0.5,
        "inputs": 0,
        "notes": ["a remark"],
    }
    loaded = LoadedModel(nn.Linear(1, 1), ModelSpec("a|b:c", "factory", "a:c"))
    card = model_card(loaded, ["a|b:c", "d:e"], report, {"accuracy": 0.9123456})
    assert "- accuracy: 0.9123\n" in card and "| `a\\|b:c` | Net | 1,234 | 0.5 | yes |" in card
    assert "- no data: matched by weights alone" in card and "- a remark" in card and "solver: emd" in card
    assert "## Metrics" not in model_card(loaded, ["a:b"], report)
