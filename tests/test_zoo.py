"""Conformance with architectures of another library, small and randomly initialised; run by ``make zoo``."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

import graphfuse
from graphfuse.io.pretrained import import_transformers

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs graphfuse[zoo]"),
]

TEXT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=99,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GROUPED = dict(TEXT, num_key_value_heads=2, use_cache=False)
GPT = dict(n_layer=2, n_embd=32, n_head=4, vocab_size=99, n_positions=64, use_cache=False)
IMAGE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32,
             patch_size=8, num_labels=5)  # fmt: skip
T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=99,
          decoder_start_token_id=0, use_cache=False)  # fmt: skip
SWIN = dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=5)
CONVNEXT = dict(hidden_sizes=[16, 24], depths=[1, 1], num_stages=2, num_labels=5)

MODELS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    # name: (auto class, config, kind of input, free axes counted by hand or by an earlier verified run)
    "bert": ("AutoModelForMaskedLM", TEXT, "ids", 9),
    "distilbert": ("AutoModelForMaskedLM",
                   dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=99, max_position_embeddings=64),
                   "ids", 9),
    "gpt2": ("AutoModelForCausalLM", GPT, "ids", 9),
    "llama": ("AutoModelForCausalLM", GROUPED, "ids", 9),
    "mistral": ("AutoModelForCausalLM", GROUPED, "ids", 9),
    "gemma": ("AutoModelForCausalLM", dict(GROUPED, head_dim=8), "ids", 9),
    "t5": ("AutoModelForSeq2SeqLM", T5, "pair", 20),
    "vit": ("AutoModelForImageClassification", IMAGE, "pixels", 9),
    "swin": ("AutoModelForImageClassification", SWIN, "pixels", 10),
    "convnextv2": ("AutoModelForImageClassification", CONVNEXT, "pixels", 4),
}  # fmt: skip


def inputs(kind: str) -> dict[str, Tensor]:
    if kind == "pixels":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    ids = torch.randint(3, 90, (2, 7))
    return {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if kind == "pair" else {"input_ids": ids}


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", MODELS)
def test_what_is_called_free_is_free_and_nothing_is_lost(name: str) -> None:
    transformers = import_transformers()
    auto, options, kind, count = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(name, **options)).eval()
    graph = graphfuse.trace(model, (), inputs(kind))
    assert len(graph.axes) == count, f"\n{graph}"
    result = graphfuse.verify(graph)
    assert result.ok, result
    assert result.sensitivity > 0.5
